"""The plan carried out, one array at a time, without torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np

from warmstart.bootstrap.plan import Plan, Row
from warmstart.bundle.model import Model
from warmstart.errors import PlanError
from warmstart.formats.checkpoint import Array


def initial_values(name: str, shape: tuple[int, ...], initialiser: str, seed: int) -> Array:
    """First values of a storage, float32; they depend on (seed, name) only, not on what else is initialised.

    ``glorot``: uniform ±√(6/(fan_in+fan_out)) (Glorot & Bengio 2010); ``embedding``: uniform ±√(3/width), so that
    a row has unit length on average, as Marian draws it.
    """
    if initialiser == "zeros":
        return np.zeros(shape, np.float32)
    if initialiser == "ones":
        return np.ones(shape, np.float32)
    fan = shape[-1] / 3 if initialiser == "embedding" else (shape[0] + shape[-1]) / 6
    limit = math.sqrt(1 / fan)
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key)).uniform(-limit, limit, shape).astype(np.float32)


def start_arrays(plan: Plan, models: Sequence[Model], seed: int) -> Iterator[tuple[str, Array]]:
    """(storage, first value) for every row of the plan; float32, writable copies."""
    for row in plan.rows:
        yield row.target, _value(row, models, seed)


def _value(row: Row, models: Sequence[Model], seed: int) -> Array:
    if row.action == "initialise" or row.source is None or row.canonical is None:
        return initial_values(row.target, row.shape, row.initialiser, seed)
    reading = models[row.source].reading
    assert reading is not None
    loaded = np.asarray(reading.read(row.canonical)).astype(np.float32)
    if row.rows is None:
        if loaded.shape != row.shape:
            raise PlanError(f"{row.target} is not what was planned", expected=list(row.shape), found=list(loaded.shape))
        return np.ascontiguousarray(loaded)
    value = initial_values(row.target, row.shape, row.initialiser, seed)
    rows = np.asarray(row.rows)
    value[rows >= 0] = loaded[rows[rows >= 0]]
    return value


def start_slots(plan: Plan, models: Sequence[Model]) -> dict[tuple[str, str], Array]:
    """(storage, slot) → optimizer state that the plan carries."""
    canonical = {r.target: r.canonical for r in plan.rows}
    out: dict[tuple[str, str], Array] = {}
    for slot in plan.slots:
        name = canonical[slot.target]
        if slot.action != "load" or slot.source is None or name is None:
            continue
        reading = models[slot.source].reading
        assert reading is not None
        out[slot.target, slot.slot] = np.ascontiguousarray(reading.read_slot(name, slot.slot), np.float32)
    return out
