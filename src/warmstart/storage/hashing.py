"""SHA-256 of files, beside other work.

Commands begin with it, so it imports next to nothing: what takes long to import is imported while a file is hashed.
"""

from __future__ import annotations

import os
import stat

from warmstart.storage.crew import end, fork, may_fork

TYPE_CHECKING = False  # as typing has it, which is not imported yet
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

_PIECE = 2**22  # bytes that are hashed at once: so many, since a thread that comes back to Python waits for its turn
_MAPPED = 2**24  # bytes that are mapped at once
_WORTH = 2**22  # bytes from which a file is hashed before it is known to be needed


class Stopped(Exception):
    """Nobody wants the digest any more."""


def sha256(path: str | Path, stop: Callable[[], bool] = lambda: False) -> str:
    """SHA-256 of a file, hex.

    Raises:
        Stopped: ``stop()`` was true meanwhile.
        OSError: it cannot be read.
    """
    import hashlib  # in the process that hashes, which need not be this one

    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        piece = memoryview(bytearray(min(_PIECE, os.fstat(file.fileno()).st_size)))
        while count := file.readinto(piece):
            if stop():
                raise Stopped
            digest.update(piece[:count])
    return digest.hexdigest()


def _mapped_sha256(path: str, stop: Callable[[], bool]) -> str:
    """As :func:`sha256`, a tenth faster, by maps: if the file is cut off meanwhile, this process ends."""
    import hashlib
    import mmap

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for at in range(0, size, _MAPPED):
            if stop():
                raise Stopped
            flags, count = mmap.MAP_SHARED | mmap.MAP_POPULATE, min(_MAPPED, size - at)
            with mmap.mmap(file.fileno(), count, flags=flags, prot=mmap.PROT_READ, offset=at) as piece:
                digest.update(piece)
    return digest.hexdigest()


class Digests:
    """SHA-256 of files that do not change meanwhile: each is hashed once, in another process or thread, from when it is
    first spoken of. What nobody asked for when the block is left is given up."""

    _ahead: Digests | None = None

    def __init__(self) -> None:
        self._hasher: _Process | _Thread | None = None
        self._begun: dict[str, Callable[[], str]] = {}

    @classmethod
    def begin_ahead(cls, source: str) -> None:
        """Begin with what :meth:`guess` says of ``source``, for the next who asks for :meth:`begun_ahead`."""
        if may_fork():
            cls._ahead = cls()
            cls._ahead.guess(source)

    @classmethod
    def begun_ahead(cls) -> Digests:
        """What was begun ahead, once, or new ones."""
        ahead, cls._ahead = cls._ahead, None
        return ahead or cls()

    def __enter__(self) -> Digests:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._hasher is not None:
            self._hasher.close()

    def begin(self, path: str | Path) -> None:
        """Hash the file ``path`` from now on."""
        if self._hasher is None:
            try:
                self._hasher = _Process() if may_fork() else _Thread()
            except BlockingIOError:  # no more processes are allowed
                self._hasher = _Thread()
        place = os.path.realpath(path)
        if place not in self._begun:
            self._begun[place] = self._hasher.begin(place)

    def guess(self, source: str | Path) -> None:
        """Begin with what is most of ``source``: itself if it is a file, of a directory the file larger than all others
        together. Nothing is said of what cannot be looked at."""
        try:
            path = os.path.expanduser(source)
            files = [path] if os.path.isfile(path) else [entry.path for entry in os.scandir(path)]
            sizes = {f: status.st_size for f in files if stat.S_ISREG((status := os.stat(f)).st_mode)}
        except (OSError, ValueError):
            return
        largest = max(sizes, key=lambda f: sizes[f], default=None)
        if largest is not None and sizes[largest] >= _WORTH and 2 * sizes[largest] > sum(sizes.values()):
            self.begin(largest)

    def __call__(self, path: str | Path) -> str:
        """SHA-256 (hex) of the file ``path``.

        Raises:
            OSError: it cannot be read.
        """
        self.begin(path)
        return self._begun[os.path.realpath(path)]()


class _Thread:
    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool, self._closed = ThreadPoolExecutor(1), False

    def begin(self, path: str) -> Callable[[], str]:
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
                    path = os.fsdecode(bytes.fromhex(line.decode()))
                    os.write(answers, _mapped_sha256(path, lambda: os.getppid() != parent).encode())

        self._child: int | None = fork(serve)
        os.close(paths)
        os.close(answers)
        self._known: list[str] = []  # in the order in which they were asked for
        self._asked = 0

    def begin(self, path: str) -> Callable[[], str]:
        try:
            os.write(self._paths, os.fsencode(path).hex().encode() + b"\n")
        except BrokenPipeError:
            return lambda: sha256(path)
        self._asked += 1
        number = self._asked
        return lambda: self._digest(path, number)

    def _digest(self, path: str, number: int) -> str:
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
