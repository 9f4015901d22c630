"""What every family and every rule table must do. Tests of families inherit it, those of plug-ins too.

::

    class TestMine(FamilyContract):
        family = MyFamily()
        configs = [MyConfig(...), MyConfig(...)]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.checked import Config
from warmstart.errors import DialectError
from warmstart.export.run import difference
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.models.family import Dialect, Family, vocabulary_rows
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

    def read(name: str) -> Array:
        return arrays[storages.get(name) or name]

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


class FamilyContract:
    """Tests of a family and of each of its dialects, for ``configs`` that reach every flag of the configuration.

    Attributes:
        lossy: dialect → storages that cannot return from it bit for bit.
        only_written: dialects that need not be read back.
    """

    family: Family
    configs: Sequence[Config] = ()
    lossy: Mapping[str, frozenset[str]] = {}
    only_written: Sequence[str] = ()

    def test_there_are_configurations(self) -> None:
        assert self.configs, "a contract without configurations proves nothing"

    def test_parameters_are_data_that_holds_together(self) -> None:
        for config in self.configs:
            parameters = self.family.parameters(config)
            names = [p.name for p in parameters]
            assert len(set(names)) == len(names), "two parameters have one name"
            for p in parameters:
                assert len(p.axes) == len(p.shape), f"{p.name}: an axis for every length"
                assert all(length > 0 for length in p.shape), p.name
                assert p.stage in self.family.stages, f"{p.name}: {p.stage} is no stage"
                assert p.initialiser in ("glorot", "embedding", "zeros", "ones"), p.name
            shapes = {p.storage: p.shape for p in parameters}
            assert all(shapes[p.storage] == p.shape for p in parameters), "tied parameters have one shape"

    def test_configurations_are_frozen_and_refuse_unknown_keys(self) -> None:
        kind = self.family.config_type
        for config in self.configs:
            values = config.model_dump(mode="json")
            assert kind.model_validate(values) == config
            assert _refused(setattr, config, next(iter(values)), 0)
            assert _refused(kind.model_validate, {**values, "no such key": 0})

    def test_vocabularies_have_their_sizes_in_the_configuration(self) -> None:
        for config in self.configs:
            sizes = vocabulary_rows(self.family, config)
            for p in self.family.parameters(config):
                if p.vocabulary is not None:
                    assert p.shape[0] == sizes[p.vocabulary], p.name

    def test_every_table_returns_what_it_wrote(self) -> None:
        for dialect in self.family.dialects():
            returned = 0
            for config in self.configs:
                try:
                    dialect.rules(config)
                except DialectError:
                    continue
                returned += 1
                if dialect.name not in self.only_written:
                    lossy = self.lossy.get(dialect.name, frozenset())
                    assert_returns(self.family, config, dialect, lossy=lossy)
            assert returned, f"{dialect.name} can express none of the configurations"

    def test_shapes_of_rules_follow_from_shapes_alone(self) -> None:
        """What is planned from headers is what is computed from arrays."""
        for dialect in self.family.dialects():
            for config in self.configs:
                try:
                    links = expand(dialect.rules(config))
                except DialectError:
                    continue
                storages = {p.name: p.storage for p in self.family.parameters(config)}
                arrays = random_arrays(self.family, config)
                there = written(self.family, config, dialect, arrays)
                for link in links:
                    if link.alternative or not all(storages.get(n, n) in arrays for n in link.canonical):
                        continue
                    shapes = link.op.backward_shapes([arrays[storages.get(n, n)].shape for n in link.canonical])
                    assert [there[n].shape for n in link.foreign] == [tuple(shape) for shape in shapes]


def _refused(what: Callable[..., object], *given: object) -> bool:
    try:
        what(*given)
    except (ValueError, AttributeError):
        return True
    return False
