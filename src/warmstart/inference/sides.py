"""A model's answers, whoever computes them: our own forward, CTranslate2's engine, or transformers.

A side speaks in rows of its vocabularies, without the tokens that frame a text (begin, end, language): each puts its
own around them, which is a part of what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from warmstart.bundle.model import Model
from warmstart.errors import DialectError, MissingExtra, VocabularyError
from warmstart.formats.ctranslate2 import CTranslate2Checkpoint
from warmstart.formats.detect import open_checkpoint
from warmstart.models.model_bin import specification_of
from warmstart.vocabularies.vocabulary import Vocabulary

Ids = Sequence[int]
QUANTIZED = ("int8", "int16", "float16", "bfloat16")
_MAX_LENGTH_FACTOR = 3  # as the native search stops
_SEQUENCE_TO_SEQUENCE = ("TransformerSpec",)


class Side(Protocol):
    """One of the two models that are compared.

    Attributes:
        engine: who computes.
        quantization: the narrowest numbers that weights are stored in; ``float32`` for whole ones.
        tokens: of the source's and the target's vocabulary, by row.
        text: what cuts text into rows of the source's vocabulary and joins those of the target's, if it is known.
    """

    @property
    def engine(self) -> str: ...

    @property
    def quantization(self) -> str: ...

    @property
    def tokens(self) -> tuple[Sequence[str], Sequence[str]]: ...

    @property
    def text(self) -> tuple[Vocabulary, Vocabulary] | None: ...

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        """The best next token again and again, to at most three times the source's tokens (end token included)."""
        ...

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """log p of each token of each of ``targets`` and of its end token, given the source and the tokens before."""
        ...


def limit_of(source: Ids) -> int:
    """The most tokens of an output."""
    return _MAX_LENGTH_FACTOR * (len(source) + 1)


def side_of(model: Model) -> Side:
    """The side of an opened model.

    Raises:
        DialectError: nobody here computes it; it says who could.
        MissingExtra: the engine is not installed.
        VocabularyError: its vocabularies are not known.
    """
    if model.checkpoint.format == "ctranslate2":
        return EngineSide(model)
    problem: DialectError | None = None
    if model.family is not None and model.family.name == "transformer":
        try:
            return NativeSide(model)
        except DialectError as error:
            problem = error
    folder = model.path if model.path.is_dir() else model.path.parent
    if (folder / "config.json").is_file():
        return _transformers(folder, model)
    if problem is not None:
        raise problem
    model.require()
    assert model.family is not None
    raise DialectError(
        f"{model.family.name} models in {model.dialect} are converted, but not computed here",
        where=model.path,
        todo="compare two exports of it (ctranslate2), or its transformers directory, with transformers installed",
    )


class NativeSide:
    """Our own forward and search, in float32."""

    engine = "warmstart"
    quantization = "float32"

    def __init__(self, model: Model) -> None:
        from warmstart.inference.translate import load_module, require_vocabularies

        self.text = require_vocabularies(model)
        self.tokens = (self.text[0].tokens, self.text[1].tokens)
        self._module = load_module(model)
        kinds = {entry.dtype for entry in model.checkpoint.entries.values()}
        self.quantization = next((q for q in ("bfloat16", "float16") if q in kinds), "float32")

    def _framed(self, sources: Sequence[Ids]) -> list[list[int]]:
        assert self.text is not None
        return [[*source, self.text[0].eos_id] for source in sources]

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        from warmstart.inference.scorer import TransformerScorer
        from warmstart.inference.search import SearchConfig, translate_ids

        assert self.text is not None
        target = self.text[1]
        config = SearchConfig(max_length_factor=_MAX_LENGTH_FACTOR)
        scorer = TransformerScorer(self._module)
        found = translate_ids([scorer], self._framed(sources), config, eos_id=target.eos_id, unk_id=target.unk_id)
        return [best[0].ids for best in found]

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        from warmstart.inference.score import score_ids

        assert self.text is not None
        return score_ids(self._module, self._framed(sources), [[*target, self.text[1].eos_id] for target in targets])


class EngineSide:
    """A ``model.bin`` in CTranslate2's engine on the CPU: 8-bit products where weights are 8-bit, else float32."""

    engine = "ctranslate2"

    def __init__(self, model: Model) -> None:
        try:
            import ctranslate2
        except ImportError:
            raise MissingExtra("ctranslate2", "convert") from None
        path = model.path
        checkpoint = open_checkpoint(path)
        assert isinstance(checkpoint, CTranslate2Checkpoint)
        name = specification_of(checkpoint)
        if name not in _SEQUENCE_TO_SEQUENCE:
            raise DialectError(
                "the engine's answers are compared for models that make a text of a text",
                where=path,
                expected=", ".join(_SEQUENCE_TO_SEQUENCE),
                found=name,
                todo="compare the arrays instead: `warmstart diff`",
            )
        kinds = {entry.dtype for entry in checkpoint.entries.values() if entry.shape}
        self.quantization = next((q for q in QUANTIZED if q in kinds), "float32")
        there = checkpoint.metadata.get("vocabularies", {})
        keys = [next((k for k in (side, "shared", "vocabulary") if k in there), None) for side in ("source", "target")]
        if None in keys:
            raise VocabularyError("the model's vocabularies are not beside it", where=path)
        source, target = (checkpoint.vocabulary(str(key)) for key in keys)
        self.tokens = (source, target)
        self.text = (model.vocabularies["source"], model.vocabularies["target"]) if model.vocabularies else None
        self._rows = {token: row for row, token in reversed(list(enumerate(target)))}
        compute = "int8_float32" if self.quantization == "int8" else "float32"
        self._engine = ctranslate2.Translator(str(path), device="cpu", compute_type=compute)

    def _spelt(self, ids: Sequence[Ids], side: int) -> list[list[str]]:
        return [[self.tokens[side][i] for i in line] for line in ids]

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        if not sources:
            return []
        results = self._engine.translate_batch(
            self._spelt(sources, 0), beam_size=1, disable_unk=True, max_input_length=0, max_batch_size=32,
            max_decoding_length=max(map(limit_of, sources)),
        )  # fmt: skip
        found = [tuple(self._rows[token] for token in result.hypotheses[0]) for result in results]
        return [ids[: limit_of(source)] for ids, source in zip(found, sources, strict=True)]

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        results = self._engine.score_batch(
            self._spelt(sources, 0), self._spelt(targets, 1), max_input_length=0, max_batch_size=32
        )
        return [list(result.log_probs) for result in results]


def _transformers(folder: Path, model: Model) -> Side:
    try:
        transformers = import_module("transformers")
    except ImportError:
        raise DialectError(
            "this model has no module here, and transformers, which has, is not installed",
            where=folder,
            todo="pip install transformers, or compare the arrays: `warmstart diff`",
        ) from None
    from warmstart.inference.transformers_side import TransformersSide

    return TransformersSide(transformers, folder, model)


__all__ = ["EngineSide", "Ids", "NativeSide", "Side", "limit_of", "side_of"]
