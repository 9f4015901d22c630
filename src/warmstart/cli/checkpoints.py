"""The verbs that look into checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli.options import Json, Names, Offline, Source, print_json, print_report, status_1_is_a_difference


def inspect(
    source: Source,
    names: Names = None,
    stats: Annotated[bool, typer.Option("--stats", help="read the arrays: min, max, mean, std, zeros, NaN")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Show what is in a checkpoint. Format, configuration, arrays, optimizer, step: read from headers alone."""
    from warmstart import api
    from warmstart.reports.inspect import inspect_text

    facts = api.inspect(source, names=names or (), stats=stats)
    print_json(facts) if as_json else print_report(inspect_text, facts)


def diff(
    a: Source,
    b: Source,
    names: Names = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="|A-B| that is no difference")] = 0.0,
    relative: Annotated[
        float, typer.Option("--relative", min=0.0, help="the same, as a part of the larger number")
    ] = 0.0,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="compare arrays and nothing else")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Say what differs between two checkpoints. Status 0: nothing; 1: something; 2: trouble."""
    from warmstart import api
    from warmstart.reports.diff import diff_text

    with status_1_is_a_difference():
        facts = api.diff(a, b, names=names or (), tolerance=tolerance, relative=relative, weights_only=weights_only)
    print_json(facts) if as_json else print_report(diff_text, facts)
    raise typer.Exit(0 if facts["same"] else 1)


def extract(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="a new .npz, .safetensors or .pt file")],
    names: Names = None,
    slots: Annotated[bool, typer.Option("--slots", help="the optimizer's state too")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the destination")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Write chosen arrays to a new file. Its ending names the format: .npz, .safetensors or .pt."""
    from warmstart import api
    from warmstart.reports.text import counted

    facts = api.extract(source, destination, names=names or (), slots=slots, force=force)
    if as_json:
        print_json(facts)
        return
    more = f" and {counted(facts['slots'], 'slot')}" if facts["slots"] else ""
    arrays = counted(facts["arrays"], "array")
    typer.echo(f"{facts['destination']}: {facts['format']}, {arrays}{more}, {facts['bytes']:,} bytes")
