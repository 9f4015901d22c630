"""The verbs that ask models of text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from warmstart.cli.options import Beam, Device, Engine, Json, Normalize, Offline, TrainedModel, Vocab, print_json


def evaluate(
    model: TrainedModel,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="configuration that names the tasks; or a CSV, SDB or tar file of recordings, a TSV file of texts and "
            "their translations, or (twice) a file of texts and one of their translations",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="of the tasks")] = "test",
    beam_size: Annotated[
        int | None, typer.Option("--beam-size", min=1, help="1, which is greedy, by default; with a scorer 500")
    ] = None,
    normalize: Annotated[
        float | None, typer.Option("--normalize", help="of texts: scores are divided by length to this power")
    ] = None,
    scorer: Annotated[Path | None, typer.Option("--scorer", help="of speech: .scorer, ARPA or KenLM binary")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="weight of the scorer's language model")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="what each word adds, with a scorer")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="of speech: JSON of every recording")] = None,
    report_count: Annotated[
        int | None,
        typer.Option("--report-count", min=0, help="of speech: how many best, median and worst are shown (5)"),
    ] = None,
    engine: Engine = None,
    device: Device = "cpu",
    vocab: Vocab = None,
    as_json: Json = False,
    offline: Offline = False,
) -> None:
    """Score a run's or a model's outputs. Those of a split of its tasks, or of `--data`."""
    from warmstart import api
    from warmstart.memory import keep_freed_memory

    keep_freed_memory()
    reports: list[str] = []
    scores = api.evaluate(
        model, data or (), split=split, engine=engine, vocabularies=vocab or (), output=output, report=reports.append,
        report_count=report_count, progress=not as_json, device=device, beam_size=beam_size, normalize=normalize,
        scorer=scorer, alpha=alpha, beta=beta,
    )  # fmt: skip
    if as_json:
        print_json(scores)
        return
    for text in reports:
        typer.echo(text, nl=False)
    for task, metrics in scores.items():
        typer.echo(f"{task}: " + ", ".join(f"{k} {v:.2f}" for k, v in metrics.items()))


def translate(
    models: Annotated[list[str], typer.Argument(help="runs, bundles or models of other frameworks; also URLs")],
    input_file: Annotated[Path | None, typer.Option("--input", help="lines to translate; else standard input")] = None,
    beam_size: Beam = 1,
    normalize: Normalize = 0.0,
    nbest: Annotated[int, typer.Option("--nbest", help="outputs a line")] = 1,
    scores: Annotated[bool, typer.Option("--scores", help="print index ||| text ||| score")] = False,
    engine: Engine = None,
    device: Device = "cpu",
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option(help="of the native engine")] = "float32",
    vocab: Vocab = None,
    offline: Offline = False,
) -> None:
    """Translate lines. Several models are an ensemble."""
    from warmstart import api
    from warmstart.data.text import read_lines, read_standard_input
    from warmstart.memory import keep_freed_memory

    keep_freed_memory()
    lines = list(read_lines(input_file) if input_file else read_standard_input())
    found = api.translate(
        models, lines, engine=engine, precision=precision, vocabularies=vocab or (), device=device,
        beam_size=beam_size, nbest=nbest, normalize=normalize,
    )  # fmt: skip
    for index, best in enumerate(found):
        for text, score in best:
            typer.echo(f"{index} ||| {text} ||| {score:.6f}" if scores or nbest > 1 else text)
