"""Readers that stand on a C library, each in a child process with limits on memory, processor time and patience.

The child imports a module of ours and answers calls of its functions until its input ends. Calls and answers are
JSON with a length before it; arrays follow their answer as raw bytes, in pieces whose lengths the answer's header
announces. Nothing is unpickled on either side. A child that crashes, hangs or runs out of memory is one
``CorruptCheckpoint``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import json
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from warmstart.errors import CorruptCheckpoint, FormatError, MissingExtra, SourceError
from warmstart.formats.checkpoint import Array, dtype_of
from warmstart.formats.mapped import valid_shape

SECONDS = 60.0  # for the answer to a call, and between two pieces of an array
MEMORY = 2 * 2**30  # bytes of address space that the child may take beyond what its libraries take
MAX_ANSWER = 256 * 2**20
PIECE = 16 * 2**20
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
        with self._lock:
            self._ask(function, arguments)
            whole = self._pieces(int(np.prod(shape, dtype=object)) * kind.itemsize)
        array: Array = whole.view(kind).reshape(shape)
        array.flags.writeable = False
        return array

    def _ask(self, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        child = self._running()
        call = {"module": self._module, "function": function, "path": str(self._path), "arguments": arguments}
        encoded = json.dumps(call).encode()
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            child.stdin.write(_LENGTH.pack(len(encoded)) + encoded)
            child.stdin.flush()
        length = _LENGTH.unpack(self._receive(_LENGTH.size))[0]
        if length > MAX_ANSWER:
            self._give_up(f"an answer of {length} bytes")
        try:
            answer = json.loads(self._receive(length))
        except ValueError:
            self._give_up("an answer that is not JSON")
        if "error" in answer:
            problem = answer["error"]
            kind = _KINDS.get(str(problem.pop("kind", "")), CorruptCheckpoint)
            raise kind(problem.pop("what", "unreadable"), **{"where": self._path, **problem})
        assert isinstance(answer, dict)
        return answer

    def _pieces(self, nbytes: int) -> Any:
        """What arrives, which must be ``nbytes``."""
        try:
            whole = np.empty(nbytes, np.uint8)
        except MemoryError:
            self._give_up(f"an array of {nbytes} bytes, which do not fit into memory")
        total = 0
        while (size := _LENGTH.unpack(self._receive(_LENGTH.size))[0]) > 0:
            if size > nbytes - total:
                self._give_up(f"more than {nbytes} bytes of an array")
            self._fill(memoryview(whole.data)[total : total + size])
            total += size
        if total != nbytes:
            self._give_up(f"{total} of {nbytes} bytes of an array")
        return whole

    def _running(self) -> subprocess.Popen[bytes]:
        """The child; after a fork of this process, or after its end, a new one."""
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._memory), str(int(self._seconds) + 1)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                close_fds=True,
            )
            assert child.stdout is not None
            with contextlib.suppress(OSError):
                fcntl.fcntl(child.stdout.fileno(), fcntl.F_SETPIPE_SZ, 2**20)
            self._child, self._owner = child, os.getpid()
            weakref.finalize(self, _end, child, os.getpid())
        return self._child

    def _receive(self, count: int) -> bytes:
        data = bytearray(count)
        self._fill(memoryview(data))
        return bytes(data)

    def _fill(self, target: memoryview) -> None:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        deadline, handle = time.monotonic() + self._seconds, child.stdout.fileno()
        while len(target):
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._give_up(f"no answer within {self._seconds:.0f} s")
            count = os.readv(handle, [target])
            if not count:
                self._give_up(_how_it_ended(child))
            target = target[count:]

    def _give_up(self, found: str) -> NoReturn:
        if self._child is not None:
            _end(self._child, os.getpid())
        self._child = None
        raise CorruptCheckpoint(
            f"{self._library} failed on this checkpoint, in a process of its own",
            where=self._path,
            expected="an answer",
            found=found,
            todo="download or copy it again; if it is whole, report it",
        )


def _end(child: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():
        return
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
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


def _serve(memory: int, seconds: int, calls: IO[bytes], answers: IO[bytes]) -> None:
    """The child's life."""
    limited = False
    while len(start := calls.read(_LENGTH.size)) == _LENGTH.size:
        call = json.loads(calls.read(_LENGTH.unpack(start)[0]))
        module = importlib.import_module(call["module"])
        if not limited:
            module.warm_up()
            _limit_memory(memory)
            limited = True
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        _answer(getattr(module, call["function"]), Path(call["path"]), call["arguments"], answers)


def _answer(function: Any, path: Path, arguments: dict[str, Any], answers: IO[bytes]) -> None:
    try:
        result = function(path, **arguments)
        pieces: Iterator[bytes] | None = None
        if hasattr(result, "__next__"):
            pieces, first = result, next(result, b"")
            _send(answers, {"result": None})
        else:
            _send(answers, {"result": result})
    except (Exception, MemoryError) as error:
        _send(answers, {"error": _described(error)})
        return
    if pieces is not None:  # from here on an exception ends this process, which says enough
        for piece in _chain(first, pieces):
            if len(piece):
                answers.write(_LENGTH.pack(len(piece)))
                answers.write(piece)
        answers.write(_LENGTH.pack(0))
    answers.flush()


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


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


def _limit_memory(memory: int) -> None:
    """``memory`` more than the libraries have taken by now."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = taken + memory
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def checked_shape(shape: object, where: str) -> tuple[int, ...]:
    """A shape that a child reported."""
    if not valid_shape(shape):
        raise CorruptCheckpoint("an array of impossible shape", where=where, found=repr(shape)[:100])
    assert isinstance(shape, list | tuple)
    return tuple(shape)


def main() -> None:
    """What a child runs: ``python -m warmstart.formats.isolated MEMORY SECONDS``."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get among the answers
    with contextlib.suppress(BrokenPipeError):
        _serve(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
