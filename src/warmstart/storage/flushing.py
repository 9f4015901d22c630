"""Large files that the disk begins to write before their end."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from threading import Thread
from types import TracebackType
from typing import IO, Any

_EVERY = 2**25  # bytes


class Errand(Thread):
    """``work()`` in another thread, at once. ``concurrent.futures`` has more, and takes longer to import than small
    errands take."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> None:
        """Waits for its end, and raises what it raised."""
        self.join()
        if self._error is not None:
            raise self._error


class Flushing:
    """Writes through to ``file``, and asks the disk every few megabytes, in another thread, for what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._unflushed = file, 0
        self._flushed: Errand | None = None

    def __enter__(self) -> Flushing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._flushed is not None:
            self._flushed.join()
            if kind is None:
                self._flushed.result()

    def fileno(self) -> int:
        """As a file's own, once what was written has left its buffer."""
        self._file.flush()
        return self._file.fileno()

    def skip(self, count: int) -> int:
        """Leave place for ``count`` bytes; where it begins."""
        start = self._file.tell()
        self._file.seek(count, os.SEEK_CUR)
        return start

    def write(self, data: Any) -> int:
        """As a file's own."""
        written = self._file.write(data)
        self.written(written)
        return written

    def written(self, count: int) -> None:
        """``count`` bytes more were written, in whatever way."""
        self._unflushed += count
        if self._unflushed >= _EVERY and (self._flushed is None or not self._flushed.is_alive()):
            if self._flushed is not None:
                self._flushed.result()  # the system tells each error once: to whom asked next
            self._unflushed = 0
            self._flushed = Errand(partial(getattr(os, "fdatasync", os.fsync), self._file.fileno()))
