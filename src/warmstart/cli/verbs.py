"""Every verb, and which function is called for it."""

from __future__ import annotations

from typing import Annotated

import typer

from warmstart.cli import answers, checkpoints, conversion, remote, speech, training

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
