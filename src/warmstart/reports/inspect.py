"""A checkpoint's facts as text that fits a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warmstart.reports.text import (
    RED,
    columns,
    counted,
    grouped,
    labelled,
    paint,
    printable,
    readable_count,
    readable_shape,
    readable_size,
    short,
    table,
)
from warmstart.reports.tree import Part, parts_of, shown, walk
from warmstart.values.statistics import Statistics, pooled

_MANY = 10  # values of the metadata


def inspect_text(facts: Mapping[str, Any], *, width: int = 80, colour: bool = False) -> str:
    """What ``api.inspect`` found, in lines of at most ``width`` columns: a head, then the parts of the model as a tree
    whose repeated layers are one row, or, if only some names were asked for, these arrays.

    Nothing that a file says reaches the terminal as a control character.
    """
    entries, stats = facts["entries"], any("stats" in e for e in facts["entries"])
    lines = [paint(line, "1", colour) for line in labelled("", printable(facts["source"]), width, indent=0)]
    for label, text in _head(facts):
        for number, line in enumerate(text.splitlines() or [""]):
            lines += labelled("" if number else label, line, width)
    if stats:
        lines += [paint(line, RED, colour) for line in _not_finite(entries, width)]
    lines.append("")
    if facts["names"]:
        count, of = len(entries), facts["num_entries"]
        lines.append(f"{count:,} of {of:,} arrays match {printable(' or '.join(facts['names']))}")
        lines += _list(entries, facts["slots"], stats, width, colour)
    elif entries:
        lines += _tree(entries, stats, width, colour)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _head(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text of one or several lines)"""
    entries, slots = facts["entries"], facts["slots"]
    yield "format", printable(facts["format"])
    if facts["family"]:
        yield "family", f"{facts['family']}, written by {facts['dialect']}"
    else:
        yield "family", "not recognised"
        for dialect, reason in facts["not_recognised"].items():
            yield "", f"no model of {dialect}: {reason}"
    some = " that match" if facts["names"] else ""
    once = _stored_once(facts)
    elements = sum(math.prod(e["shape"]) for e in once)
    total = f"{elements:,} in {counted(len(entries), 'array')}{some}, {readable_size(sum(e['nbytes'] for e in once))}"
    dtypes = Counter(e["dtype"] for e in entries)
    if len(dtypes) == 1:
        yield "parameters", f"{total} of {printable(*dtypes)}"
    else:
        yield "parameters", total
        parts = []
        for dtype, count in dtypes.most_common():
            nbytes = sum(e["nbytes"] for e in entries if e["dtype"] == dtype)
            parts.append(f"{printable(dtype)} in {count:,} ({readable_size(nbytes)})")
        if parts:
            yield "dtypes", ", ".join(parts)
    for tie in facts["tied"]:
        yield "tied", _tie(tie)
    if facts["names"]:
        return
    if facts["step"] is not None:
        yield "step", grouped(facts["step"])
    if slots or facts["optimizer"]:
        yield "optimizer", _optimizer(facts)
    if facts["vocabularies"]:
        yield (
            "vocabularies",
            "\n".join(
                f"{printable(side)}: {v['size']:,} tokens, {printable(v['kind'])}, {v['fingerprint'][:12]}"
                for side, v in facts["vocabularies"].items()
            ),
        )
    if facts["config"]:
        yield "configuration", _configuration(facts["config"], facts["config_defaults"])
    if facts["metadata"]:
        yield "metadata", "\n".join(_metadata(facts["metadata"]))
    for note in facts["notes"]:
        yield "note", printable(note, keep="\n")


def _configuration(config: Mapping[str, Any], defaults: Sequence[str]) -> str:
    """Sizes and what is not at its default; the rest hides what matters."""
    told = [
        f"{key} {printable(value)}"
        for key, value in config.items()
        if value is not None and (key not in defaults or (type(value) is int and value > 1))
    ]
    left = sum(value is not None for value in config.values()) - len(told)
    more = f"{counted(left, 'key')} at {'its default' if left == 1 else 'their defaults'} (see --json)" if left else ""
    return "; ".join(filter(None, [", ".join(told), more]))


