"""Where a run's vocabularies come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from warmstart.errors import VocabularyError
from warmstart.sources.named import Named
from warmstart.sources.uri import local
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.characters import CharacterVocabulary
from warmstart.vocabularies.load import load_alphabet, load_vocabulary
from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary


class VocabularyConfig(BaseModel):
    """Where a vocabulary comes from.

    ``characters`` (``min_count``) and ``sentencepiece`` (``size``) are made from the training text, ``file``
    (``path``, here or at a URL) is read, ``inherit`` is the vocabulary of the model that a training starts from. Of
    speech models, ``alphabet`` is read from ``path`` (Coqui's ``alphabet.txt``), or consists of ``characters``, or is
    made of those of the training transcripts; ``bytes`` is the alphabet of all bytes of UTF-8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["characters", "sentencepiece", "file", "inherit", "alphabet", "bytes"]
    size: Annotated[int, Field(gt=2)] | None = None
    path: Named | None = None
    characters: Annotated[str, Field(min_length=1)] | None = None
    min_count: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.type == "sentencepiece") != (self.size is not None):
            raise ValueError("size goes with type: sentencepiece, and only with it")
        if self.type == "file" and self.path is None:
            raise ValueError("type: file needs a path")
        if self.path is not None and self.type not in ("file", "alphabet"):
            raise ValueError("path goes with type: file or type: alphabet only")
        if self.characters is not None and (self.type != "alphabet" or self.path is not None):
            raise ValueError("characters go with type: alphabet only, and without a path")
        if self.type != "characters" and "min_count" in self.model_fields_set:
            raise ValueError("min_count goes with type: characters only")
        return self

    @property
    def made_from_text(self) -> bool:
        """Whether the training text is read for it."""
        return (
            self.path is None and self.characters is None and self.type in ("characters", "sentencepiece", "alphabet")
        )


def build_vocabulary(config: VocabularyConfig, lines: Iterable[str]) -> Vocabulary:
    """The vocabulary of ``config``; ``lines`` are read only where it is made from text.

    Raises ``VocabularyError``, also for ``inherit``, which only the model that is started from can answer.
    """
    if config.type == "characters":
        return CharacterVocabulary.train(lines, config.min_count)
    if config.type == "sentencepiece" and config.size is not None:
        return SentencePieceVocabulary.train(lines, config.size)
    if config.type == "file" and config.path is not None:
        return load_vocabulary(local(config.path))
    if config.type == "alphabet":
        return Alphabet.of(config.characters or lines) if config.path is None else load_alphabet(local(config.path))
    if config.type == "bytes":
        return Alphabet.of_bytes()
    raise VocabularyError(
        "there is no model to inherit a vocabulary from", todo="give a start, or a vocabulary of another type"
    )
