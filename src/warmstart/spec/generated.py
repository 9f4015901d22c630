"""Ops for arrays of which the canonical side has none, or one for two: they are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from warmstart.lean import dataclass
from warmstart.spec.op import Array, Kind, Op, Shape, ShapeMismatch, SlotLost


@dataclass(frozen=True)
class Generated(Op):
    """An array that the canonical side computes: written on export, compared on import.

    ``some`` gives its elements at a few places of its memory, where that takes less than to compute all.
    """

    kind: ClassVar[Kind] = "generated"
    compute: Callable[[], Array]
    shape: Shape
    tolerance: float = 0.0
    dtype: str = "float32"
    some: Callable[[Sequence[int]], Array] | None = None

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if tuple(shapes[0]) != self.shape:
            raise ShapeMismatch(f"{list(self.shape)} is expected, not {list(shapes[0])}")
        return []

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [self.shape]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        computed = self.compute().astype(arrays[0].dtype).astype(np.float64)  # as it was stored
        difference = float(np.max(np.abs(np.asarray(arrays[0], np.float64) - computed), initial=0.0))
        if not difference <= self.tolerance:
            raise ShapeMismatch(f"values differ from the computed ones by up to {difference:.3g}")
        return []

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [self.compute()]

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        raise SlotLost("computed arrays have no optimizer state here")


def constant(value: np.generic) -> Generated:
    """A number that the configuration says, in the dtype of ``value``."""
    array = np.asarray(value)
    return Generated(partial(_copy, array), array.shape, dtype=array.dtype.name)


def _copy(array: Array) -> Array:
    return array.copy()


@dataclass(frozen=True)
class WithMultiple(Op):
    """Two foreign arrays are the canonical one and, behind it, the same times ``factor``, which is not read again.

    Whether a file keeps to that is for its dialect to see (:meth:`holds`) before it calls the model so.
    """

    kind: ClassVar[Kind] = "many"
    factor: float

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            raise ShapeMismatch(f"two equal shapes are needed, not {[list(s) for s in shapes]}")
        return [shapes[0]]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shapes[0]] * 2

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [arrays[0]]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        """The product is rounded once, from float32, as torch does it."""
        (array,) = arrays
        wide = array.astype(np.promote_types(array.dtype, np.float32), copy=False)
        return [array, (wide * wide.dtype.type(self.factor)).astype(array.dtype)]

    def holds(self, array: Array, multiple: Array) -> bool:
        """Whether ``multiple`` is what :meth:`backward` makes of ``array``, bit for bit."""
        made = self.backward([array])[1]
        return (made.shape, made.dtype) == (multiple.shape, multiple.dtype) and made.tobytes() == multiple.tobytes()

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        raise SlotLost("the state of one array in two places is that of neither")


@dataclass(frozen=True)
class WithZeros(Op):
    """A foreign array and one of zeros beside it, which the canonical side does not have (a bias that is none)."""

    kind: ClassVar[Kind] = "many"

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            raise ShapeMismatch(f"2 equal shapes are needed, not {[list(s) for s in shapes]}")
        return [shapes[0]]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shapes[0], shapes[0]]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        if np.any(arrays[1]):
            raise ShapeMismatch("the second array is not all zeros")
        return [arrays[0]]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [arrays[0], np.zeros_like(arrays[0])]

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        raise SlotLost("the zeros have no optimizer state here")
