"""Pieces of a SentencePiece model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

from warmstart.errors import VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary

MAX_SENTENCE_BYTES = 1 << 16
# Number of the last field that every model has (sentencepiece_model.proto): a file cut between two pieces
# parses, as a smaller vocabulary, but lacks it.
NORMALIZER_SPEC = 3


class SentencePieceVocabulary(Vocabulary):
    """``model`` is the content of a SentencePiece ``.model`` or ``.spm`` file; the end and unknown rows are
    the model's own. Raises ``VocabularyError`` when it is no such model or has no end piece."""

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = bytes(model)
        try:
            self._processor = SentencePieceProcessor(model_proto=self._model)
            size = self._processor.get_piece_size()
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            raise VocabularyError("not a SentencePiece model, or a damaged one", found=error) from error
        if size == 0 or NORMALIZER_SPEC not in _fields(self._model):
            raise VocabularyError(
                "a truncated SentencePiece model",
                expected="pieces, then how text is normalised",
                found=f"{size} pieces",
            )
        self.tokens = tuple(self._processor.id_to_piece(list(range(size))))
        self.eos_id = self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        if self.eos_id < 0:
            raise VocabularyError(
                "the SentencePiece model has no end piece", todo="train it again with an eos_id, as spm_train does"
            )

    @classmethod
    def train(cls, lines: Iterable[str], size: int) -> Self:
        """A unigram model of ``size`` pieces (``</s>`` 0 and ``<unk>`` 1 among them) covering every character.

        Text is normalised as SentencePiece does by default (``nmt_nfkc``).
        """
        from sentencepiece import SentencePieceTrainer

        model, raised = io.BytesIO(), list[BaseException]()

        def watched() -> Iterator[str]:
            try:
                yield from lines
            except BaseException as error:
                raised.append(error)
                raise

        try:
            SentencePieceTrainer.train(
                sentence_iterator=watched(),
                model_writer=model,
                model_type="unigram",
                vocab_size=size,
                character_coverage=1.0,
                eos_id=0,
                unk_id=1,
                bos_id=-1,
                pad_id=-1,
                max_sentence_length=MAX_SENTENCE_BYTES,
                minloglevel=3,
            )
        except (RuntimeError, OSError, ValueError, SystemError) as error:
            if raised:  # the lines are at fault, of which SentencePiece would make an error of its own
                raise raised[0] from None
            raise VocabularyError(
                f"cannot train a SentencePiece vocabulary of {size} pieces",
                found=error,
                todo="give another size, or more text",
            ) from error
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text, out_type=int))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode([int(row) for row in ids]))

    def file(self) -> tuple[str, bytes]:
        return ".spm", self._model


def _fields(message: bytes) -> set[int]:
    """Numbers of the length-delimited fields at the top of a protobuf message, up to any of another type."""
    numbers: set[int] = set()
    at = 0
    while at < len(message) and message[at] & 7 == 2:
        tag, at = _varint(message, at)
        length, at = _varint(message, at)
        numbers.add(tag >> 3)
        at += length
    return numbers


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(value, offset after it); what is missing at the end reads as zero."""
    value = shift = 0
    while at < len(message):
        value |= (message[at] & 0x7F) << shift
        shift += 7
        at += 1
        if message[at - 1] < 0x80:
            break
    return value, at
