"""T5X's own checkpoints, version 3: a msgpack file ``checkpoint`` and one zarr directory for each large array.

In the tree an array is either inline or the specification of a TensorStore (``driver``, ``kvstore``, ``dtype``,
``metadata``); of these only zarr directories beside the file are read (t5x/checkpoints.py). Names are as T5X
flattens them, without the leading ``optimizer``: ``target/encoder/layers_0/attention/query/kernel``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats import flax, orbax
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint
from warmstart.formats.flax_tree import Key, TreeCheckpoint, flatten, unwrap
from warmstart.formats.mapped import head, map_file
from warmstart.formats.msgpack_tree import Leaf, looks_like_map, read_leaf, walk
from warmstart.formats.steps import step_candidates, unfinished
from warmstart.formats.zarr import Layout, ZarrArray, below, inside, layout_of, parse_layout, read_json
from warmstart.lean import dataclass

FORMAT = "t5x"
VERSION = 3
_SPEC = {"driver", "kvstore"}
_HARMLESS = {"dtype", "metadata", "context", "open", "create", "delete_existing", "assume_metadata"}


def recognise(path: Path) -> bool:
    """Whether ``path`` is such a directory, or T5X's single file, which begins with its version."""
    if path.is_dir():
        return looks_like_map(head(path / "checkpoint", 64)) and not orbax.recognise(path)
    return flax.recognise(path) and b"\xa7version" in head(path, 16)


def candidates(directory: Path) -> list[Candidate]:
    """The step directories, of which the highest is ``last``; those that T5X had not finished do not count."""

    def any_of(path: Path) -> bool:
        return recognise(path) or orbax.recognise(path) or flax.recognise(path)

    return step_candidates(directory, recognise, any_of, lambda path: False)


def open(path: Path) -> Checkpoint:
    """Reads the tree; array files are read when their array is.

    Raises:
        CorruptCheckpoint: it is damaged or was never finished.
        FormatError: it is of another version, or an array is said to lie outside of the directory.
    """
    if unfinished(path):
        raise CorruptCheckpoint(
            "this checkpoint was never finished", where=path, expected="a directory that T5X has renamed",
            found=path.name, todo="take an earlier one",
        )  # fmt: skip
    file = path / "checkpoint" if path.is_dir() else path
    buffer = map_file(inside(path, "checkpoint") if path.is_dir() else path)
    tree = walk(buffer, file)
    version = tree.pop("version", None)
    if version != VERSION:
        raise FormatError(
            "a T5X checkpoint of another version", where=file, expected=VERSION, found=version,
            todo="restore and save it with the T5X that wrote it" if version is not None else None,
        )  # fmt: skip
    leaves: dict[Key, Leaf | External] = {}
    values: dict[Key, Any] = {}
    for key, value in flatten(unwrap(tree), lambda value: isinstance(value, dict) and set(value) >= _SPEC):
        if isinstance(value, dict):
            leaves[key] = _external(path, key, value)
        elif isinstance(value, Leaf):
            leaves[key] = value
        else:
            values[key] = value

    def read(key: Key) -> Array:
        leaf = leaves[key]
        return read_leaf(buffer, leaf) if isinstance(leaf, Leaf) else leaf.read()

    return TreeCheckpoint(path, FORMAT, leaves, values, read, metadata={"version": version}, files=[Path(path.name)])


@dataclass(frozen=True)
class External:
    """An array in a zarr directory; ``announced`` is what the tree says about it."""

    root: Path
    relative: str
    name: str
    announced: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.announced.shape

    @property
    def dtype(self) -> str:
        return self.announced.dtype.name

    def read(self) -> Array:
        """The array, by its ``.zarray`` where there is one, which must agree with the tree."""
        layout = stored_layout(self.root, self.relative) or self.announced
        if layout.shape != self.shape or layout.dtype.name != self.dtype:
            raise CorruptCheckpoint(
                "an array is not what the checkpoint says",
                where=f"{self.root}, array {self.name!r}",
                expected=f"{self.dtype} {self.shape}",
                found=f"{layout.dtype.name} {layout.shape} in {self.relative}/.zarray",
                todo="copy the whole checkpoint again",
            )
        return ZarrArray(self.root, self.relative, layout, self.name).read()


def stored_layout(root: Path, relative: str) -> Layout | None:
    """What the ``.zarray`` of this array says, if there is one."""
    path = inside(root, f"{relative}/.zarray")
    return parse_layout(read_json(path), str(path)) if path.is_file() else None


def _external(path: Path, key: Key, spec: Mapping[str, Any]) -> External:
    where = f"{path}, array {'/'.join(key)!r}"
    store, metadata = spec["kvstore"], spec.get("metadata", {})
    unknown = set(spec) - _SPEC - _HARMLESS
    if spec["driver"] != "zarr" or unknown or not isinstance(store, dict) or not isinstance(metadata, dict):
        raise _refused(where, "driver zarr with a kvstore", {name: spec[name] for name in ("driver", *unknown)})
    relative = store.get("path")
    if store.get("driver") not in ("file", "gfile", "gcs") or not isinstance(relative, str) or len(store) > 3:
        raise _refused(where, "a kvstore with a relative path", store)
    if not path.is_dir():
        raise CorruptCheckpoint(
            "the arrays of this checkpoint lie beside it", where=where, expected="the directory as T5X wrote it",
            found="its file `checkpoint` alone", todo="give the directory, whole",
        )  # fmt: skip
    relative = relative.rstrip("/")
    below(path, relative)  # links are looked at when it is read
    if "shape" in metadata and "dtype" in spec:
        announced = layout_of({"chunks": metadata["shape"], **metadata}, _code(spec["dtype"]), where)
    else:
        found = stored_layout(path, relative)
        if found is None:
            raise CorruptCheckpoint("nothing says what this array is", where=where, expected=f"{relative}/.zarray")
        announced = found
    return External(path, relative, "/".join(key), announced)


def _code(dtype: object) -> object:
    return dtype if isinstance(dtype, str) else None


def _refused(where: str, expected: str, found: object) -> FormatError:
    return FormatError(
        "an array is stored in a way that is not read", where=where, expected=expected, found=repr(found)[:300],
        todo="restore and save it with T5X",
    )  # fmt: skip
