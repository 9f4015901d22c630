"""How far two arrays of one shape are apart."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array
from warmstart.lean import dataclass
from warmstart.values.statistics import CHUNK, chunks


@dataclass(frozen=True)
class Difference:
    """What differs between two arrays a and b.

    Attributes:
        different: elements that are not equal and not within the tolerance. NaN equals NaN, -0 equals 0.
        nonfinite: those of them where one is NaN or infinite and the other is not the same.
        absolute: the largest |a - b|.
        relative: the largest |a - b| / max(\\|a|, \\|b|), between 0 and 2.
        cosine: of the angle between a and b as vectors; None if one of them is all zeros, or not finite.

    ``absolute``, ``relative`` and ``cosine`` are over the elements that are finite in both.
    """

    different: int
    nonfinite: int
    absolute: float
    relative: float
    cosine: float | None


EQUAL = Difference(0, 0, 0.0, 0.0, 1.0)


def difference(a: Array, b: Array, *, tolerance: float = 0.0, relative: float = 0.0) -> Difference:
    """Compares ``a`` with ``b``, of one shape and any two dtypes of numbers, element by element.

    Elements are equal if |a - b| <= tolerance + relative · max(\\|a|, \\|b|). Floating-point numbers are compared as
    float64, two integers exactly, whatever their sizes.
    """
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}")
    if a.dtype == b.dtype and _same_bytes(a, b):
        return EQUAL
    exact = a.dtype.kind in "iub" and b.dtype.kind in "iub"
    complex_ = "c" in (a.dtype.kind, b.dtype.kind)
    dtype: Any = None if exact else np.complex128 if complex_ else np.float64
    found = _Sums()
    for x, y in chunks(a, b, dtype=dtype):
        found.add(x, y, tolerance, relative)
    return found.result()


@dataclass
class _Sums:
    different: int = 0
    nonfinite: int = 0
    absolute: float = 0.0
    relative: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0

    def add(self, x: Array, y: Array, tolerance: float, relative: float) -> None:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._add(x, y, tolerance, relative)

    def _add(self, x: Array, y: Array, tolerance: float, relative: float) -> None:
        if x.dtype.kind in "iub":
            apart = _distance(x, y)
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        else:
            apart = np.abs(x - y)
            if not np.isfinite(apart).all():
                usable = np.isfinite(x) & np.isfinite(y)
                others = (x == y) | (np.isnan(x) & np.isnan(y))
                wrong = int(np.count_nonzero(~usable & ~others))
                self.nonfinite, self.different = self.nonfinite + wrong, self.different + wrong
                x, y, apart = x[usable], y[usable], apart[usable]
        size = np.maximum(np.abs(x), np.abs(y))
        self.aa += float(np.vdot(x, x).real)
        self.bb += float(np.vdot(y, y).real)
        self.ab += float(np.vdot(x, y).real)
        if not apart.any():
            return
        self.different += int(np.count_nonzero(apart > tolerance + relative * size))
        self.absolute = max(self.absolute, float(apart.max()))
        some = apart > 0
        self.relative = max(self.relative, float((apart[some] / size[some]).max()))

    def result(self) -> Difference:
        if self.aa == self.bb == 0:
            cosine: float | None = 1.0 if self.nonfinite == 0 else None
        else:
            below = math.sqrt(self.aa) * math.sqrt(self.bb)
            cosine = max(-1.0, min(1.0, self.ab / below)) if 0 < below < math.inf else None
        absolute = min(self.absolute, sys.float_info.max)  # where float64 overflows
        return Difference(self.different, self.nonfinite, absolute, min(self.relative, 2.0), cosine)


def _distance(x: Array, y: Array) -> Array:
    """|x - y| of integers, exact (uint64; Python's integers where one is signed and the other is uint64)."""
    if np.uint64 in (x.dtype, y.dtype) and x.dtype.kind != y.dtype.kind:
        if "i" in (x.dtype.kind, y.dtype.kind):
            exact: Array = np.abs(x.astype(object) - y.astype(object))
            return exact
        wide: Any = np.uint64
    else:
        wide = np.uint64 if np.uint64 in (x.dtype, y.dtype) else np.int64
    x, y = x.astype(wide), y.astype(wide)
    distance: Array = np.maximum(x, y).view(np.uint64) - np.minimum(x, y).view(np.uint64)
    return distance


def _same_bytes(a: Array, b: Array) -> bool:
    """Whether all bytes are the same, for arrays that both lie in one piece in the same order."""
    if a.flags.f_contiguous and b.flags.f_contiguous:
        a, b = a.T, b.T
    if not (a.flags.c_contiguous and b.flags.c_contiguous):
        return False
    x, y = (array.reshape(-1).view(np.uint8) for array in (a, b))
    step = 8 * CHUNK
    return all(x[i : i + step].data == y[i : i + step].data for i in range(0, len(x), step))
