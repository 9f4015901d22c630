"""One process at a time in a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from warmstart.errors import StorageError
from warmstart.storage.atomic import storage_error

_TRIES, _PAUSE = 5, 0.02  # somebody who looks (:func:`holder`) is gone after microseconds


@contextlib.contextmanager
def directory_lock(path: Path) -> Iterator[None]:
    """Holds ``path/.lock``, in a directory that is made if it is not there; the system releases it when the process
    ends, however it ends.

    The file stays (deleting it would let two processes hold two locks of one name) and names the last holder.

    Raises:
        StorageError: another process holds it (named by number and host), or the file cannot be written.
    """
    file = path / ".lock"
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise storage_error(error, Path(error.filename or file)) from error
    try:
        try:
            _acquire(handle)
        except BlockingIOError as error:
            raise StorageError(
                "another process is at work in this directory",
                where=path,
                found=_name(handle),
                todo="wait until it has ended, stop it, or choose another directory",
            ) from error
        except OSError as error:
            raise storage_error(error, file) from error
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        except OSError as error:
            raise storage_error(error, file) from error
        yield
    finally:
        os.close(handle)


def holder(path: Path) -> str | None:
    """Who holds the lock of the directory ``path`` now (``process N on HOST``); None if nobody does."""
    try:
        handle = os.open(path / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(handle)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return None


def _acquire(handle: int) -> None:
    for attempt in range(_TRIES):
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 == _TRIES:
                raise
            time.sleep(_PAUSE)


def _name(handle: int) -> str:
    return os.pread(handle, 200, 0).decode("utf-8", "replace").strip() or "a process that did not say its name"
