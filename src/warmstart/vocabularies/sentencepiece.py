"""Pieces of a SentencePiece model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Self

from warmstart.errors import VocabularyError
from warmstart.vocabularies.vocabulary import Vocabulary

MAX_SENTENCE_BYTES = 1 << 16


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
        if size == 0:
            raise VocabularyError("a SentencePiece model without pieces")
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

        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
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
        except (RuntimeError, OSError, ValueError) as error:
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
