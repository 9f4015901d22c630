"""What comes out of a pickle: plain data, and inert descriptions of everything else.

``PLAIN`` is the table of constructors that stand for plain data in the standard library and numpy. They are
functions of this file, chosen by a name that is compared as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array
from warmstart.formats.mapped import valid_shape
from warmstart.lean import dataclass

MAX_KEY = 64  # items of a tuple that is a key, with those inside it
MAX_NAME = 1000


class Refused(ValueError):
    """A pickle asks for what is not done here."""


def brief(value: Any) -> str:
    """A few words on ``value`` for an error: never more than that, whatever it holds."""
    text = repr(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "…"


class Budget:
    """Work that may be done again and again for one byte of a file, bounded in proportion to the file."""

    def __init__(self, factor: int) -> None:
        self.factor, self.spent = factor, 0

    def spend(self, count: int, size: int) -> None:
        """Counts ``count`` items or characters against what a pickle of ``size`` bytes may ask for.

        Raises:
            Refused: it is more than ``factor`` for each byte, and a million for them all.
        """
        self.spent += count
        if self.spent > 2**20 + self.factor * size:
            raise Refused(f"{size} bytes that expand to more than {self.spent} items")

    def spend_on(self, values: Iterable[Any], size: int) -> None:
        for value in values:
            if isinstance(value, str | bytes | list | dict | tuple):
                self.spend(len(value), size)
                if isinstance(value, tuple) and len(value) <= MAX_KEY:
                    self.spend(sum(len(item) for item in value if isinstance(item, str | bytes | list)), size)


@dataclass(frozen=True, eq=False, repr=False)
class Named:
    """A class, function or constant that a pickle names: its dotted name, nothing more."""

    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Described:
    """An object of a class that means nothing here: what it was made from, never the object.

    Attributes:
        name: the dotted name of its class or of the function that would make it.
        args: the arguments.
        state: what would be set on it afterwards, mostly a dict of attributes.
        items: what would be put into it, if it is a container; pairs if it is a mapping.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def set_state(self, state: Any) -> None:
        """Called once by the machine that builds it."""
        object.__setattr__(self, "state", state)

    def attributes(self) -> dict[Any, Any]:
        """The attributes that ``state`` sets, with those of slots; empty if it says something else."""
        parts = self.state if isinstance(self.state, tuple) and len(self.state) == 2 else (self.state,)
        found: dict[Any, Any] = {}
        if all(part is None or isinstance(part, dict) for part in parts):
            for part in parts:
                found.update(part or {})
        return found


class Ordered(dict[Any, Any]):
    """A dict that may carry attributes, as torch's ``state_dict`` does (``_metadata``)."""

    state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state


class Namespace(dict[Any, Any]):
    """The attributes of an ``argparse.Namespace`` or a ``SimpleNamespace``."""

    def set_state(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise Refused("attributes that are no dict")
        self.update(state)


def checked_key(value: Any) -> Any:
    """``value`` as a key of a dict, at little cost: a tuple becomes its text.

    The hashes of numbers and tuples are known, so that a file could have thousands of keys with one hash; that of text
    differs in every process.

    Raises:
        Refused: it cannot be a key, or is large.
    """
    if isinstance(value, tuple):
        return _spelled(value, [MAX_KEY])
    if isinstance(value, int) and value.bit_length() > 64:
        raise Refused("a key that is a huge integer")
    if isinstance(value, list | dict | complex):
        raise Refused(f"a key that is a {type(value).__name__}")
    return value


def _spelled(value: Any, left: list[int]) -> str:
    left[0] -= 1
    if left[0] < 0 or (isinstance(value, str | bytes) and len(value) > MAX_NAME):
        raise Refused("a key that is a large tuple")
    if isinstance(value, tuple):
        return f"({', '.join(_spelled(item, left) for item in value)})"
    if isinstance(value, Named | Described):
        return value.name
    return repr(checked_key(value)) if isinstance(value, str | bytes | int | float | None) else type(value).__name__


_NUMPY_CODES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])


class NumpyDtype:
    """A ``numpy.dtype`` as pickled: a code such as ``f4``, then a byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def set_state(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        self.order = order if isinstance(order, str) and order in ("<", ">") else "|"

    def dtype(self) -> np.dtype[Any] | None:
        """numpy's own, for numbers; None for everything else."""
        if self.code not in _NUMPY_CODES:
            return None
        return np.dtype(self.order.replace("|", "<") + self.code)


