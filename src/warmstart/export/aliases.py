"""Equal arrays of a conversion, found without holding the model: first by origin, then by samples, then by bytes.

CTranslate2 stores equal arrays once, under the name that comes first (``specs/model_spec.py``, ``_alias_variables``).
Where it compares values, this compares bits: 0.0 and -0.0 differ, and two NaN of the same bits are equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import prod

import numpy as np

from warmstart.export.plan import Conversion, Row
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import forget
from warmstart.spec.generated import Generated
from warmstart.spec.mapping import Reading

NEVER = ("rotary_scaling_long_factor", "rotary_scaling_short_factor")  # read by name
_SAMPLES = 13
_SMALL = 2**14  # elements that are read whole rather than sampled
_SHORT = 2**13  # bytes that are kept rather than their digest
_BLOCK = 2**20


def find_aliases(conversion: Conversion, reading: Reading) -> dict[str, str]:
    """Name → name of the equal array that comes first, for every array that has an equal before it."""
    groups: dict[object, list[Row]] = defaultdict(list)
    for row in conversion.rows:  # sorted by name
        if row.shape != () and row.name.rpartition("/")[2] not in NEVER:
            groups[row.shape, row.dtype].append(row)
    aliases: dict[str, str] = {}
    several: list[list[Row]] = []
    for rows in groups.values():
        first: dict[object, str] = {}
        fresh = []
        for row in rows:
            same = first.setdefault(_recipe(row), row.name)
            if same != row.name:
                aliases[row.name] = same
            else:
                fresh.append(row)
        if len(fresh) > 1:
            several.append(fresh)
    for rows in several:
        by_source = _by_source(rows, reading)
        alike: dict[bytes, list[Row]] = defaultdict(list)
        for row in rows:
            alike[_probe(row, by_source, reading)].append(row)
        for candidates in alike.values():
            aliases.update(_equal(candidates, reading))
    return {name: _first(aliases, name) for name in sorted(aliases)}


def _first(aliases: dict[str, str], name: str) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _recipe(row: Row) -> object:
    return row.op, row.index, row.sources or row.op


def _by_source(rows: Sequence[Row], reading: Reading) -> bool:
    """Whether all rows come from their sources in one way, so that they are equal if the sources are."""
    recipes = set()
    for row in rows:
        origins = [reading.origins[name] for name in row.sources]
        if not origins or any(len(origin.link.canonical) != 1 for origin in origins):
            return False
        recipes.add((row.op, row.index, tuple((origin.link.op, len(origin.link.foreign)) for origin in origins)))
    return len(recipes) == 1


def _probe(row: Row, by_source: bool, reading: Reading) -> bytes:
    """A few elements: equal arrays have equal probes. Checksums wait until the whole is read."""
    if by_source:
        names = [foreign for name in row.sources for foreign in reading.origins[name].link.foreign]
        return b"".join(_sample(reading.checkpoint.peek(name)) for name in names)
    size = prod(row.shape)
    if isinstance(row.op, Generated) and row.op.some is not None and size > _SMALL:
        return row.op.some(_places(size)).astype(dtype_of(row.dtype)).tobytes()
    return _sample(row.compute(reading.peek))


def _places(size: int) -> list[int]:
    return [k * (size - 1) // (_SAMPLES - 1) for k in range(_SAMPLES)]


def _sample(array: Array) -> bytes:
    if array.size <= _SMALL:
        content: bytes = array.tobytes()
        return content if len(content) <= _SHORT else _digest(content)
    taken: bytes = array.flat[_places(array.size)].tobytes()
    forget(array)
    return taken


def _digest(content: bytes) -> bytes:
    from hashlib import sha256

    return sha256(content).digest()


def _equal(rows: Iterable[Row], reading: Reading) -> dict[str, str]:
    """Of rows with one probe, those that are equal byte for byte to an earlier one."""
    kinds: list[Row] = []
    found: dict[str, str] = {}
    for row in rows:
        same = next((kind for kind in kinds if same_bytes(kind.compute(reading.raw), row.compute(reading.raw))), None)
        if same is None:
            kinds.append(row)
        else:
            found[row.name] = same.name
    return found


def same_bytes(a: Array, b: Array) -> bool:
    """Whether two arrays have one shape, one dtype and the same bits."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if not a.ndim:
        return bool(a.tobytes() == b.tobytes())
    step = max(1, _BLOCK // max(1, a[:1].size))
    return all(
        np.ascontiguousarray(a[k : k + step]).tobytes() == np.ascontiguousarray(b[k : k + step]).tobytes()
        for k in range(0, len(a), step)
    )
