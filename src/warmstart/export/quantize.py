"""Weights in fewer bytes, as CTranslate2 defines them; what cannot be kept is an error that names its array.

Source of the arithmetic: CTranslate2 4.8.5, ``specs/model_spec.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from warmstart.errors import ConfigError, FormatError
from warmstart.export.quantizations import QUANTIZATIONS
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.lean import dataclass

FLOATS = ("float16", "bfloat16", "float32", "float64")
_OTHERS = {"int16": "float32", **{q: q.removeprefix("int8_") for q in QUANTIZATIONS if "float" in q}}

# Rows and columns that are transposed at once: what fits beside each other into a core's cache.
_TILE, _TILES = (128, 32), {1: (2048, 32)}  # _TILES: by bytes of an element

_KEPT = threading.local()
_SHORT = 16  # elements of numpy's buffer: it fills longer ones with a row's scale, which costs more than multiplying

Scale = Literal["none", "rows", "whole"]
Sums = tuple[float, float, float]  # largest difference, and sums of squares: of differences, and of what was there


@dataclass(frozen=True)
class Storage:
    """How an array is stored: its dtype, and whether float32 scales go with it (one a row, or one for all)."""

    dtype: str
    scale: Scale = "none"


@dataclass(frozen=True)
class Loss:
    """How far stored values of one array are from what they were: the largest difference, and √(Σd²/Σw²)."""

    largest: float = 0.0
    relative: float = 0.0

    @classmethod
    def of(cls, parts: Sequence[Sums]) -> Loss:
        """Of an array, by the sums of its parts."""
        error, total = (sum(part[k] for part in parts) for k in (1, 2))
        return cls(max((part[0] for part in parts), default=0.0), float(np.sqrt(error / total)) if total else 0.0)


def storage_of(dtype: str, rank: int, quantizable: bool, quantization: str) -> Storage:
    """How an array of ``dtype`` is stored under ``quantization``. Scalars and integers stay as they are.

    Raises:
        ConfigError: unknown quantization.
    """
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantization!r} is not supported", expected=", ".join(QUANTIZATIONS))
    if dtype not in FLOATS or rank == 0 or quantization == "none":
        return Storage(dtype)
    if quantizable and quantization.startswith("int8"):
        return Storage("int8", "rows")
    if quantizable and quantization == "int16":
        return Storage("int16", "whole")
    return Storage(_OTHERS.get(quantization, dtype))


def already_quantized(dtype: str, quantizable: bool, quantization: str) -> bool:
    """Whether ``quantization`` would round what is rounded (8-bit rows, packed 4-bit words)."""
    return quantizable and quantization != "none" and dtype not in FLOATS


class Encoder:
    """Encodes one array block of rows by block of rows; blocks may be encoded by several threads at once.

    ``values`` and ``scale`` (None where there is none) are what is stored, complete once every block was encoded;
    ``sums`` say of each block what was lost, if ``report`` asked for it.
    """

    def __init__(self, name: str, shape: tuple[int, ...], storage: Storage, *, report: bool = False) -> None:
        self.name, self.storage, self._report = name, storage, report
        self.values: Array = np.empty(shape, dtype_of(storage.dtype))
        rows = {"rows": shape[:1], "whole": (), "none": None}[storage.scale]
        self.scale: Array | None = None if rows is None else np.empty(rows, np.float32)
        self.sums: list[Sums] = []
        if storage.scale == "rows" and len(shape) < 2:
            raise FormatError("only matrices are stored as 8-bit rows", where=name, found=f"shape {list(shape)}")

    @classmethod
    def of_stored(cls, name: str, array: Array) -> Encoder:
        """An array that is stored as it is, not copied."""
        encoder = cls(name, (0,) * array.ndim, Storage(array.dtype.name))
        encoder.values = array
        return encoder

    def set_largest(self, largest: float) -> None:
        """The largest magnitude of the whole array, before blocks of one that has one scale: s = 1024 / max|w|."""
        if not np.isfinite(largest):
            raise self._not_finite()
        # All zeros would have an infinite scale: 1 keeps them zeros.
        self.scale = np.array(np.float32(1024) / np.float32(largest) if largest else 1, np.float32)

    def block(self, array: Array, start: int) -> None:
        """Encode ``array``, the rows from ``start``."""
        out = self.values[start : start + len(array)]
        if self.storage.scale == "rows":
            self._rows(array, out, start)
        elif self.storage.scale == "whole":
            w = _float32(array)
            assert self.scale is not None
            w *= self.scale
            np.clip(np.rint(w, out=w), -(2**15), 2**15 - 1, out=w)
            out[...] = w
            self._measure(array, lambda: out / self.scale)
        else:
            self.cast(array, out)

    def cast(self, array: Array, out: Array) -> None:
        """``array`` in the stored dtype."""
        if array.dtype == out.dtype:
            _copy(array, out)
            return
        with np.errstate(over="ignore", invalid="ignore"):
            _copy(array, out)
        if array.dtype.name in FLOATS and not np.isfinite(out).all():
            raise self._overflow() if np.isfinite(array).all() else self._not_finite()
        self._measure(array, lambda: out)

    def _rows(self, array: Array, out: Array, start: int) -> None:
        """8-bit rows: q = rint(w·s), s = 127 / max|w|; a row of zeros has s = 1, and s is bounded to be finite."""
        assert self.scale is not None
        axis = 1
        if _is_transposed(array):  # computed as it lies in memory, so that only bytes are transposed
            array, out, axis = array.T, out.T, 0
        copy, work, rounded = _memory(array.size)
        w = array
        if array.dtype != np.float32 or not (array.flags.aligned and array.strides[-1] == array.itemsize):
            w = copy.reshape(array.shape)
            _copy(array, w)
        w = w.reshape(len(w), -1) if axis else w
        work = work.reshape(w.shape)
        # Magnitudes are ordered as the integers of their bits without the sign: one pass instead of two, NaN on top.
        bits = np.bitwise_and(w.view(np.int32), 0x7FFFFFFF, out=work.view(np.int32))
        largest = np.max(bits, axis=axis, initial=0).view(np.float32)
        if not np.isfinite(largest).all():
            raise self._not_finite()
        bound = np.float32(127) / np.finfo(np.float32).max
        largest = np.where(largest == 0, np.float32(127), np.maximum(largest, bound))
        scale = np.float32(127) / largest
        self.scale[start : start + scale.size] = scale
        usual = np.setbufsize(_SHORT)
        np.multiply(w, scale[:, None] if axis else scale, out=work)
        np.setbufsize(usual)
        np.rint(work, out=work)
        if axis:
            out.reshape(work.shape)[...] = work
        else:
            whole = rounded.reshape(work.shape)
            whole[...] = work
            _copy(whole.T, out.T)
        self._measure(array, lambda: (work / np.expand_dims(scale, axis)).reshape(array.shape))

    def _measure(self, array: Array, stored: Any) -> None:
        if not self._report:
            return
        wide = np.asarray(array, np.float64)
        difference = np.asarray(stored(), np.float64) - wide
        largest = float(np.max(np.abs(difference), initial=0.0))
        self.sums.append((largest, float(np.vdot(difference, difference)), float(np.vdot(wide, wide))))

    def _not_finite(self) -> FormatError:
        return not_finite(self.name, self.storage.dtype)

    def _overflow(self) -> FormatError:
        return FormatError(
            f"values do not fit into {self.storage.dtype}",
            where=self.name,
            expected=f"at most {np.finfo(self.values.dtype).max if self.storage.dtype == 'float16' else 3.39e38}",
            todo="choose bfloat16 or float32",
        )


def _memory(size: int) -> tuple[Array, Array, Array]:
    """Two arrays of float32 [size] to compute in, and one of int8, the same for every block of a thread: memory that is
    new each time costs as much as the arithmetic."""
    arrays: tuple[Array, Array, Array] | None = getattr(_KEPT, "arrays", None)
    if arrays is None or arrays[0].size < size:
        arrays = _KEPT.arrays = (np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.int8))
    return arrays[0][:size], arrays[1][:size], arrays[2][:size]


def _float32(array: Array) -> Array:
    """A fresh float32 copy in C order, to compute in."""
    out: Array = np.empty(array.shape, np.float32)
    _copy(array, out)
    return out


def _copy(array: Array, out: Array) -> None:
    """``out[...] = array``; a transposed matrix goes tile by tile, which is up to eight times as fast."""
    if not _is_transposed(array):
        out[...] = array
        return
    rows, columns = _TILES.get(array.itemsize, _TILE)
    for r in range(0, array.shape[0], rows):
        source, target = array[r : r + rows], out[r : r + rows]
        for c in range(0, array.shape[1], columns):
            target[:, c : c + columns] = source[:, c : c + columns]


def _is_transposed(array: Array) -> bool:
    """Whether the elements of a column of ``array`` lie side by side, and those of a row do not."""
    return array.ndim == 2 and abs(array.strides[0]) < abs(array.strides[1])


def not_finite(name: str, dtype: str) -> FormatError:
    """That the array ``name``, which would be stored in ``dtype``, holds what is no number."""
    return FormatError(
        f"an array that is not finite cannot be stored as {dtype}",
        where=name,
        expected="numbers",
        found="NaN or infinity",
        todo="convert without a quantization to keep the bits, or mend the model",
    )
