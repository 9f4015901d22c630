"""Ops for the layouts in which attention's projections and their neighbours are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from warmstart.lean import dataclass
from warmstart.spec.op import Array, Kind, Op, Shape, ShapeMismatch, SlotLost


@dataclass(frozen=True)
class Cut(Op):
    """One foreign array is several canonical ones joined along ``axis``, of the lengths ``sizes``."""

    kind: ClassVar[Kind] = "many"
    sizes: tuple[int, ...]
    axis: int = 0

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        (shape,) = shapes
        if len(shape) <= self.axis or shape[self.axis] != sum(self.sizes):
            raise ShapeMismatch(f"axis {self.axis} of {list(shape)} is not {' + '.join(map(str, self.sizes))}")
        return [(*shape[: self.axis], size, *shape[self.axis + 1 :]) for size in self.sizes]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        rests = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in shapes}
        lengths = tuple(shape[self.axis] for shape in shapes if len(shape) > self.axis)
        if len(rests) != 1 or lengths != self.sizes:
            raise ShapeMismatch(f"axis {self.axis} of {[list(s) for s in shapes]} is not {list(self.sizes)}")
        first = shapes[0]
        return [(*first[: self.axis], sum(self.sizes), *first[self.axis + 1 :])]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return list(np.split(arrays[0], np.cumsum(self.sizes)[:-1], self.axis))

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.concatenate(arrays, self.axis)]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        if axis == self.axis:
            raise SlotLost(f"a mean over the joined axis {axis} mixes the {len(self.sizes)} parts")
        return axis


@dataclass(frozen=True)
class Beside(Op):
    """Several arrays, each with an op of its own."""

    kind: ClassVar[Kind] = "many"
    ops: tuple[Op, ...]

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [op.forward_shapes([shape])[0] for op, shape in zip(self.ops, shapes, strict=True)]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [op.backward_shapes([shape])[0] for op, shape in zip(self.ops, shapes, strict=True)]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [op.forward([array])[0] for op, array in zip(self.ops, arrays, strict=True)]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [op.backward([array])[0] for op, array in zip(self.ops, arrays, strict=True)]


@dataclass(frozen=True)
class RotaryHalves(Op):
    """Rows [heads · head_dim, …] whose first ``rotary_dim`` of each head are rotated in pairs: foreign pairs are
    neighbours (Su et al. 2021), canonical ones lie half of ``rotary_dim`` apart."""

    num_heads: int
    rotary_dim: int

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            if not shape or shape[0] % self.num_heads or shape[0] // self.num_heads < self.rotary_dim:
                raise ShapeMismatch(f"{list(shape)} is not {self.num_heads} heads with {self.rotary_dim} rotated rows")
        return list(shapes)

    backward_shapes = forward_shapes

    def _take(self, array: Array, order: Array) -> Array:
        heads = array.reshape(self.num_heads, -1, *array.shape[1:])
        return np.concatenate([heads[:, order], heads[:, self.rotary_dim :]], 1).reshape(array.shape)

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        order = np.arange(self.rotary_dim).reshape(-1, 2).T.reshape(-1)
        return [self._take(a, order) for a in arrays]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        order = np.arange(self.rotary_dim).reshape(2, -1).T.reshape(-1)
        return [self._take(a, order) for a in arrays]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        return axis

    def _forward_means(self, arrays: Sequence[Array], axis: int) -> list[Array]:
        return list(arrays) if axis == 0 else self.forward(arrays)
