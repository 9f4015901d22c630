"""Statistics of an array's values, in one pass and little memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmstart.formats.checkpoint import Array
from warmstart.lean import dataclass

CHUNK = 1 << 17  # elements in memory at a time, as float64: 1 MiB


@dataclass(frozen=True)
class Statistics:
    """Of the finite values: ``count``, ``min``, ``max``, ``mean``, ``std`` (of the population), ``zeros``; and how many
    are ``nan`` or ``inf``. A number that there is not is None: all four without a finite value, mean and deviation
    where float64 overflows.

    Values are taken as float64; the minimum and maximum of integers are exact. A complex number counts as two.
    """

    count: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    zeros: int
    nan: int
    inf: int


def statistics(array: Array) -> Statistics:
    """Statistics of all values of ``array``; moments of chunks are joined as in Chan, Golub & LeVeque 1983, eq. 2.1."""
    if array.dtype.kind == "c":
        array = np.ascontiguousarray(array).view(array.real.dtype)
    count = zeros = nan = inf = 0
    mean = squares = 0.0
    low, high = math.inf, -math.inf
    for chunk in chunks(array):
        values = chunk
        if not np.isfinite(chunk).all():
            finite = np.isfinite(chunk)
            missing = int(np.count_nonzero(np.isnan(chunk)))
            nan, inf = nan + missing, inf + len(chunk) - int(np.count_nonzero(finite)) - missing
            values = chunk[finite]
        if len(values) == 0:
            continue
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        zeros += len(values) - int(np.count_nonzero(values))
        with np.errstate(over="ignore", invalid="ignore"):
            middle = float(values.mean())
            spread = values - middle
            total, shift = count + len(values), middle - mean
            squares += float(spread @ spread) + shift * shift * count * len(values) / total
            mean += shift * len(values) / total
        count = total
    if count == 0:
        return Statistics(0, None, None, None, None, 0, nan, inf)
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
    deviation = math.sqrt(squares / count) if math.isfinite(squares) else None
    return Statistics(count, low, high, mean if math.isfinite(mean) else None, deviation, zeros, nan, inf)


def pooled(parts: list[Statistics]) -> Statistics:
    """Statistics of all values of ``parts`` together."""
    count = sum(p.count for p in parts)
    rest = (sum(p.zeros for p in parts), sum(p.nan for p in parts), sum(p.inf for p in parts))
    lows = [p.min for p in parts if p.min is not None]
    if not lows:
        return Statistics(0, None, None, None, None, *rest)
    low, high = min(lows), max(p.max for p in parts if p.max is not None)
    moments = [(p.count, p.mean, p.std) for p in parts if p.mean is not None and p.std is not None]
    if sum(n for n, _, _ in moments) < count:
        return Statistics(count, low, high, None, None, *rest)
    mean = sum(m * (n / count) for n, m, _ in moments)
    variance = sum((s * s + (m - mean) ** 2) * (n / count) for n, m, s in moments)
    return Statistics(count, low, high, mean, math.sqrt(variance), *rest)


def chunks(*arrays: Array, dtype: type[np.generic] | None = np.float64) -> Iterator[Array]:
    """One-dimensional pieces of ``arrays`` (of one shape) in step, as ``dtype``; for several arrays, tuples of pieces.

    Pieces follow the order in memory, so that transposed views are not copied.
    """
    iterator = np.nditer(
        list(arrays),
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly"]] * len(arrays),
        op_dtypes=[dtype or array.dtype for array in arrays],
        casting="unsafe",
        order="K",
        buffersize=CHUNK,
    )
    if iterator.itersize == 0:
        return
    yield from iterator
