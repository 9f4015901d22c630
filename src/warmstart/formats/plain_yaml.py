"""The plain YAML of Marian's options, read without a parser of all of YAML, whose import takes as long as opening a
model's arrays."""

from __future__ import annotations

import re
from typing import Any

_LINE = re.compile(r"([A-Za-z][\w.-]*):(?: (.+))?", re.ASCII)
_ITEM = re.compile(r" *- (.+)")
_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}", re.ASCII)
_WORDS = re.compile(r"[A-Za-z](?:[\w./ +-]*[\w./+-])?", re.ASCII)
_MEANT = {"true": True, "false": False, '""': "", "''": ""}
_OTHERWISE = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # in whatever letters


def parse(text: str) -> dict[str, Any] | None:
    """What ``text`` says if every line is a key with a whole number, a truth value, or words, or a list of these;
    None where something else is in it, which a parser of YAML has to say."""
    found: dict[str, Any] = {}
    items: list[Any] | None = None
    for line in text.rstrip("\n").split("\n"):
        if items is not None and (item := _ITEM.fullmatch(line)):
            items.append(_value(item[1]))
            continue
        key = _LINE.fullmatch(line)
        if key is None or key[1] in found or key[1].lower() in _OTHERWISE or items == []:
            return None
        items = [] if key[2] is None else None
        found[key[1]] = items if key[2] is None else _value(key[2])
    values = [one for value in found.values() for one in (value if isinstance(value, list) else [value])]
    return None if items == [] or None in values else found


def _value(text: str) -> Any:
    """A number, a truth value or words; None if it is none of these."""
    if text in _MEANT:
        return _MEANT[text]
    if _NUMBER.fullmatch(text):
        return int(text)
    return text if _WORDS.fullmatch(text) and text.lower() not in _OTHERWISE else None