def _stored_once(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries, of those that share their bytes only the first."""
    there = {e["name"] for e in facts["entries"]}
    again: set[str] = set()
    for tie in facts["tied"]:
        if tie["by"] == "file":
            again.update([name for name in tie["names"] if name in there][1:])
    return [e for e in facts["entries"] if e["name"] not in again]


def _tie(tie: Mapping[str, Any]) -> str:
    names = " = ".join(map(printable, tie["names"]))
    if tie["by"] == "dialect":
        return f"{names} (one array: {printable(tie['array'])})"
    return f"{names} ({'same bytes in the file' if tie['by'] == 'file' else 'same values, stored apart'})"


def _optimizer(facts: Mapping[str, Any]) -> str:
    parts = []
    for slot, count in Counter(s["slot"] for s in facts["slots"]).items():
        nbytes = sum(s["nbytes"] for s in facts["slots"] if s["slot"] == slot)
        parts.append(f"{printable(slot)} of {counted(count, 'array')} ({readable_size(nbytes)})")
    parts += [f"{printable(key)} {short(value)}" for key, value in facts["optimizer"].items()]
    return ", ".join(parts)


def _metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    """A line for each of the first values, and one that counts what is inside the others."""
    plain = {key: value for key, value in metadata.items() if not isinstance(value, Mapping | list | tuple)}
    for key, value in list(plain.items())[:_MANY]:
        yield f"{printable(key)}: {short(value)}"
    nested = [f"{printable(key)} ({short(value)})" for key, value in metadata.items() if key not in plain]
    if len(plain) > _MANY:
        nested.append(f"{len(plain) - _MANY:,} more values")
    if len(nested) > _MANY:
        nested[_MANY:] = [f"{len(nested) - _MANY:,} more"]
    if nested:
        yield f"{', '.join(nested)}; all with --json"


def _not_finite(entries: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    wrong = [e for e in entries if "stats" in e and (e["stats"]["nan"] or e["stats"]["inf"])]
    lines = []
    for e in wrong[:_MANY]:
        counts = [f"{e['stats'][kind]:,} {text}" for kind, text in (("nan", "NaN"), ("inf", "Inf")) if e["stats"][kind]]
        lines += labelled("not finite", f"{printable(e['name'])}: {' and '.join(counts)}", width)
    if len(wrong) > _MANY:
        lines += labelled("", f"and {len(wrong) - _MANY:,} more arrays", width)
    return lines


def _tree(entries: Sequence[Mapping[str, Any]], stats: bool, width: int, colour: bool) -> list[str]:
    usual = Counter(e["dtype"] for e in entries).most_common(1)[0][0]
    parts = parts_of((e["name"], (tuple(e["shape"]), e["dtype"]), e) for e in entries)
    rows: list[tuple[int, Part[Any], str]] = []
    room = max(16, width - 52)
    skip = 0
    for depth, part in walk(parts, join=stats):
        if skip:
            skip -= 1
            continue
        inside = ""
        if part.children and not stats:
            brief = ", ".join(_inside(part.children, usual))
            if all(not child.children for child in part.children) and columns(brief) <= room:
                inside, skip = brief, len(part.children)
        elif not part.children:
            inside = _shape(part, usual)
        rows.append((depth, part, inside))
    headings, cells = _stats_columns(rows, width) if stats else _size_columns(rows, width)
    labels = [shown(part, depth) for depth, part, _ in rows]
    left = (0,) if stats else (0, len(headings))
    table_rows = [[label, *more] for label, more in zip(labels, cells, strict=True)]
    return table(["part", *headings], table_rows, width, left=left, bold=[d == 0 for d, _, _ in rows], colour=colour)


def _inside(children: Sequence[Part[Any]], usual: str) -> Iterator[str]:
    """``weight 512×512``, and the shape once for several names of one shape."""
    for child in children:
        yield f"{shown(child, 1).strip()} {_shape(child, usual)}"


def _shape(part: Part[Any], usual: str) -> str:
    entry = part.items[0]
    dtype = "" if entry["dtype"] == usual else f" {printable(entry['dtype'])}"
    return readable_shape(entry["shape"]) + dtype


def _size_columns(rows: Sequence[tuple[int, Part[Any], str]], width: int) -> tuple[list[str], list[list[str]]]:
    cells = []
    for _, part, inside in rows:
        elements = sum(math.prod(e["shape"]) for e in part.items) / _copies(part)
        nbytes = readable_size(sum(e["nbytes"] for e in part.items) / _copies(part)).replace("bytes", "B")
        cells.append([_times(part), readable_count(elements), nbytes, inside])
    if width < 72:
        return ["", "params", "shapes"], [[*row[:2], row[3]] for row in cells]
    return ["", "params", "size", "shapes"], cells


def _times(part: Part[Any]) -> str:
    return f"{part.count} ×" if part.count > 1 else ""


def _copies(part: Part[Any]) -> int:
    """How many times as many arrays ``part.items`` holds as one of the parts that the row stands for."""
    inside = sum(child.count * _arrays(child) for child in part.children) if part.children else 1
    return len(part.items) // inside


def _arrays(part: Part[Any]) -> int:
    return sum(child.count * _arrays(child) for child in part.children) if part.children else 1


def _stats_columns(rows: Sequence[tuple[int, Part[Any], str]], width: int) -> tuple[list[str], list[list[str]]]:
    headings = ["min", "max", "mean", "std", "zeros"][: 5 if width >= 72 else 2]
    cells = [_stats_cells([e["stats"] for e in part.items if "stats" in e], headings) for _, part, _ in rows]
    return ["", *headings], [[_times(part), *row] for (_, part, _), row in zip(rows, cells, strict=True)]


def _stats_cells(stats: Sequence[Mapping[str, Any]], headings: Sequence[str]) -> list[str]:
    found = pooled([Statistics(**s) for s in stats])
    cells = {
        "zeros": f"{found.zeros / found.count:.1%}" if found.count else "",
        **{
            key: "" if (value := getattr(found, key)) is None else f"{value:.3g}"
            for key in ("min", "max", "mean", "std")
        },
    }
    return [cells[heading] for heading in headings]


def _list(
    entries: Sequence[Mapping[str, Any]], slots: Sequence[Mapping[str, Any]], stats: bool, width: int, colour: bool
) -> list[str]:
    numbers = ["min", "max", "mean", "std"][: 4 if width >= 72 else 2]
    headings = ["array", *numbers] if stats else ["array", "shape", "dtype", "size"]
    rows = []
    below: dict[str, list[Mapping[str, Any]]] = {}
    for slot in slots:
        below.setdefault(slot["name"], []).append(slot)
    for e in entries:
        for item, label in (
            (e, printable(e["name"])),
            *((s, f"  {printable(s['slot'])}") for s in below.get(e["name"], ())),
        ):
            if stats:
                rows.append([label, *_stats_cells([item["stats"]] if "stats" in item else [], numbers)])
            else:
                size = readable_size(item["nbytes"])
                rows.append([label, readable_shape(item["shape"]), printable(item["dtype"]), size])
    return table(headings, rows, width, left=(0,) if stats else (0, 2), colour=colour)
