"""Several torch files that are one checkpoint: an index with ``weight_map``, and DeepSpeed's directories.

The index is JSON, ``{"metadata": …, "weight_map": {array: file}}``, as transformers and accelerate write it for
``pytorch_model.bin.index.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint, SourceError
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry
from warmstart.formats.mapped import head

MAX_INDEX = 64 * 2**20
MAX_SHARDS = 10_000
_ENDINGS = (".bin", ".pt", ".pth")


def recognise(path: Path, start: bytes, is_torch: Callable[[Path], bool]) -> bool:
    """Whether ``path`` is an index of torch files: the first shard that is there is one, or one is named so."""
    if start.lstrip()[:1] != b"{" or b'"weight_map"' not in head(path, MAX_INDEX):
        return False
    files = parts(path)
    there = [path.with_name(file) for file in sorted(files) if _is_plain(file) and not file.endswith(".json")]
    there = [shard for shard in there if shard.is_file()]
    return is_torch(there[0]) if there else any(file.endswith(_ENDINGS) for file in files)


def parts(path: Path) -> set[str]:
    """The files that the index ``path`` names; none if it is no index."""
    try:
        index = json.loads(head(path, MAX_INDEX))
    except (ValueError, RecursionError):
        return set()
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    return {file for file in weight_map.values() if isinstance(file, str)} if isinstance(weight_map, dict) else set()


def _is_plain(name: str) -> bool:
    """Whether ``name`` is one of a file in the same directory."""
    return bool(name) and name not in (".", "..") and not any(c in name for c in "/\\\0") and len(name) < 256


def deepspeed(directory: Path) -> list[Candidate]:
    """The model of the step that ``latest`` names, in a directory of DeepSpeed's; its optimizer is in other files."""
    latest = directory / "latest"
    if not latest.is_file():
        return []
    step = head(latest, 256).decode("utf-8", "replace").strip()
    if not _is_plain(step):
        return []
    model = directory / step / "mp_rank_00_model_states.pt"
    return [Candidate(model, step, ("last",))] if model.is_file() and _within(model, directory) else []


def _within(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())


class ShardedCheckpoint(Checkpoint):
    """The arrays of several files, in the order of the index; ``metadata`` is the index's own."""

    def __init__(self, path: Path, kind: str, opener: Callable[[Path], Checkpoint]) -> None:
        self._path = path
        index = self._index(path)
        weight_map = index["weight_map"]
        shards = {file: self._shard(file, opener) for file in dict.fromkeys(weight_map.values())}
        entries: dict[str, Entry] = {}
        for name, file in weight_map.items():
            if name not in shards[file].entries:
                raise self._corrupt(f"array {name!r}", f"an array of {file}", "no such array there")
            entries[name] = shards[file].entries[name]
        for file, shard in shards.items():
            for name in shard.entries:
                if weight_map.get(name) != file:
                    raise self._corrupt(f"array {name!r} of {file}", "a line in the index", weight_map.get(name))
        self._shards = {name: shards[file] for name, file in weight_map.items()}
        metadata = index.get("metadata")
        super().__init__(
            path=path,
            format=kind,
            entries=entries,
            metadata=metadata if isinstance(metadata, dict) else {},
            files=(Path(path.name), *map(Path, shards)),
            ties={name: other for shard in shards.values() for name, other in shard.ties.items()},
        )

    def _corrupt(self, key: str, expected: object, found: object) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            "the index and its files do not agree",
            where=f"{self._path}, {key}",
            expected=expected,
            found=found if found is not None else "none",
            todo="download or copy the index and its files again",
        )

    def _index(self, path: Path) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("a name occurs twice")
            return found

        try:
            text = head(path, MAX_INDEX + 1)
            if len(text) > MAX_INDEX:
                raise ValueError(f"more than {MAX_INDEX} bytes")
            index = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise self._corrupt("the index", "JSON with unique names", error) from error
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise self._corrupt("weight_map", "array names with file names", type(weight_map).__name__)
        if len(set(weight_map.values())) > MAX_SHARDS:
            raise self._corrupt("weight_map", f"at most {MAX_SHARDS} files", len(set(weight_map.values())))
        return dict(index)

    def _shard(self, file: str, opener: Callable[[Path], Checkpoint]) -> Checkpoint:
        shard = self._path.with_name(file) if _is_plain(file) else None
        if shard is None or file.endswith(".json"):
            raise self._corrupt(f"file {file[:100]!r}", "a file in the directory of the index", "a path elsewhere")
        if not shard.is_file():
            raise SourceError("a shard is missing", where=shard, todo="download it too")
        # in the cache of the Hugging Face hub, index and shards are links into one other directory
        if not _within(shard, self._path.parent) and not _within(shard, self._path.resolve().parent):
            raise self._corrupt(f"file {file!r}", "a file in the directory of the index", "a link that leads elsewhere")
        return opener(shard)

    def read(self, name: str) -> Array:
        return self._shards[name].read(name)

    def verify(self, name: str) -> None:
        self._shards[name].verify(name)
