"""Tensors as torch pickles them: a storage, and how a tensor lies in it.

Facts: torch/_utils.py (the ``_rebuild_*`` functions), torch/storage.py and torch/serialization.py of torch 1.0 to 2.13.
A tensor is checked against its storage's announced size when it is made, and a storage against the file when the
file is opened; no data is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import valid_shape
from warmstart.formats.pickled import PLAIN, Described, Named, PickledArray, Refused
from warmstart.lean import dataclass

MAX_EXPANSION = 1100  # elements shown for one that is stored (stride 0); as for deflated arrays
_NUMBERS = {
    **{name: name for name in ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool")},
    **{name: name for name in ("float16", "float32", "float64", "bfloat16", "complex64", "complex128")},
    **{name: name for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")},
    **{"half": "float16", "float": "float32", "double": "float64", "long": "int64", "int": "int32", "short": "int16"},
    **{"cfloat": "complex64", "cdouble": "complex128"},
}
_DESCRIBED = {  # bytes of one element, where numpy has no such number
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1, "complex32": 4, "chalf": 4},
    **{"bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1, "float4_e2m1fn_x2": 1},
}
_PACKED = {"quint4x2": 2, "quint2x4": 4}  # elements in a byte
_STORAGES = {
    **{"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
    **{"QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4"},
}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.storage._UntypedStorage")


def readable(dtype: str) -> bool:
    """Whether numpy, with ml_dtypes, has such numbers."""
    return dtype in _NUMBERS.values()


def itemsize(dtype: str) -> int:
    return _DESCRIBED[dtype] if dtype in _DESCRIBED else dtype_of(dtype).itemsize


def dtype_name(value: Any) -> str:
    """Our name of the dtype that a pickle names as ``torch.float32``."""
    name = value.name.removeprefix("torch.") if isinstance(value, Named) else ""
    if name in _NUMBERS:
        return _NUMBERS[name]
    if name in _DESCRIBED:
        return name
    raise Refused(f"a tensor of dtype {name[:40]!r}")


@dataclass(frozen=True, eq=False)
class Storage:
    """One run of bytes: ``count`` elements of ``dtype`` (bytes if that is ``untyped``), ``offset`` into ``key``."""

    key: str
    dtype: str
    count: int
    offset: int = 0
    whole: int = 0  # elements of all that lies under ``key``

    @property
    def nbytes(self) -> int:
        """Bytes in the file under ``key``."""
        size = 1 if self.dtype == "untyped" else itemsize(self.dtype)
        return self.whole * size


def storage_of(identifier: Any) -> Storage:
    """The storage that a persistent identifier of torch's means.

    It is ``("storage", class, key, device, elements)``, in old files followed by None or by
    ``(view's key, offset, elements)``.
    """
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise Refused("an identifier that is not of a storage")
    _, kind, key, _, count = identifier[:5]
    name = kind.name if isinstance(kind, Named) else ""
    if name in _UNTYPED:
        dtype = "untyped"
    else:
        short = name.rpartition(".")[2].removesuffix("Storage")
        if not name.startswith("torch.") or not name.endswith("Storage") or short not in _STORAGES:
            raise Refused(f"a storage of class {name[:60]!r}")
        dtype = _STORAGES[short]
    if not isinstance(key, str | int) or not _length(count):
        raise Refused("a storage without a key or a count")
    whole = Storage(str(key), dtype, count, 0, count)
    view = identifier[5] if len(identifier) == 6 else None
    if view is None:
        return whole
    if not isinstance(view, tuple) or len(view) != 3 or not _length(view[1]) or not _length(view[2]):
        raise Refused("a view of a storage without offset and count")
    if view[1] + view[2] > count:
        raise Refused("a view of a storage that is longer than the storage")
    return replace(whole, offset=view[1], count=view[2])


def _length(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**56


@dataclass(frozen=True, eq=False, repr=False)
class Tensor:
    """A tensor as a file describes it; ``offset`` and ``strides`` count elements. ``storage`` is None on ``meta``."""

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    parameter: bool = False
    conjugate: bool = False
    negative: bool = False
    note: Any = None  # what the file says of it besides, such as a quantizer

    def set_state(self, state: Any) -> None:
        """Flags and hooks of autograd, which mean nothing for values."""

    @property
    def nbytes(self) -> int:
        return -(-math.prod(self.shape) * itemsize(self.dtype) // _PACKED.get(self.dtype, 1))

    @property
    def place(self) -> tuple[object, ...]:
        """What two tensors share if and only if they are the same elements of the same storage."""
        storage = self.storage
        key = (storage.key, storage.offset + self.offset) if storage else id(self)
        return key, self.dtype, self.shape, self.strides, self.conjugate, self.negative


def array_of(tensor: Tensor, buffer: Any, start: int, big_endian: bool) -> Array:
    """The tensor's array: a read-only view of ``buffer``, where its storage begins at ``start``, if that can be."""
    assert tensor.storage is not None
    dtype = dtype_of(tensor.dtype)
    size = dtype.itemsize
    raw = dtype
    if big_endian and size > 1:
        raw = np.dtype(f">u{size}") if dtype.kind == "V" or dtype.name == "bfloat16" else dtype.newbyteorder(">")
    if 0 in tensor.shape:
        array: Array = np.zeros(tensor.shape, dtype)
    else:
        base = tensor.storage.offset * (1 if tensor.storage.dtype == "untyped" else size)
        position = start + base + tensor.offset * size
        strides = [stride * size for stride in tensor.strides]
        array = np.ndarray(tensor.shape, raw, buffer, position, strides)
    if raw is not dtype and 0 not in tensor.shape:
        array = array.astype(raw.newbyteorder("=")).view(dtype)
    if tensor.conjugate:
        array = array.conj()
    if tensor.negative:
        array = np.negative(array)
    array.flags.writeable = False
    return array


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None, **flags: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refused("a tensor without a storage")
    if dtype is None:
        dtype = storage.dtype
        if dtype == "untyped":
            raise Refused("a tensor without a dtype")
    if not (isinstance(shape, tuple) and valid_shape(shape) and isinstance(strides, tuple)):
        raise Refused("a tensor without shape and strides")
    if len(strides) != len(shape) or not all(_length(stride) for stride in (*strides, offset)):
        raise Refused("a tensor whose strides do not fit its shape")
    tensor = Tensor(storage, dtype, offset, shape, strides, **flags)
    size = itemsize(dtype)
    held = storage.count if storage.dtype != "untyped" else storage.count // size
    needed = (
        offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0
    )
    if needed > held * _PACKED.get(dtype, 1):
        raise Refused(f"a tensor of {needed} elements in a storage of {held}")
    if tensor.nbytes > max(2**20, MAX_EXPANSION * held * size):
        raise Refused(f"a tensor of {tensor.nbytes} bytes that repeats a storage of {held * size}")
    return tensor


def _rebuild(args: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, strides = args[:4]
    return _tensor(storage, offset, shape, strides, None, **_flags(args[6] if len(args) > 6 else None))


def _rebuild_v3(args: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, strides, _, _, dtype = args[:7]
    flags = _flags(args[7] if len(args) > 7 else None)
    return _tensor(storage, offset, shape, strides, dtype_name(dtype), **flags)


def _flags(said: Any) -> dict[str, bool]:
    if not isinstance(said, dict):
        return {}
    return {"conjugate": said.get("conj") is True, "negative": said.get("neg") is True}


def _quantized(args: tuple[Any, ...]) -> Tensor:
    storage, offset, shape, strides, quantizer = args[:5]
    return _tensor(storage, offset, shape, strides, note={"quantizer": quantizer})


def _parameter(args: tuple[Any, ...]) -> Any:
    data = args[0] if args else Described("torch.Tensor")
    return replace(data, parameter=True) if isinstance(data, Tensor) else data


def _meta(args: tuple[Any, ...]) -> Tensor:
    dtype, shape, strides = args[:3]
    if not isinstance(shape, tuple) or not valid_shape(shape) or not isinstance(strides, tuple):
        raise Refused("a tensor without shape and strides")
    return Tensor(None, dtype_name(dtype), 0, shape, strides)


def _typed(args: tuple[Any, ...]) -> Any:
    """``_rebuild_from_type_v2(function, class, arguments, state)``: a subclass of Tensor."""
    function, _, inner, _ = args
    if isinstance(function, Named) and function.name in TORCH and isinstance(inner, tuple):
        return TORCH[function.name](inner)
    return Described("torch._tensor._rebuild_from_type_v2", args)


def _sparse(args: tuple[Any, ...]) -> Described:
    layout, parts = args
    if not isinstance(parts, tuple) or len(parts) < 3:
        raise Refused("a sparse tensor without its parts")
    names = ("indices", "values", "size", "coalesced") if len(parts) == 4 and isinstance(parts[2], tuple) else ()
    names = names or ("compressed_indices", "plain_indices", "values", "size")
    return Described("torch.sparse", (), {"layout": layout, **dict(zip(names, parts, strict=False))})


def _from_array(args: tuple[Any, ...]) -> Any:
    """A tensor of a device that torch cannot save, as the array or the tensor that it saved instead."""
    if isinstance(args[0], Tensor | PickledArray):
        return args[0]
    return Described("torch._utils._rebuild_device_tensor", args)


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    (lengths,) = args or ((),)
    if not isinstance(lengths, tuple | list):
        raise Refused("a size without lengths")
    return tuple(lengths)


def _device(args: tuple[Any, ...]) -> str:
    return ":".join(str(part) for part in args if isinstance(part, str | int))[:100]


def _layout(args: tuple[Any, ...]) -> str:
    return str(args[0])[:100] if args and isinstance(args[0], str) else "unknown"


TORCH: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    **PLAIN,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_array,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_array,
    "torch._utils._rebuild_xla_tensor": _from_array,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.parameter.Buffer": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _layout,
}
