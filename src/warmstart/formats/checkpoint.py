"""What every format offers: named arrays that are listed from headers and read one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One array as its header describes it. ``dtype`` is a numpy name, or ``bfloat16`` and the 8-bit floats."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        return self.size * dtype_of(self.dtype).itemsize


@dataclass(frozen=True)
class SlotEntry:
    """Optimizer state of one parameter, in the source's own names and layout.

    ``axis`` is None for a state of the parameter's own shape (Adam's moments); otherwise the state is
    a mean over that axis of the parameter, and has its shape without it (Adafactor's factors).
    """

    parameter: str
    slot: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype for a name; ``ml_dtypes`` brings those that numpy lacks."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        special: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return special


@dataclass
class Checkpoint(ABC):
    """An opened set of named arrays. Opening reads headers only.

    Attributes:
        path: the file or directory that was opened.
        format: the format's name, as ``inspect`` prints it.
        entries: array name → header, in the file's order.
        metadata: what the file says besides arrays (for Marian the parsed ``special:model.yml`` under ``"config"``).
        slots: (parameter name, slot name) → header of optimizer state; slot names are ``m`` and ``v`` for Adam.
        step: updates done when it was written, if the files say so.
        optimizer: scalars of the optimizer (for Marian ``adam_denoms``), if there are any.
        files: every file that was opened, relative to ``path``'s directory, for lineage.
    """

    path: Path
    format: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    slots: Mapping[tuple[str, str], SlotEntry] = field(default_factory=dict)
    step: int | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()

    @abstractmethod
    def read(self, name: str) -> Array:
        """The array ``name``: a read-only view into a memory map where the file allows it.

        Raises:
            KeyError: no such array.
            CorruptCheckpoint: the bytes are not what the header says.
        """

    def read_slot(self, parameter: str, slot: str) -> Array:
        """The optimizer state ``slot`` of ``parameter``, in the layout its :class:`SlotEntry` describes."""
        raise KeyError((parameter, slot))
