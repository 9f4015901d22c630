"""What reads HDF5 through h5py; it runs in a child of :mod:`warmstart.formats.isolated` only.

Files that reach outside of themselves (external links and storage, virtual datasets) are refused.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.isolated_server import PIECE
from warmstart.formats.mapped import head

WEIGHTS = "model.weights.h5"
MAX_NODES = 200_000
MAX_DEPTH = 32
MAX_TEXT = 16 * 2**20
_RATIO = 1100  # the most that HDF5's filters shrink, that is deflate
_SMALL = 2**20  # bytes that an array may have which was never written


def warm_up() -> None:
    """What is imported before memory is limited."""
    import h5py  # noqa: F401


class _Region(io.RawIOBase):
    """A part of a buffer as a file."""

    def __init__(self, buffer: Any, start: int, size: int) -> None:
        self._view, self._at = memoryview(buffer)[start : start + size], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Any) -> int:
        part = self._view[self._at : self._at + len(target)]
        target[: len(part)] = part
        self._at += len(part)
        return len(part)


def _file(path: Path) -> Any:
    import h5py

    if head(path, 4) == b"PK\x03\x04":
        from warmstart.formats.zipped import ZipArchive

        archive = ZipArchive(path, "Keras file")
        if WEIGHTS not in archive.members:
            raise CorruptCheckpoint("a Keras file without weights", expected=WEIGHTS, found=list(archive.members)[:8])
        data, start = archive.data(WEIGHTS)
        return h5py.File(_Region(data, start, archive.members[WEIGHTS].size), "r")
    return h5py.File(path, "r")


def listing(path: Path) -> dict[str, Any]:
    """``arrays`` ([name, shape, dtype, name of the first array with these bytes, where in ``path`` these bytes lie as
    numpy has them, or None]), ``texts`` and ``other`` (described)
    by name, ``attributes`` by the group's name, ``links`` within the file."""
    found: dict[str, Any] = {"arrays": [], "texts": {}, "other": {}, "attributes": {}, "links": {}}
    with _file(path) as file:
        _walk(file, "", found, {}, ())
    if head(path, 4) == b"PK\x03\x04":
        from warmstart.formats.zipped import ZipArchive

        archive = ZipArchive(path, "Keras file")
        weights = archive.members[WEIGHTS]
        for array in found["arrays"]:
            array[4] = None if array[4] is None or weights.deflated else weights.start + array[4]
        for name in ("config.json", "metadata.json"):
            if name in archive.members and archive.members[name].size <= MAX_TEXT:
                data, start = archive.data(name)
                text = bytes(data[start : start + archive.members[name].size])
                found["attributes"].setdefault("", {})[name] = text.decode("utf-8", "replace")
    return found


def _walk(group: Any, name: str, found: dict[str, Any], seen: dict[int, str], above: tuple[int, ...]) -> None:
    import h5py

    attributes = {key: _text(group.attrs, key) for key in list(group.attrs)[:1000]}
    kept = {key: value for key, value in attributes.items() if value is not None}
    if kept:
        found["attributes"][name] = kept
    for key in sorted(group, key=lambda key: (int(key), "") if key.isdecimal() and len(key) < 10 else (-1, key)):
        path = f"{name}/{key}" if name else key
        if len(seen) > MAX_NODES or len(above) > MAX_DEPTH:
            raise CorruptCheckpoint("too many arrays, or groups too deep", expected=f"{MAX_NODES}, {MAX_DEPTH} deep")
        link = group.get(key, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise _refused(path, f"a link to another file, {link.filename!r}")
        if isinstance(link, h5py.SoftLink):
            found["links"][path] = str(link.path)
            continue
        node = group[key]
        address = h5py.h5o.get_info(node.id).addr
        if isinstance(node, h5py.Group):
            if address in above:
                raise CorruptCheckpoint("a group contains itself", found=path)
            seen.setdefault(address, path)
            _walk(node, path, found, seen, (*above, address))
        elif isinstance(node, h5py.Dataset):
            _dataset(node, path, found, seen.setdefault(address, path))


def _refused(path: str, found: str) -> FormatError:
    return FormatError(
        "an HDF5 file that reaches outside of itself",
        expected="arrays in the file",
        found=f"{path!r}: {found}",
        todo="do not trust this file; if it is yours, copy the arrays into it",
    )


def _text(attributes: Any, key: str) -> Any:
    """An attribute that is text, a number, or a list of these."""
    import numpy as np

    described = attributes.get_id(key)
    if math.prod(described.shape or ()) * max(described.dtype.itemsize, 8) > MAX_TEXT:
        return None
    try:
        value = attributes[key]
    except (OSError, TypeError, ValueError, UnicodeDecodeError):
        return None
    return _plain(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        parts = [_plain(part) for part in value]
        return None if any(part is None for part in parts) else parts
    return value if isinstance(value, str | int | float | bool) else None


def _dtype(dataset: Any) -> str | None:
    """The name of its numbers' dtype."""
    dtype = dataset.dtype
    if dtype.kind in "biufc":
        return str(dtype.newbyteorder("=").name)
    if dtype.kind == "V" and dtype.itemsize == 2 and dataset.attrs.get("dtype") in ("bfloat16", b"bfloat16"):
        return "bfloat16"
    return None


def _dataset(dataset: Any, path: str, found: dict[str, Any], first: str) -> None:
    if dataset.is_virtual:
        raise _refused(path, "a virtual dataset")
    if dataset.external:
        raise _refused(path, f"data in another file, {dataset.external[0][0]!r}")
    name = _dtype(dataset)
    if name is not None and dataset.shape is not None:
        found["arrays"].append([path, [int(n) for n in dataset.shape], name, first, _place(dataset)])
    else:
        found["other"][path] = f"{dataset.dtype} {dataset.shape}"[:200]
        if dataset.shape == () and dataset.id.get_storage_size() < 2**16:
            text = _plain(dataset[()])
            if isinstance(text, str):
                found["texts"][path] = text


def _place(dataset: Any) -> int | None:
    """Where the array begins in the file, if it lies there in one piece and as numpy would have it."""
    import h5py

    dtype = dataset.dtype
    plain = dtype.kind in "iufV" and dtype.newbyteorder("<") == dtype and dataset.size > 0
    if not plain or dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        return None
    if not dataset.id.get_type().equal(h5py.h5t.py_create(dtype)):
        return None
    place = dataset.id.get_offset()
    return None if place is None else int(place)


def read(path: Path, name: str) -> Iterator[memoryview]:
    """The array ``name`` in pieces along its first axis."""
    with _file(path) as file:
        dataset = file[name]
        kind = _dtype(dataset)
        stored = dataset.id.get_storage_size()
        if dataset.is_virtual or dataset.external or kind is None:
            raise _refused(name, "not an array of numbers in this file")
        if dataset.size * dataset.dtype.itemsize > _RATIO * stored + _SMALL:
            raise CorruptCheckpoint(
                "an array is larger than the file can hold",
                found=f"{name!r}: {dataset.dtype} {dataset.shape} in {stored} bytes",
            )
        if dataset.ndim == 0 or dataset.size == 0:
            yield _bytes(dataset[()])
            return
        rows = max(1, PIECE // max(1, dataset.dtype.itemsize * (dataset.size // dataset.shape[0])))
        if dataset.chunks:
            rows = max(1, rows // dataset.chunks[0]) * dataset.chunks[0]
        for start in range(0, dataset.shape[0], rows):
            yield _bytes(dataset[start : start + rows])


def _bytes(array: Any) -> memoryview:
    import numpy as np

    array = np.asarray(array)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
