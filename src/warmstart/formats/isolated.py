"""Readers that stand on a C library, each in a child process with limits on memory, processor time and patience.

The child (:mod:`warmstart.formats.isolated_server`) imports a module of ours and answers calls of its functions until
its input ends. It is started as soon as it is known that it will be needed. Calls and answers are JSON with a length
before it; an array goes into a file in memory that the parent made, passed on and sealed when it was full. Nothing is
unpickled on either side. A child that crashes, hangs or runs out of memory is one ``CorruptCheckpoint``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import math
import mmap
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from warmstart.errors import CorruptCheckpoint, MissingExtra
from warmstart.formats.checkpoint import Array, dtype_of, itemsize
from warmstart.formats.isolated_server import KINDS, LENGTH
from warmstart.formats.mapped import Map, valid_shape, view

SECONDS = 60.0  # for the answer to a call, and of the processor for it
RATE = 2 * 2**20  # bytes of an array for which it may take another second
MEMORY = 2 * 2**30  # bytes that the child may take beyond its libraries and three times the array that is asked for
MAX_ANSWER = 256 * 2**20
_START = "from warmstart.formats.isolated_server import main; main()"


class Isolated:
    """One child for one checkpoint. ``module`` (of ours) has the functions, ``library`` is what it stands on.

    Raises:
        MissingExtra: the library is not installed.
    """

    def __init__(
        self, module: str, path: Path, *, library: str, extra: str, seconds: float = SECONDS, memory: int = MEMORY
    ) -> None:
        if importlib.util.find_spec(library) is None:
            raise MissingExtra(library, extra)
        self._module, self._path, self._library = module, path, library
        self._seconds, self._memory = seconds, memory
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._calls: socket.socket | None = None
        self._owner = 0
        with self._lock:
            self._running()

    def call(self, function: str, **arguments: Any) -> Any:
        """What ``function(path, **arguments)`` of the module returns, which must be JSON.

        Raises:
            CorruptCheckpoint: the reader says so, or the child came to an end.
        """
        with self._lock:
            return self._ask(function, arguments)["result"]

    def array(self, function: str, shape: tuple[int, ...], dtype: str, *, ahead: int = 0, **arguments: Any) -> Array:
        """The array that ``function(path, **arguments)`` yields in pieces: C-contiguous bytes in little-endian order.

        ``ahead`` is the size of what the child prepares besides for a later call, in bytes.

        Raises:
            CorruptCheckpoint: it is not ``dtype`` ``shape``, or as :meth:`call`.
        """
        nbytes = math.prod(shape) * itemsize(dtype)
        with self._lock, _memory_file(nbytes) as file:
            written = self._ask(function, arguments, nbytes, file, ahead)["result"]
            if written != nbytes:
                self._give_up(f"{written} of {nbytes} bytes of an array")
            try:
                _seal(file)
                mapped = Map(file, nbytes, prot=mmap.PROT_READ) if nbytes else b""
            except (OSError, ValueError, OverflowError) as error:
                self._give_up(f"an array of {nbytes} bytes: {error}")
        return view(mapped, dtype_of(dtype), shape, 0)

    def _ask(
        self, function: str, arguments: Mapping[str, Any], nbytes: int = 0, file: int | None = None, ahead: int = 0
    ) -> dict[str, Any]:
        seconds = min(self._seconds + (nbytes + ahead) / RATE, 86_400)
        self._running()
        call = {
            "function": function,
            "path": str(self._path),
            "arguments": arguments,
            "seconds": int(seconds) + 1,
            "memory": self._memory + 3 * (nbytes + ahead),
        }
        encoded = json.dumps(call).encode()
        assert self._calls is not None
        with contextlib.suppress(OSError):
            socket.send_fds(self._calls, [LENGTH.pack(len(encoded))], [] if file is None else [file])
            self._calls.sendall(encoded)
        length = LENGTH.unpack(self._receive(LENGTH.size, seconds))[0]
        if length > MAX_ANSWER:
            self._give_up(f"an answer of {length} bytes")
        try:
            answer = json.loads(self._receive(length, seconds))
        except ValueError:
            self._give_up("an answer that is not JSON")
        if "error" in answer:
            problem = answer["error"]
            kind = KINDS.get(str(problem.pop("kind", "")), CorruptCheckpoint)
            raise kind(problem.pop("what", "unreadable"), **{"where": self._path, **problem})
        assert isinstance(answer, dict)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        """The child; after a fork of this process, or after its end, a new one."""
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            calls, theirs = socket.socketpair()
            child = subprocess.Popen(
                [sys.executable, "-S", "-P", "-c", _START, self._module],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                close_fds=True,
            )
            theirs.close()
            self._child, self._calls, self._owner = child, calls, os.getpid()
            weakref.finalize(self, _end, child, calls, os.getpid())
        return self._child

    def _receive(self, count: int, seconds: float) -> bytes:
        data = bytearray(count)
        target = memoryview(data)
        child = self._child
        assert child is not None
        assert child.stdout is not None
        deadline, handle = time.monotonic() + seconds, child.stdout.fileno()
        while target:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._give_up(f"no answer within {seconds:.0f} s")
            count = os.readv(handle, [target])
            if not count:
                self._give_up(_how_it_ended(child))
            target = target[count:]
        return bytes(data)

    def _give_up(self, found: str) -> NoReturn:
        if self._child is not None and self._calls is not None:
            _end(self._child, self._calls, os.getpid())
        self._child = None
        raise CorruptCheckpoint(
            f"{self._library} failed on this checkpoint, in a process of its own",
            where=self._path,
            expected="an answer",
            found=found,
            todo="download or copy it again; if it is whole, report it",
        )


@contextlib.contextmanager
def _memory_file(nbytes: int) -> Iterator[int]:
    """A file of ``nbytes`` zeros without a name, in memory where the system has that; it takes what is written."""
    with _memfd() if hasattr(os, "memfd_create") else _temporary() as file:
        with contextlib.suppress(OSError, OverflowError):  # a file that is too short is noticed when it is read
            os.ftruncate(file.fileno(), nbytes)
        yield file.fileno()


def _memfd() -> IO[bytes]:
    return os.fdopen(os.memfd_create("array", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")


def _temporary() -> IO[bytes]:
    import tempfile

    return tempfile.TemporaryFile()


def _seal(file: int) -> None:
    """Neither end can change it any more, so that a mapped array stays what it is."""
    if hasattr(fcntl, "F_ADD_SEALS") and hasattr(os, "memfd_create"):
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def _end(child: subprocess.Popen[bytes], calls: socket.socket, owner: int) -> None:
    if owner != os.getpid():
        return
    child.kill()
    calls.close()
    if child.stdout is not None:
        child.stdout.close()
    child.wait()


def _how_it_ended(child: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
    code = child.returncode
    return f"a crash (signal {-code})" if code is not None and code < 0 else f"its end (status {code})"


def _environment() -> dict[str, str]:
    """Our own import path without the working directory, few threads, and no plugins that a file makes HDF5 load."""
    names = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    here = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
    limits = {"HDF5_PLUGIN_PRELOAD": "::", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **limits, "PYTHONPATH": os.pathsep.join(here), "HDF5_USE_FILE_LOCKING": "FALSE"}


def checked_shape(shape: object, where: str) -> tuple[int, ...]:
    """A shape that a child reported."""
    if not valid_shape(shape):
        raise CorruptCheckpoint("an array of impossible shape", where=where, found=repr(shape)[:100])
    assert isinstance(shape, list | tuple)
    return tuple(shape)
