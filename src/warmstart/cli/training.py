"""The verbs of trainings: planned, made, listed, drawn, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli.options import Config, Coverage, Json, Metrics, Offline, Overrides, print_json
from warmstart.storage.processes import rank


def plan(
    config: Config,
    overrides: Overrides = None,
    require_coverage: Coverage = 0.0,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Say where each parameter's value comes from. Reads no weights."""
    from warmstart import api
    from warmstart.reports.plan import plan_text

    made = api.plan(config, overrides or (), require_coverage=require_coverage)
    print_json(made.as_json()) if as_json else typer.echo(plan_text(made), nl=False)


def train(
    config: Config,
    overrides: Overrides = None,
    require_coverage: Coverage = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="try it: say memory and time, write nothing")] = False,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Train, or go on where the same run stopped."""
    from warmstart import api

    if dry_run:
        from warmstart.reports.rehearsal import rehearsal_text

        found = api.dry_run(config, overrides or (), require_coverage=require_coverage)
        print_json(found) if as_json else typer.echo(rehearsal_text(found), nl=False)
        return
    facts = api.train(config, overrides or (), require_coverage=require_coverage)
    if rank() > 0:
        return
    if as_json:
        print_json(facts)
        return
    for note in facts["notes"]:
        typer.echo(f"  {note}")
    metrics = ", ".join(f"{k.removeprefix('validation/')} {v:.3f}" for k, v in facts["metrics"].items())
    if metrics:
        typer.echo(f"best at step {facts['best_step']} of {facts['steps']}: {metrics}")
    else:
        typer.echo(f"{facts['steps']} steps, the last weights" if facts["steps"] else "nothing was trained")
    typer.echo(f"model: {facts['model']}")


LabelledRuns = Annotated[
    list[str], typer.Argument(metavar="[LABEL=]RUN", help="directories of runs, or one that holds several")
]


def runs(
    directories: Annotated[list[Path] | None, typer.Argument(metavar="DIR", help="runs, or what holds them")] = None,
    lineage: Annotated[bool, typer.Option("--lineage", help="show what each came from, as a tree")] = False,
    pin: Annotated[list[int] | None, typer.Option("--pin", help="never remove the checkpoint of this step")] = None,
    unpin: Annotated[list[int] | None, typer.Option("--unpin", help="no longer keep it for ever")] = None,
    as_json: Json = False,
) -> None:
    """List runs and their state; pin checkpoints. Looks below the directories, this one by default; status 1 if a
    run is damaged."""
    from warmstart import api
    from warmstart.errors import ConfigError
    from warmstart.reports.runs import lineage_text, pin_checkpoints, runs_table

    places = directories or [Path()]
    if pin or unpin:
        if len(places) != 1:
            raise ConfigError("checkpoints are pinned in one run", found=f"{len(places)} directories")
        pin_checkpoints(places[0], pin or (), unpin or ())
    found = api.runs(places)
    if as_json:
        print_json([run.as_json() for run in found])
    elif pin or unpin:
        typer.echo(f"pinned: {', '.join(map(str, found[0].pinned)) or 'none'}")
    elif not found:
        typer.echo(f"no runs below {', '.join(map(str, places))}; `warmstart train CONFIG` begins one")
    else:
        typer.echo("\n".join(map(lineage_text, found)) if lineage else runs_table(found), nl=False)
    problems = [problem for run in found for problem in run.problems]
    for problem in problems:
        typer.echo(f"damaged: {problem}", err=True)
    if problems:
        raise typer.Exit(1)


def curves(
    runs: LabelledRuns,
    metrics: Metrics = None,
    output: Annotated[Path, typer.Option("--output", help="a .png, .svg or .csv file")] = Path("curves.png"),
) -> None:
    """Draw runs' learning curves on one picture. Their numbers are written beside it as CSV."""
    from warmstart import api

    typer.echo(f"curves: {', '.join(map(str, api.curves(runs, output, metrics or ())))}")


def compare(
    runs: LabelledRuns,
    metrics: Metrics = None,
    curves: Annotated[Path | None, typer.Option("--curves", help="draw them too: PNG or SVG")] = None,
) -> None:
    """Put runs' metrics side by side in a table."""
    from warmstart.reports.curves import open_runs, require_measured, write_curves
    from warmstart.reports.table import comparison_table

    records = open_runs(runs)
    chosen = metrics or ["validation/loss"]
    require_measured(records, chosen)
    typer.echo(comparison_table(records, chosen), nl=False)
    if curves is not None:
        typer.echo(f"curves: {', '.join(map(str, write_curves(records, chosen, curves)))}")
