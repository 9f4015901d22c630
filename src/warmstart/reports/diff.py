"""What differs between two checkpoints, as text that fits a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warmstart.reports.text import counted, grouped, labelled, paint, printable, readable_shape, short, table
from warmstart.reports.tree import Part, parts_of, shown, walk

_MANY = 10  # values besides arrays
_SECTIONS = {
    "only in A": "only in A",
    "only in B": "only in B",
    "shape": "other shapes",
    "dtype": "same values, other dtypes",
    "values": "other values",
    "not read": "not compared: their dtype cannot be read",
}


def diff_text(facts: Mapping[str, Any], *, width: int = 80, colour: bool = False) -> str:
    """What ``api.diff`` found: what is equal in one line, then a tree for each way to differ, with repeated layers of
    one verdict folded into a row that shows the worst of them."""
    lines: list[str] = []
    for letter in ("a", "b"):
        lines += labelled(letter.upper(), _about(facts[letter]), width, indent=3)
    if facts["family"]:
        lines += labelled("", f"compared in the canonical names of {facts['family']}", width, indent=3)
    lines.append("")
    for label, text in _head(facts):
        for number, line in enumerate(text.splitlines()):
            lines += labelled("" if number else label, line, width)
    for verdict, title in _SECTIONS.items():
        entries = [e for e in facts["entries"] if e["verdict"] == verdict]
        if entries:
            lines += ["", paint(f"{title}: {counted(len(entries), 'array')}", "1", colour)]
            lines += _section(verdict, entries, width, colour)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _about(side: Mapping[str, Any]) -> str:
    family = f", {side['family']} written by {side['dialect']}" if side["family"] else ""
    return f"{printable(side['source'])}: {printable(side['format'])}{family}"


def _head(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text of one or several lines)"""
    entries = facts["entries"]
    verdicts = Counter(e["verdict"] for e in entries)
    equal = verdicts["equal"] + verdicts["close"]
    close = f", {verdicts['close']:,} of them only within the tolerance" if verdicts["close"] else ""
    every = "all " if equal == len(entries) else ""
    slots = f", {len(facts['slots']):,} optimizer slots" if facts["same"] and facts["slots"] else ""
    which = " that match" if facts["names"] else ""
    yield (
        ("the same" if facts["same"] else "equal"),
        (
            f"{every}{counted(len(entries), 'array')}{which}{slots}{close}"
            if every
            else f"{equal:,} of {counted(len(entries), 'array')}{which}{close}"
        ),
    )
    casts = sum(e["verdict"] in ("equal", "close") and e["dtype"][0] != e["dtype"][1] for e in entries)
    if casts:
        yield "dtypes", f"differ in {counted(casts, 'array')} that are within the tolerance"
    if facts["slots"] and not facts["same"]:
        yield "optimizer", "\n".join(_slots(facts["slots"]))
    for kind, found in facts["beyond"].items():
        lines = [f"{f'{printable(k)}: ' if k != kind else ''}{_pair(*pair)}" for k, pair in found.items()]
        left = [f"and {len(lines) - _MANY:,} more; all with --json"] if len(lines) > _MANY else []
        yield kind, "\n".join([*lines[:_MANY], *left])
    for letter in "AB":
        if kinds := [only["kind"] for only in facts["only"] if only["in"] == letter]:
            yield "not compared", f"{', '.join(kinds)}, which only {letter} has"
    for note in facts["notes"]:
        yield "note", printable(note, keep="\n")


def _pair(a: Any, b: Any) -> str:
    def text(value: Any) -> str:
        if value is None:
            return "none"
        return grouped(value) if type(value) is int else repr(value) if type(value) is float else short(value)

    return f"{text(a)} in A, {text(b)} in B"


def _slots(slots: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for slot in dict.fromkeys(s["slot"] for s in slots):
        some = [s for s in slots if s["slot"] == slot]
        counts = Counter(s["verdict"] for s in some)
        equal = counts["equal"] + counts["close"]
        worst = max((s["absolute"] for s in some if s["verdict"] == "values"), default=0.0)
        titles = {**_SECTIONS, "values": f"differ by up to {worst:.3g}"}
        others = [f"{counts[verdict]:,} {title}" for verdict, title in titles.items() if counts[verdict]]
        yield ", ".join([f"{printable(slot)}: {equal:,} of {counted(len(some), 'array')} equal", *others])


def _section(verdict: str, entries: Sequence[Mapping[str, Any]], width: int, colour: bool) -> list[str]:
    parts = parts_of((e["name"], (str(e["shape"]), str(e["dtype"])), e) for e in entries)
    rows = list(walk(parts, join=True))
    if verdict == "values":
        headings = ["|A-B|", "relative", "cosine", "differ", "NaN, Inf"]
        chosen = [0, 1, 2, *([3] if width >= 72 else []), *([4] if any(e["nonfinite"] for e in entries) else [])]
        headings = [headings[i] for i in chosen]
        cells = [[_numbers(part.items)[i] for i in chosen] for _, part in rows]
    else:
        headings = ["array"] if verdict.startswith("only") else ["A", "B"]
        cells = [_shapes(part, verdict) for _, part in rows]
    texts = [
        [f"  {shown(part, depth)}{_casts(part, verdict)}", f"{part.count} ×" if part.count > 1 else "", *row]
        for (depth, part), row in zip(rows, cells, strict=True)
    ]
    left = (0,) if verdict == "values" else (0, len(headings) + 1)
    return table(["  part", "", *headings], texts, width, left=left, colour=colour)


def _numbers(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Worst of several arrays: largest absolute and relative difference, smallest cosine; how many elements differ (a
    share where it is many), and how many of them because one is NaN or infinite."""
    cosines = [e["cosine"] for e in items if e["cosine"] is not None]
    elements = sum(math.prod(e["shape"][0]) for e in items)
    different = sum(e["different"] for e in items)
    broken = sum(e["nonfinite"] for e in items)
    share = "all" if different == elements else f"{different:,}"
    if 1000 <= different < elements:
        share = f"{min(different / elements, 0.999):.1%}"
    return [
        f"{max(e['absolute'] for e in items):.3g}",
        f"{max(e['relative'] for e in items):.3g}",
        f"{min(cosines):.6f}" if cosines else "",
        share,
        f"{broken:,}" if broken else "",
    ]


def _casts(part: Part[Any], verdict: str) -> str:
    """Both dtypes, where a row whose values are shown has two."""
    a, b = part.items[0]["dtype"]
    return "" if part.children or verdict != "values" or a == b else f" ({printable(a)} | {printable(b)})"


def _shapes(part: Part[Any], verdict: str) -> list[str]:
    """Shape and dtype of a row's array on one side, or on both; nothing for a part."""
    if part.children:
        return [""] if verdict.startswith("only") else ["", ""]
    e = part.items[0]
    sides = [
        f"{readable_shape(s)} {printable(d)}" for s, d in zip(e["shape"], e["dtype"], strict=True) if s is not None
    ]
    return sides
