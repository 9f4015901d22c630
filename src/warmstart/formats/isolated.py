"""Readers that stand on a C library, each in a child process with limits on memory, processor time and patience.

The child imports a module of ours and answers calls of its functions until its input ends. Calls and answers are
JSON with a length before it; an array goes into a file in memory that the parent made, passed on and sealed when it was
full. Nothing is unpickled on either side. A child that crashes, hangs or runs out of memory is one
``CorruptCheckpoint``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import json
import mmap
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from warmstart.errors import CorruptCheckpoint, FormatError, MissingExtra, SourceError
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import valid_shape, view

SECONDS = 60.0  # for the answer to a call, and of the processor for it
RATE = 2 * 2**20  # bytes of an array for which it may take another second
MEMORY = 2 * 2**30  # bytes that the child may take beyond its libraries and three times the array that is asked for
MAX_ANSWER = 256 * 2**20
PIECE = 16 * 2**20  # bytes that a reader handles at once
_KINDS = {"CorruptCheckpoint": CorruptCheckpoint, "FormatError": FormatError, "SourceError": SourceError}
_LENGTH = struct.Struct("<Q")


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

    def call(self, function: str, **arguments: Any) -> Any:
        """What ``function(path, **arguments)`` of the module returns, which must be JSON.

        Raises:
            CorruptCheckpoint: the reader says so, or the child came to an end.
        """
        with self._lock:
            return self._ask(function, arguments)["result"]

    def array(self, function: str, shape: tuple[int, ...], dtype: str, **arguments: Any) -> Array:
        """The array that ``function(path, **arguments)`` yields in pieces: C-contiguous bytes in little-endian order.

        Raises:
            CorruptCheckpoint: it is not ``dtype`` ``shape``, or as :meth:`call`.
        """
        kind = dtype_of(dtype)
        nbytes = int(np.prod(shape, dtype=object)) * kind.itemsize
        with self._lock, _memory_file(nbytes) as file:
            written = self._ask(function, arguments, nbytes, file)["result"]
            if written != nbytes:
                self._give_up(f"{written} of {nbytes} bytes of an array")
            try:
                _seal(file)
                mapped = mmap.mmap(file, nbytes, prot=mmap.PROT_READ) if nbytes else b""
            except (OSError, ValueError, OverflowError) as error:
                self._give_up(f"an array of {nbytes} bytes: {error}")
        return view(mapped, kind, shape, 0)

    def _ask(
        self, function: str, arguments: Mapping[str, Any], nbytes: int = 0, file: int | None = None
    ) -> dict[str, Any]:
        seconds = min(self._seconds + nbytes / RATE, 86_400)
        self._running()
        call = {
            "module": self._module,
            "function": function,
            "path": str(self._path),
            "arguments": arguments,
            "seconds": int(seconds) + 1,
            "memory": self._memory + 3 * nbytes,
        }
        encoded = json.dumps(call).encode()
        assert self._calls is not None
        with contextlib.suppress(OSError):
            socket.send_fds(self._calls, [_LENGTH.pack(len(encoded))], [] if file is None else [file])
            self._calls.sendall(encoded)
        length = _LENGTH.unpack(self._receive(_LENGTH.size, seconds))[0]
        if length > MAX_ANSWER:
            self._give_up(f"an answer of {length} bytes")
        try:
            answer = json.loads(self._receive(length, seconds))
        except ValueError:
            self._give_up("an answer that is not JSON")
        if "error" in answer:
            problem = answer["error"]
            kind = _KINDS.get(str(problem.pop("kind", "")), CorruptCheckpoint)
            raise kind(problem.pop("what", "unreadable"), **{"where": self._path, **problem})
        assert isinstance(answer, dict)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        """The child; after a fork of this process, or after its end, a new one."""
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            calls, theirs = socket.socketpair()
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
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
    with tempfile.TemporaryFile() if not hasattr(os, "memfd_create") else _memfd() as file:
        with contextlib.suppress(OSError, OverflowError):  # a file that is too short is noticed when it is read
            os.ftruncate(file.fileno(), nbytes)
        yield file.fileno()


def _memfd() -> IO[bytes]:
    return os.fdopen(os.memfd_create("array", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")


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
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    here = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
    limits = {"HDF5_PLUGIN_PRELOAD": "::", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **limits, "PYTHONPATH": os.pathsep.join(here), "HDF5_USE_FILE_LOCKING": "FALSE"}


def _serve(calls: socket.socket, answers: IO[bytes]) -> None:
    """The child's life."""
    taken: int | None = None
    while True:
        start, files, _, _ = socket.recv_fds(calls, _LENGTH.size, 1)
        if len(start) < _LENGTH.size:
            return
        call = json.loads(_exactly(calls, _LENGTH.unpack(start)[0]))
        module = importlib.import_module(call["module"])
        if taken is None:
            module.warm_up()
            taken = _memory_taken()
        _limit_memory(taken + int(call["memory"]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + int(call["seconds"])
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        _send(answers, _answer(getattr(module, call["function"]), Path(call["path"]), call["arguments"], files))
        for file in files:
            os.close(file)


def _exactly(calls: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = calls.recv(min(count - len(parts), 2**20))
        if not part:
            raise BrokenPipeError
        parts += part
    return bytes(parts)


def _answer(function: Any, path: Path, arguments: dict[str, Any], files: list[int]) -> dict[str, Any]:
    """The result, or for an array the number of bytes written to the file that came with the call."""
    try:
        result = function(path, **arguments)
        if not files:
            return {"result": result}
        total = 0
        for piece in result:
            with memoryview(piece).cast("B") as data:
                done = 0
                while done < len(data):
                    done += os.pwrite(files[0], data[done : done + PIECE], total + done)
                total += done
        return {"result": total}
    except (Exception, MemoryError) as error:
        return {"error": _described(error)}


def _described(error: BaseException) -> dict[str, str | None]:
    if isinstance(error, FormatError | SourceError):
        problem = error.problem
        kind = next(
            name for name in ("CorruptCheckpoint", "SourceError", "FormatError") if isinstance(error, _KINDS[name])
        )
        return {"kind": kind, "what": problem.what, "expected": problem.expected, "found": problem.found,
                "todo": problem.todo, **({"where": problem.where} if problem.where else {})}  # fmt: skip
    if isinstance(error, MemoryError):
        return {"what": "reading it takes more memory than it may", "todo": "download or copy it again"}
    return {"what": "damaged, says the library that reads it", "found": f"{type(error).__name__}: {error}"[:500],
            "todo": "download or copy it again"}  # fmt: skip


def _send(answers: IO[bytes], answer: dict[str, Any]) -> None:
    encoded = json.dumps(answer).encode()
    answers.write(_LENGTH.pack(len(encoded)) + encoded)
    answers.flush()


def _memory_taken() -> int:
    """Bytes of address space, which are the libraries' as long as nothing was read."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 2**34


def _limit_memory(limit: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (min(limit, 2**62), hard))


def checked_shape(shape: object, where: str) -> tuple[int, ...]:
    """A shape that a child reported."""
    if not valid_shape(shape):
        raise CorruptCheckpoint("an array of impossible shape", where=where, found=repr(shape)[:100])
    assert isinstance(shape, list | tuple)
    return tuple(shape)


def main() -> None:
    """What a child runs: ``python -m warmstart.formats.isolated``."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get among the answers
    with contextlib.suppress(BrokenPipeError):
        _serve(socket.socket(fileno=0), answers)


if __name__ == "__main__":
    main()
