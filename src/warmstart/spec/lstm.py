"""Ops for the layouts in which the weights of an LSTM are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from warmstart.lean import dataclass
from warmstart.spec.op import Array, Kind, Op, Shape, ShapeMismatch

_GATES = 4


@dataclass(frozen=True)
class CudnnLstm(Op):
    """One foreign array [size] is everything of a cuDNN layer of ``units`` with ``inputs``; canonical are the weight
    [4·units, inputs + units] and the bias [4·units], gates in cuDNN's order (input, forget, candidate, output).

    cuDNN keeps the gates' input weights, their recurrent weights, then two biases of each gate, which only ever act as
    their sum; it is written as two halves. (Layout: TensorFlow, ``contrib/cudnn_rnn/python/ops/cudnn_rnn_ops.py``.)
    The gradient of each of the two biases is that of their sum, so their optimizer state is one and the same.
    """

    kind: ClassVar[Kind] = "many"
    inputs: int
    units: int

    @property
    def size(self) -> int:
        """Elements of the foreign array."""
        return _GATES * self.units * (self.inputs + self.units + 2)

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        (shape,) = shapes
        if tuple(shape) != (self.size,):
            raise ShapeMismatch(
                f"{list(shape)} is not the {self.size:,} elements of {self.units} units with {self.inputs} inputs"
            )
        return [(_GATES * self.units, self.inputs + self.units), (_GATES * self.units,)]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        if [tuple(s) for s in shapes] != self.forward_shapes([(self.size,)]):
            raise ShapeMismatch(f"{[list(s) for s in shapes]} are not weight and bias of {self.units} units")
        return [(self.size,)]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        first, second = self.biases(arrays[0])
        return [self._weight(arrays[0]), first + second]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        weight, bias = arrays
        return [self._joined(weight, *halves(bias))]

    def biases(self, array: Array) -> tuple[Array, Array]:
        """The two biases [4·units] of the foreign ``array``."""
        rows = _GATES * self.units
        return array[self.size - 2 * rows : self.size - rows], array[self.size - rows :]

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        if axis is not None:
            self.forward_axis(axis, shapes)
        return [self._weight(arrays[0]), self.biases(arrays[0])[0]]

    def backward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        if axis is not None:
            self.backward_axis(axis, shapes)
        weight, bias = arrays
        return [self._joined(weight, bias, bias)]

    def _weight(self, array: Array) -> Array:
        rows, cut = _GATES * self.units, _GATES * self.units * self.inputs
        inputs, recurrent = array[:cut], array[cut : cut + rows * self.units]
        return np.concatenate([inputs.reshape(rows, self.inputs), recurrent.reshape(rows, self.units)], 1)

    def _joined(self, weight: Array, *biases: Array) -> Array:
        parts = weight[:, : self.inputs], weight[:, self.inputs :], *biases
        return np.concatenate([part.ravel() for part in parts])


def halves(array: Array) -> tuple[Array, Array]:
    """Two arrays whose sum is ``array`` bit for bit; they are equal but where half an element is no number."""
    half = array * array.dtype.type(0.5)
    other = half.copy()
    odd = half + half != array  # of the smallest numbers half a bit is lost
    other[odd] = array[odd] - half[odd]
    return half, other
