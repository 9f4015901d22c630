"""Safetensors in several files: ``NAME.safetensors.index.json`` and ``NAME-00001-of-00003.safetensors`` beside it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from warmstart.errors import FormatError
from warmstart.formats import safetensors
from warmstart.formats.checkpoint import Array, Candidate, Entry
from warmstart.formats.mapped import head
from warmstart.formats.safetensors import write_safetensors
from warmstart.formats.shards import ShardedCheckpoint
from warmstart.storage.atomic import new_directory, write_text

FORMAT = "sharded safetensors"
SUFFIX = ".safetensors.index.json"
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
    return ShardedCheckpoint(path, FORMAT, safetensors.open, counted=True)


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
