"""Models for other frameworks, and whether they answer alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import ConfigError, DialectError, UnknownFormat

if TYPE_CHECKING:
    from warmstart.bundle.model import Model


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
    beam_size: int | None = None,
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
        force: replace an existing destination, when the new one is complete.
        strict: refuse arrays that nothing explains, instead of listing them.
        requantize: what is quantized already may be rounded again.
        report: measure how far every stored array is from its source.
        beam_size: for ``tflite``: the beams that the file names to Coqui's client (500, as Coqui's export).
        verify: run source and output on the lines of ``inputs``, or on random ones, as :func:`verify` does, before
            the output takes its place.
        progress: draw a bar on stderr.

    Returns what was written: ``bytes``, ``arrays``, ``aliases``, ``ledger``, ``losses`` with ``report``, and
    ``verification`` with ``verify``.

    Raises:
        ConfigError, SourceError, StorageError, DialectError, FormatError; an existing destination is left as it was.
        VerificationError: the output does not give the source's answers; nothing was written then.
    """
    from warmstart.storage.hashing import Digests

    if not str(destination):
        raise ConfigError("the destination is an empty path", todo="name a directory that does not exist yet")
    if inputs is not None and not verify:
        raise ConfigError("inputs are for a verification", todo="--verify too, or leave out --inputs")
    lines = _lines(inputs)
    with Digests.begun_ahead() as digests:
        digests.guess(source)  # hashed while the rest of the program is imported
        from warmstart.bundle.model import open_model
        from warmstart.export.convert import convert_model
        from warmstart.sources.uri import at_home, place_of

        model = open_model(source, vocabularies=vocabularies, dialect=from_)
        given = (source, *vocabularies, *(file for file in (activation_scales, inputs) if file is not None))
        if verify:
            _require_engines(model, to)
        if activation_scales is not None:
            from warmstart.export.smoothing import smooth

            smooth(model, activation_scales)
        verified: dict[str, Any] = {}

        def check(directory: Path) -> None:
            from warmstart.inference.speech.verification import hears, side_of, verify_speech
            from warmstart.inference.verify import require_same, verify_models

            if hears(model):
                sides, names = (side_of(model), side_of(directory)), (str(source), str(destination))
                found = verify_speech(sides, names, lines)
            else:
                found = verify_models(model, open_model(directory), lines, name=str(destination))
            verified["verification"] = require_same(found)

        facts = convert_model(
            model, at_home(destination), to, quantize=quantize, force=force, strict=strict, requantize=requantize,
            report=report, beams=beam_size, copy_files=copy_files, vmap=None if vmap is None else at_home(vmap),
            progress=progress, digests=digests,
            check=check if verify else None, keep=[here for name in given if (here := place_of(name)) is not None],
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
    by transformers; of speech models of the family ``deepspeech``, ONNX by onnxruntime and TensorFlow Lite by LiteRT.
    Of models that write text the log-probabilities of given outputs (``largest``, ``mean``, in natural
    logarithms) and the greedy outputs (``outputs_that_differ``, ``examples``) are compared; of encoders and models that
    hear, the arrays that they give (``answers``): states, as a part of their size, and log-probabilities.

    Args:
        a, b: runs, bundles or models of other frameworks.
        inputs: a file of lines; by default ``count`` (100, of sound 10) random inputs, made from ``seed``.
        tolerance: the largest difference allowed; the mean must be below a tenth of it. By default what another
            rounding of the same weights explains, or a small part of the answers' spread
            (``warmstart.inference.tolerance``).
        vocabularies: files to use instead of those that the framework of ``a`` names.

    Raises:
        DialectError, MissingExtra: one of them is not whole, or cannot be computed here.
        CorruptCheckpoint: the engine refuses one of them, or crashed.
        VocabularyError: their rows mean different tokens.
    """
    from warmstart.inference.speech.verification import hears, side_of, verify_speech
    from warmstart.inference.verify import verify_models

    if (count is not None and count < 1) or (tolerance is not None and not tolerance >= 0):
        raise ConfigError("a count is from 1, a tolerance from 0", found=f"{count}, {tolerance}")
    options: dict[str, Any] = {"count": count, "seed": seed, "tolerance": tolerance}
    left, right = _opened(a, vocabularies), _opened(b)
    for model in (left, right):
        if model is not None:
            _require_whole(model)
    if left is None or right is None or (hears(left) and hears(right)):
        sides = side_of(left or a), side_of(right or b)
        return verify_speech(sides, (str(a), str(b)), _lines(inputs), **options)
    return verify_models(left, right, _lines(inputs), **options)


def _opened(source: str | Path, vocabularies: Sequence[str] = ()) -> Model | None:
    """The model at ``source``; None where only an export of a speech model lies there, which is run and not read."""
    from warmstart.bundle.model import open_model
    from warmstart.inference.speech.acoustic import exported

    try:
        return open_model(source, vocabularies=vocabularies)
    except UnknownFormat:
        if exported(source) is None:
            raise
        return None


def _require_engines(model: Model, to: str) -> None:
    """That somebody computes both sides of a verification is settled before a conversion begins.

    Raises ``DialectError``, ``MissingExtra``. What is wrong with ``to`` itself the conversion says.
    """
    from warmstart.export.as_it_is import FORMATS
    from warmstart.export.convert import dialects
    from warmstart.inference.sides import engine_of
    from warmstart.inference.speech.verification import hears

    if hears(model) or to not in set(dialects()) - set(FORMATS):
        return
    try:
        engine_of(model)
        engine_of(model, to)
    except DialectError as error:
        said = error.problem
        install = (said.todo or "").partition(",")[0]
        install = f", or {install}" if install.startswith("pip ") else ""
        todo = f"leave out --verify, without which it is converted{install}"
        placed = replace(said, where=said.where or str(model.path), todo=todo)
        error.reword(lambda problem: placed if problem is said else problem)
        raise


def _require_whole(model: Model) -> None:
    """That a model has every array of its family in its shape is settled before an engine takes it.

    Raises ``DialectError``. What nothing recognises is left to the engine.
    """
    from warmstart.export.plan import check_source
    from warmstart.models.registry import dialect

    if model.family is not None and model.config is not None and model.reading is not None:
        spoken = None if model.dialect in (None, "warmstart") else dialect(model.family, str(model.dialect))
        check_source(model.family, model.config, model.reading, spoken, strict=False)


def _lines(file: str | Path | None) -> list[str] | None:
    if file is None:
        return None
    from warmstart.data.text import read_lines
    from warmstart.sources.uri import at_home

    return list(read_lines(at_home(file)))
