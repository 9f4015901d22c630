"""SHA-256 of files in threads of their own: while one is written, or beside other work."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import IO, Any

_SMALL = 2**14  # bytes that are gathered before the other thread is asked
_AHEAD = 2**25  # bytes that may wait for it
_PIECE = 2**23  # bytes that are hashed at once: so many, since a thread that comes back to Python waits for its turn
_WORTH = 2**22  # bytes from which a file is hashed before it is known to be needed


class Hashed:
    """Writes through to ``file``, and has the disk begin before the end. What is written must not change afterwards; it
    is held until it was hashed, when ``done`` is called with it."""

    def __init__(self, file: IO[bytes], done: Callable[[Any], None] = lambda data: None) -> None:
        self._file, self._sum, self._done = file, hashlib.sha256(), done
        self._pool, self._flushing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._flushed: Future[None] | None = None
        self._unflushed = 0
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._ahead, self._gathered = 0, bytearray()

    def __enter__(self) -> Hashed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        self._flushing.shutdown()
        if kind is None and self._flushed is not None:
            self._flushed.result()

    def write(self, data: Any) -> int:
        """As a file's own."""
        written = self._file.write(data)
        size = memoryview(data).nbytes
        self._to_disk(size)
        if size < _SMALL:
            self._gathered += data
        if size >= _SMALL or len(self._gathered) >= _SMALL:
            self._flush()
        if size >= _SMALL:
            self._submit(data, size)
        return written

    def _to_disk(self, size: int) -> None:
        """Every few megabytes the disk is asked for what was written. Its errors must be seen here: the system tells
        each of them once."""
        self._unflushed += size
        if self._unflushed < _AHEAD or (self._flushed is not None and not self._flushed.done()):
            return
        if self._flushed is not None:
            self._flushed.result()
        self._unflushed = 0
        self._flushed = self._flushing.submit(getattr(os, "fdatasync", os.fsync), self._file.fileno())

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


def sha256(path: Path, stop: Event | None = None) -> str:
    """SHA-256 of a file, hex; it is mapped, since copying would cost a tenth of the hashing.

    Raises:
        CancelledError: ``stop`` was set meanwhile.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return digest.hexdigest()
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content, memoryview(content) as whole:
            for start in range(0, size, _PIECE):
                if stop is not None and stop.is_set():
                    raise CancelledError
                with whole[start : start + _PIECE] as piece:
                    digest.update(piece)
                if hasattr(mmap, "MADV_DONTNEED"):
                    content.madvise(mmap.MADV_DONTNEED, start, min(_PIECE, size - start))
    return digest.hexdigest()


class Digests:
    """SHA-256 of files that do not change meanwhile: each is hashed once, in another thread, from when it is first
    spoken of. What nobody asked for when the block is left is given up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._begun: dict[Path, Future[str]] = {}
        self._stop = Event()

    def __enter__(self) -> Digests:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def begin(self, path: Path) -> None:
        """Hash the file ``path`` from now on."""
        if path.resolve() not in self._begun:
            self._begun[path.resolve()] = self._pool.submit(sha256, path, self._stop)

    def guess(self, source: str | Path) -> None:
        """Begin with what is most of ``source``: itself if it is a file, of a directory the file larger than all others
        together. Nothing is said of what cannot be looked at."""
        try:
            path = Path(source).expanduser()
            files = [path] if path.is_file() else [Path(f) for f in os.scandir(path)]
            sizes = {f: status.st_size for f in files if stat.S_ISREG((status := f.stat()).st_mode)}
        except (OSError, ValueError, RuntimeError):
            return
        largest = max(sizes, key=lambda f: sizes[f], default=None)
        if largest is not None and sizes[largest] >= _WORTH and 2 * sizes[largest] > sum(sizes.values()):
            self.begin(largest)

    def __call__(self, path: Path) -> str:
        """SHA-256 (hex) of the file ``path``.

        Raises:
            OSError: it cannot be read.
        """
        self.begin(path)
        return self._begun[path.resolve()].result()
