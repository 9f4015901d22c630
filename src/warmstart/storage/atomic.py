"""Files and directories that are complete or invisible.

Everything is written under a hidden temporary name beside its target, flushed to the disk and then
renamed. What was there before stays as it was until the new one is complete. What a killed process left under such a
name, the next one that writes the same target removes (``leftovers.py``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from warmstart.errors import StorageError
from warmstart.storage.flushing import Errand
from warmstart.storage.leftovers import hidden, hidden_name, remove

_ADVICE = {
    errno.ENOSPC: "free some space on this disk, or write to another one",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EROFS: "this disk is read-only: choose another place",
    errno.EACCES: "change the permissions, or choose another place",
    errno.EPERM: "change the permissions, or choose another place",
    errno.EFBIG: "this file system cannot hold so large a file: choose another place",
    errno.EIO: "the disk reports a failure: choose another one and check this one",
    errno.EEXIST: "a file has the name of the directory: choose another place",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_AT_ONCE = 8  # files that are flushed
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and the flag, as linux/fcntl.h and linux/fs.h have them
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}
"""What a disk reports, whatever is written to it."""

_unfinished: set[Path] = set()  # directories that are written under a hidden name


def storage_error(error: OSError, path: Path) -> StorageError:
    """``error``, which happened while writing ``path``, as a :class:`StorageError` that says what to do."""
    return StorageError(
        "cannot be written",
        where=path,
        found=error.strerror or str(error),
        todo=_ADVICE.get(error.errno or 0, "choose another place"),
    )


def require_space(directory: Path, nbytes: int) -> None:
    """Before ``nbytes`` are written below ``directory``.

    Raises:
        StorageError: there is less free space than these and a mebibyte.
    """
    import shutil

    free = shutil.disk_usage(directory).free
    if free < nbytes + 2**20:
        raise StorageError(
            "there is not enough free space",
            where=directory,
            expected=f"{nbytes + 2**20:,} bytes",
            found=f"{free:,} bytes",
            todo="free some space on this disk, or write to another one",
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot flush a directory
            raise
    finally:
        os.close(handle)


def _sync_tree(directory: Path) -> None:
    tree = list(os.walk(directory, topdown=False))
    files = [Path(folder, name) for folder, _, names in tree for name in names]
    files = [file for file in files if not file.is_symlink()]

    def sync(some: list[Path]) -> None:
        for file in some:
            _sync(file)

    # A file system writes its journal once for all who wait for it.
    errands = [Errand(partial(sync, files[k::_AT_ONCE])) for k in range(min(len(files), _AT_ONCE))]
    for errand in errands:
        errand.join()
    for errand in errands:
        errand.result()
    for folder, _, _ in tree:
        _sync(Path(folder))


def _within(error: OSError, temporary: Path) -> bool:
    """Whether ``error`` is about writing below ``temporary`` and not about something the caller read."""
    if error.errno in DISK:
        return True
    name = error.filename
    return isinstance(name, str | os.PathLike) and Path(name).is_relative_to(temporary)


@contextlib.contextmanager
def _hidden(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden name beside ``path``, made by ``make`` and held until the end."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(hidden(path, make))
        except OSError as error:
            raise storage_error(error, path) from error
        yield temporary


@contextlib.contextmanager
def _filling(temporary: Path, path: Path) -> Iterator[None]:
    """While ``temporary`` is filled for ``path``: after an exception it is removed, and an error of writing it is a
    :class:`StorageError` about ``path``."""
    try:
        yield
    except OSError as error:
        remove(temporary)
        if _within(error, temporary):
            raise storage_error(error, path) from error
        raise
    except StorageError as error:
        remove(temporary)
        if error.where is None or not Path(error.where).is_relative_to(temporary):
            raise
        inside = path / Path(error.where).relative_to(temporary)
        raise StorageError(error.what, where=inside, found=error.problem.found, todo=error.problem.todo) from error
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path to write; on success it replaces ``path``, on an exception it is removed.

    Within a directory that :func:`new_directory` has not finished it is ``path`` itself, which nobody sees before the
    directory is flushed as a whole.

    Raises:
        StorageError: the file cannot be written (no space, read-only, no permission).
    """
    path = Path(path)
    if any(path.is_relative_to(directory) for directory in _unfinished):
        with _filling(path, path):
            yield path
        return
    with _hidden(path, lambda temporary: temporary.touch(exist_ok=False)) as temporary, _filling(temporary, path):
        yield temporary
        try:
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        except OSError as error:
            raise storage_error(error, path) from error


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes ``data`` to ``path``, which is then either the old file or the complete new one."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Writes ``text`` as UTF-8 with its line ends as they are; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def _present(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _refuse_existing(path: Path) -> None:
    if _present(path):
        raise StorageError(
            "this exists already",
            where=path,
            expected="a directory that does not exist yet",
            todo="choose another name, delete it, or force its replacement",
        )


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step, so that whoever is killed has one or the other; False where the system
    or the file system cannot (it is Linux's ``renameat2``)."""
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def _put_in_place(temporary: Path, path: Path, force: bool) -> None:
    if not force:
        _refuse_existing(path)
    if not _present(path):
        temporary.rename(path)
    elif _exchange(temporary, path):
        remove(temporary)
    else:
        aside = hidden_name(path, "old")
        path.rename(aside)
        try:
            temporary.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        remove(aside)
    _sync(path.parent)


@contextlib.contextmanager
def new_directory(path: Path | str, *, force: bool = False) -> Iterator[Path]:
    """Yields a hidden temporary directory to fill; on success it becomes ``path``.

    With ``force`` an existing ``path`` is replaced, and only once the new one is complete. On an
    exception the temporary directory is removed and what was at ``path`` is untouched.

    Raises:
        StorageError: ``path`` exists and ``force`` is not set, or the directory cannot be written.
    """
    path = Path(os.path.abspath(path))
    if not force:
        _refuse_existing(path)
    with _hidden(path, Path.mkdir) as temporary, _filling(temporary, path):
        _unfinished.add(temporary)
        try:
            yield temporary
        finally:
            _unfinished.remove(temporary)
        try:
            _sync_tree(temporary)
            _put_in_place(temporary, path, force)
        except OSError as error:
            raise storage_error(error, path) from error
