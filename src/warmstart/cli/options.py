"""Options that several verbs have, and how they print."""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli import print_error
from warmstart.errors import WarmstartError

Source = Annotated[str, typer.Argument(help="a file, a directory, a run or a URL; of several DIR@best")]
TrainedModel = Annotated[str, typer.Argument(help="a run, a bundle or a model of another framework; also a URL")]
Config = Annotated[Path, typer.Argument(help="a YAML file")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Names = Annotated[list[str] | None, typer.Option("--names", help="only arrays of such names: '*.weight'")]
Vocab = Annotated[list[str] | None, typer.Option("--vocab", help="vocabulary file: source, then target")]
Overrides = Annotated[list[str] | None, typer.Argument(help="overrides, key=value")]
Coverage = Annotated[float, typer.Option("--require-coverage", min=0.0, max=1.0, help="refuse a plan that loads less")]
Beam = Annotated[int, typer.Option("--beam-size", help="1 is greedy")]
Normalize = Annotated[float, typer.Option("--normalize", help="scores are divided by length to this power")]
Inputs = Annotated[Path | None, typer.Option("--inputs", help="lines to run both on; else random ones")]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="a metric, for instance validation/chrf")]
Engine = Annotated[str | None, typer.Option("--engine", help="native or ctranslate2; by default what the model is for")]
Device = Annotated[str, typer.Option("--device", help="where our engine computes: cpu, cuda, cuda:N, or auto")]


def _stay_offline(context: typer.Context, chosen: bool) -> None:
    if chosen:
        from warmstart.sources.policy import using

        context.with_resource(using(offline=True))


Offline = Annotated[
    bool,
    typer.Option("--offline", help="use the cache, not the network", callback=_stay_offline, expose_value=False),
]


def print_json(value: object) -> None:
    from warmstart.reports.text import json_text

    typer.echo(json_text(value))


def print_report(text: Callable[..., str], facts: object) -> None:
    """As wide as the terminal (80 columns elsewhere), in colour only on one and without NO_COLOR."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(text(facts, width=shutil.get_terminal_size((80, 24)).columns, colour=colour), nl=False)


@contextmanager
def status_1_is_a_difference() -> Iterator[None]:
    """Whatever goes wrong ends with another status."""
    try:
        yield
    except WarmstartError as error:
        print_error(error)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception:
        traceback.print_exc()
        raise typer.Exit(2) from None


AS_IT_IS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}  # another system's flags
