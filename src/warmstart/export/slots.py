"""Optimizer state on its way through a conversion: what of it the target can keep, and where it lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from warmstart.formats.checkpoint import Array
from warmstart.lean import dataclass
from warmstart.spec.mapping import Link, Reading
from warmstart.spec.op import Op, Shape, SlotLost


@dataclass(frozen=True)
class SlotRow:
    """State ``slot`` (``m`` or ``v``) of the target's array ``parameter``, of ``shape``, or the mean of it over
    ``axis``: output ``index`` of ``op`` backwards over the states ``theirs`` of the canonical arrays ``sources``."""

    parameter: str
    shape: Shape
    slot: str
    axis: int | None
    sources: tuple[str, ...]
    theirs: tuple[str, ...]
    canonical_axis: int | None
    op: Op
    index: int


def plan_slots(
    links: Iterable[Link], storages: Mapping[str, str], reading: Reading
) -> tuple[tuple[SlotRow, ...], dict[str, str]]:
    """Every state that can follow, and why others cannot, by the canonical array and the source's name of the state."""
    rows: list[SlotRow] = []
    lost: dict[str, str] = {}
    for link in links:
        sources = tuple(storages.get(name, name) for name in link.canonical)
        if link.copy or not sources or any(name not in reading.origins for name in sources):
            continue
        carried = [reading.slot_axes(name) for name in sources]
        for name in sources:
            lost |= {f"{name}: {slot}": why for slot, why in reading.lost_slots(name).items()}
        shapes = [reading.origins[name].shape for name in sources]
        outputs = link.op.backward_shapes(shapes)
        for slot, axis in carried[0]:
            if any((slot, axis) not in other for other in carried):
                lost[f"{sources[0]}: {slot}"] = f"not every array of {', '.join(link.foreign)} has it"
                continue
            theirs = tuple(other[slot, axis][0] for other in carried)
            try:
                over = None if axis is None else link.op.backward_axis(axis, shapes)
                for index, (name, shape) in enumerate(zip(link.foreign, outputs, strict=True)):
                    rows.append(SlotRow(name, tuple(shape), slot, over, sources, theirs, axis, link.op, index))
            except SlotLost as why:
                lost[f"{sources[0]}: {theirs[0]}"] = str(why)
    return _pairs(rows, lost), lost


def _pairs(rows: list[SlotRow], lost: dict[str, str]) -> tuple[SlotRow, ...]:
    """``rows`` without means over one axis that lack the one over the other: what they say together is lost."""
    means = Counter(row.parameter for row in rows if row.axis is not None)
    alone = [row for row in rows if row.axis is not None and means[row.parameter] != 2]
    lost |= {f"{row.sources[0]}: {row.theirs[0]}": "half of a pair" for row in alone}
    return tuple(row for row in rows if row.axis is None or means[row.parameter] == 2)


def compute_slot(row: SlotRow, reading: Reading) -> Array:
    """The state of ``row`` as the target keeps it."""
    states = [reading.read_slot(name, theirs) for name, theirs in zip(row.sources, row.theirs, strict=True)]
    shapes = [reading.origins[name].shape for name in row.sources]
    return row.op.backward_slot(states, row.canonical_axis, shapes)[row.index]


def factored(rows: Iterable[SlotRow], later: bool) -> dict[SlotRow, str]:
    """Adafactor's names: a mean over the larger of two axes is ``v_row``, over the smaller ``v_col``.

    Of axes of one length the ``later`` counts as the larger (T5X), or the first (mesh-tensorflow). States of a
    parameter's own shape keep their name.
    """
    names: dict[SlotRow, str] = {}
    pairs: dict[str, list[tuple[int, int, SlotRow]]] = {}
    for row in rows:
        if row.axis is None:
            names[row] = row.slot
        else:
            size = row.shape[row.axis], row.axis if later else -row.axis
            pairs.setdefault(row.parameter, []).append((*size, row))
    for pair in pairs.values():
        (*_, small), (*_, large) = sorted(pair, key=lambda entry: entry[:2])
        names |= {large: "v_row", small: "v_col"}
    return names
