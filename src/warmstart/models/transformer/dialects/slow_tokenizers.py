"""Tables of tokenizers that bring a SentencePiece model and no ``tokenizer.json``: the pieces, moved to the rows that
fairseq or Pegasus gave them, the codes of languages that the class knows by heart, and ``<mask>``.

As transformers' slow tokenizers build them (``tokenization_{mbart,mbart50,nllb,pegasus}.py`` of version 4), which is
how the published models were trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.errors import VocabularyError
from warmstart.models.transformer.dialects.languages import MBART, MBART50, NLLB

MODELS = ("sentencepiece.bpe.model", "spiece.model")
_CODES = {"MBartTokenizer": MBART, "MBart50Tokenizer": MBART50, "NllbTokenizer": NLLB}
_CLASSES = {"mbart": "MBartTokenizer", "pegasus": "PegasusTokenizer"}  # where no file names one
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # rows 0 to 3, instead of the model's own first three pieces
_PEGASUS_OFFSET = 103
_MOST = 1 << 20  # rows that no text has


def with_table(files: Mapping[str, bytes], config: Mapping[str, Any], where: object) -> dict[str, bytes]:
    """``files`` of a tokenizer with its table as ``vocab.json``; as they are where they hold one, or no model.

    Raises:
        VocabularyError: the SentencePiece model or the tokenizer's settings are damaged.
    """
    name = next((name for name in MODELS if name in files), None)
    if name is None or {"tokenizer.json", "vocab.json"} & set(files):
        return dict(files)
    settings = _settings(files.get("tokenizer_config.json", b"{}"), where)
    said = settings.get("tokenizer_class") or config.get("tokenizer_class") or _CLASSES.get(config["model_type"])
    tokenizer = str(said).removesuffix("Fast")
    if tokenizer == "PegasusTokenizer":
        table = _pegasus(_pieces(files[name], name, where), settings)
    elif tokenizer in _CODES:
        table = [*_FAIRSEQ, *_pieces(files[name], name, where)[3:], *_CODES[tokenizer], "<mask>"]
    else:
        return dict(files)
    rows: dict[str, int] = {}
    for row, token in enumerate(table):
        rows.setdefault(token, row)
    return {**files, "vocab.json": json.dumps(rows).encode()}


def _settings(data: bytes, where: object) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VocabularyError("tokenizer_config.json is damaged", where=where, expected="JSON", found=error) from None
    offset = content.get("offset", _PEGASUS_OFFSET) if isinstance(content, dict) else None
    if type(offset) is not int or not 0 <= offset <= _MOST:
        raise VocabularyError(
            "tokenizer_config.json is damaged", where=where, expected="keys, and an offset that is a number of rows",
            found=repr(content)[:80],
        )  # fmt: skip
    return dict(content)


def _pieces(data: bytes, name: str, where: object) -> list[str]:
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_proto=data)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise VocabularyError(
            f"{name} is damaged", where=where, expected="a SentencePiece model", found=error
        ) from None
    return [model.id_to_piece(row) for row in range(model.get_piece_size())]


def _pegasus(pieces: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """``<pad>`` and the end token, two masks and ``<unk_2>`` …, which no text has, up to row offset + 2."""
    offset = settings.get("offset", _PEGASUS_OFFSET)
    masks = ["<mask_1>", "<mask_2>"] if settings.get("mask_token_sent", "<mask_1>") is not None else []
    unused = [f"<unk_{k}>" for k in range(2, offset)]
    return [*pieces[:2], *masks, *unused, *pieces[2:]]
