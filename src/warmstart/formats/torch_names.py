"""From an unpickled object to arrays with dotted names, and everything else as metadata.

A dict's keys and a list's numbers are joined with dots: ``{"model": {"a": tensor}}`` is ``model.a``. A module that was
pickled whole gives the names of its ``state_dict``. A tensor that stands alone is called ``tensor``. What is no array
keeps its nesting in the metadata, which JSON can hold; where a list mixes both, an array is ``{"array": its name}``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.pickled import Budget, Described, Named, Ordered, PickledArray, Refused
from warmstart.formats.torch_tensors import Tensor

Leaf = Tensor | PickledArray
MAX_DEPTH = 100
ALONE = "tensor"
_NOTHING: Any = object()  # an array, which has its place among the arrays


class Names:
    """``arrays`` and ``metadata`` of an object that was pickled in ``size`` bytes.

    ``aside`` are objects, by ``id``, that belong to neither.

    Raises:
        FormatError: two arrays have one name.
        CorruptCheckpoint: it is nested too deep, or few bytes expand to very much.
    """

    def __init__(self, root: Any, where: str, size: int, aside: Collection[int] = ()) -> None:
        self.arrays: dict[str, Leaf] = {}
        self._where, self._size, self._aside = where, size, aside
        self._budget = Budget(16)
        self._inside: set[str] = set()  # arrays of objects that are no modules
        self._objects = 0
        self._open: dict[int, str] = {}  # containers that contain the present one: a cycle leads back to them
        try:
            found = self._walk(root, "")
        except Refused as error:
            raise CorruptCheckpoint("this cannot be listed", where=where, found=str(error)) from error
        self._leave_out_copies()
        found = {} if found is _NOTHING else found
        self.metadata: dict[str, Any] = found if isinstance(found, dict) else {"value": found}

    def _leave_out_copies(self) -> None:
        """An object, such as a trainer or an old optimizer, may hold the model's tensors once more."""
        own = {
            leaf.place for name, leaf in self.arrays.items() if name not in self._inside and isinstance(leaf, Tensor)
        }
        for name in self._inside:
            leaf = self.arrays[name]
            if isinstance(leaf, Tensor) and leaf.place in own:
                del self.arrays[name]

    def _walk(self, value: Any, path: str) -> Any:
        if id(value) in self._aside:
            return _NOTHING
        self._budget.spend(1, self._size)
        if isinstance(value, str):
            self._budget.spend(len(value), self._size)
            return value
        if value is None or isinstance(value, bool | int | float):
            return value
        simple = _SIMPLE.get(type(value))
        if simple is not None:
            return simple(value)
        self._budget.spend(len(path), self._size)
        if isinstance(value, Tensor) or (isinstance(value, PickledArray) and value.dtype is not None):
            return self._array(value, path or ALONE)
        if id(value) in self._open:
            return {"see": self._open[id(value)]}
        if len(self._open) >= MAX_DEPTH:
            raise Refused(f"more than {MAX_DEPTH} levels")
        self._open[id(value)] = path
        try:
            return self._container(value, path)
        finally:
            del self._open[id(value)]

    def _array(self, value: Leaf, name: str) -> Any:
        if name in self.arrays:
            raise FormatError(
                "two arrays have one name",
                where=f"{self._where}, array {name!r}",
                expected="names that stay different when they are joined with dots",
                todo="rename one of them with the library that wrote it",
            )
        self.arrays[name] = value
        if self._objects:
            self._inside.add(name)
        note = value.note if isinstance(value, Tensor) else None
        if note:
            return self._walk({"array": name, **note}, name)
        return _NOTHING

    def _container(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            state = value.state if isinstance(value, Ordered) else None
            pairs = [*value.items(), *(state.items() if isinstance(state, dict) else ())]
            return self._mapping(pairs, path)
        if isinstance(value, list | tuple):
            return self._sequence(value, path)
        if isinstance(value, Described):
            return self._described(value, path)
        if isinstance(value, PickledArray):  # of objects, text or records
            return {"class": "numpy.ndarray", "dtype": value.code, "shape": list(value.shape)}
        return {"class": type(value).__name__}

    def _mapping(self, pairs: Iterable[tuple[Any, Any]], path: str) -> Any:
        found: dict[str, Any] = {}
        arrays = False
        for number, (key, item) in enumerate(pairs):
            name = key if isinstance(key, str) else _key(key, number)
            inner = self._walk(item, f"{path}.{name}" if path else name)
            if inner is _NOTHING:
                arrays = True
                continue
            while name in found:  # 1 and "1"
                name += "'"
            found[name] = inner
        return found if found or not arrays else _NOTHING

    def _sequence(self, items: Iterable[Any], path: str) -> Any:
        found = []
        before = path + "." if path else ""
        for number, item in enumerate(items):
            inner = self._walk(item, f"{before}{number}")
            found.append({"array": f"{before}{number}"} if inner is _NOTHING else inner)
        arrays = bool(found) and all(isinstance(item, dict) and set(item) == {"array"} for item in found)
        return _NOTHING if arrays else found

    def _described(self, value: Described, path: str) -> Any:
        found: dict[str, Any] = {"class": value.name}
        own, rest = _module(value)
        inner = self._mapping(own.items(), path)
        found |= inner if isinstance(inner, dict) else {}
        self._objects += value.name != "torch.sparse"
        parts = {"args": value.args, "items": value.items, "state": None if own or rest else value.state}
        for name, part in parts.items():
            inner = self._walk(part, path) if part else _NOTHING
            if inner is not _NOTHING:
                found[name] = inner
        inner = self._mapping(rest.items(), path)
        found |= inner if isinstance(inner, dict) else {}
        self._objects -= value.name != "torch.sparse"
        return found


def _module(value: Described) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """An object's attributes: those in which its ``state_dict`` would be, if it is a module, and the rest.

    A module that was pickled whole keeps them in dicts of their own, one of TorchScript beside everything else.
    """
    attributes = value.attributes()
    parameters, modules, buffers = (attributes.get(key) for key in ("_parameters", "_modules", "_buffers"))
    if isinstance(parameters, dict) and isinstance(modules, dict):
        passing = attributes.get("_non_persistent_buffers_set") or ()
        kept = {key: item for key, item in (buffers or {}).items() if key not in passing}
        own = {key: item for key, item in (parameters | kept | modules).items() if item is not None}
        inside = {"_parameters", "_buffers", "_modules"}
        return own, {k: v for k, v in attributes.items() if k not in inside and not (_private(k) and not v)}
    if value.name.startswith("__torch__"):
        own = {key: item for key, item in attributes.items() if isinstance(item, Tensor | Described)}
        return own, {key: item for key, item in attributes.items() if key not in own}
    return {}, attributes


def _private(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("_")


def _key(key: Any, number: int) -> str:
    """A key that is no text, as text; ``number`` is its place among the keys."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if isinstance(key, Named | Described):
        return key.name
    return str(key) if key is None or isinstance(key, int | float) else f"{ALONE}{number}"


_SIMPLE: dict[type, Callable[[Any], Any]] = {
    bytes: lambda value: {"bytes": base64.b64encode(value).decode()},
    complex: lambda value: {"complex": [value.real, value.imag]},
    Named: lambda value: value.name,
}
