"""Orbax checkpoints, as T5X writes them today and as JAX users have them.

A directory has items (``state``, ``default``, ``params`` …) or is one. An item's tree is in ``_METADATA``; its arrays
are in one OCDBT database (``manifest.ocdbt``), or in older ones in a zarr directory each. The oldest have a msgpack
file ``checkpoint`` with ``PLACEHOLDER://<directory>`` for each array. zarr directories are read by us, what needs
TensorStore (OCDBT, zarr 3) in a child process.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats import zarr
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, itemsize
from warmstart.formats.flax_tree import Key, TreeCheckpoint, flatten, unwrap
from warmstart.formats.isolated import Isolated, checked_shape
from warmstart.formats.mapped import head, map_file
from warmstart.formats.msgpack_tree import DTYPES, Leaf, looks_like_map, read_leaf, walk
from warmstart.formats.steps import step_candidates, step_of, unfinished
from warmstart.lean import dataclass

FORMAT = "orbax"
TREE, SUMMARY, DATABASE, OLD_TREE = "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint"
PLACEHOLDER = "PLACEHOLDER://"
MAX_JSON = 64 * 2**20
MAX_FILES = 1_000_000
_ARRAYS = ("jax.Array", "np.ndarray", "scalar")
_AHEAD = 2**29  # bytes of an array that begins to be read before it is asked for
_RATIO, _SMALL = 200, 2**31  # an array has no more bytes than this many times all files, or so many


def recognise(path: Path) -> bool:
    """Whether the directory ``path`` is an item of Orbax, or has some."""
    return path.is_dir() and bool(_items(path))


def _items(path: Path) -> dict[str, Path]:
    """The directories with trees, by the item's name; the name of ``path`` itself is empty."""
    if _is_item(path):
        return {"": path}
    try:
        below = sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return {}
    if not (path / SUMMARY).is_file() and not unfinished(path) and step_of(path) is None:
        return {}
    return {entry.name: entry for entry in below if _is_item(entry) and not unfinished(entry)}


def _is_item(path: Path) -> bool:
    if head(path / TREE, 1) == b"{" or (path / DATABASE).is_file():
        return True
    start = head(path / OLD_TREE, 2**20)
    return looks_like_map(start) and PLACEHOLDER.encode() in start


def candidates(directory: Path) -> list[Candidate]:
    """The step directories, of which the highest is ``last``; those that Orbax had not finished do not count."""
    from warmstart.formats import t5x

    return step_candidates(directory, recognise, lambda path: recognise(path) or t5x.recognise(path), recognise)


def open(path: Path) -> Checkpoint:
    """Reads the trees and the arrays' headers.

    Raises:
        MissingExtra: TensorStore is needed and not installed.
        CorruptCheckpoint: it is damaged, incomplete or was never finished.
        FormatError: a part of it lies outside of its directory.
    """
    if unfinished(path):
        raise CorruptCheckpoint(
            "this checkpoint was never finished", where=path, expected="a directory that Orbax has renamed",
            found=path.name, todo="take an earlier one",
        )  # fmt: skip
    stored = _stored_bytes(path)
    leaves: dict[Key, _Array] = {}
    values: dict[Key, Any] = {}
    items = _items(path)
    for name, directory in items.items():
        prefix = (name,) if len(items) > 1 else ()
        for key, value in _item(directory, stored):
            (leaves if isinstance(value, _Array) else values)[*prefix, *key] = value
    checkpoint = TreeCheckpoint(
        path, FORMAT, leaves, values, lambda key: leaves[key].read(), number=lambda key: leaves[key].only(),
        metadata=_metadata(path), files=[Path(path.name)],
    )  # fmt: skip
    if checkpoint.step is None:
        checkpoint.step = step_of(path)
    return checkpoint


