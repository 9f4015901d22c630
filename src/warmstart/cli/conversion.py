"""The verbs that write and check models of other frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmstart.cli import convert_lightly, run_converter
from warmstart.cli.options import AS_IT_IS, Inputs, Json, Offline, Vocab, print_json, status_1_is_a_difference


def convert(
    source: Annotated[str, typer.Argument(help="a path or URL; of several DIR@best, ENSEMBLE@MEMBER")],
    destination: Annotated[Path, typer.Argument(help="a new directory")],
    to: Annotated[
        str, typer.Option("--to", help="ctranslate2, transformers, marian, t5x …, warmstart (a bundle), safetensors …")
    ],
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", help="int8, int16, float16, bfloat16, float32, int8_float32 … (ctranslate2)"),
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="the source's dialect, if not found out; fairseq:de,en says more")
    ] = None,
    vocab: Vocab = None,
    copy_files: Annotated[
        list[str] | None, typer.Option("--copy-files", help="a file beside the source, as often as wanted")
    ] = None,
    vmap: Annotated[Path | None, typer.Option("--vmap", help="vocabulary map (ctranslate2)")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the destination")] = False,
    strict: Annotated[bool, typer.Option(help="refuse what nothing explains")] = True,
    report: Annotated[bool, typer.Option("--report", help="show what was lost, array by array")] = False,
    beam_size: Annotated[
        int | None, typer.Option("--beam-size", help="beams that a tflite file names to its client; 500")
    ] = None,
    requantize: Annotated[bool, typer.Option("--requantize", help="round again what is quantized")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="run both; write it if the answers are the same")] = False,
    inputs: Inputs = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Write a model in another framework's dialect."""
    from warmstart import api
    from warmstart.reports.conversion import conversion_text

    convert_lightly()
    facts = api.convert(
        source, destination, to, quantize=quantize, from_=from_, vocabularies=vocab or (),
        copy_files=copy_files or (), vmap=vmap, force=force, strict=strict, report=report, requantize=requantize,
        beam_size=beam_size,
        verify=verify, inputs=inputs, progress=True,
    )  # fmt: skip
    print_json(facts) if as_json else typer.echo(conversion_text(facts), nl=False)


def verify(
    a: Annotated[str, typer.Argument(help="a path or URL")],
    b: Annotated[str, typer.Argument(help="another")],
    inputs: Inputs = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="random inputs, without --inputs; 100, of sound 10")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of random inputs")] = 0,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", min=0.0, help="largest difference of an answer")
    ] = None,
    vocab: Vocab = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Run two models on the same inputs. Status 0: the same answers; 1: others; 2: trouble."""
    from warmstart import api
    from warmstart.reports.verification import verification_text

    with status_1_is_a_difference():
        facts = api.verify(a, b, inputs=inputs, count=count, seed=seed, tolerance=tolerance, vocabularies=vocab or ())
    print_json(facts) if as_json else typer.echo(verification_text(facts), nl=False)
    raise typer.Exit(0 if facts["same"] else 1)


def add_converters(app: typer.Typer) -> None:
    """CTranslate2's own commands. Their names stand here too, so that `--help` need not load the table of flags."""
    for name in ("marian", "opus-mt", "transformers", "openai-gpt2", "opennmt-py", "opennmt-tf", "fairseq"):
        _add_converter(app, f"ct2-{name}-converter")


def _add_converter(app: typer.Typer, command: str) -> None:
    @app.command(command, context_settings=AS_IT_IS, help="As CTranslate2's, with its flags.")
    def converter(context: typer.Context) -> None:
        run_converter(command, *context.args)
