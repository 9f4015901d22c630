"""How far a reading of many arrays is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from warmstart.storage.progress import Progress

LONG = 200_000_000  # bytes; less is read before anybody looks


@contextmanager
def progress_of(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is to be called with each number of bytes done; shows them only where ``total`` is a long work."""
    if total < LONG:
        yield lambda nbytes: None
        return
    with Progress(description, total, "bytes") as progress:
        yield progress.update
