"""What `diff` says of two models, as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, field
from typing import Any

from warmstart.bundle.model import Model
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.mapped import forget
from warmstart.lean import dataclass
from warmstart.spec.mapping import Reading
from warmstart.values.difference import difference
from warmstart.values.names import matching
from warmstart.values.progress import progress_of

EQUAL = ("equal", "close")


def _no_slot(key: object) -> Array:
    raise KeyError(key)


@dataclass
class _Side:
    """One model as the comparison sees it: arrays by name, and slots by (parameter, slot, averaged axis)."""

    entries: dict[str, Entry]
    read: Callable[[str], Array]
    slots: dict[tuple[str, str, int | None], Entry] = field(default_factory=dict)
    read_slot: Callable[[tuple[str, str, int | None]], Array] = _no_slot
    lost: list[str] = field(default_factory=list)


def compare_models(
    a: Model,
    b: Model,
    *,
    names: Sequence[str] = (),
    tolerance: float = 0.0,
    relative: float = 0.0,
    weights_only: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Compare all arrays, then slots, step, optimizer, configuration and vocabularies. Two arrays are held at a time.

    In canonical names where the dialects of both are known and of one family, else in the names of the files.

    Returns:
        ``same``: whether nothing of what both have differs.
        ``entries``, ``slots``: name, ``shape`` and ``dtype`` of both, ``verdict`` (``equal``, ``close``, ``values``,
        ``dtype``, ``shape``, ``only in A``, ``only in B``, ``not read``) and, where values were compared, the fields of
        ``values.difference.Difference``.
        ``beyond``: what else differs: kind → key → pair.
        ``only``: what else only one of them has at all (step, optimizer, configuration, vocabularies). That is said but
        is no difference, since formats differ in what they hold.

    Raises:
        ConfigError: a pattern of ``names`` matches nothing.
        CorruptCheckpoint: an array is damaged.
    """
    canonical = a.reading is not None and b.reading is not None and a.family is not None and a.family is b.family
    sides = [_canonical(m.reading) if canonical and m.reading else _as_stored(m) for m in (a, b)]
    left, right = sides
    every = list(dict.fromkeys([*left.entries, *right.entries]))
    chosen = matching(every, names, f"{a.source} and {b.source}")
    kept = set(chosen)
    both = bool(left.slots and right.slots) and not weights_only
    slots = [k for k in dict.fromkeys([*left.slots, *right.slots]) if k[0] in kept] if both else []
    pairs = [(left.entries.get(name), right.entries.get(name)) for name in chosen]
    slot_pairs = [(left.slots.get(key), right.slots.get(key)) for key in slots]
    total = sum(_nbytes(x, y) for x, y in [*pairs, *slot_pairs])
    with progress_of("comparing", total) as progress:

        def compared(x: Entry | None, y: Entry | None, read: Callable[[], tuple[Array, Array]]) -> dict[str, Any]:
            facts = _verdict(x, y, read, tolerance, relative)
            progress(_nbytes(x, y))
            return facts

        entries = [
            {"name": name, **compared(x, y, lambda name=name: (left.read(name), right.read(name)))}  # type: ignore[misc]
            for name, (x, y) in zip(chosen, pairs, strict=True)
        ]
        states = [
            {
                "name": key[0],
                "slot": key[1],
                "axis": key[2],
                **compared(x, y, lambda key=key: (left.read_slot(key), right.read_slot(key))),  # type: ignore[misc]
            }
            for key, (x, y) in zip(slots, slot_pairs, strict=True)
        ]
    beyond, only = ({}, []) if weights_only else _beyond(a, b)
    same = all(e["verdict"] in EQUAL for e in (*entries, *states)) and not beyond
    return {
        "same": same,
        "a": _about(a),
        "b": _about(b),
        "family": a.family.name if canonical and a.family else None,
        "tolerance": tolerance,
        "relative_tolerance": relative,
        "names": list(names),
        "entries": entries,
        "slots": states,
        "beyond": beyond,
        "only": only,
        "notes": [*notes, *(note for side in sides for note in side.lost if not weights_only)],
    }


def _about(model: Model) -> dict[str, Any]:
    return {
        "source": model.source,
        "format": model.checkpoint.format,
        "family": model.family.name if model.family else None,
        "dialect": model.dialect,
    }


def _as_stored(model: Model) -> _Side:
    checkpoint = model.checkpoint
    slots = {(s.parameter, s.slot, s.axis): Entry(s.parameter, s.shape, s.dtype) for s in checkpoint.slots.values()}
    return _Side(dict(checkpoint.entries), checkpoint.read, slots, lambda key: checkpoint.read_slot(key[0], key[1]))


