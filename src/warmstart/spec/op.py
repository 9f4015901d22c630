"""What a rule does to arrays. ``forward`` reads a foreign layout, ``backward`` writes it.

Four kinds, from the safest to the one that loses: *bijection* (one array to one array), *many*
(many-to-many, still a bijection), *generated* (no canonical counterpart: computed on export, verified
on import) and *lossy* (named; cannot return).

Optimizer state follows where it can. A slot either has its parameter's shape, or is a mean over one of
its axes (Adafactor's factors, Shazeer & Stern 2018). A mean is carried through an op as an array whose
averaged axis has length one, and the op says where that axis goes; where it does not survive,
:class:`SlotLost` says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from warmstart.lean import dataclass

Array = NDArray[Any]
Shape = tuple[int, ...]
Kind = Literal["bijection", "many", "generated", "lossy"]


class SlotLost(Exception):
    """An optimizer slot cannot follow its parameter through an op."""


class ShapeMismatch(Exception):
    """Arrays that an op is given do not have shapes it can take."""


@dataclass(frozen=True)
class Op(ABC):
    """One step between a foreign and the canonical layout. Shapes are checked before data is touched."""

    kind: ClassVar[Kind] = "bijection"

    @property
    def lost(self) -> str:
        """What of the foreign arrays a lossy op does not keep, for a person; "" if nothing is lost."""
        return ""

    @abstractmethod
    def forward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]: ...

    @abstractmethod
    def backward_shapes(self, shapes: Sequence[Shape]) -> list[Shape]: ...

    @abstractmethod
    def forward(self, arrays: Sequence[Array]) -> list[Array]: ...

    @abstractmethod
    def backward(self, arrays: Sequence[Array]) -> list[Array]: ...

    def output(self, arrays: Sequence[Array], index: int) -> Array:
        """Canonical array ``index`` of what :meth:`forward` gives."""
        return self.forward(arrays)[index]

    def pieces(self, arrays: Sequence[Array], index: int) -> list[Array]:
        """What foreign array ``index`` of what :meth:`backward` gives is joined of along its first axis: of some ops
        views of ``arrays``, so that nothing need be copied to join them."""
        return [self.backward(arrays)[index]]

    def forward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        """Where the averaged ``axis`` of the foreign arrays (``shapes``) lies in each canonical array.

        Raises:
            SlotLost: the mean cannot be expressed on the canonical side.
        """
        raise SlotLost(f"{self} does not carry a mean over an axis")

    def forward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        """A slot of the foreign parameters in canonical layout; ``axis`` is the averaged axis, or None."""
        if axis is None:
            return self.forward(arrays)
        out = self.forward_axis(axis, shapes)
        return [np.squeeze(a, out) for a in self._forward_means([np.expand_dims(a, axis) for a in arrays], axis)]

    def _forward_means(self, arrays: Sequence[Array], axis: int) -> list[Array]:
        """``forward`` on arrays whose averaged ``axis`` has length one."""
        return self.forward(arrays)

    def backward_axis(self, axis: int, shapes: Sequence[Shape]) -> int:
        """Where the averaged ``axis`` of the canonical arrays (``shapes``) lies in each foreign array.

        Raises:
            SlotLost: the mean cannot be expressed on the foreign side.
        """
        foreign = self.backward_shapes(shapes)
        for candidate in range(len(foreign[0])):
            try:
                if self.forward_axis(candidate, foreign) == axis:
                    return candidate
            except SlotLost:
                continue
        raise SlotLost(f"a mean over axis {axis} of {list(shapes[0])} has no place in {list(foreign[0])}")

    def backward_slot(self, arrays: Sequence[Array], axis: int | None, shapes: Sequence[Shape]) -> list[Array]:
        """A slot of the canonical parameters (``shapes``) in foreign layout; ``axis`` is the averaged axis, or None.

        Raises:
            SlotLost: the foreign side has no place for it.
        """
        if axis is None:
            if self.kind == "lossy":
                raise SlotLost(f"{type(self).__name__} loses what the state is of")
            return self.backward(arrays)
        out = self.backward_axis(axis, shapes)
        means = self._backward_means([np.expand_dims(a, axis) for a in arrays], axis, shapes)
        return [np.squeeze(a, out) for a in means]

    def _backward_means(self, arrays: Sequence[Array], axis: int, shapes: Sequence[Shape]) -> list[Array]:
        """``backward`` on arrays whose averaged ``axis`` has length one; ``shapes`` are the parameters'."""
        return self.backward(arrays)
