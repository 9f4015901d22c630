"""Names with holes: ``encoder_l{i+1}_self_Wq`` for writing, ``encoder.layers.{i}.**`` for matching.

A hole is ``{variable}`` or ``{variable+n}`` / ``{variable-n}``; nothing else is computed. In a pattern
``*`` matches within one dotted part and ``**`` across parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

_HOLE = re.compile(r"\{(\w+)([+-]\d+)?\}")
_PIECE = re.compile(r"\{(\w+)([+-]\d+)?\}|\*\*|\*")


def variables(template: str) -> set[str]:
    """Names of the holes in ``template``."""
    return {m.group(1) for m in _HOLE.finditer(template)}


def fill(template: str, values: Mapping[str, int]) -> str:
    """``template`` with its holes filled: ``fill("l{i+1}", {"i": 0})`` is ``"l1"``."""
    pieces, rest = _cut(template)
    return "".join([f"{text}{values[name] + offset}" for text, name, offset in pieces]) + rest


@lru_cache(maxsize=4096)
def _cut(template: str) -> tuple[tuple[tuple[str, str, int], ...], str]:
    """The holes of ``template``, each with the text before it, its variable and offset; and the text after the last."""
    pieces, last = [], 0
    for m in _HOLE.finditer(template):
        pieces.append((template[last : m.start()], m.group(1), int(m.group(2) or 0)))
        last = m.end()
    return tuple(pieces), template[last:]


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> tuple[re.Pattern[str], tuple[tuple[str, int] | None, ...]]:
    """A regular expression for ``pattern`` and, for each group, its (variable, offset) or None for a wildcard."""
    text, last, groups = "", 0, list[tuple[str, int] | None]()
    for m in _PIECE.finditer(pattern):
        text += re.escape(pattern[last : m.start()])
        last = m.end()
        if m.group(1):
            groups.append((m.group(1), int(m.group(2) or 0)))
            text += r"(\d+)"
        else:
            groups.append(None)
            text += "(.*)" if m.group() == "**" else r"([^.]*)"
    return re.compile(text + re.escape(pattern[last:])), tuple(groups)


def matches(pattern: str, name: str) -> bool:
    """Whether the whole of ``name`` fits ``pattern``."""
    return match(pattern, name) is not None


def match(pattern: str, name: str) -> tuple[dict[str, int], list[str]] | None:
    """Values of the variables and texts of the wildcards with which ``pattern`` spells ``name``; None if it cannot."""
    compiled, groups = _compile(pattern)
    found = compiled.fullmatch(name)
    if not found:
        return None
    values: dict[str, int] = {}
    wildcards: list[str] = []
    for group, text in zip(groups, found.groups(), strict=True):
        if group is None:
            wildcards.append(text)
            continue
        value = int(text) - group[1]
        if values.setdefault(group[0], value) != value:
            return None
    return values, wildcards


def rename(pattern: str, replacement: str, name: str) -> str | None:
    """``name`` rewritten: holes and wildcards of ``replacement`` take what ``pattern`` matched, in order."""
    found = match(pattern, name)
    if found is None:
        return None
    values, wildcards = found
    rest = iter(wildcards)

    def put(m: re.Match[str]) -> str:
        return str(values[m.group(1)] + int(m.group(2) or 0)) if m.group(1) else next(rest)

    return _PIECE.sub(put, replacement)


def problem_with_rename(pattern: str, replacement: str) -> str | None:
    """Why ``replacement`` cannot be written from ``pattern``'s matches, or None."""
    missing = variables(replacement) - variables(pattern)
    if missing:
        return f"{{{sorted(missing)[0]}}} stands in the replacement only"
    wild = [sum(m.group(1) is None for m in _PIECE.finditer(t)) for t in (pattern, replacement)]
    if wild[0] != wild[1]:
        return f"{wild[0]} wildcards on the left, {wild[1]} on the right"
    return None
