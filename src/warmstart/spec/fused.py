"""Ops for arrays of which a foreign layout makes one of several, or of several one, not quite as a join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from warmstart.lean import dataclass
from warmstart.spec.op import Array, Kind, Op, Shape, ShapeMismatch, SlotLost

_ROWS = 1024


@dataclass(frozen=True)
class Filled(Op):
    """One foreign array is ``parts`` equal ones joined along the first axis, of which the canonical ones are
    ``given``, in their order; the others are written as zeros and not read (a bias that a model does without)."""

    kind: ClassVar[Kind] = "many"
    parts: int
    given: tuple[int, ...]

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        (shape,) = shapes
        if not shape or shape[0] % self.parts:
            raise ShapeMismatch(f"{list(shape)} does not divide into {self.parts}")
        return [(shape[0] // self.parts, *shape[1:])] * len(self.given)

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) != len(self.given) or len(set(shapes)) != 1:
            raise ShapeMismatch(f"{len(self.given)} equal shapes are needed, not {[list(s) for s in shapes]}")
        return [(shapes[0][0] * self.parts, *shapes[0][1:])]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        parts = np.split(arrays[0], self.parts)
        return [parts[k] for k in self.given]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        out = [np.zeros_like(arrays[0])] * self.parts
        for k, array in zip(self.given, arrays, strict=True):
            out[k] = array
        return [np.concatenate(out)]


@dataclass(frozen=True)
class Inverse(Op):
    """``op`` the other way round: what it makes of foreign arrays, this makes of canonical ones (a join of several
    foreign arrays is the inverse of a split)."""

    kind: ClassVar[Kind] = "many"
    op: Op

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return self.op.backward_shapes(shapes)

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return self.op.forward_shapes(shapes)

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return self.op.backward(arrays)

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return self.op.forward(arrays)

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        return self.op.backward_axis(axis, shapes)


@dataclass(frozen=True)
class WeightNorm(Op):
    """Lossy: a foreign weight [.., width] is canonical ``direction`` · (``scale`` / ‖direction‖), norms along the last
    axis (Salimans & Kingma 2016). Read back, the weight is its own direction, and ``scale`` its norms.

    Squares are added in float32, row after row, as torch 2.13 does on one thread (its last bit depends on how many).
    """

    kind: ClassVar[Kind] = "lossy"

    @property
    def lost(self) -> str:
        return "one weight is kept as its direction and scale, and its last bits may not return"

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        (shape,) = shapes
        if not shape:
            raise ShapeMismatch("a number has no norms")
        return [(*(1,) * (len(shape) - 1), shape[-1]), shape]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) != 2 or self.forward_shapes(shapes[1:])[0] != tuple(shapes[0]):
            raise ShapeMismatch(f"{[list(s) for s in shapes]} are not scales and what they scale")
        return [shapes[1]]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [_norms(arrays[0]), arrays[0]]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        scale, direction = arrays
        return [direction * (scale / _norms(direction))]

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        raise SlotLost("moments of a weight are not those of its scale and direction")


def _norms(array: Array) -> Array:
    """‖·‖ along the last axis. Each step x² + sum is rounded once, as by a processor that has it as one instruction."""
    rows = array.reshape(-1, array.shape[-1])
    total, rounded = np.zeros(rows.shape[1], np.float64), np.zeros(rows.shape[1], np.float32)
    for start in range(0, len(rows), _ROWS):
        for square in np.square(rows[start : start + _ROWS], dtype=np.float64):
            np.add(total, square, out=total)
            rounded[...] = total
            total[...] = rounded
    return np.sqrt(rounded).reshape(*(1,) * (array.ndim - 1), -1).astype(array.dtype)
