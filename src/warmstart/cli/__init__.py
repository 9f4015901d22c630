"""The command line: one short function a verb, in a module for each group of verbs."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli import answers, checkpoints, conversion, remote, speech, training
from warmstart.cli.options import print_error
from warmstart.errors import Interrupted, MissingExtra, WarmstartError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Open any pretrained model, see what will carry over, train from it, ship it.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from warmstart import __version__

        typer.echo(f"warmstart {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


VERBS = (
    checkpoints.inspect,
    checkpoints.diff,
    checkpoints.extract,
    training.plan,
    training.train,
    training.runs,
    training.curves,
    training.compare,
    answers.evaluate,
    answers.translate,
    speech.transcribe,
    speech.lm_tune,
    conversion.convert,
    conversion.verify,
    remote.ls,
    remote.fetch,
)
for _verb in VERBS:
    app.command(_verb.__name__.replace("_", "-"))(_verb)
app.add_typer(remote.cache, name="cache")
app.add_typer(speech.stt, name="stt")
conversion.add_converters(app)

SPINS_ALONE, SPINS = 10_000, 3_000
LIBRARIES = dict.fromkeys(("torch", "tensorboard", "matplotlib", "sacrebleu", "jiwer"), "train")  # → extra


def wait_briefly() -> None:
    """Let OpenMP's threads spin between two pieces of work, and then sleep: for about a tenth of a millisecond, or
    three tenths on a machine that does nothing else when the command begins.

    Threads that sleep at once take as long to wake as a small model's products take, those that spin for long keep
    other processes, and each other, from a core that they need (docs/decisions/0011). Without effect once torch is
    imported, or if ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` says otherwise.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS_ALONE if _alone() else SPINS))


def _alone() -> bool:
    """Whether no other process wants a processor, in most of a few moments; no, where the system does not say."""
    running = []
    try:
        for _ in range(5):
            running.append(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
            time.sleep(0.001)
    except (OSError, IndexError):
        return False
    return running.count("1") >= 3


def main() -> None:
    """Run a verb. Errors that warmstart raises on purpose are printed without a traceback; status 1."""
    wait_briefly()
    gc.set_threshold(50_000)  # imports and vocabularies make many objects and no garbage
    try:
        app()
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(stop.status) from None
    except WarmstartError as error:
        print_error(error)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        print_error(MissingExtra(library, LIBRARIES[library]))
        raise SystemExit(1) from None
    except BrokenPipeError:
        raise SystemExit(141) from None
    finally:
        _name_plugins()


def _name_plugins() -> None:
    """Whose code was run besides warmstart's, on stderr. Most verbs that need no model load no families."""
    registry = sys.modules.get("warmstart.models.registry")
    for plugin in registry.FAMILIES.ran() if registry is not None else ():
        typer.echo(f"with the plug-in {plugin}", err=True)
