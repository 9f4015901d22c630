"""The parts of a model as a tree, from the names of its arrays; parts that are alike are one row."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import field
from itertools import pairwise
from typing import Generic, TypeVar

from warmstart.lean import dataclass
from warmstart.reports.text import printable

Item = TypeVar("Item")
MAX_DEPTH = 24
MAX_LISTED = 24  # names in one row
_SEPARATED = re.compile(r"[./]*[^./]+|[./]+")
_MARIAN = re.compile(r"([A-Za-z0-9]+)_(l[0-9]{1,6})_(.+)", re.DOTALL)
_NUMBER = re.compile(r"(.*?)([0-9]{1,9})([^0-9]*)", re.DOTALL)


@dataclass
class Part(Generic[Item]):
    """A row: one part, or ``count`` parts that have the same arrays inside (``layers.0-11``; ``query, key, value``).

    ``children`` are the parts of one of them. ``items`` are all arrays below, those of all ``count`` parts.
    """

    label: str
    items: list[Item]
    children: list[Part[Item]] = field(default_factory=list)
    count: int = 1
    alike: int = 0  # a number for everything that must agree before two parts are one row
    listed: bool = False  # the label is a list of names in braces, without a common end


@dataclass
class _Node(Generic[Item]):
    below: dict[str, _Node[Item]] = field(default_factory=dict)
    leaf: tuple[Hashable, Item] | None = None


def parts_of(arrays: Iterable[tuple[str, Hashable, Item]]) -> list[Part[Item]]:
    """The tree of ``arrays``: (name, what must agree before two of them are one row, item), in the order given.

    Names are taken apart at ``.`` and ``/``, and at Marian's ``_l3_``. Parts whose names differ in their last number
    are one row if everything inside is alike, and so are neighbours whose names differ (``query, key, value``).
    """
    arrays = list(arrays)
    stems = {match[1] for name, _, _ in arrays if (match := _MARIAN.match(name))}
    root: _Node[Item] = _Node()
    for name, kind, item in arrays:
        node = root
        for piece in pieces(name, stems):
            node = node.below.setdefault(piece, _Node())
        node.leaf = (kind, item)
    return _fold(root, {})


def pieces(name: str, stems: Iterable[str] = ()) -> list[str]:
    """``name`` taken apart; every piece but the first begins with its separator."""
    found = _SEPARATED.findall(name) or [name]
    if len(found) > MAX_DEPTH:
        found[MAX_DEPTH - 1 :] = ["".join(found[MAX_DEPTH - 1 :])]
    first = found[0]
    if match := _MARIAN.fullmatch(first):
        stem, layer, rest = match.groups()
        block, separator, array = rest.partition("_")
        found[:1] = [stem, f"_{layer}", f"_{block}", *([f"_{array}"] if separator else [])]
    else:
        stem = first.partition("_")[0]
        if stem in stems and stem != first:
            found[:1] = [stem, first[len(stem) :]]
    return found


def shown(part: Part[Item], depth: int) -> str:
    """A row's label, indented, without the separator that its parent's row stands for."""
    label = printable(part.label)
    if depth:
        label = label.lstrip("./_") or label
    return "  " * depth + (label.replace("{", "", 1)[:-1] if part.listed else label)


def walk(parts: Sequence[Part[Item]], depth: int = 0, *, join: bool = False) -> Iterator[tuple[int, Part[Item]]]:
    """(depth, part) from top to bottom. With ``join``, a part that has one row of arrays inside is one row with it:
    ``norm.{weight, bias}``."""
    for part in parts:
        only = part.children[0] if join and len(part.children) == 1 else None
        if only is not None and not only.children:
            yield depth, Part(part.label + only.label, part.items, count=part.count * only.count, alike=only.alike)
        else:
            yield depth, part
            yield from walk(part.children, depth + 1, join=join)


def _fold(node: _Node[Item], known: dict[Hashable, int]) -> list[Part[Item]]:
    """The rows below ``node``. ``known`` numbers what parts look like inside."""
    numbered: dict[tuple[str, str, int], list[tuple[str, Part[Item]]]] = {}
    for piece, child in node.below.items():
        for part in _rows_of(piece, child, known):
            match = _NUMBER.fullmatch(piece) if part.count == 1 else None
            before, number, after = match.groups() if match else (piece, "", "")
            key = (before, after + part.label[len(piece) :], part.alike if number else -1 - part.alike)
            numbered.setdefault(key, []).append((number, part))
    rows: dict[Hashable, list[Part[Item]]] = {}
    for (before, after, _), group in numbered.items():
        if len(group) > 1:
            group.sort(key=lambda pair: int(pair[0]))
            label = f"{before}{_ranges([number for number, _ in group])}{after}"
            rows[label, "layers"] = [_merge(label, [part for _, part in group])]
        else:
            part = group[0][1]
            rows.setdefault(part.alike if part.count == 1 else (part.label, part.alike), []).append(part)
    return [_listed(group) if len(group) > 1 else group[0] for group in rows.values()]


def _rows_of(piece: str, node: _Node[Item], known: dict[Hashable, int]) -> Iterator[Part[Item]]:
    """The rows of a child: the array of that name if there is one, and what lies below it."""
    if node.leaf is not None:
        kind, item = node.leaf
        yield Part(piece, [item], alike=known.setdefault(("array", kind), len(known)))
    if not node.below:
        return
    children = _fold(node, known)
    only = children[0]
    joins = only.count == 1 or (not _NUMBER.fullmatch(piece) and (only.children or not only.listed))
    if len(children) == 1 and joins:  # a numbered piece stays a level of its own above several parts
        yield Part(piece + only.label, only.items, only.children, only.count, only.alike)
        return
    inside = tuple((child.label, child.count, child.alike) for child in children)
    items = [item for child in children for item in child.items]
    yield Part(piece, items, children, alike=known.setdefault(inside, len(known)))


def _listed(parts: list[Part[Item]]) -> Part[Item]:
    """Alike neighbours as one row: ``{query, key}``, and with what their names end in: ``{query, key}.weight``."""
    first, *others = (part.label for part in parts)
    names = [first, *(label.lstrip("./_") for label in others)]
    if len(names) > MAX_LISTED:
        names[MAX_LISTED - 2 : -1] = ["…"]
    ends = [_SEPARATED.findall(name)[1:] for name in names]
    shared = ""
    while all(ends) and len({end[-1] for end in ends}) == 1:
        shared = ends[0][-1] + shared
        ends = [end[:-1] for end in ends]
    label = ", ".join(name[: len(name) - len(shared)] for name in names)
    opening = label[: len(label) - len(label.lstrip("./_"))]
    merged = _merge(f"{opening}{{{label[len(opening) :]}}}{shared}", parts)
    merged.listed = not shared
    return merged


def _merge(label: str, parts: list[Part[Item]]) -> Part[Item]:
    """Alike ``parts`` as one row, and so their children."""
    children = [_merge_one(list(same)) for same in zip(*(part.children for part in parts), strict=True)]
    return Part(label, [item for part in parts for item in part.items], children, len(parts), parts[0].alike)


def _merge_one(parts: list[Part[Item]]) -> Part[Item]:
    merged = _merge(parts[0].label, parts)
    merged.count, merged.listed = parts[0].count, parts[0].listed
    return merged


def _ranges(numbers: Sequence[str]) -> str:
    """``0-11``; ``0,2-5``; ``0,2,…,10`` for equal steps."""
    values = [int(number) for number in numbers]
    steps = {b - a for a, b in pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]},{numbers[1]},…,{numbers[-1]}"
    runs: list[list[int]] = []
    for i, value in enumerate(values):
        if runs and value == values[i - 1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ",".join(numbers[run[0]] if len(run) == 1 else f"{numbers[run[0]]}-{numbers[run[-1]]}" for run in runs)