class PickledArray:
    """A numpy array whose bytes are in the pickle. ``dtype`` is None if it holds anything but numbers."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype[Any] | None = None
        self.code = "none"
        self._fortran = False
        self._data = b""

    def set_state(self, state: Any) -> None:
        *_, shape, dtype, fortran, data = state
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: Any, dtype: Any, fortran: bool, data: Any) -> PickledArray:
        if not isinstance(dtype, NumpyDtype) or not isinstance(shape, tuple) or not valid_shape(shape):
            raise Refused("a numpy array without a shape or a dtype")
        self.shape, self.dtype, self.code, self._fortran = shape, dtype.dtype(), dtype.code, fortran
        if self.dtype is not None:
            self._data = data.encode("latin-1") if isinstance(data, str) else data
            count = 1
            for length in shape:
                count *= length
            if not isinstance(self._data, bytes) or len(self._data) != count * self.dtype.itemsize:
                raise Refused("a numpy array whose shape and bytes do not agree")
        return self

    def read(self) -> Array:
        """The array, read-only and in this machine's byte order."""
        assert self.dtype is not None
        array: Array = np.frombuffer(self._data, self.dtype).reshape(self.shape, order="F" if self._fortran else "C")
        if not self.dtype.isnative:
            array = array.astype(self.dtype.newbyteorder("="))
            array.flags.writeable = False
        return array


def _scalar(args: tuple[Any, ...]) -> Any:
    """``numpy.core.multiarray.scalar(dtype, bytes)`` as a Python value."""
    dtype, data = args
    if isinstance(dtype, NumpyDtype) and dtype.dtype() is None:
        return Described("numpy.core.multiarray.scalar", args)
    return PickledArray().fill((), dtype, False, data).read().item()


def _dtype(args: tuple[Any, ...]) -> NumpyDtype:
    code = args[0]
    if isinstance(code, Named):  # numpy.dtype(numpy.float32)
        code = np.dtype(code.name.rpartition(".")[2]).str[1:] if code.name in _NUMPY_SCALARS else "?"
    if not isinstance(code, str):
        raise Refused("a numpy dtype without a code")
    return NumpyDtype(code)


_NUMPY_SCALARS = {f"numpy.{kind}" for kind in ("float16", "float32", "float64", "int32", "int64", "bool_", "uint8")}


def _mapping(args: tuple[Any, ...]) -> Ordered:
    pairs = args[0] if args else ()
    if isinstance(pairs, dict):
        return Ordered(pairs)
    return Ordered((checked_key(key), value) for key, value in pairs)


def _defaultdict(args: tuple[Any, ...]) -> Ordered:
    return _mapping(args[1:])


def _encoded(args: tuple[Any, ...]) -> bytes:
    """How protocol 2 spells bytes: text and ``latin1``."""
    text, encoding = args
    if encoding not in ("latin1", "latin-1"):
        raise Refused("bytes in an encoding other than latin1")
    return bytes(text.encode("latin-1"))


def _bytes(args: tuple[Any, ...]) -> bytes:
    if not args:
        return b""
    return args[0] if isinstance(args[0], bytes) else _encoded(args)


def _items(args: tuple[Any, ...]) -> list[Any]:
    (items,) = args or ((),)
    if not isinstance(items, list | tuple):
        raise Refused("items that are no list")
    return list(items)


def _number(args: tuple[Any, ...]) -> Any:
    if len(args) == 2 and all(isinstance(part, int | float) for part in args):
        return complex(*args)
    raise Refused("a complex number without two parts")


def _path(args: tuple[Any, ...]) -> str:
    parts = [part for part in args if isinstance(part, str)]
    return "/".join(parts).replace("//", "/", 1)


def _namespace(args: tuple[Any, ...]) -> Namespace:
    found = Namespace()
    if args and isinstance(args[0], dict):
        found.set_state(args[0])
    return found


def _reconstructed(args: tuple[Any, ...]) -> Any:
    """``copyreg._reconstructor(class, base, state)``: an object of protocol 0 or 1."""
    cls = args[0]
    if not isinstance(cls, Named):
        raise Refused("an object without a class")
    if cls.name in PLAIN and len(args) == 3:
        return PLAIN[cls.name](args[2:] if args[2] is not None else ())
    return Described(cls.name, args[2:] if len(args) == 3 and args[2] is not None else ())


def _ndarray(args: tuple[Any, ...]) -> Any:
    if not args or not isinstance(args[0], Named) or args[0].name != "numpy.ndarray":
        return Described("numpy.core.multiarray._reconstruct", args)
    return PickledArray()


def _frombuffer(args: tuple[Any, ...]) -> PickledArray:
    data, dtype, shape, order = args
    return PickledArray().fill(shape, dtype, order == "F", data)


PLAIN: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _defaultdict,
    "argparse.Namespace": _namespace,
    "types.SimpleNamespace": _namespace,
    "_codecs.encode": _encoded,
    **{f"{module}._reconstructor": _reconstructed for module in ("copyreg", "copy_reg")},
    **{f"{module}.{name}": _items for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "list")},
    **{f"{module}.dict": _mapping for module in ("builtins", "__builtin__")},
    **{f"{module}.{name}": _bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
    **{f"{module}.complex": _number for module in ("builtins", "__builtin__")},
    **{
        f"{module}.{kind}{system}Path": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
        for system in ("", "Posix", "Windows")
    },
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _ndarray for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
