"""What models say: translations, transcripts, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from warmstart.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from warmstart.data.config import DataConfig
    from warmstart.data.speech.config import SpeechDataConfig
    from warmstart.inference.ctc import SpeechSearch, Tuning


def translate(
    models: Sequence[str | Path],
    lines: Sequence[str],
    *,
    engine: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    vocabularies: Sequence[str] = (),
    **search: Any,
) -> list[list[tuple[str, float]]]:
    """(text, score) of the best outputs of each line, best first, in the order of ``lines``.

    Args:
        models: one model, or an ensemble (native engine).
        engine: ``native`` or ``ctranslate2``; None chooses by what the model is.
        precision: of the native engine's matrix products, ``float32`` or ``bfloat16``.
        search: keys of ``inference.search.SearchConfig`` (beam_size, normalize, nbest, …).
    """
    from pydantic import ValidationError

    from warmstart.bundle.model import open_model
    from warmstart.formats.detect import arrive
    from warmstart.inference.search import SearchConfig
    from warmstart.inference.translate import CTranslate2Model, is_ctranslate2, translate_native

    try:
        config = SearchConfig(**search)
    except ValidationError as error:
        raise ConfigError(
            "these search options are not valid",
            problems=[Problem(f"{'.'.join(map(str, e['loc']))}: {e['msg']}".lstrip(": ")) for e in error.errors()],
        ) from None
    paths = [arrive(m)[0] for m in models]
    exported = [is_ctranslate2(p) for p in paths]
    chosen = engine or ("ctranslate2" if any(exported) else "native")
    if chosen not in ("native", "ctranslate2"):
        raise ConfigError(f"there is no engine {chosen!r}", expected="native or ctranslate2")
    if precision not in ("float32", "bfloat16") or (chosen == "ctranslate2" and precision != "float32"):
        raise ConfigError(
            f"precision {precision!r} is not for the {chosen} engine",
            expected="float32 or bfloat16, of the native engine",
            todo="choose the precision of an exported model when it is converted: --quantize",
        )
    if chosen == "ctranslate2":
        if not all(exported) or len(paths) != 1:
            raise ConfigError(
                "the ctranslate2 engine needs one exported model",
                found=", ".join(map(str, paths)),
                todo="run `warmstart convert MODEL DIR --to ctranslate2` first",
            )
        found = CTranslate2Model(paths[0]).translate(lines, config)
    else:
        opened = [open_model(m, vocabularies=vocabularies) for m in models]
        found = translate_native(opened, lines, config, precision=precision)
    return [[(t.text, t.score) for t in best] for best in found]


def transcribe(
    model: str | Path,
    files: Sequence[str | Path],
    *,
    vocabularies: Sequence[str] = (),
    progress: bool = False,
    **search: Any,
) -> list[dict[str, Any]]:
    """What is said in each of ``files``, in their order: ``file``, ``text``, ``confidence``, ``seconds``, and ``words``
    with ``word``, ``start`` and ``end`` in seconds; only ``file`` and ``error`` where one cannot be read.

    Args:
        model: a run, bundle or checkpoint of a speech model, or what ``convert --to onnx`` wrote of one.
        search: keys of ``inference.ctc.SpeechSearch`` (beam_size, scorer, alpha, beta, hot_words, …).

    Raises:
        WarmstartError: the model or the scorer cannot be opened, or options do not go together.
    """
    from warmstart.errors import WarmstartError
    from warmstart.inference.speech.acoustic import open_acoustic
    from warmstart.inference.speech.transcriber import Transcriber
    from warmstart.storage.progress import Progress

    transcriber = Transcriber(open_acoustic(model, vocabularies=tuple(vocabularies)), _speech_search(search))
    found: list[dict[str, Any]] = [{"file": str(file)} for file in files]
    with Progress("transcribing", len(files), "files") as bar:
        for number, heard in transcriber.files([Path(file) for file in files]):
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
        alpha_max, beta_max: greatest weight of the scorer and of a word.

    Raises:
        WarmstartError: the model, the scorer or the recordings cannot be opened.
    """
    from warmstart.data.speech.read import read_examples
    from warmstart.inference.speech.tuning import tune_scorer

    examples = [example for path in data for example in read_examples(Path(path))]
    return tune_scorer(
        model, examples, scorer, beam_size=beam_size, alpha_max=alpha_max, beta_max=beta_max, progress=progress,
        vocabularies=vocabularies,
    )  # fmt: skip


def _speech_search(options: dict[str, Any]) -> SpeechSearch:
    from warmstart.inference.ctc import SpeechSearch

    options = {key: value for key, value in options.items() if value is not None}
    unknown = sorted(set(options) - {field.name for field in fields(SpeechSearch)})
    _require_none("hearing speech", dict.fromkeys(unknown, True))
    return SpeechSearch(**options)


