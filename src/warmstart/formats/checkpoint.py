"""What every format offers: named arrays that are listed from headers and read one at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from warmstart.lean import dataclass

if TYPE_CHECKING:  # listing what is in a file needs no numpy, whose import takes longer than all of ours
    import numpy as np
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
PLACEHOLDERS = "unused_slots"
_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}


@dataclass(frozen=True)
class Entry:
    """One array as its header describes it.

    ``dtype`` is a numpy name, one that ``ml_dtypes`` adds (``bfloat16``, 8-bit floats), or the name of a packed type
    that can only be described (``intgemm8``); of these ``stored`` is the number of bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * itemsize(self.dtype) if self.stored is None else self.stored

    @property
    def readable(self) -> bool:
        """Whether ``read`` gives its values."""
        return self.stored is None


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

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint found in a directory.

    Attributes:
        path: what the format's ``open`` takes.
        name: what ``DIRECTORY@name`` calls it.
        roles: of ``best``, ``last`` and ``final``, which can be asked for likewise.
    """

    path: Path
    name: str
    roles: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.roles)})" if self.roles else self.name


def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype for a name; ``ml_dtypes`` brings those that numpy lacks."""
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        special: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return special


@lru_cache(maxsize=64)
def name_of(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which numpy spells anew each time."""
    return dtype.name


def itemsize(name: str) -> int:
    """The bytes of one element of the dtype ``name``."""
    return _BYTES.get(name) or dtype_of(name).itemsize


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
        optimizer: scalars of the optimizer (for Marian ``adam_denoms``), if there are any; under ``PLACEHOLDERS``
            how many slots only hold the place of state that this kind of optimizer has not.
        files: every file that was opened, relative to ``path``'s directory, for lineage.
        ties: array name → name of the entry that it shares its bytes with, where the file says so.
    """

    path: Path
    format: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    slots: Mapping[tuple[str, str], SlotEntry] = field(default_factory=dict)
    step: int | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    ties: Mapping[str, str] = field(default_factory=dict)

    @property
    def mapped(self) -> bool:
        """Whether arrays are views into memory maps, or computed from such: reading one twice costs nothing, and
        forked processes may read side by side."""
        return False

    @abstractmethod
    def read(self, name: str) -> Array:
        """The array ``name``: a read-only view into a memory map where the file allows it.

        Raises:
            KeyError: no such array.
            FormatError: its dtype can only be described.
            CorruptCheckpoint: the bytes are not what the header says.
        """

    def raw(self, name: str) -> Array:
        """As :meth:`read`, but never a copy of what could be a view: numpy may be slow in its elements where the file
        does not align them. For who goes through an array once, piece by piece. Checked as by :meth:`read_checked`."""
        return self.read_checked(name)

    def peek(self, name: str) -> Array:
        """As :meth:`raw`, but the file's checksum need not be looked at. For who looks at a few elements now and goes
        through the whole array later."""
        return self.read(name)

    def verify(self, name: str) -> None:
        """Check the array ``name`` against the checksum that the file keeps of it; without one, read it.

        Raises:
            KeyError: no such array.
            CorruptCheckpoint: they differ.
        """
        self.read(name)

    def read_checked(self, name: str) -> Array:
        """:meth:`read`, after :meth:`verify` where reading alone does not look at the file's checksum."""
        return self.read(name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        """The optimizer state ``slot`` of ``parameter``, in the layout its :class:`SlotEntry` describes."""
        raise KeyError((parameter, slot))