def _canonical(reading: Reading) -> _Side:
    """Canonical arrays, and under their own names those that no rule speaks for."""
    checkpoint = reading.checkpoint
    entries = {name: Entry(name, origin.shape, origin.dtype) for name, origin in reading.origins.items()}
    others = {name: checkpoint.entries[name] for name in reading.unknown if name not in entries}
    slots: dict[tuple[str, str, int | None], Entry] = {}
    theirs: dict[tuple[str, str, int | None], str] = {}
    lost: list[str] = []
    for name, origin in reading.origins.items() if checkpoint.slots else ():
        for (slot, axis), (source, _) in reading.slot_axes(name).items():
            shape = tuple(n for i, n in enumerate(origin.shape) if i != axis)
            dtype = checkpoint.slots[origin.link.foreign[0], source].dtype
            slots[name, slot, axis], theirs[name, slot, axis] = Entry(name, shape, dtype), source
        lost += [f"slot {slot} of {name} is not compared: {why}" for slot, why in reading.lost_slots(name).items()]
    return _Side(
        {**entries, **others},
        lambda name: reading.read(name) if name in entries else checkpoint.read_checked(name),
        slots,
        lambda key: reading.read_slot(key[0], theirs[key]),
        lost,
    )


def _nbytes(x: Entry | None, y: Entry | None) -> int:
    return x.nbytes + y.nbytes if x is not None and y is not None and x.shape == y.shape else 0


def _verdict(
    x: Entry | None,
    y: Entry | None,
    read: Callable[[], tuple[Array, Array]],
    tolerance: float,
    relative: float,
) -> dict[str, Any]:
    shape, dtype = ([None if e is None else value(e) for e in (x, y)] for value in (_shape, _dtype))
    facts: dict[str, Any] = {"verdict": "", "shape": shape, "dtype": dtype}
    if x is None or y is None:
        return {**facts, "verdict": "only in B" if x is None else "only in A"}
    if x.shape != y.shape:
        return {**facts, "verdict": "shape"}
    if not (x.readable and y.readable):
        return {**facts, "verdict": "not read"}
    arrays = read()
    found = difference(*arrays, tolerance=tolerance, relative=relative)
    for array in arrays:
        forget(array)
    if found.different:
        facts["verdict"] = "values"
    elif x.dtype != y.dtype and not (tolerance or relative):
        facts["verdict"] = "dtype"
    else:
        facts["verdict"] = "close" if found.absolute else "equal"
    return {**facts, **asdict(found)}


def _shape(entry: Entry) -> list[int]:
    return list(entry.shape)


def _dtype(entry: Entry) -> str:
    return entry.dtype


def _beyond(a: Model, b: Model) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """What differs besides arrays: kind → key → pair; and what only one of them has at all."""
    alike = a.family is b.family
    kinds: dict[str, list[Mapping[str, Any]]] = {
        "step": [{} if m.checkpoint.step is None else {"step": m.checkpoint.step} for m in (a, b)],
        "optimizer": [
            {
                **m.checkpoint.optimizer,
                **({"slots": sorted({s for _, s in m.checkpoint.slots})} if m.checkpoint.slots else {}),
            }
            for m in (a, b)
        ],
        "configuration": [m.config.model_dump(mode="json") if m.config and alike else {} for m in (a, b)],
        "vocabularies": [
            {side: f"{len(v):,} tokens {v.fingerprint[:12]}" for side, v in m.vocabularies.items()} for m in (a, b)
        ],
    }
    differing = {kind: _differing(x, y) for kind, (x, y) in kinds.items() if x and y}
    only = [{"kind": kind, "in": "A" if x else "B"} for kind, (x, y) in kinds.items() if bool(x) != bool(y)]
    return {kind: found for kind, found in differing.items() if found}, only


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """key → [its value in a, in b] where these are not the same, inside of maps and of lists of maps too
    (``param_groups.0.lr``); None stands for no such key."""

    def text(value: object) -> str:
        return json.dumps(value, sort_keys=True, default=str)

    found: dict[str, Any] = {}
    for key in dict.fromkeys([*a, *b]):
        pair, name = [a.get(key), b.get(key)], f"{above}{key}"
        if text(pair[0]) != text(pair[1]):
            x, y = map(_members, pair)
            found |= _differing(x, y, f"{name}.") if x and y else {name: pair}
    return found


def _members(value: Any) -> Mapping[str, Any]:
    """What a map has, or a list of maps by number; nothing of other values."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return {str(k): item for k, item in enumerate(value)}
    return value if isinstance(value, Mapping) else {}
