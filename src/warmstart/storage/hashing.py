"""SHA-256 of files, beside other work."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType

_PIECE = 2**22  # bytes that are hashed at once: so many, since a thread that comes back to Python waits for its turn
_WORTH = 2**22  # bytes from which a file is hashed before it is known to be needed


def sha256(path: Path, stop: Event | None = None) -> str:
    """SHA-256 of a file, hex.

    Raises:
        CancelledError: ``stop`` was set meanwhile.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        piece = memoryview(bytearray(min(_PIECE, os.fstat(file.fileno()).st_size)))
        while count := file.readinto(piece):
            if stop is not None and stop.is_set():
                raise CancelledError
            digest.update(piece[:count])
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
