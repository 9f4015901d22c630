"""SHA-256 of files, beside other work."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

from warmstart.storage.crew import end, fork, may_fork

_PIECE = 2**22  # bytes that are hashed at once: so many, since a thread that comes back to Python waits for its turn
_MAPPED = 2**24  # bytes that are mapped at once
_WORTH = 2**22  # bytes from which a file is hashed before it is known to be needed


class Stopped(Exception):
    """Nobody wants the digest any more."""


def sha256(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file, hex.

    Raises:
        Stopped: ``stop()`` was true meanwhile.
        OSError: it cannot be read.
    """
    import hashlib  # in the process that hashes, which need not be this one

    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        piece = memoryview(bytearray(min(_PIECE, os.fstat(file.fileno()).st_size)))
        while count := file.readinto(piece):
            if stop():
                raise Stopped
            digest.update(piece[:count])
    return digest.hexdigest()


def _mapped_sha256(path: Path, stop: Callable[[], bool]) -> str:
    """As :func:`sha256`, a tenth faster, by maps: if the file is cut off meanwhile, this process ends."""
    import hashlib
    import mmap

    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for at in range(0, size, _MAPPED):
            if stop():
                raise Stopped
            flags, count = mmap.MAP_SHARED | mmap.MAP_POPULATE, min(_MAPPED, size - at)
            with mmap.mmap(file.fileno(), count, flags=flags, prot=mmap.PROT_READ, offset=at) as piece:
                digest.update(piece)
    return digest.hexdigest()


class _Hasher(Protocol):
    """Hashes one file after another, beside its caller."""

    def begin(self, path: Path) -> Callable[[], str]:
        """Hash ``path`` from now on; what waits for its SHA-256, and raises ``OSError`` if it cannot be read."""

    def close(self) -> None:
        """Give up what is not done."""


class Digests:
    """SHA-256 of files that do not change meanwhile: each is hashed once, in another process or thread, from when it is
    first spoken of. What nobody asked for when the block is left is given up."""

    def __init__(self) -> None:
        self._hasher: _Hasher | None = None
        self._begun: dict[Path, Callable[[], str]] = {}

    def __enter__(self) -> Digests:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._hasher is not None:
            self._hasher.close()

    def begin(self, path: Path) -> None:
        """Hash the file ``path`` from now on."""
        if self._hasher is None:
            with suppress(BlockingIOError):  # where no more processes are allowed
                self._hasher = _Process() if may_fork() else None
            self._hasher = self._hasher or _Thread()
        if path.resolve() not in self._begun:
            self._begun[path.resolve()] = self._hasher.begin(path)

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
        return self._begun[path.resolve()]()


class _Thread:
    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool, self._closed = ThreadPoolExecutor(1), False

    def begin(self, path: Path) -> Callable[[], str]:
        return self._pool.submit(sha256, path, lambda: self._closed).result

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(cancel_futures=True)


class _Process:
    """A forked process, which reads paths from one pipe and writes digests to another. Where it fails, the file is
    hashed here, so that its error is raised here."""

    def __init__(self) -> None:
        paths, self._paths = os.pipe()
        self._answers, answers = os.pipe()
        parent = os.getpid()

        def serve() -> None:
            os.close(self._paths)
            os.close(self._answers)
            with open(paths, "rb", buffering=0) as asked:
                for line in asked:
                    path = Path(os.fsdecode(bytes.fromhex(line.decode())))
                    digest = _mapped_sha256(path, lambda: os.getppid() != parent)
                    os.write(answers, digest.encode())

        self._child: int | None = fork(serve)
        os.close(paths)
        os.close(answers)
        self._known: list[str] = []  # in the order in which they were asked for
        self._asked = 0

    def begin(self, path: Path) -> Callable[[], str]:
        try:
            os.write(self._paths, os.fsencode(path.absolute()).hex().encode() + b"\n")
        except BrokenPipeError:
            return partial(sha256, path)
        self._asked += 1
        return partial(self._digest, path, self._asked)

    def _digest(self, path: Path, number: int) -> str:
        while len(self._known) < number:
            answer = os.read(self._answers, 64)
            if len(answer) < 64:
                return sha256(path)
            self._known.append(answer.decode())
        return self._known[number - 1]

    def close(self) -> None:
        if self._child is not None:
            end(self._child)
            os.close(self._paths)
            os.close(self._answers)
            self._child = None
