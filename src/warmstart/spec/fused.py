"""Ops for arrays of which a foreign layout makes one of several, or of several one, not quite as a join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from warmstart.spec.ops import Array, Kind, Op, Shape, ShapeMismatch


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
