"""What every rule table must do: arrays that are written by it come back bit for bit.

A family's test is a list of configurations::

    @pytest.mark.parametrize("config", CONFIGS)
    @pytest.mark.parametrize("dialect", family.dialects(), ids=lambda d: d.name)
    def test_tables_return(config, dialect):
        assert_returns(family, config, dialect)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.export.run import difference
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.models.family import Dialect, Family
from warmstart.spec.mapping import expand, read_through, write_through


class InMemory(Checkpoint):
    """Arrays as a checkpoint."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        entries = {name: Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()}
        super().__init__(Path("memory"), "memory", entries)
        self._arrays = arrays

    def read(self, name: str) -> Array:
        return self._arrays[name]


def random_arrays(family: Family, config: Any, dtype: str = "float32", seed: int = 0) -> dict[str, Array]:
    """A random array for each storage."""
    rng = np.random.default_rng(seed)
    shapes = {p.storage: p.shape for p in family.parameters(config)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def written(family: Family, config: Any, dialect: Dialect, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """``arrays`` as the dialect writes them, copies and computed ones among them."""
    storages = {p.name: p.storage for p in family.parameters(config)}
    read = lambda name: arrays[storages.get(name, name)]  # noqa: E731
    return {
        name: compute() for name, compute in write_through(expand(dialect.rules(config)), read, {*storages, *arrays})
    }


def assert_returns(family: Family, config: Any, dialect: Dialect, *, lossy: frozenset[str] = frozenset()) -> None:
    """Every storage returns from the dialect bit for bit, but for those that the table names as ``lossy``."""
    arrays = random_arrays(family, config)
    there = InMemory(written(family, config, dialect, arrays))
    reading = read_through(there, expand(dialect.rules(config)))
    reading.tie({p.name: p.storage for p in family.parameters(config)})
    assert not reading.unknown
    assert set(reading.origins) == set(arrays)
    assert [difference(link, reading) for link in reading.checks] == [None] * len(reading.checks)
    changed = {name for name, array in arrays.items() if reading.read(name).tobytes() != array.tobytes()}
    assert changed == lossy
    assert {name: reading.origins[name].shape for name in arrays} == {name: a.shape for name, a in arrays.items()}
