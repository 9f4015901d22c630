"""Flax's single files (``flax.serialization.to_bytes``), as Transformers ships them: ``flax_model.msgpack``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmstart.errors import FormatError
from warmstart.formats.checkpoint import Candidate, Checkpoint
from warmstart.formats.flax_tree import Key, TreeCheckpoint, flatten, unwrap
from warmstart.formats.mapped import head, map_file
from warmstart.formats.msgpack_tree import Leaf, looks_like_map, read_leaf, walk
from warmstart.formats.steps import step_candidates

FORMAT = "flax"


def recognise(path: Path) -> bool:
    """Whether ``path`` is a file that begins as a msgpack map of names."""
    return looks_like_map(head(path, 300))


def candidates(directory: Path) -> list[Candidate]:
    """Files ``*.msgpack``, and ``checkpoint_<step>`` as Flax's training wrote them, of which the highest is last."""
    return step_candidates(directory, recognise, recognise, lambda path: path.suffix == ".msgpack" and recognise(path))


def open(path: Path) -> Checkpoint:
    """Walks the file's tree; arrays are views into the memory map.

    Raises:
        CorruptCheckpoint: it is damaged or truncated.
        FormatError: it holds no array, or one of a dtype that is not supported.
    """
    buffer = map_file(path)
    leaves: dict[Key, Leaf] = {}
    values: dict[Key, Any] = {}
    for key, value in flatten(unwrap(walk(buffer, path)), lambda value: isinstance(value, Leaf)):
        if isinstance(value, Leaf):
            leaves[key] = value
        else:
            values[key] = value
    if not leaves:
        raise FormatError(
            "a msgpack file without arrays", where=path, expected="Flax's arrays", found=sorted(values)[:8]
        )
    return TreeCheckpoint(
        path, FORMAT, leaves, values, lambda key: read_leaf(buffer, leaves[key]), files=[Path(path.name)]
    )
