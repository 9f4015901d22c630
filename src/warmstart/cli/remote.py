"""The verbs that bring files from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli.options import Json, Offline, print_json

cache = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What was fetched: list, prune, verify.")


def ls(source: Annotated[str, typer.Argument(help="a path or URL")], as_json: Json = False) -> None:
    """List what is at a path or URL, one level deep."""
    from warmstart import api

    found = api.ls(source)
    if as_json:
        print_json(found)
        return
    for entry in found:
        size = "" if entry["size"] is None else f"{entry['size']:,}"
        typer.echo(f"{size:>15}  {entry['url']}")


def fetch(
    source: Annotated[str, typer.Argument(help="a URL")],
    directory: Annotated[Path | None, typer.Argument(help="where to copy it; else it is in the cache alone")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every file of a directory that can be listed")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace other files of the same names")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Bring a file or directory from a URL. What belongs to it comes, too; goes on where it broke off."""
    from warmstart import api

    files = api.fetch(source, directory, everything=everything, force=force)
    if as_json:
        print_json([str(file) for file in files])
        return
    for file in files:
        typer.echo(file)


@cache.command("list")
def cache_list(as_json: Json = False) -> None:
    """List what was fetched, with its size and when it was last used."""
    from datetime import datetime

    from warmstart import api

    rows = api.cache_list()
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("nothing was fetched yet")
    for row in rows:
        used = datetime.fromtimestamp(row["used"]).strftime("%Y-%m-%d %H:%M")
        typer.echo(f"{row['bytes']:>15,}  {used}  {row['url']}{'' if row['complete'] else '  (incomplete)'}")


@cache.command("prune")
def cache_prune(
    days: Annotated[float, typer.Option("--days", min=0.0, help="keep what was used in as many days")] = 30.0,
) -> None:
    """Remove what was not used lately (--days 0: everything)."""
    from warmstart import api

    typer.echo(f"{api.cache_prune(days):,} bytes freed")


@cache.command("verify")
def cache_verify() -> None:
    """Compare every file with its SHA-256 and remove what is damaged. Status 1 if something was."""
    from warmstart import api

    damaged = api.cache_verify()
    for url in damaged:
        typer.echo(f"damaged, removed: {url}", err=True)
    if damaged:
        raise typer.Exit(1)
    typer.echo("every file is what it was")
