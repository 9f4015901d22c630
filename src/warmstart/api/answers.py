"""What models say: translations, transcripts, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from warmstart.errors import ConfigError, Problem

if TYPE_CHECKING:
    from warmstart.inference.ctc import Tuning
    from warmstart.kinds import Data


def translate(
    models: Sequence[str | Path],
    lines: Sequence[str],
    *,
    engine: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    vocabularies: Sequence[str] = (),
    device: str = "cpu",
    **search: Any,
) -> list[list[tuple[str, float]]]:
    """(text, score) of the best outputs of each line, best first, in the order of ``lines``.

    Args:
        models: one model, or an ensemble (native engine).
        engine: ``native`` or ``ctranslate2``; None chooses by what the model is.
        precision: of the native engine's matrix products, ``float32`` or ``bfloat16``.
        vocabularies: files to use instead of those that the framework names: source, then target.
        device: where the native engine computes: ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (a GPU if there is one).
        search: keys of ``inference.search.SearchConfig`` (beam_size, normalize, nbest, …).

    Raises:
        WarmstartError: a model cannot be opened, or options are not valid or do not go together.
    """
    from warmstart.inference.translate import translate as translated

    found = translated(
        models, lines, engine=engine, precision=precision, vocabularies=vocabularies, device=device, **search
    )
    return [[(t.text, t.score) for t in best] for best in found]


def transcribe(
    model: str | Path,
    files: Sequence[str | Path],
    *,
    vocabularies: Sequence[str] = (),
    progress: bool = False,
    device: str = "cpu",
    **search: Any,
) -> list[dict[str, Any]]:
    """What is said in each of ``files``, in their order: ``file``, ``text``, ``confidence``, ``seconds``, and ``words``
    with ``word``, ``start`` and ``end`` in seconds; only ``file`` and ``error`` where one cannot be read.

    Args:
        model: a run, bundle or checkpoint of a speech model, or what ``convert --to onnx`` wrote of one.
        vocabularies: the alphabet's file, instead of the model's own.
        progress: draw a bar on stderr.
        device: where a model that is not exported computes, as for :func:`translate`.
        search: keys of ``inference.ctc.SpeechSearch`` (beam_size, scorer, alpha, beta, hot_words, …).

    Raises:
        WarmstartError: the model or the scorer cannot be opened, or options do not go together.
    """
    from warmstart.data.speech.example import AudioSource
    from warmstart.errors import WarmstartError
    from warmstart.inference.ctc import SpeechSearch
    from warmstart.inference.speech.acoustic import open_acoustic
    from warmstart.inference.speech.transcriber import Transcriber
    from warmstart.storage.progress import Progress

    transcriber = Transcriber(
        open_acoustic(model, vocabularies=tuple(vocabularies), device=device), SpeechSearch.of(search)
    )
    found: list[dict[str, Any]] = [{"file": str(AudioSource(file))} for file in files]
    with Progress("transcribing", len(files), "files") as bar:
        for number, heard in transcriber.files([AudioSource(file) for file in files]):
            found[number] |= {"error": str(heard)} if isinstance(heard, WarmstartError) else heard.as_json()
            if progress:
                bar.update(1)
    return found


def lm_tune(
    model: str | Path,
    scorer: str | Path,
    data: Sequence[str | Path],
    *,
    beam_size: int = 100,
    alpha_max: float = 5.0,
    beta_max: float = 5.0,
    vocabularies: Sequence[str] = (),
    progress: bool = False,
) -> Tuning:
    """The weights of ``scorer`` with the fewest errors on recordings: the model hears each once, then pairs are tried.

    Args:
        data: CSV, SDB or tar files of recordings with transcripts.
        beam_size: prefixes that the search keeps.
        alpha_max, beta_max: greatest weight of the scorer and of a word.
        vocabularies, progress: as for :func:`transcribe`.

    Raises:
        WarmstartError: the model, the scorer or the recordings cannot be opened.
    """
    from warmstart.data.speech.read import read_examples
    from warmstart.inference.ctc import BeamOptions
    from warmstart.inference.speech.tuning import tune_scorer

    options = BeamOptions(beam_size)
    examples = [example for path in data for example in read_examples(path)]
    return tune_scorer(
        model, examples, scorer, options=options, alpha_max=alpha_max, beta_max=beta_max, progress=progress,
        vocabularies=vocabularies,
    )  # fmt: skip


def evaluate(
    model: str | Path,
    data: str | Path | Sequence[str | Path] = (),
    *,
    split: str = "test",
    engine: str | None = None,
    vocabularies: Sequence[str] = (),
    output: str | Path | None = None,
    report: Callable[[str], object] | None = None,
    report_count: int | None = None,
    progress: bool = False,
    device: str = "cpu",
    **search: Any,
) -> dict[str, dict[str, float]]:
    """Metrics of ``model`` on ``split`` of every task that has it; error rates are in percent.

    Args:
        data: a configuration whose ``data`` names the tasks; for a run, its own by default. Or the data themselves:
            lists of recordings (``.csv``, ``.sdb``, ``.tar``), ``.tsv`` files with two columns, each a task, or two
            text files whose lines belong together. All may be URLs.
        engine, vocabularies: as for :func:`translate`.
        progress: draw a bar on stderr.
        search: for texts keys of ``inference.search.SearchConfig``; for speech those of
            ``inference.ctc.SpeechSearch`` (beam_size, scorer, alpha, beta, hot_words, …).
        device: where our own engine computes, as for :func:`translate`.
        output: for speech, a file for what was made of each recording (the JSON of Coqui's ``--test_output_file``).
        report: for speech, is given a text with the ``report_count`` (5) best, median and worst recordings of each
            task.

    Raises:
        ConfigError: what to evaluate on is not known, or options are for another kind of model.
        WarmstartError: the model cannot be opened, or the data cannot be used.
    """
    from warmstart.inference.asked import Asked
    from warmstart.kinds import kind_of
    from warmstart.sources.uri import at_home, is_remote

    named = [data] if isinstance(data, str | Path) else data
    files = [file if is_remote(file) else at_home(file) for file in named]
    if output is not None and at_home(output).resolve() in {f.resolve() for f in files if isinstance(f, Path)}:
        raise ConfigError("the output would replace what is evaluated on", where=output, todo="choose another file")
    found = _data_to_evaluate(model, files, split)
    asked = Asked(
        model, split, engine, vocabularies, None if output is None else at_home(output), report, report_count, progress,
        device, {key: value for key, value in search.items() if value is not None},
    )  # fmt: skip
    return kind_of(found).evaluate(found, asked)


def _data_to_evaluate(model: str | Path, files: Sequence[str | Path], split: str) -> Data:
    """What ``files`` are, or the configuration of the run ``model``."""
    from warmstart.config import load_config
    from warmstart.formats.detect import split_choice
    from warmstart.kinds import KINDS
    from warmstart.setting import data_of
    from warmstart.sources.uri import local, resolve

    missing = [Problem("there is no such file", str(f)) for f in files if isinstance(f, Path) and not f.is_file()]
    if missing:
        raise ConfigError("what to evaluate on is not there", problems=missing)
    for kind in KINDS if files else ():
        if (found := kind.of_files(files, split)) is not None:
            return found
    if len(files) > 1:
        raise ConfigError(
            "these files do not go together",
            found=", ".join(map(str, files)),
            expected="a configuration, lists of recordings, TSV files, or two files whose lines belong together",
        )
    source = local(files[0]) if files else resolve(split_choice(model)[0]) / "config.yaml"
    if not source.is_file():
        raise ConfigError(
            "what to evaluate on is not known",
            where=source.parent,
            todo="give the data or a configuration that names the tasks: --data FILE",
        )
    return data_of(load_config(source))
