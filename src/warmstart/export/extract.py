"""Chosen arrays of a checkpoint as a file of their own, under the names that they have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import FormatError, StorageError
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.mapped import forget
from warmstart.formats.writers import check_entries, writer_for
from warmstart.storage.atomic import require_space
from warmstart.values.names import matching
from warmstart.values.progress import progress_of


def extract_arrays(
    checkpoint: Checkpoint, destination: Path, *, names: Sequence[str] = (), slots: bool = False, force: bool = False
) -> dict[str, Any]:
    """Write the arrays that match ``names`` to ``destination``, whose ending names the format.

    With ``slots``, the optimizer's state of these arrays too, as ``optimizer.SLOT.NAME``. One array is held at a time.

    Raises:
        ConfigError: the ending names no format, or a pattern matches nothing.
        StorageError: ``destination`` exists and ``force`` is not set, or it cannot be written.
        FormatError: the format cannot hold a name or dtype, or there are no slots; nothing is written then.
        CorruptCheckpoint: an array is damaged; what was at ``destination`` is untouched.
    """
    writer = writer_for(destination)
    if destination.is_dir() or (not force and (destination.exists() or destination.is_symlink())):
        raise StorageError(
            "this exists already",
            where=destination,
            expected="a file that does not exist yet",
            todo="choose another name" if destination.is_dir() else "choose another name, or --force its replacement",
        )
    chosen = matching(checkpoint.entries, names, checkpoint.path)
    kept = set(chosen)
    states = [key for key in checkpoint.slots if slots and key[0] in kept]
    if slots and not states:
        raise FormatError(
            "there is no optimizer state of these arrays", where=checkpoint.path, todo="leave out --slots"
        )
    entries = [checkpoint.entries[name] for name in chosen]
    for parameter, slot in states:
        state = checkpoint.slots[parameter, slot]
        entries.append(Entry(f"optimizer.{slot}.{parameter}", state.shape, state.dtype))
    check_entries(destination, writer, entries)
    total = sum(entry.nbytes for entry in entries)
    if destination.parent.is_dir():
        require_space(destination.parent, total)
    with progress_of("extracting", total) as progress:

        def arrays() -> Iterator[Array]:
            for name in chosen:
                array = checkpoint.read_checked(name)
                yield array
                forget(array)
                progress(checkpoint.entries[name].nbytes)
            for (parameter, slot), entry in zip(states, entries[len(chosen) :], strict=True):
                array = checkpoint.read_slot(parameter, slot)
                yield array
                forget(array)
                progress(entry.nbytes)

        writer.write(destination, entries, arrays())
    return {
        "destination": str(destination),
        "format": writer.format,
        "arrays": len(chosen),
        "slots": len(states),
        "bytes": destination.stat().st_size,
    }
