"""Lines in, lines out: our own decoder, or CTranslate2's on an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from warmstart.bundle.layout import MANIFEST, read_manifest
from warmstart.bundle.model import Model, open_model
from warmstart.errors import (
    ConfigError,
    CorruptCheckpoint,
    DialectError,
    MissingExtra,
    VocabularyError,
    validation_problems,
)
from warmstart.formats.detect import arrive
from warmstart.inference.load import load_module
from warmstart.inference.search import SearchConfig, translate_ids
from warmstart.lean import dataclass
from warmstart.vocabularies.vocabulary import Vocabulary


@dataclass(frozen=True)
class Translation:
    """One output of a line. ``score`` is the normalised log-probability."""

    text: str
    score: float


def translate(
    models: Sequence[str | Path],
    lines: Sequence[str],
    *,
    engine: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    vocabularies: Sequence[str] = (),
    device: str = "cpu",
    **search: Any,
) -> list[list[Translation]]:
    """See :func:`warmstart.api.translate`.

    Raises:
        ConfigError: options that are not valid, or not for the engine.
    """
    try:
        config = SearchConfig(**search)
    except ValidationError as error:
        raise ConfigError("these search options are not valid", problems=validation_problems(error)) from None
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
        if device != "cpu":
            raise ConfigError(
                "the ctranslate2 engine computes on the CPU here", where="--device", expected="cpu", found=device
            )
        return CTranslate2Model(paths[0]).translate(lines, config)
    from warmstart.inference.device import choose_device

    place = choose_device(device, "--device")
    opened = [open_model(m, vocabularies=vocabularies) for m in models]
    return translate_native(opened, lines, config, precision=precision, device=place)


def require_vocabularies(model: Model) -> tuple[Vocabulary, Vocabulary]:
    """Source and target vocabulary of ``model``.

    Raises:
        DialectError: it is of a family that does not translate.
        VocabularyError: one is not known.
    """
    family, _, _ = model.require()
    if not {"source", "target"} <= set(family.vocabulary_sizes):
        raise DialectError(
            f"models of the family {family.name} do not translate here",
            where=model.path,
            expected="a model from a source to a target text",
            todo="`warmstart transcribe` is for recordings" if family.name == "deepspeech" else None,
        )
    missing = [side for side in ("source", "target") if side not in model.vocabularies]
    if missing:
        raise VocabularyError(
            f"the {' and '.join(missing)} vocabulary is not known",
            where=model.path,
            found="; ".join(model.remarks) or None,
            todo="give their files, source and then target: --vocab FILE --vocab FILE",
        )
    return model.vocabularies["source"], model.vocabularies["target"]


def translate_native(
    models: Sequence[Model],
    lines: Sequence[str],
    config: SearchConfig,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: Any = "cpu",
) -> list[list[Translation]]:
    """Best outputs of each line by one model or an ensemble, in order. ``bfloat16`` is less exact, and faster for
    larger models where the processor multiplies it.

    Raises:
        VocabularyError: the members of an ensemble do not share their vocabularies.
    """
    from warmstart.inference.scorer import TransformerScorer

    source, target = require_vocabularies(models[0])
    for other in models[1:]:
        pair = require_vocabularies(other)
        if (pair[0].fingerprint, pair[1].fingerprint) != (source.fingerprint, target.fingerprint):
            raise VocabularyError(
                "an ensemble needs one vocabulary", where=other.path, expected=f"the vocabularies of {models[0].path}"
            )
    scorers = [TransformerScorer(load_module(m, device), precision) for m in models]
    ids = [[*source.encode(line), source.eos_id] for line in lines]
    found = translate_ids(scorers, ids, config, eos_id=target.eos_id, unk_id=target.unk_id)
    return [[Translation(target.decode(h.ids), h.score) for h in best] for best in found]


class CTranslate2Model:
    """An exported model with CTranslate2's engine, on ``threads`` threads (0: as many as ``OMP_NUM_THREADS`` says,
    else up to four). Tokens come from the vocabularies written beside it."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            import ctranslate2
        except ImportError:
            raise MissingExtra("ctranslate2", "convert") from None
        if not (path / MANIFEST).is_file():
            raise VocabularyError(
                "this CTranslate2 model does not say how text becomes tokens",
                where=path,
                todo="convert it with `warmstart convert`, which puts the vocabularies beside it",
            )
        manifest, _, _ = read_manifest(path)
        self.source, self.target = require_vocabularies(open_model(path))  # the engine survives no damaged model
        quantization = str(manifest.get("quantization"))
        compute = "int8" if quantization.startswith("int8") else "float32"
        try:
            self.engine = ctranslate2.Translator(str(path), device="cpu", compute_type=compute, intra_threads=threads)
        except (IndexError, RuntimeError, ValueError) as error:
            raise CorruptCheckpoint("CTranslate2 does not open this model", where=path, found=error) from None

    def translate(self, lines: Sequence[str], config: SearchConfig) -> list[list[Translation]]:
        """Best outputs of each line. Scores are CTranslate2's, normalised by length^``normalize``."""
        if config.word_penalty:
            raise ConfigError("CTranslate2 has no word penalty", todo="use --engine native")
        tokens = [[self.source.tokens[i] for i in self.source.encode(line)] for line in lines]
        out: list[list[Translation]] = [[Translation("", 0.0)] for _ in lines]
        spoken = [k for k, t in enumerate(tokens) if t]
        for k, result in zip(spoken, self._run([tokens[k] for k in spoken], config), strict=True):
            pairs = zip(result.hypotheses, result.scores, strict=True)
            out[k] = [Translation(self.target.decode([self.target.index[t] for t in h]), s) for h, s in pairs]
        return out

    def _run(self, tokens: list[list[str]], config: SearchConfig) -> list[Any]:
        if not tokens:
            return []
        longest = max(map(len, tokens)) + 1
        return list(
            self.engine.translate_batch(
                tokens,
                beam_size=config.beam_size,
                num_hypotheses=config.nbest,
                length_penalty=config.normalize,
                max_decoding_length=int(config.max_length_factor * longest),
                max_input_length=0,
                disable_unk=not config.allow_unk,
                return_scores=True,
                max_batch_size=4096,
                batch_type="tokens",
            )
        )


def is_ctranslate2(path: Path) -> bool:
    """Whether ``path`` is a CTranslate2 model directory."""
    return (path / "model.bin").is_file()
