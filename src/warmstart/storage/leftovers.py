"""What killed processes left of outputs that they had not finished: found by a lock that the living hold."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_TRIES = 100  # a new name is taken away only by one who sweeps in the microseconds before it is locked


def hidden_name(path: Path, purpose: str) -> Path:
    """A name beside ``path`` that nobody else has, of the kind that :func:`sweep` finds."""
    return path.parent / f".{path.name}.{purpose}-{os.getpid()}-{os.urandom(4).hex()}"


@contextlib.contextmanager
def hidden(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden temporary name beside ``path`` that ``make`` made a file or a directory of, and that is locked as long
    as this process works on it. Before that, those of dead processes are swept.

    Raises:
        OSError: it cannot be made.
    """
    sweep(path)
    temporary, handle = _made(path, make)
    try:
        yield temporary
    finally:
        os.close(handle)


def sweep(path: Path) -> None:
    """Remove the temporary names of ``path`` whose processes have ended, and say so.

    A lock tells, not the number of a process, which another machine or container may have too; where the file system
    has no locks everything stays.
    """
    mine = re.compile(re.escape(f".{path.name}.tmp-") + r"\d+-[0-9a-f]{8}")
    try:
        names = sorted(name for name in os.listdir(path.parent) if mine.fullmatch(name))
    except OSError:
        return
    for left in (path.parent / name for name in names):
        if _removed_if_dead(left):
            import logging  # seldom needed, and not quick to import

            logger = logging.getLogger(__name__)
            logger.warning("%s was left by a process that was stopped before it had finished: removed", left)


def _made(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    for _ in range(_TRIES):
        temporary = hidden_name(path, "tmp")
        make(temporary)
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is(temporary, handle):
                return temporary, handle
            os.close(handle)
    raise FileNotFoundError(f"{temporary} was removed by somebody else")


def _removed_if_dead(left: Path) -> bool:
    try:
        handle = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is(left, handle):
            return False
        remove(left)
        return not os.path.lexists(left)
    except OSError:  # a living process holds it, or there are no locks
        return False
    finally:
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file or a directory, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
