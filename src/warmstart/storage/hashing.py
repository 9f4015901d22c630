"""SHA-256 of a file while it is written: one pass over its bytes, in a thread of its own."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Any

_SMALL = 2**14  # bytes that are gathered before the other thread is asked
_AHEAD = 2**25  # bytes that may wait for it


class Hashed:
    """Writes through to ``file``. What is written must not change afterwards; it is held until it was hashed, when
    ``done`` is called with it."""

    def __init__(self, file: IO[bytes], done: Callable[[Any], None] = lambda data: None) -> None:
        self._file, self._sum, self._done = file, hashlib.sha256(), done
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._ahead, self._gathered = 0, bytearray()

    def __enter__(self) -> Hashed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def write(self, data: Any) -> int:
        """As a file's own."""
        written = self._file.write(data)
        size = memoryview(data).nbytes
        if size < _SMALL:
            self._gathered += data
        if size >= _SMALL or len(self._gathered) >= _SMALL:
            self._flush()
        if size >= _SMALL:
            self._submit(data, size)
        return written

    def hexdigest(self) -> str:
        """Of everything that was written."""
        self._flush()
        while self._waiting:
            self._take()
        return self._sum.hexdigest()

    def _flush(self) -> None:
        if self._gathered:
            self._submit(self._gathered, len(self._gathered))
            self._gathered = bytearray()

    def _submit(self, data: Any, size: int) -> None:
        self._waiting.append((self._pool.submit(self._update, data), size))
        self._ahead += size
        while self._ahead > _AHEAD:
            self._take()

    def _update(self, data: Any) -> None:
        self._sum.update(data)
        self._done(data)

    def _take(self) -> None:
        future, size = self._waiting.popleft()
        future.result()
        self._ahead -= size
