"""The public verbs as functions: what the command line calls and what a program imports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from warmstart.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from warmstart.bootstrap.plan import Plan
    from warmstart.data.config import DataConfig
    from warmstart.data.speech.config import SpeechDataConfig
    from warmstart.inference.ctc import SpeechSearch
    from warmstart.reports.runs import Run

__all__ = [
    "cache_list",
    "cache_prune",
    "cache_verify",
    "contains_model",
    "convert",
    "curves",
    "diff",
    "dry_run",
    "evaluate",
    "extract",
    "fetch",
    "inspect",
    "ls",
    "plan",
    "runs",
    "train",
    "transcribe",
    "translate",
    "verify",
]


def inspect(source: str | Path, *, names: Sequence[str] = (), stats: bool = False) -> dict[str, Any]:
    """What is in a checkpoint, from its headers: format, family, dialect, configuration, entries, slots, step, ties.

    Args:
        names: patterns such as ``*.weight``; only entries that match, and their slots, are listed.
        stats: read the arrays, one at a time, for ``stats`` of each: see ``values.statistics.Statistics``.

    Raises:
        SourceError, FormatError, BundleError: it cannot be opened.
        ConfigError: a pattern matches nothing.
    """
    from warmstart.bundle.model import open_anyway
    from warmstart.values.describe import describe_model

    model, notes = open_anyway(source)
    return describe_model(model, names=names, stats=stats, notes=notes)


def diff(
    a: str | Path,
    b: str | Path,
    *,
    names: Sequence[str] = (),
    tolerance: float = 0.0,
    relative: float = 0.0,
    weights_only: bool = False,
) -> dict[str, Any]:
    """What differs between two checkpoints of any formats: ``same`` says whether anything does.

    Names, shapes, dtypes and values of arrays and optimizer slots, the step, configuration and vocabularies; metadata
    is not compared. In canonical names where the dialects of both are known.

    Args:
        names: patterns such as ``*.weight``; only arrays that match, and their slots, are compared.
        tolerance, relative: elements a and b count as equal if |a - b| <= tolerance + relative * max(|a|, |b|); if one
            of them is given, other dtypes are no difference.
        weights_only: compare arrays and nothing else.

    Raises:
        SourceError, FormatError, BundleError: one of them cannot be opened or is damaged.
        ConfigError: a pattern matches nothing, or a tolerance is below 0.
    """
    from warmstart.bundle.model import open_anyway
    from warmstart.values.compare import compare_models

    if not (tolerance >= 0 and relative >= 0):
        raise ConfigError("a tolerance is a number from 0", found=f"{tolerance}, {relative}")
    (left, first), (right, second) = open_anyway(a), open_anyway(b)
    return compare_models(
        left,
        right,
        names=names,
        tolerance=tolerance,
        relative=relative,
        weights_only=weights_only,
        notes=[*(f"A: {note}" for note in first), *(f"B: {note}" for note in second)],
    )


def extract(
    source: str | Path, destination: str | Path, *, names: Sequence[str] = (), slots: bool = False, force: bool = False
) -> dict[str, Any]:
    """Write chosen arrays, names as they are in ``source``, to a new ``.npz`` or ``.safetensors`` file.

    Args:
        names: patterns such as ``*.weight``; all arrays by default.
        slots: the optimizer's state too, as ``optimizer.SLOT.NAME``; of a run, that of its last checkpoint.

    Raises:
        SourceError, FormatError, ConfigError, StorageError; an existing destination is left as it was.
    """
    from warmstart.bundle.model import open_anyway
    from warmstart.export.extract import extract_arrays

    model, _ = open_anyway(source, with_state=slots)
    return extract_arrays(model.checkpoint, Path(destination), names=names, slots=slots, force=force)


def plan(config: str | Path, overrides: Sequence[str] = (), *, require_coverage: float = 0.0) -> Plan:
    """The plan of the run that ``config`` describes. No weights are read.

    Raises:
        PlanError, ConfigError: every reason why it cannot start so.
    """
    from warmstart.setting import open_setting

    return open_setting(config, overrides, require_coverage).plan


def train(
    config: str | Path, overrides: Sequence[str] = (), *, require_coverage: float = 0.0, progress: bool = True
) -> dict[str, Any]:
    """Train as ``config`` says, or go on where the same run stopped; ``RUN/model`` is the finished bundle.

    With ``mode: use`` nothing is trained: the source is passed on, verified, as a bundle with lineage.

    Raises:
        WarmstartError: one clear error; what was there before is as it was.
    """
    from warmstart.sources.policy import using
    from warmstart.storage.locks import directory_lock
    from warmstart.trainings import check_use, job_of, open_for_run, pass_on, train_setting

    setting = open_for_run(config, overrides, require_coverage)
    if any(s.mode == "use" for s in setting.config.start):
        check_use(setting)
        with directory_lock(setting.config.run):
            return pass_on(setting)
    job = job_of(setting)
    with directory_lock(setting.config.run), using(mirrors=setting.config.sources.mirrors):
        return train_setting(setting, job, progress)


def dry_run(
    config: str | Path, overrides: Sequence[str] = (), *, require_coverage: float = 0.0, progress: bool = True
) -> dict[str, Any]:
    """Build everything that :func:`train` would, make a few updates in memory, and say what the training needs.

    Returns:
        The fields of ``training.rehearsal.Rehearsal``: memory, times, size of a checkpoint. Nothing is written.

    Raises:
        WarmstartError: what would keep the training from starting, as far as it can be known.
    """
    from dataclasses import asdict

    from warmstart.trainings import job_of, open_for_run

    setting = open_for_run(config, overrides, require_coverage)
    if any(s.mode == "use" for s in setting.config.start):
        raise ConfigError("`mode: use` trains nothing, so there is nothing to try", todo="run `warmstart plan`")
    job = job_of(setting)
    from warmstart.sources.policy import using
    from warmstart.training.run import rehearse_run

    with using(mirrors=setting.config.sources.mirrors):
        return asdict(rehearse_run(job, progress=progress))


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    quantize: str | None = None,
    from_: str | None = None,
    vocabularies: Sequence[str] = (),
    copy_files: Sequence[str] = (),
    vmap: str | Path | None = None,
    activation_scales: str | Path | None = None,
    force: bool = False,
    strict: bool = True,
    requantize: bool = False,
    report: bool = False,
    verify: bool = False,
    inputs: str | Path | None = None,
    progress: bool = False,
) -> dict[str, object]:
    """Write ``source`` at ``destination`` in the dialect ``to`` (``ctranslate2``, ``marian``, ``warmstart`` …), or, of
    any checkpoint, its arrays as they are (``safetensors``, ``npz``, ``torch``).

    Args:
        quantize: for ``ctranslate2``: int8, int8_float32, int8_float16, int8_bfloat16, int16, float16, bfloat16,
            float32, or none (every dtype stays).
        from_: the dialect of the source, where it should not be found out.
        vocabularies: files to use instead of those that the framework names.
        copy_files: names of files beside the source that travel with the model.
        vmap: a vocabulary map, for ``ctranslate2``.
        activation_scales: a checkpoint of the largest activations of OPT, by which it is smoothed (SmoothQuant).
        strict: refuse arrays that nothing explains, instead of listing them.
        requantize: what is quantized already may be rounded again.
        report: measure how far every stored array is from its source.
        verify: run source and output on the lines of ``inputs``, or on random ones, as :func:`verify` does, before
            the output takes its place.

    Returns what was written: ``bytes``, ``arrays``, ``aliases``, ``ledger``, ``losses`` with ``report``, and
    ``verification`` with ``verify``.

    Raises:
        ConfigError, SourceError, StorageError, DialectError, FormatError; an existing destination is left as it was.
        VerificationError: the output does not give the source's answers; nothing was written then.
    """
    from warmstart.storage.hashing import Digests

    if inputs is not None and not verify:
        raise ConfigError("inputs are for a verification", todo="--verify too, or leave out --inputs")
    with Digests() as digests:
        digests.guess(source)  # hashed while the rest of the program is imported
        from warmstart.bundle.model import open_model
        from warmstart.export.convert import convert_model

        model = open_model(source, vocabularies=vocabularies, dialect=from_)
        if activation_scales is not None:
            from warmstart.export.smoothing import smooth

            smooth(model, activation_scales)
        verified: dict[str, Any] = {}

        def check(directory: Path) -> None:
            from warmstart.inference.verify import require_same, verify_models

            found = verify_models(model, open_model(directory), _lines(inputs), name=str(destination))
            verified["verification"] = require_same(found)

        facts = convert_model(
            model, Path(destination), to, quantize=quantize, force=force, strict=strict, requantize=requantize,
            report=report, copy_files=copy_files, vmap=vmap, progress=progress, digests=digests,
            check=check if verify else None,
        )  # fmt: skip
    return {**facts, **verified}


def verify(
    a: str | Path,
    b: str | Path,
    *,
    inputs: str | Path | None = None,
    count: int | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    vocabularies: Sequence[str] = (),
) -> dict[str, Any]:
    """Run two models on the same inputs: ``same`` says whether they give the same answers.

    A ``model.bin`` is run by CTranslate2, what has a module here by our own forward, other transformers directories
    by transformers. Of models that write text the log-probabilities of given outputs (``largest``, ``mean``, in natural
    logarithms) and the greedy outputs (``outputs_that_differ``, ``examples``) are compared; of encoders and models that
    hear, the arrays that they give (``answers``): states, as a part of their size, and log-probabilities.

    Args:
        inputs: a file of lines; by default ``count`` (100, of sound 10) random inputs, made from ``seed``.
        tolerance: the largest difference allowed; by default what the weights' dtypes explain
            (``inference.verify.TOLERANCES`` and ``STATES``). The mean must be below a tenth of it.
        vocabularies: files to use instead of those that the framework of ``a`` names.

    Raises:
        DialectError, MissingExtra: one of them cannot be computed here.
        VocabularyError: their rows mean different tokens.
    """
    from warmstart.bundle.model import open_model
    from warmstart.inference.verify import verify_models

    if (count is not None and count < 1) or (tolerance is not None and not tolerance >= 0):
        raise ConfigError("a count is from 1, a tolerance from 0", found=f"{count}, {tolerance}")
    left, right = open_model(a, vocabularies=vocabularies), open_model(b)
    return verify_models(left, right, _lines(inputs), count=count, seed=seed, tolerance=tolerance)


def _lines(file: str | Path | None) -> list[str] | None:
    if file is None:
        return None
    from warmstart.data.text import read_lines

    return list(read_lines(Path(file)))


def contains_model(path: str | Path) -> bool:
    """Whether the directory ``path`` holds a CTranslate2 model."""
    return (Path(path) / "model.bin").is_file()


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


def _speech_search(options: dict[str, Any]) -> SpeechSearch:
    from warmstart.inference.ctc import SpeechSearch

    options = {key: value for key, value in options.items() if value is not None}
    unknown = sorted(set(options) - {field.name for field in fields(SpeechSearch)})
    _require_none("hearing speech", dict.fromkeys(unknown, True))
    return SpeechSearch(**options)


def evaluate(
    model: str | Path,
    data: str | Path | None = None,
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
        data: a configuration whose ``data`` names the tasks; for a run, its own by default.
        search: for texts keys of ``inference.search.SearchConfig``; for speech those of
            ``inference.ctc.SpeechSearch`` (beam_size, scorer, alpha, beta, hot_words, …).
        output: for speech, a file for what was made of each recording (the JSON of Coqui's ``--test_output_file``).
        report: for speech, is given a text with the ``report_count`` best, median and worst recordings of each task.
    """
    from warmstart.config import load_config
    from warmstart.data.config import DataConfig
    from warmstart.setting import data_of
    from warmstart.sources.uri import resolve

    source = Path(data) if data is not None else resolve(model) / "config.yaml"
    if not source.is_file():
        raise ConfigError(
            "what to evaluate on is not known",
            where=source.parent if data is None else source,
            todo="give a configuration that names the tasks: --data CONFIG",
        )
    pieces = data_of(load_config(source))
    search = {key: value for key, value in search.items() if value is not None}
    if isinstance(pieces, DataConfig):
        _require_none("evaluating texts", {"output": output})
        out = _evaluate_texts(model, pieces, split, engine, vocabularies, search)
        if not out:
            raise DataError(f"no task has a split {split!r}", where=source)
        return out
    _require_none("evaluating speech", {"engine": engine})
    return _evaluate_speech(model, pieces, split, vocabularies, output, report, report_count, progress, search)


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


