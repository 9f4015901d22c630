"""Safetensors in several files: ``NAME.safetensors.index.json`` says which array lies in which shard.

The index is ``{"metadata": {"total_size": bytes}, "weight_map": {array: file}}``, and its shards are
``NAME-00001-of-00003.safetensors`` beside it. Source: transformers and huggingface_hub, which write it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, FormatError, Problem
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry
from warmstart.formats.mapped import head
from warmstart.formats.safetensors import SafetensorsCheckpoint, write_safetensors
from warmstart.storage.atomic import new_directory, write_text

FORMAT = "sharded safetensors"
SUFFIX = ".safetensors.index.json"
MAX_INDEX = 100_000_000  # bytes
_START = re.compile(rb'\s*\{.*"weight_map"\s*:\s*\{\s*("(?:[^"\\]|\\.)*"\s*:\s*"[^"]*\.safetensors"|\})', re.DOTALL)


def recognise(path: Path) -> bool:
    """Whether ``path`` is a JSON object whose ``weight_map`` names safetensors files."""
    return _START.match(head(path, 65_536)) is not None


def candidates(directory: Path) -> list[Candidate]:
    """The indexes of ``directory``."""
    files = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.is_file())
    return [Candidate(path, path.name) for path in files]


def open(path: Path) -> ShardedCheckpoint:
    """Reads the index ``path`` and the header of every shard.

    Raises:
        CorruptCheckpoint: index and shards do not agree, a shard is missing or damaged.
        FormatError: a shard lies outside the index's directory, or an array has a dtype that is not supported.
    """
    return ShardedCheckpoint(path)


class ShardedCheckpoint(Checkpoint):
    """The arrays of all shards, in the order of the index.

    ``metadata`` has what the shards say (they say the same, or one says it under ``KEY (FILE)``) and, under
    ``"index"``, what the index says.
    """

    def __init__(self, path: Path) -> None:
        said, places = _read_index(path)
        self._places = places
        self._shards = {name: SafetensorsCheckpoint(file) for name, file in _find(path, places).items()}
        entries = _check(path, places, self._shards)
        _check_total(path, said, sum(entry.nbytes for entry in entries.values()))
        metadata: dict[str, Any] = {"index": said}
        for name, shard in self._shards.items():
            for key, value in shard.metadata.items():
                metadata[key if metadata.get(key, value) == value else f"{key} ({name})"] = value
        files = [Path(path.name), *map(Path, self._shards)]
        super().__init__(path=path, format=FORMAT, entries=entries, metadata=metadata, files=files)

    def read(self, name: str) -> Array:
        return self._shards[self._places[name]].read(name)


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
    allowed = [directory, *([directory.parent.parent / "blobs"] if directory.parent.name == "snapshots" else [])]
    files: dict[str, Path] = {}
    missing = []
    for name in dict.fromkeys(places.values()):
        file = path.parent / name
        if not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise FormatError(
                "an index names a file outside its directory",
                where=path,
                expected="plain file names",
                found=repr(name[:200]),
            )
        if len(name) > 255 or not file.is_file():
            missing.append(Problem(f"{name[:200]} is missing"))
        elif not any(file.resolve().is_relative_to(place) for place in allowed):
            raise FormatError(
                "a shard is a link that leads outside its directory",
                where=path,
                expected="a file in the same directory",
                found=repr(name),
                todo="copy the file itself there",
            )
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


def _check(path: Path, places: Mapping[str, str], shards: Mapping[str, SafetensorsCheckpoint]) -> dict[str, Entry]:
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


def write_sharded(
    directory: Path,
    entries: Sequence[Entry],
    arrays: Iterable[Array],
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Makes ``directory`` with ``arrays``, one for each of ``entries`` in their order, holding one at a time.

    A shard takes arrays while they are at most ``max_shard_bytes`` together; a larger array has one of its own. What
    fits into one shard becomes ``model.safetensors`` without an index. Each shard has ``metadata`` (transformers
    wants ``{"format": "pt"}``). The directory is complete or not there at all.

    Raises:
        FormatError: a name occurs twice, a dtype has no code, or an array is not as its entry says.
        StorageError: the directory exists or cannot be written.
    """
    if len({entry.name for entry in entries}) != len(entries):
        raise FormatError("a name occurs twice", where=directory)
    shards = _divide(entries, max_shard_bytes)
    rest = iter(arrays)
    with new_directory(directory) as temporary:
        if len(shards) == 1:
            write_safetensors(temporary / "model.safetensors", entries, rest, metadata)
            return
        places = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_safetensors(temporary / name, shard, itertools.islice(rest, len(shard)), metadata)
            places.update({entry.name: name for entry in shard})
        if next(rest, None) is not None:
            raise FormatError("more arrays than entries", where=directory)
        index = {"metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": places}
        text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_text(temporary / f"model{SUFFIX}", text)


def _divide(entries: Sequence[Entry], most: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards
