"""What reads Orbax's arrays through TensorStore; it runs in a child of :mod:`warmstart.formats.isolated` only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.isolated_server import PIECE

AT_ONCE = 200
_context: Any = None
_begun: dict[str, tuple[Any, Iterator[Any], Any]] = {}  # the array that will be asked for next, if any


def warm_up() -> None:
    """What is imported before memory is limited."""
    import ml_dtypes  # noqa: F401
    import tensorstore  # noqa: F401


def _shared() -> Any:
    """Two threads, and the database's nodes kept between calls."""
    global _context  # noqa: PLW0603
    import tensorstore

    if _context is None:
        limits = {"cache_pool": {"total_bytes_limit": 2**26}}
        for kind in ("data_copy_concurrency", "file_io_concurrency"):
            limits[kind] = {"limit": 2}
        _context = tensorstore.Context(limits)
    return _context


def _where(path: Path, name: str, store: str) -> dict[str, Any]:
    if store == "ocdbt":
        return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}, "path": f"{name}/"}
    return {"driver": "file", "path": f"{path}/{name}/"}


def _open(path: Path, name: str, store: str, zarr3: bool) -> Any:
    import tensorstore

    if ".." in name.split("/") or name.startswith("/"):
        raise FormatError("a name that leads outside of the checkpoint", found=repr(name)[:200])
    spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": _where(path, name, store)}
    return tensorstore.open(spec, open=True, read=True, context=_shared())


def headers(path: Path, names: list[str], store: str, zarr3: bool) -> list[list[Any] | None]:
    """[shape, dtype] of each array; None where there is none."""
    found: list[list[Any] | None] = []
    for start in range(0, len(names), AT_ONCE):
        opening = [_open(path, name, store, zarr3) for name in names[start : start + AT_ONCE]]
        for future in opening:
            try:
                array = future.result()
            except (ValueError, KeyError, FileNotFoundError) as error:
                if "NOT_FOUND" not in str(error):
                    raise
                found.append(None)
            else:
                found.append([[int(n) for n in array.shape], str(array.dtype.name)])
    return found


def read(path: Path, name: str, store: str, zarr3: bool, following: str | None = None) -> Iterator[memoryview]:
    """The array in pieces, in C order. What is ``following`` begins to be read, too, while they are passed on."""
    array, boxes, coming = _begun.pop(name) if name in _begun else _begin(path, name, store, zarr3)
    _begun.clear()
    if following is not None:
        try:
            _begun[following] = _begin(path, following, store, zarr3)
        except Exception:  # whatever is wrong with it is said when it is asked for
            _begun.clear()
    _check_chunks(array, path, name, store)
    for region in boxes:  # one box is read while the one before is passed on
        before, coming = coming, array[region].read()
        yield _bytes(before)
    if coming is not None:
        yield _bytes(coming)


def number(path: Path, name: str, store: str, zarr3: bool) -> int | float:
    """The only element of an array of numbers."""
    array = _open(path, name, store, zarr3).result()
    _check_chunks(array, path, name, store)
    value = array.read().result().reshape(-1)[0]
    return float(value) if "float" in array.dtype.name else int(value)


def _begin(path: Path, name: str, store: str, zarr3: bool) -> tuple[Any, Iterator[Any], Any]:
    """The array, its boxes but the first, and that on its way."""
    array = _open(path, name, store, zarr3).result()
    boxes = regions(array.shape, array.chunk_layout.read_chunk.shape, array.dtype.numpy_dtype.itemsize)
    first = next(boxes, None)
    return array, boxes, None if first is None else array[first].read()


def _bytes(coming: Any) -> memoryview:
    import numpy as np

    return np.ascontiguousarray(coming.result()).reshape(-1).view(np.uint8).data


def regions(
    shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int, most: int = 4 * PIECE
) -> Iterator[tuple[slice | int, ...]]:
    """Boxes that follow one another in C order and have at most ``most`` bytes, or one row of chunks where that is
    more, so that no chunk is expanded twice: all of the last axes, a range of whole chunks of one axis, and of those
    before one index where a chunk has no more, else everything."""
    axis, size = len(shape), itemsize
    while axis and (size * shape[axis - 1] <= most or any(chunk > 1 for chunk in chunks[: axis - 1])):
        axis -= 1
        size *= shape[axis]
    if axis == 0:
        yield tuple(slice(0, length) for length in shape)
        return
    step = max(1, most // max(size, 1) // chunks[axis - 1]) * chunks[axis - 1]
    for before in itertools.product(*map(range, shape[: axis - 1])):
        for start in range(0, shape[axis - 1], step):
            yield (*before, slice(start, min(start + step, shape[axis - 1])))


def _check_chunks(array: Any, path: Path, name: str, store: str) -> None:
    """TensorStore reads missing chunks as zeros even where zarr 2 says that there is no value to fill in."""
    import tensorstore

    spec = array.spec().to_json()
    if spec["driver"] != "zarr" or spec["metadata"].get("fill_value") is not None:
        return
    expected = math.prod(-(-n // c) for n, c in zip(array.shape, spec["metadata"]["chunks"], strict=True))
    kvstore = tensorstore.KvStore.open(_where(path, name, store), context=_shared()).result()
    found = sum(not key.endswith(b".zarray") for key in kvstore.list().result())
    if found < expected:
        raise CorruptCheckpoint(
            "a chunk is missing, and nothing says what to fill in",
            expected=f"{expected} chunks",
            found=f"{found} of {name!r}",
            todo="copy the whole checkpoint again",
        )
