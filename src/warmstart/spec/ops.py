"""Ops that many dialects need and that lose nothing.

``generated`` has those that compute arrays, ``lossy`` those that lose some; ``attention``, ``fused`` and ``lstm`` have
those of certain layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar

import numpy as np

from warmstart.lean import dataclass
from warmstart.spec.op import Array, Kind, Op, Shape, ShapeMismatch, SlotLost


@dataclass(frozen=True)
class Identity(Op):
    """The array as it is."""

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes)

    backward_shapes = forward_shapes

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return list(arrays)

    backward = forward

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        return axis


@dataclass(frozen=True)
class Transpose(Op):
    """Axes permuted: canonical axis k is foreign axis ``axes[k]``."""

    axes: tuple[int, ...] = (1, 0)

    def _check(self, shapes: Sequence[Shape]) -> None:
        for shape in shapes:
            if len(shape) != len(self.axes):
                raise ShapeMismatch(f"{len(self.axes)} axes are needed, not {list(shape)}")

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        self._check(shapes)
        return [tuple(shape[a] for a in self.axes) for shape in shapes]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        self._check(shapes)
        return [tuple(shape[self.axes.index(k)] for k in range(len(self.axes))) for shape in shapes]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.transpose(a, self.axes) for a in arrays]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.transpose(a, np.argsort(self.axes)) for a in arrays]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        return self.axes.index(axis)


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in another shape. -1 stands for what is left over."""

    foreign: tuple[int, ...]
    canonical: tuple[int, ...]

    @staticmethod
    def _resolve(target: tuple[int, ...], shape: Shape) -> Shape:
        size, known = prod(shape), prod(n for n in target if n != -1)
        free = target.count(-1)
        if free > 1 or (free and (known == 0 or size % known)) or (not free and known != size):
            raise ShapeMismatch(f"{list(shape)} cannot take the shape {list(target)}")
        return tuple(size // known if n == -1 else n for n in target)

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            if self._resolve(self.foreign, shape) != shape:
                raise ShapeMismatch(f"{list(self.foreign)} is needed, not {list(shape)}")
        return [self._resolve(self.canonical, shape) for shape in shapes]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [self._resolve(self.foreign, shape) for shape in shapes]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [a.reshape(self._resolve(self.canonical, a.shape)) for a in arrays]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [a.reshape(self._resolve(self.foreign, a.shape)) for a in arrays]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        raise SlotLost(f"a mean over axis {axis} of {list(shapes[0])} has no place after a reshape")


@dataclass(frozen=True)
class PermuteBlocks(Op):
    """Equal blocks along ``axis`` in another order (gates of an LSTM): canonical block k is foreign ``order[k]``."""

    order: tuple[int, ...]
    axis: int = 0

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            if len(shape) <= self.axis or shape[self.axis] % len(self.order):
                raise ShapeMismatch(f"axis {self.axis} of {list(shape)} is not {len(self.order)} equal blocks")
        return list(shapes)

    backward_shapes = forward_shapes

    def _take(self, array: Array, order: Sequence[int]) -> Array:
        blocks = np.split(array, len(order), self.axis)
        return np.concatenate([blocks[k] for k in order], self.axis)

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [self._take(a, self.order) for a in arrays]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [self._take(a, [self.order.index(k) for k in range(len(self.order))]) for a in arrays]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        return axis

    def _forward_means(self, arrays: Sequence[Array], axis: int) -> list[Array]:
        return list(arrays) if axis == self.axis else self.forward(arrays)

    def _backward_means(self, arrays: Sequence[Array], axis: int, shapes: Sequence[Shape]) -> list[Array]:
        return list(arrays) if axis == self.axis else self.backward(arrays)


@dataclass(frozen=True)
class Split(Op):
    """One foreign array is several canonical ones joined along ``axis`` (Q, K and V), of equal ``parts``."""

    kind: ClassVar[Kind] = "many"
    parts: int
    axis: int = 0

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        (shape,) = shapes
        if len(shape) <= self.axis or shape[self.axis] % self.parts:
            raise ShapeMismatch(f"axis {self.axis} of {list(shape)} does not divide into {self.parts}")
        return [(*shape[: self.axis], shape[self.axis] // self.parts, *shape[self.axis + 1 :])] * self.parts

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) != self.parts or len(set(shapes)) != 1:
            raise ShapeMismatch(f"{self.parts} equal shapes are needed, not {[list(s) for s in shapes]}")
        shape = shapes[0]
        return [(*shape[: self.axis], shape[self.axis] * self.parts, *shape[self.axis + 1 :])]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return list(np.split(arrays[0], self.parts, self.axis))

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.concatenate(arrays, self.axis)]

    def pieces(self, arrays: Sequence[Array], index: int) -> list[Array]:
        return super().pieces(arrays, index) if self.axis else list(arrays)

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        if axis == self.axis:
            raise SlotLost(f"a mean over the joined axis {axis} mixes the {self.parts} parts")
        return axis


@dataclass(frozen=True)
class Unstack(Op):
    """One foreign array holds ``count`` canonical ones (layers) stacked along ``axis``."""

    kind: ClassVar[Kind] = "many"
    count: int
    axis: int = 0

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        (shape,) = shapes
        if len(shape) <= self.axis or shape[self.axis] != self.count:
            raise ShapeMismatch(f"axis {self.axis} of {list(shape)} is not {self.count} layers")
        return [(*shape[: self.axis], *shape[self.axis + 1 :])] * self.count

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes) != self.count or len(set(shapes)) != 1:
            raise ShapeMismatch(f"{self.count} equal shapes are needed, not {[list(s) for s in shapes]}")
        return [(*shapes[0][: self.axis], self.count, *shapes[0][self.axis :])]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return list(np.moveaxis(arrays[0], self.axis, 0))

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.stack(arrays, self.axis)]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        if axis == self.axis:
            raise SlotLost(f"a mean over the stacked axis {axis} mixes the {self.count} layers")
        return axis - (axis > self.axis)