def runs(directories: Sequence[str | Path] = (".",)) -> list[Run]:
    """All runs at and below ``directories``: state, steps, best evaluation, lineage, size, last activity.

    Raises:
        SourceError: a directory is not there or cannot be read. What is damaged in a run is one of its ``problems``.
    """
    from warmstart.reports.runs import describe_run, find_runs

    return [describe_run(path) for path in find_runs([Path(directory) for directory in directories])]


def curves(runs: Sequence[str], output: str | Path = "curves.png", metrics: Sequence[str] = ()) -> list[Path]:
    """Draw several runs (``[LABEL=]RUN``; a directory may hold several) on one picture, with the numbers beside it.

    Args:
        output: a file that ends in ``.png``, ``.svg`` or ``.csv`` (the numbers alone).
        metrics: by default the losses of training and validation and everything else that was evaluated.

    Returns:
        The files written.

    Raises:
        SourceError, FormatError: there is no such run, or its metrics are damaged.
        ConfigError: two runs with one label, a metric that no run has, another kind of file.
        MissingExtra, StorageError.
    """
    from warmstart.reports.curves import default_metrics, open_runs, write_curves

    records = open_runs(runs)
    return write_curves(records, metrics or default_metrics(records), Path(output))


def ls(source: str | Path) -> list[dict[str, Any]]:
    """What there is at ``source`` (a path or URL), one level deep: ``name`` (``/`` ends a directory's), ``url`` without
    secrets, ``size`` in bytes or None.

    Over http nobody lists a directory; what the frameworks' own names find is listed.

    Raises:
        SourceError, MissingExtra.
    """
    from dataclasses import asdict

    from warmstart.sources.verbs import listing

    return [asdict(entry) for entry in listing(source)]


