"""Vocabularies of decoder-only models, as ``transformers`` keeps them and CTranslate2's converter takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from warmstart.models.huggingface_tokenizer import read_tokenizer
from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary
from warmstart.vocabularies.subwords import ROLES, SubwordVocabulary

Padding = Literal["none", "extra", "cut", "madeup"]

# What classes of tokenizers take for special where their files do not say it, and which class a type of model has
# where its files name none, or another than transformers 5.23 believes (models/auto/tokenization_auto.py).
_END = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_SENTENCE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GEMMA = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "unk", "pad", "mask")}
_CLASSES: dict[str, dict[str, str]] = {
    "GPT2Tokenizer": _END,
    "CodeGenTokenizer": _END,
    "GPTNeoXTokenizer": {**_END, "pad_token": "<|padding|>"},
    "LlamaTokenizer": _SENTENCE,
    "GemmaTokenizer": _GEMMA,
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
_USUAL = {
    **dict.fromkeys(("gpt2", "gptj", "codegen", "opt", "phi"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer"),
}
_FORCED = {"qwen2": "Qwen2Tokenizer", "phi3": "TokenizersBackend"}


def read_vocabulary(
    files: Mapping[str, bytes], where: object, kind: str, size: int, padding: Padding
) -> SubwordVocabulary:
    """The table of the tokenizer of a model of type ``kind``, brought to ``size`` rows as the converter does.

    ``extra`` appends ``<extra_id_N>``, ``cut`` does so or drops what is too much, ``madeup`` appends
    ``madeupwordNNNN`` up to a multiple of 8.

    Raises:
        VocabularyError: as ``read_tokenizer``.
    """
    declared = _settings(files).get("tokenizer_class")
    name = _FORCED.get(kind) or str(declared or _USUAL.get(kind)).removesuffix("Fast")
    tokenizer = read_tokenizer(_with_table(files), where, _CLASSES.get(name, {}))
    tokens = list(tokenizer.tokens)
    if padding in ("extra", "cut"):
        tokens += [f"<extra_id_{i}>" for i in range(size - len(tokens))]
    if padding == "cut":
        tokens = tokens[:size]
    if padding == "madeup":
        _make_up(tokens)
    special = {role: tokenizer.special.get(f"{role}_token") for role in ROLES}
    return SubwordVocabulary(tokens, special, files)


def _with_table(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """``files`` with the pieces of a SentencePiece model as the table, where there is no other: what LlamaTokenizer and
    its like do, and those before ``tokenizer.json`` had nothing else."""
    if "tokenizer.model" not in files or {"tokenizer.json", "vocab.json", "vocab.txt"} & set(files):
        return files
    rows: dict[str, int] = {}
    for row, piece in enumerate(SentencePieceVocabulary(files["tokenizer.model"]).tokens):
        rows.setdefault(piece, row)
    return {**files, "vocab.json": json.dumps(rows).encode("ascii")}


def _make_up(tokens: list[str]) -> None:
    known, number = set(tokens), 0
    while len(tokens) % 8:
        word = f"madeupword{number:04d}"
        if word not in known:
            tokens.append(word)
        number += 1


def numbered(config: Mapping[str, object], tokens: Sequence[str], role: str) -> str | None:
    """The token whose row config.json gives a role; of several the first."""
    said = config.get(f"{role}_token_id")
    row = next(iter(said), None) if isinstance(said, list) else said
    return tokens[row] if isinstance(row, int) and 0 <= row < len(tokens) else None


def chat_template(files: Mapping[str, bytes]) -> bool:
    """Whether the tokenizer brings a template for conversations."""
    template = files.get("chat_template.jinja", b"").decode("utf-8", "replace") or _settings(files).get("chat_template")
    return isinstance(template, str) and bool(template.strip())


def _settings(files: Mapping[str, bytes]) -> dict[str, object]:
    try:
        content = json.loads(files.get("tokenizer_config.json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