@dataclass(frozen=True)
class Chain(Op):
    """Several ops one after another, in the foreign → canonical direction."""

    ops: tuple[Op, ...]

    @property
    def kinds(self) -> set[Kind]:
        return {op.kind for op in self.ops}

    @property
    def lost(self) -> str:
        return "; ".join(op.lost for op in self.ops if op.lost)

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        out = list(shapes)
        for op in self.ops:
            out = each(op, out, op.forward_shapes)
        return out

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        out = list(shapes)
        for op in reversed(self.ops):
            out = op.backward_shapes(out)
        return out

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        out = list(arrays)
        for op in self.ops:
            out = op.forward(out)
        return out

    def output(self, arrays: Sequence[Array], index: int) -> Array:
        """As :class:`Op` says; steps of one array each, after those of several, are done for this one alone."""
        several = max((k + 1 for k, op in enumerate(self.ops) if op.kind != "bijection"), default=0)
        out = Chain(self.ops[:several]).forward(arrays)[index : index + 1]
        return Chain(self.ops[several:]).forward(out)[0]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        out = list(arrays)
        for op in reversed(self.ops):
            out = op.backward(out)
        return out

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        current = list(shapes)
        for op in self.ops:
            axis = op.forward_axis(axis, current)
            current = op.forward_shapes(current)
        return axis

    def _forward_means(self, arrays: Sequence[Array], axis: int) -> list[Array]:
        out = list(arrays)
        for op in self.ops:
            moved = op.forward_axis(axis, [a.shape for a in out])
            out = op._forward_means(out, axis)
            axis = moved
        return out

    def _backward_means(self, arrays: Sequence[Array], axis: int, shapes: Sequence[Shape]) -> list[Array]:
        out, current = list(arrays), list(shapes)
        for op in reversed(self.ops):
            moved = op.backward_axis(axis, current)
            out = op._backward_means(out, axis, current)
            axis, current = moved, op.backward_shapes(current)
        return out


def each(op: Op, values: list[Shape], function: Callable[[Sequence[Shape]], list[Shape]]) -> list[Shape]:
    """``function`` on all values, with the op named in the error."""
    try:
        return function(values)
    except ShapeMismatch as error:
        raise ShapeMismatch(f"{type(op).__name__}: {error}") from None
