"""A child's side of :mod:`warmstart.formats.isolated`: it imports a module of ours and answers calls of its functions.

What is imported here is paid for at every opening, so that it is little.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import socket
import struct
import sys
from pathlib import Path
from typing import IO, Any

from warmstart.errors import CorruptCheckpoint, FormatError, SourceError

PIECE = 16 * 2**20  # bytes that a reader handles at once
KINDS = {"CorruptCheckpoint": CorruptCheckpoint, "FormatError": FormatError, "SourceError": SourceError}
LENGTH = struct.Struct("<Q")


def main() -> None:
    """The child's life: until there are no more calls, or nobody who waits for the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get among the answers
    with contextlib.suppress(BrokenPipeError):
        _serve(importlib.import_module(sys.argv[1]), socket.socket(fileno=0), answers)


def _serve(module: Any, calls: socket.socket, answers: IO[bytes]) -> None:
    gc.disable()  # libraries make much and throw little away
    module.warm_up()
    gc.enable()
    taken = _memory_taken()
    while True:
        start, files, _, _ = socket.recv_fds(calls, LENGTH.size, 1)
        if len(start) < LENGTH.size:
            return
        call = json.loads(_exactly(calls, LENGTH.unpack(start)[0]))
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
            name for name in ("CorruptCheckpoint", "SourceError", "FormatError") if isinstance(error, KINDS[name])
        )
        return {"kind": kind, "what": problem.what, "expected": problem.expected, "found": problem.found,
                "todo": problem.todo, **({"where": problem.where} if problem.where else {})}  # fmt: skip
    if isinstance(error, MemoryError):
        return {"what": "reading it takes more memory than it may", "todo": "download or copy it again"}
    return {"what": "damaged, says the library that reads it", "found": f"{type(error).__name__}: {error}"[:500],
            "todo": "download or copy it again"}  # fmt: skip


def _send(answers: IO[bytes], answer: dict[str, Any]) -> None:
    encoded = json.dumps(answer).encode()
    answers.write(LENGTH.pack(len(encoded)) + encoded)
    answers.flush()


def _memory_taken() -> int:
    """Bytes of address space, which are the libraries' as long as nothing was read."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 2**34


def _limit_memory(limit: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (min(limit, 2**62), hard))