def fetch(
    source: str | Path,
    directory: str | Path | None = None,
    *,
    everything: bool = False,
    force: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Bring what ``source`` names, and what belongs to it, into the cache, and copy it into ``directory`` if given.

    Args:
        everything: of a directory that is listed, also the files that no framework's model needs.
        force: replace other files of the same names in ``directory``.

    Returns:
        The files, in ``directory`` or in the cache.

    Raises:
        SourceError, MissingExtra, StorageError.
    """
    from warmstart.sources.verbs import bring

    where = None if directory is None else Path(directory)
    return bring(source, where, everything=everything, force=force, progress=progress)


def cache_list() -> list[dict[str, Any]]:
    """What was fetched: ``url`` without secrets, ``bytes``, ``sha256``, ``path``, and ``used`` (seconds since 1970).

    A directory's ``bytes`` are those of its files, which have rows of their own.
    """
    from warmstart.sources.verbs import cached

    return cached()


def cache_prune(days: float = 30.0) -> int:
    """Remove what was not used for ``days`` from the cache; returns the number of bytes that this frees."""
    from warmstart.sources.cache import Cache

    return Cache().prune(days * 86400)


def cache_verify() -> list[str]:
    """Compare the contents of every cached file with its SHA-256, and remove those that differ; returns their URLs."""
    from warmstart.sources.cache import Cache

    return Cache().damaged()
