"""Ops that do not keep everything: ``lost`` says what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from warmstart.lean import dataclass
from warmstart.spec.op import Array, Kind, Op, Shape, ShapeMismatch, SlotLost


@dataclass(frozen=True)
class ExtraRows(Op):
    """Lossy: foreign rows before and behind the canonical ones that nothing is computed with; written as zeros."""

    kind: ClassVar[Kind] = "lossy"
    first: int = 0
    last: int = 0

    @property
    def lost(self) -> str:
        parts = ((self.first, "first"), (self.last, "last"))
        which = " and ".join(f"its {n} {where} row{'s' * (n > 1)}" for n, where in parts if n)
        return f"{which}, with which nothing is computed, would return as zeros"

    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        for shape in shapes:
            if not shape or shape[0] <= self.first + self.last:
                raise ShapeMismatch(f"more than {self.first + self.last} rows are needed, not {list(shape)}")
        return [(shape[0] - self.first - self.last, *shape[1:]) for shape in shapes]

    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(shape[0] + self.first + self.last, *shape[1:]) for shape in shapes]

    def forward(self, arrays: Sequence[Array]) -> list[Array]:
        return [a[self.first : len(a) - self.last] for a in arrays]

    def backward(self, arrays: Sequence[Array]) -> list[Array]:
        return [np.pad(a, [(self.first, self.last), *[(0, 0)] * (a.ndim - 1)]) for a in arrays]

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        raise SlotLost("rows that are dropped and written as zeros have no state")
