"""A model's answers, whoever computes them: our own forward, CTranslate2's engine, or transformers.

A side speaks in rows of its vocabularies, without the tokens that frame a text (begin, end, language): each puts its
own around them, which is a part of what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from warmstart.bundle.model import Model
from warmstart.errors import DialectError, MissingExtra
from warmstart.lean import dataclass
from warmstart.models.model_bin import specification_of
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.family import TransformerFamily
from warmstart.vocabularies.vocabulary import Vocabulary

Ids = Sequence[int]
Given = Mapping[str, NDArray[Any]]
Engine = Literal["ctranslate2", "warmstart", "transformers"]
QUANTIZED = ("int8", "int16", "float16", "bfloat16")
TEXT = ("transformer", "t5", "decoder")
ARRAYS = ("encoder", "whisper", "wav2vec2", "wav2vec2_bert")
_KINDS = {
    "TransformerSpec": "transformer", "TransformerDecoderSpec": "decoder", "TransformerEncoderSpec": "encoder",
    "WhisperSpec": "whisper", "Wav2Vec2Spec": "wav2vec2", "Wav2Vec2BertSpec": "wav2vec2_bert",
}  # fmt: skip
_MAX_LENGTH_FACTOR = 3  # as the native search stops
FRAME = 2  # tokens around a text that take a position


class Side(Protocol):
    """One of the two models that are compared.

    Attributes:
        engine: who computes.
        quantization: the narrowest numbers that weights are stored in; ``float32`` for whole ones.
        tokens: of each of the model's vocabularies (source and target, or one), by row.
        text: what cuts text into rows of the first vocabulary and joins those of the last, if it is known.
    """

    @property
    def engine(self) -> str: ...

    @property
    def quantization(self) -> str: ...

    @property
    def tokens(self) -> tuple[Sequence[str], ...]: ...

    @property
    def text(self) -> tuple[Vocabulary, Vocabulary] | None: ...


class TextSide(Side, Protocol):
    """A model that continues a text, or makes one of another. A *source* is either; it ends with the end token where
    the source is a text of its own.

    Attributes:
        positions: how many tokens the model can tell the places of; None where there is no end.
    """

    @property
    def positions(self) -> int | None: ...

    def greedy(self, sources: Sequence[Ids]) -> list[tuple[int, ...]]:
        """The best next token again and again, to at most :func:`limit_of` tokens, without the end token."""
        ...

    def log_probs(self, sources: Sequence[Ids], targets: Sequence[Ids]) -> list[list[float]]:
        """log p of each token of each of ``targets`` and of its end token, given the source and the tokens before."""
        ...


@dataclass(frozen=True)
class Answer:
    """An array that a model gives for an input.

    ``log-probabilities`` are natural logarithms over all rows; ``states`` are measured against their own size (the
    root of their mean square).
    """

    values: NDArray[np.float32]
    unit: Literal["log-probabilities", "states"]


class ArraySide(Side, Protocol):
    """A model that makes arrays of its input."""

    def answers(self, given: Given) -> dict[str, Answer]:
        """Every array that the model gives, by name. What is ``given`` is what ``inputs.random_given`` makes."""
        ...


def limit_of(source: Ids, positions: int | None = None) -> int:
    """The most tokens of an output: three times the source's (end token included), as far as there are positions."""
    most = _MAX_LENGTH_FACTOR * (len(source) + 1)
    return most if positions is None else max(0, min(most, positions - len(source) - FRAME))


def longest_source(positions: int | None, most: int) -> int:
    """The longest source, of at most ``most`` tokens, for whose longest output there are positions."""
    if positions is None:
        return most
    return max(1, min(most, (positions - FRAME - _MAX_LENGTH_FACTOR) // (_MAX_LENGTH_FACTOR + 1)))


def first_rows(tokens: Sequence[str]) -> dict[str, int]:
    """token → its first row: names of rows that no tokenizer makes may repeat, and the engine speaks in tokens."""
    return {token: row for row, token in reversed(list(enumerate(tokens)))}


def positions_of(model: Model) -> int | None:
    """How many positions ``model`` has, by its configuration."""
    names = ("max_positions", "decoder_max_positions")
    found = [value for name in names if (value := getattr(model.config, name, None)) is not None]
    return min(found, default=None)


def narrowest(kinds: set[str]) -> str:
    """The narrowest of some dtypes."""
    return next((q for q in QUANTIZED if q in kinds), "float32")


def log_softmax(logits: NDArray[Any]) -> Answer:
    """Log-probabilities over the last axis."""
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return Answer((wide - np.log(np.exp(wide).sum(-1, keepdims=True))).astype(np.float32), "log-probabilities")


def kind_of(model: Model) -> str:
    """What ``model`` is: one of :data:`TEXT` or :data:`ARRAYS`.

    Raises:
        DialectError: nothing recognises it, or nobody computes its family.
    """
    name = model.family.name if model.family is not None else None
    if model.checkpoint.format == "ctranslate2":
        specification = specification_of(model.checkpoint)
        name = name or _KINDS.get(specification, specification)
    if name is None:
        model.require()
    if name not in (*TEXT, *ARRAYS):
        raise DialectError(
            "nobody here computes answers of such models",
            where=model.path,
            expected=", ".join((*TEXT, *ARRAYS)),
            found=name,
            todo="compare the arrays instead: `warmstart diff`",
        )
    return str(name)


def engine_of(model: Model, to: str | None = None) -> Engine:
    """Who computes the answers of ``model``, or of what it becomes in the dialect ``to``. Nothing is loaded.

    Raises:
        DialectError: nobody here does; it says who could.
        MissingExtra: the engine is not installed.
    """
    kind, dialect = kind_of(model), to or model.dialect
    if to == "ctranslate2" or (to is None and model.checkpoint.format == "ctranslate2"):
        if find_spec("ctranslate2") is None:
            raise MissingExtra("ctranslate2", "convert")
        return "ctranslate2"
    problem = None
    if isinstance(model.config, TransformerConfig):
        try:
            TransformerFamily().require_computed(model.config)
            return "warmstart"
        except DialectError as error:
            problem = error
    if dialect == "transformers" and (to is not None or (_folder(model) / "config.json").is_file()):
        if find_spec("transformers") is None:
            raise DialectError(
                "this model has no module here, and transformers, which has, is not installed",
                where=model.path,
                todo="pip install transformers, or compare the arrays: `warmstart diff`",
            )
        return "transformers"
    if problem is not None:
        raise problem
    raise DialectError(
        f"{kind} models in {dialect} are converted, but not computed here",
        where=model.path,
        todo="compare two exports of it (ctranslate2), or its transformers directory, with transformers installed",
    )


def side_of(model: Model) -> Any:
    """The side of an opened model: a :class:`TextSide` or, for :data:`ARRAYS`, an :class:`ArraySide`.

    Raises:
        DialectError, MissingExtra: see :func:`engine_of`.
        VocabularyError: its vocabularies are not known.
    """
    engine = engine_of(model)
    if engine == "ctranslate2":
        from warmstart.inference.engine_sides import ENGINE_SIDES

        return ENGINE_SIDES[kind_of(model)](model)
    if engine == "warmstart":
        from warmstart.inference.native_side import NativeSide

        return NativeSide(model)
    from warmstart.inference.transformers_sides import TRANSFORMERS_SIDES

    return TRANSFORMERS_SIDES[kind_of(model)](_folder(model), model)


def _folder(model: Model) -> Path:
    return model.path if model.path.is_dir() else model.path.parent
