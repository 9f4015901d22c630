"""A child's side of :mod:`warmstart.inference.engine`: CTranslate2's engine with one model."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array

_loaded: dict[Path, Any] = {}
_made: list[Array] = []  # by the last call


def warm_up() -> None:
    """What every call needs is imported."""
    import ctranslate2  # noqa: F401


def load(path: Path, kind: str, **options: Any) -> None:
    """The model of the directory ``path`` in an object of the class ``kind`` of the library."""
    import ctranslate2

    _loaded[path] = attrgetter(kind)(ctranslate2)(str(path), **options)


def ask(path: Path, method: str, field: str, arguments: Mapping[str, Any]) -> list[Any]:
    """``field`` of each result of ``method``."""
    return [getattr(result, field) for result in getattr(_loaded[path], method)(**arguments)]


def compute(
    path: Path, method: str, fields: Sequence[str], arguments: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> list[list[int]]:
    """Shapes of the arrays that ``method`` makes of ``given``: its result, or ``fields`` of it; :func:`made` has them.
    A list of arrays, each of one step, is one array."""
    import ctranslate2

    views = []
    if given is not None:  # views take no read-only memory, and do not keep it
        batch = np.frombuffer(bytearray(b64decode(given["data"])), given["dtype"]).reshape(given["shape"])
        views = [ctranslate2.StorageView.from_array(batch)]
    found = getattr(_loaded[path], method)(*views, **arguments)
    first = found[0] if isinstance(found, list) else found
    _made[:] = [_array(getattr(first, name)) for name in fields] if fields else [_array(first)]
    return [list(array.shape) for array in _made]


def made(path: Path, k: int) -> Iterator[Array]:
    """Array ``k`` of the last call."""
    yield _made[k]


def _array(view: Any) -> Array:
    import ctranslate2

    if isinstance(view, list):
        return np.stack([_array(one) for one in view])
    return np.ascontiguousarray(np.array(view.to(ctranslate2.DataType.float32)))