def evaluate(
    model: str | Path,
    data: str | Path | Sequence[str | Path] = (),
    *,
    split: str = "test",
    engine: str | None = None,
    vocabularies: Sequence[str] = (),
    output: str | Path | None = None,
    report: Callable[[str], object] | None = None,
    report_count: int = 5,
    progress: bool = False,
    **search: Any,
) -> dict[str, dict[str, float]]:
    """Metrics of ``model`` on ``split`` of every task that has it; error rates are in percent.

    Args:
        data: a configuration whose ``data`` names the tasks; for a run, its own by default. Or the data themselves:
            lists of recordings (``.csv``, ``.sdb``, ``.tar``), ``.tsv`` files with two columns, each a task, or two
            text files whose lines belong together.
        search: for texts keys of ``inference.search.SearchConfig``; for speech those of
            ``inference.ctc.SpeechSearch`` (beam_size, scorer, alpha, beta, hot_words, …).
        output: for speech, a file for what was made of each recording (the JSON of Coqui's ``--test_output_file``).
        report: for speech, is given a text with the ``report_count`` best, median and worst recordings of each task.
    """
    from warmstart.data.config import DataConfig

    files = [Path(data)] if isinstance(data, str | Path) else [Path(file) for file in data]
    pieces = _data_to_evaluate(model, files, split)
    search = {key: value for key, value in search.items() if value is not None}
    if isinstance(pieces, DataConfig):
        _require_none("evaluating texts", {"output": output})
        out = _evaluate_texts(model, pieces, split, engine, vocabularies, search)
        if not out:
            raise DataError(f"no task has a split {split!r}", found=", ".join(pieces.tasks))
        return out
    _require_none("evaluating speech", {"engine": engine})
    return _evaluate_speech(model, pieces, split, vocabularies, output, report, report_count, progress, search)


def _data_to_evaluate(model: str | Path, files: Sequence[Path], split: str) -> DataConfig | SpeechDataConfig:
    """What ``files`` are, or the configuration of the run ``model``."""
    from warmstart.config import load_config
    from warmstart.data.config import DataConfig, SplitConfig, TaskConfig
    from warmstart.data.speech.config import SpeechDataConfig, SpeechSplitConfig, SpeechTaskConfig
    from warmstart.data.speech.read import is_list
    from warmstart.formats.detect import split_choice
    from warmstart.setting import data_of
    from warmstart.sources.uri import resolve

    missing = [Problem("there is no such file", str(file)) for file in files if not file.is_file()]
    if missing:
        raise ConfigError("what to evaluate on is not there", problems=missing)
    if files and all(is_list(file) for file in files):
        speech = {str(file): SpeechTaskConfig(splits={split: SpeechSplitConfig(files=(file,))}) for file in files}
        return SpeechDataConfig(tasks=speech)
    if files and all(file.suffix.lower() == ".tsv" for file in files):
        return DataConfig(tasks={str(file): TaskConfig(splits={split: SplitConfig(tsv=file)}) for file in files})
    if len(files) == 2:
        pair = SplitConfig(source=files[0], target=files[1])
        return DataConfig(tasks={files[1].name: TaskConfig(splits={split: pair})})
    if len(files) > 2:
        raise ConfigError(
            "these files do not go together",
            found=", ".join(map(str, files)),
            expected="a configuration, lists of recordings, TSV files, or two files whose lines belong together",
        )
    source = files[0] if files else resolve(split_choice(model)[0]) / "config.yaml"
    if not source.is_file():
        raise ConfigError(
            "what to evaluate on is not known",
            where=source.parent,
            todo="give the data or a configuration that names the tasks: --data FILE",
        )
    return data_of(load_config(source))


def _require_none(doing: str, given: dict[str, Any]) -> None:
    problems = [Problem(f"{key} changes nothing when {doing}") for key, value in given.items() if value is not None]
    if problems:
        raise ConfigError("these options are for another kind of model", problems=problems)


def _evaluate_texts(
    model: str | Path,
    data: DataConfig,
    split: str,
    engine: str | None,
    vocabularies: Sequence[str],
    search: dict[str, Any],
) -> dict[str, dict[str, float]]:
    from warmstart.data.config import build_task

    out: dict[str, dict[str, float]] = {}
    for name, piece in data.tasks.items():
        if split not in piece.splits:
            continue
        task = build_task(name, piece, {})
        examples = list(task.examples(split))
        found = translate(
            [model], [str(e["source"]) for e in examples], engine=engine, vocabularies=vocabularies, **search
        )
        predictions = [task.postprocess(best[0][0], dict(e)) for best, e in zip(found, examples, strict=True)]
        out[name] = task.score([e["target"] for e in examples], predictions)
    return out


def _evaluate_speech(
    model: str | Path,
    data: SpeechDataConfig,
    split: str,
    vocabularies: Sequence[str],
    output: str | Path | None,
    report: Callable[[str], object] | None,
    report_count: int,
    progress: bool,
    search: dict[str, Any],
) -> dict[str, dict[str, float]]:
    from warmstart.bundle.model import open_model
    from warmstart.inference.ctc import write_samples
    from warmstart.inference.evaluate_speech import evaluate_speech

    opened = open_model(model, vocabularies=vocabularies)
    found = evaluate_speech(opened, data, split, _speech_search(search), progress=progress)
    if output is not None:
        write_samples([sample for one in found.values() for sample in one.samples], Path(output))
    for name, one in found.items():
        if report is not None:
            report(one.text(name, report_count))
    return {name: {"loss": one.loss, "wer": 100 * one.wer, "cer": 100 * one.cer} for name, one in found.items()}