def _stored_bytes(path: Path) -> int:
    """The size of all files, none of which may be a link that leads outside."""
    total = count = 0
    for directory, folders, files in os.walk(path):
        count += len(files) + len(folders)
        if count > MAX_FILES:
            raise CorruptCheckpoint("too many files for a checkpoint", where=path, expected=f"at most {MAX_FILES}")
        for name in (*folders, *files):
            entry = Path(directory, name)
            if entry.is_symlink():
                zarr.inside(path, str(entry.relative_to(path)))
        total += sum(os.stat(Path(directory, name)).st_size for name in files if Path(directory, name).is_file())
    return total


@dataclass(frozen=True)
class _Array:
    """An array of an item, read by ``read``; ``number`` asks a child for the only element of one."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]
    number: Callable[[], Any] | None = None

    def only(self) -> Any:
        """The only element."""
        return self.number() if self.number is not None else self.read().reshape(-1)[0].item()


def _item(directory: Path, stored: int) -> Iterator[tuple[Key, Any]]:
    tree, zarr3 = _tree(directory)
    names = {key: ".".join(key) if name is None else name for key, (name, _) in tree.items() if name is not False}
    if (directory / DATABASE).is_file():
        arrays = _through_tensorstore(directory, names, stored, "ocdbt", zarr3)
    else:
        own = {key: name for key, name in names.items() if not (directory / name / "zarr.json").is_file()}
        other = {key: name for key, name in names.items() if key not in own}
        arrays = {
            **_own(directory, own),
            **(_through_tensorstore(directory, other, stored, "file", True) if other else {}),
        }
    for key, (_, value) in tree.items():
        yield key, arrays.get(key, value)


def _tree(directory: Path) -> tuple[dict[Key, tuple[Any, Any]], bool]:
    """key → (where its array is, or None for its own name, or False for no array; the value that is no array)."""
    if not (directory / TREE).is_file():
        if not (directory / OLD_TREE).is_file():
            raise CorruptCheckpoint("an Orbax item without its tree", where=directory, expected=TREE)
        return _old_tree(directory), False
    described = _json(directory / TREE)
    strings = _json(directory / "_strings.json") if (directory / "_strings.json").is_file() else {}
    tree: dict[Key, tuple[Any, Any]] = {}
    try:
        for node in described["tree_metadata"].values():
            key = tuple(str(part["key"]) for part in node["key_metadata"])
            kind = node["value_metadata"]["value_type"]
            if not key or key in tree:
                raise ValueError(f"{'/'.join(key)!r} twice, or without a name")
            if kind in _ARRAYS:
                tree[key] = None, None
            elif kind not in ("Dict", "List", "Tuple", "NamedTuple"):  # which are empty ones
                tree[key] = False, strings.get(".".join(key)) if kind == "string" else None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(directory / TREE, "Orbax's description of a tree", repr(error)[:200]) from error
    return tree, bool(described.get("use_zarr3"))


def _old_tree(directory: Path) -> dict[Key, tuple[Any, Any]]:
    path = zarr.inside(directory, OLD_TREE)
    buffer = map_file(path)
    tree: dict[Key, tuple[Any, Any]] = {}
    for key, value in flatten(unwrap(walk(buffer, path)), lambda value: isinstance(value, Leaf)):
        if isinstance(value, str) and value.startswith(PLACEHOLDER):
            tree[key] = value.removeprefix(PLACEHOLDER), None
        elif isinstance(value, Leaf):
            tree[key] = False, _Array(value.shape, value.dtype, partial(read_leaf, buffer, value))
        else:
            tree[key] = False, value
    return tree


def _own(directory: Path, names: Mapping[Key, str]) -> dict[Key, _Array]:
    arrays: dict[Key, _Array] = {}
    missing = []
    for key, name in names.items():
        header = zarr.below(directory, f"{name}/.zarray")  # all links were looked at
        if not header.is_file():
            missing.append(name)
            continue
        layout = zarr.parse_layout(zarr.read_json(header), str(header))
        read = zarr.ZarrArray(directory, name, layout, "/".join(key)).read
        arrays[key] = _Array(layout.shape, layout.dtype.name, read)
    if missing:
        raise CorruptCheckpoint(
            "arrays of this checkpoint are not described, so that their shapes are unknown",
            where=directory,
            expected=f"{missing[0]}/.zarray",
            found=f"{len(missing)} of {len(names)} arrays without .zarray: {', '.join(missing[:6])}",
            todo="copy the whole checkpoint again, with the files whose names begin with a dot",
        )
    return arrays


def _through_tensorstore(
    directory: Path, names: Mapping[Key, str], stored: int, store: str, zarr3: bool
) -> dict[Key, _Array]:
    child = Isolated("warmstart.formats.orbax_child", directory, library="tensorstore", extra="orbax")
    listed = child.call("headers", names=list(names.values()), store=store, zarr3=zarr3)
    reader = _InOrder(directory, child, list(names.values()), store=store, zarr3=zarr3)
    arrays: dict[Key, _Array] = {}
    for (key, name), described in zip(names.items(), listed, strict=True):
        where = f"{directory}, array {'/'.join(key)!r}"
        if described is None:
            raise CorruptCheckpoint("an array of the tree is missing", where=where, expected=name,
                                    todo="copy the whole checkpoint again")  # fmt: skip
        shape, dtype = checked_shape(described[0], where), described[1]
        if dtype not in DTYPES:
            raise FormatError("dtype not supported", where=where, expected=", ".join(sorted(DTYPES)), found=dtype)
        read = partial(reader.read, shape, dtype, name)
        nbytes = math.prod(shape) * itemsize(dtype)
        if 0 < nbytes <= _AHEAD:
            reader.nbytes[name] = nbytes
        if nbytes > max(_SMALL, _RATIO * stored):
            raise _damaged(directory, f"an array that {stored} bytes can hold", f"{name!r}: {dtype} {shape}")
        number = partial(reader.number, name, dtype) if dtype.startswith(("int", "uint", "float", "bfloat")) else None
        arrays[key] = _Array(shape, dtype, read, number)
    return arrays


class _InOrder:
    """Reads arrays through a child; for who reads them in their order, the next one begins to be read meanwhile."""

    def __init__(self, path: Path, child: Isolated, names: list[str], **store: Any) -> None:
        self._path, self._child, self._store = path, child, store
        self._after = dict(itertools.pairwise(names))  # name → the one that comes next
        self._expected = names[0] if names else None
        self.nbytes: dict[str, int] = {}  # of each array that may begin to be read before it is asked for

    def read(self, shape: tuple[int, ...], dtype: str, name: str) -> Array:
        following = self._after.get(name) if name == self._expected else None
        self._expected = self._after.get(name)
        ahead = self.nbytes.get(following, 0) if following else 0
        arguments = {"name": name, "following": following if ahead else None, **self._store}
        return self._child.array("read", shape, dtype, ahead=ahead, **arguments)

    def number(self, name: str, dtype: str) -> int | float:
        """The only element of an array, for which this process needs no numpy."""
        value: int | float = self._child.call("number", name=name, **self._store)
        if type(value) is not (float if "float" in dtype else int):
            raise _damaged(self._path, f"{dtype} of {name!r}", repr(value)[:60])
        return value


def _metadata(path: Path) -> dict[str, Any]:
    """What the whole checkpoint says of itself, the metrics that Orbax's manager keeps with it, and items of JSON."""
    metadata = dict(_json(path / SUMMARY)) if (path / SUMMARY).is_file() else {}
    for name, file in (("metrics", "metrics"), *((item, "metadata") for item in metadata.get("item_handlers") or ())):
        if isinstance(name, str) and "/" not in name and (path / name / file).is_file():
            metadata[name] = _json(path / name / file)
    return metadata


def _json(path: Path) -> dict[str, Any]:
    data = head(zarr.inside(path.parent, path.name), MAX_JSON)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "JSON", f"{error}"[:200]) from error
    if not isinstance(value, dict):
        raise _damaged(path, "a JSON object", type(value).__name__)
    return value


def _damaged(path: Path, expected: str, found: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        "damaged Orbax checkpoint", where=path, expected=expected, found=found, todo="copy it again"
    )
