"""The table of a tokenizer of ``transformers``, from its files. Nothing of them is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from warmstart.errors import VocabularyError
from warmstart.formats.mapped import POINTER
from warmstart.lean import dataclass

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NO_TOKEN = ("word_delimiter_token",)  # wav2vec 2.0's, which stands in its table or for a space


@dataclass(frozen=True)
class Tokenizer:
    """What a tokenizer's files say of its table.

    Attributes:
        tokens: by row, added ones among them: ``tokenizer.get_vocab()`` sorted by row.
        special: ``bos_token`` and its fellows; what the class leaves out is not there.
        additional: ``additional_special_tokens``.
        settings: tokenizer_config.json.
    """

    tokens: tuple[str, ...]
    special: Mapping[str, str]
    additional: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_tokenizer(
    files: Mapping[str, bytes], where: object, defaults: Mapping[str, str], prefer: Sequence[str] = ()
) -> Tokenizer:
    """The table of a tokenizer from its ``files`` (name → content).

    Args:
        defaults: special tokens of its class, where no file says others.
        prefer: files to look at before ``tokenizer.json``.

    Raises:
        VocabularyError: no file holds a table, one is damaged, or rows have no token or two.
    """
    try:
        return _tokenizer(files, where, defaults, prefer)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # files of another structure
        found = f"{type(error).__name__}: {error}"
        raise VocabularyError("files of the tokenizer are damaged", where=where, found=found) from None


def _tokenizer(
    files: Mapping[str, bytes], where: object, defaults: Mapping[str, str], prefer: Sequence[str]
) -> Tokenizer:
    settings = _json(files, "tokenizer_config.json", where)
    older = {} if "added_tokens_decoder" in settings else files  # what it says again, and then first, transformers 5
    said = {**settings, **_json(older, "special_tokens_map.json", where)}
    special = {**defaults, **{k: _text(said[k], k) for k in SPECIAL if said.get(k) is not None}}
    extra = said.get("extra_special_tokens") or ()
    own = [said[key] for key in said if key.endswith("_token") and key not in (*SPECIAL, *_NO_TOKEN)]
    named = [*(token for token in own if isinstance(token, str)), *(extra.values() if isinstance(extra, dict) else ())]
    more = said.get("additional_special_tokens") or (extra if isinstance(extra, list) else ())
    additional = tuple(_text(token) for token in more)
    rows = _table(files, where, prefer)
    if {*map(type, rows.values())} - {int}:
        wrong = next(token for token, row in rows.items() if type(row) is not int)
        raise VocabularyError(f"the row of {wrong!r} is no number", where=where, found=repr(rows[wrong]))
    for row, token in (settings.get("added_tokens_decoder") or {}).items():
        rows.setdefault(_text(token), int(row))
    for token, row in _json(older, "added_tokens.json", where).items():
        rows.setdefault(token, int(row))
    for token in (*(special[k] for k in SPECIAL if k in special), *map(_text, named), *additional):
        rows.setdefault(token, max(rows.values(), default=-1) + 1)
    return Tokenizer(_in_order(rows, where), special, additional, settings)


def _table(files: Mapping[str, bytes], where: object, prefer: Sequence[str]) -> dict[str, int]:
    for name in (*prefer, "tokenizer.json", "vocab.json", "vocab.txt"):
        if name not in files:
            continue
        if name == "vocab.txt":
            lines = files[name].decode("utf-8").splitlines()
            return {token: row for row, token in enumerate(lines)}
        content = _json(files, name, where)
        rows: dict[str, int] = {}
        if name != "tokenizer.json":
            rows.update(content)
            return rows
        table = (content.get("model") or {}).get("vocab") or {}
        pairs = table.items() if isinstance(table, dict) else ((entry[0], row) for row, entry in enumerate(table))
        rows.update(pairs)
        rows.update({token["content"]: token["id"] for token in content.get("added_tokens") or ()})
        return rows
    raise VocabularyError(
        "no table of tokens lies beside the model",
        where=where,
        expected="tokenizer.json, vocab.json or vocab.txt",
        found=", ".join(sorted(files)) or "no file of a tokenizer",
        todo="give --vocab tokenizer.json, or lay it there: today's transformers (`save_pretrained`) writes it",
    )


def _in_order(rows: Mapping[str, int], where: object) -> tuple[str, ...]:
    usual = list(range(len(rows)))
    if list(rows.values()) == usual:
        return tuple(rows)
    tokens = sorted(rows, key=rows.__getitem__)
    if sorted(rows.values()) != usual:
        place, token = next((place, token) for place, token in enumerate(tokens) if rows[token] != place)
        raise VocabularyError(
            f"row {place} of the vocabulary has {'two tokens' if rows[token] < place else 'no token'}",
            where=where,
            found=f"{token!r} is row {rows[token]}",
        )
    return tuple(tokens)


def _json(files: Mapping[str, bytes], name: str, where: object) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        content = json.loads(files[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        pointer = files[name].startswith(POINTER)
        found, todo = ("a git-lfs pointer", "run git lfs pull") if pointer else (error, None)
        raise VocabularyError(f"{name} is damaged", where=where, expected="JSON", found=found, todo=todo) from None
    if not isinstance(content, dict):
        raise VocabularyError(f"{name} does not hold a JSON object", where=where, found=type(content).__name__)
    return content


def _text(token: Any, what: str = "a token") -> str:
    """A token that stands alone, or with how it is matched (``{"content": …}``)."""
    found = token["content"] if isinstance(token, dict) else token
    if not isinstance(found, str):
        raise TypeError(f"{what} is {found!r}")
    return found
