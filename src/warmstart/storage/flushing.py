"""Large files that the disk begins to write before their end."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any

_EVERY = 2**25  # bytes


class Flushing:
    """Writes through to ``file``, and asks the disk every few megabytes, in another thread, for what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._unflushed = file, 0
        self._pool = ThreadPoolExecutor(1)
        self._flushed: Future[None] | None = None

    def __enter__(self) -> Flushing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown()
        if kind is None and self._flushed is not None:
            self._flushed.result()

    def write(self, data: Any) -> int:
        """As a file's own."""
        written = self._file.write(data)
        self._unflushed += written
        if self._unflushed >= _EVERY and (self._flushed is None or self._flushed.done()):
            if self._flushed is not None:
                self._flushed.result()  # the system tells each error once: to whom asked next
            self._unflushed = 0
            self._flushed = self._pool.submit(getattr(os, "fdatasync", os.fsync), self._file.fileno())
        return written
