"""Text for terminals: numbers a person can read, columns that fit, and nothing from a file that steers the terminal."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from warmstart.errors import FormatError

# Control characters (C0, DEL, C1), line separators, marks that turn the direction of text, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BOLD, DIM, RED = "1", "2", "31"
MAX_VALUES, MAX_NESTED = 5_000_000, 100
MAX_TEXT = 4_000  # characters of one name, note or value
_LONG = 60  # characters of a value that is told in short


def printable(value: object, *, keep: str = "") -> str:
    """``value`` as text; a character that could steer a terminal is escaped (``\\x1b``), but for those of ``keep``."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        return match[0] if match[0] in keep else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"

    return _UNSAFE.sub(escape, hex(value) if _is_huge(value) else str(value))


def _is_huge(value: object) -> TypeGuard[int]:
    """Whether Python refuses to write this integer in decimal."""
    return isinstance(value, int) and value.bit_length() > 4096


def json_text(value: object) -> str:
    """``value`` as JSON that any parser takes and any terminal shows: keys are strings; what JSON has no word for (NaN,
    dates, bytes) is its text; control characters are escaped.

    Raises:
        FormatError: it holds millions of values, as a small file with references into itself may.
    """
    text = json.dumps(_plain(value, iter(range(MAX_VALUES))), ensure_ascii=False, indent=1, default=str)
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _plain(value: object, budget: Iterator[int], depth: int = 0) -> object:
    if next(budget, None) is None or depth > MAX_NESTED:
        raise FormatError(
            "the file's own description is too large to print",
            expected=f"at most {MAX_VALUES:,} values, {MAX_NESTED} deep",
            todo="leave out --json",
        )
    if isinstance(value, Mapping):
        return {str(key): _plain(item, budget, depth + 1) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, budget, depth + 1) for item in value]
    if _is_huge(value) or (isinstance(value, float) and not math.isfinite(value)):
        return printable(value)
    return value


def readable_size(count: float) -> str:
    """Bytes in a unit that leaves one to three digits, powers of 1000."""
    return _in_a_unit(count, (" bytes", " kB", " MB", " GB", " TB"))


def readable_count(count: float) -> str:
    """A number of things in three digits: ``512``, ``263 k``, ``3.15 M``."""
    return _in_a_unit(count, ("", " k", " M", " G", " T"))


def _in_a_unit(count: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if count < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}{units[-1]}"


def grouped(count: int) -> str:
    """A whole number with a comma every three digits."""
    return printable(count) if _is_huge(count) else f"{count:,}"


def counted(count: int, what: str) -> str:
    """``1 array``, ``2,000 arrays``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def readable_shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"


def columns(text: str) -> int:
    """How many columns of a terminal ``text`` takes: East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrap(text: str, width: int, *, hang: int = 0) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken at spaces; words that are longer than a line at the
    separators of names, or else anywhere.

    Lines after the first are indented by ``hang`` more than ``text`` itself is. Of more than a screen the rest is left
    out, and said to be.
    """
    width = max(width, 8)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text):,} characters)"
    first = " " * min(len(text) - len(text.lstrip(" ")), width - 6)
    after = " " * min(len(first) + hang, width - 6)
    lines, line, empty = [], first, True
    for word in text.split():
        if not empty and columns(line) + 1 + columns(word) > width:
            lines.append(line)
            line, empty = after, True
        line, empty = line + ("" if empty else " ") + word, False
        while columns(line) > width:
            cut = _cut(line, width, len(after if lines else first))
            lines.append(line[:cut])
            line = after + line[cut:]
    return [*lines, line]


def _cut(line: str, width: int, indent: int) -> int:
    """Where to break a line that is too long: behind the last separator that fits, or else where it is full."""
    full = indent
    while full < len(line) and columns(line[: full + 1]) <= width:
        full += 1
    full = max(full, indent + 1)
    return max((match.end() for match in re.finditer(r"[./_]+(?=[^./_])", line[:full])), default=0) or full


def labelled(label: str, text: str, width: int, *, indent: int = 15) -> list[str]:
    """``text`` wrapped, beside its label."""
    lines = wrap(text, width - indent)
    return [f"{label if i == 0 else '':<{indent}}{line}".rstrip() for i, line in enumerate(lines)]


def paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text.strip() else text


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    left: Sequence[int] = (0,),
    bold: Sequence[bool] = (),
    colour: bool = False,
) -> list[str]:
    """Lines of a table of at most ``width`` columns. The first column, and the last if it is one of ``left``, are
    wrapped where they do not fit; the others are as wide as they need.

    Args:
        left: indices of the columns that are aligned to the left; the others to the right.
        bold: for each row, whether its first column is bold on a terminal with ``colour``.
    """
    last = len(headings) - 1
    cells = [list(headings), *map(list, rows)]
    widths = [max(columns(row[i]) for row in cells) for i in range(len(headings))]
    flexible = [0, *([last] if last in left and last else [])]
    room = width - sum(w for i, w in enumerate(widths) if i not in flexible) - 2 * last
    if len(flexible) == 2:
        widths[last] = min(widths[last], max(room - widths[0], room - 28 if room >= 48 else room // 2 - 4))
        room -= widths[last]
    widths[0] = max(min(widths[0], room), 16)
    lines: list[str] = []
    for number, row in enumerate(cells):
        parts = [
            wrap(cell, widths[i], hang=2 if i == 0 else 0) if i in flexible else [cell] for i, cell in enumerate(row)
        ]
        for k in range(max(map(len, parts))):
            texts = [_align(part[k] if k < len(part) else "", widths[i], i in left) for i, part in enumerate(parts)]
            if number == 0:
                texts = [paint(text, DIM, colour) for text in texts]
            elif number <= len(bold) and bold[number - 1]:
                texts[0] = paint(texts[0], BOLD, colour)
            lines.append("  ".join(texts).rstrip())
    return lines


def _align(text: str, width: int, left: bool) -> str:
    space = " " * (width - columns(text))
    return text + space if left else space + text


def short(value: Any) -> str:
    """A value of metadata in a few words: of a long list, or a nested one, how many it has; of long text the start."""
    if isinstance(value, Mapping):
        return counted(len(value), "key")
    if isinstance(value, list | tuple):
        nested = len(value) > 4 or any(isinstance(item, Mapping | list | tuple) for item in value)
        return counted(len(value), "value") if nested else ", ".join(map(short, value))
    text = f"{value:.6g}" if isinstance(value, float) else printable(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 20]}… ({len(text):,} characters)"
