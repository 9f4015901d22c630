"""One checkpoint in several files: an index says which array lies in which of the files beside it.

The index is JSON, ``{"metadata": {"total_size": bytes}, "weight_map": {array: file}}``. Source: transformers,
accelerate and huggingface_hub, which write it for safetensors and for torch files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError, Problem
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.mapped import POINTER, head

MAX_INDEX = 64 * 2**20  # bytes


class ShardedCheckpoint(Checkpoint):
    """The arrays of all shards, in the order of the index.

    ``metadata`` has what the shards say (they say the same, or one says it under ``KEY (FILE)``) and, under
    ``"index"``, what the index says.

    Args:
        open_shard: opens one of the files.
        counted: whether ``total_size`` is the sum of the arrays' bytes.

    Raises:
        CorruptCheckpoint: index and shards do not agree, a shard is missing or damaged.
        FormatError: a shard lies outside the index's directory, or an array has a dtype that is not supported.
    """

    def __init__(self, path: Path, name: str, open_shard: Callable[[Path], Checkpoint], *, counted: bool) -> None:
        said, self._places = _read_index(path)
        self._shards = {file: open_shard(place) for file, place in _find(path, self._places).items()}
        entries = _check(path, self._places, self._shards)
        if counted:
            _check_total(path, said, sum(entry.nbytes for entry in entries.values()))
        metadata: dict[str, Any] = {"index": said}
        for file, shard in self._shards.items():
            for key, value in shard.metadata.items():
                metadata[key if metadata.get(key, value) == value else f"{key} ({file})"] = value
        super().__init__(
            path=path,
            format=name,
            entries=entries,
            metadata=metadata,
            files=[Path(path.name), *map(Path, self._shards)],
            ties={array: other for shard in self._shards.values() for array, other in shard.ties.items()},
        )

    @property
    def mapped(self) -> bool:
        return all(shard.mapped for shard in self._shards.values())

    def read(self, name: str) -> Array:
        return self._shards[self._places[name]].read(name)

    def verify(self, name: str) -> None:
        self._shards[self._places[name]].verify(name)

    def read_checked(self, name: str) -> Array:
        return self._shards[self._places[name]].read_checked(name)


def named(path: Path) -> list[str]:
    """The files that the index ``path`` names, in its order; none if it is no index."""
    try:
        return list(dict.fromkeys(_read_index(path)[1].values()))
    except CorruptCheckpoint:
        return []


def is_plain(name: str) -> bool:
    """Whether ``name`` is one of a file in the same directory."""
    return bool(name) and name not in (".", "..") and not any(c in name for c in "/\\\0") and len(name) < 256


def _corrupt(path: Path, what: str, **more: Any) -> CorruptCheckpoint:
    more.setdefault("todo", "download or copy the index and its shards again")
    return CorruptCheckpoint(what, where=path, **more)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    data = head(path, MAX_INDEX + 1)
    try:
        if len(data) > MAX_INDEX:
            raise ValueError(f"more than {MAX_INDEX} bytes")
        index = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, "damaged index", expected="JSON with unique names", found=str(error)[:200]) from error
    said = index.get("metadata") if isinstance(index, dict) else None
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise _corrupt(path, "damaged index", expected="a weight_map of array names to file names")
    return said if isinstance(said, dict) else {}, places


def _find(path: Path, places: Mapping[str, str]) -> dict[str, Path]:
    """The files of the shards by name, all of them there and within the directory of the index.

    In the cache of huggingface_hub a snapshot's files are links into its ``blobs``, and these are followed.
    """
    directory = path.parent.resolve()
    allowed = [directory, path.resolve().parent]
    if directory.parent.name == "snapshots":
        allowed.append(directory.parent.parent / "blobs")
    files: dict[str, Path] = {}
    missing = []
    for name in dict.fromkeys(places.values()):
        file = path.parent / name
        if not is_plain(name) or name.endswith(".json"):
            raise FormatError(
                "an index names a file outside its directory, or one that cannot be",
                where=path,
                expected="names of files beside it",
                found=repr(name[:200]),
            )
        if not file.is_file():
            missing.append(Problem(f"{name[:200]} is missing"))
        elif not any(file.resolve().is_relative_to(place) for place in allowed):
            raise FormatError(
                "a shard is a link that leads outside its directory",
                where=path,
                expected="a file in the same directory",
                found=repr(name),
                todo="copy the file itself there",
            )
        elif head(file, len(POINTER)) == POINTER:
            missing.append(Problem(f"{name} is a git-lfs pointer, not the file itself", todo="run git lfs pull"))
        files[name] = file
    if missing:
        raise _corrupt(
            path,
            "shards are missing",
            expected=f"{len(files)} files beside the index",
            found=f"{len(files) - len(missing)} of them",
            problems=missing[:20],
            todo="download the missing ones",
        )
    return files


def _check(path: Path, places: Mapping[str, str], shards: Mapping[str, Checkpoint]) -> dict[str, Entry]:
    """Each array where the index says, and none that the index does not name."""
    problems = [
        Problem(f"array {name[:200]!r} is not in {file}")
        for name, file in places.items()
        if name not in shards[file].entries
    ]
    for file, shard in shards.items():
        extra = [name for name in shard.entries if places.get(name) != file]
        problems += [Problem(f"array {name[:200]!r} of {file} is not in the index, or elsewhere") for name in extra]
    if problems:
        raise _corrupt(path, "the index and its shards do not agree", problems=problems[:20])
    return {name: shards[file].entries[name] for name, file in places.items()}


def _check_total(path: Path, said: Mapping[str, Any], total: int) -> None:
    expected = said.get("total_size")
    if expected is not None and (not isinstance(expected, int | float) or expected != total):
        raise _corrupt(
            path,
            "the arrays have not the size that the index says",
            expected=f"total_size {str(expected)[:40]}",
            found=f"{total} bytes",
            todo="download it again; if you are sure that it is whole, remove total_size from the index",
        )
