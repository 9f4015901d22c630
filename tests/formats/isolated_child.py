"""A reader that fails in every way, for test_formats_isolated.py."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from warmstart.errors import CorruptCheckpoint


def warm_up() -> None:
    pass


def echo(path: Path, **arguments: Any) -> Any:
    return {"path": str(path), **arguments}


def environment(path: Path) -> dict[str, Any]:
    return {"cwd": os.getcwd(), "variables": sorted(os.environ), "pid": os.getpid()}


def crash(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(path: Path) -> None:
    os._exit(3)


def hang(path: Path) -> None:
    time.sleep(1000)


def spin(path: Path) -> None:
    while True:
        pass


def devour(path: Path) -> int:
    return len(bytearray(2**40))


def refuse(path: Path) -> None:
    raise CorruptCheckpoint("bad", expected="good", found="worse")


def stumble(path: Path) -> None:
    raise ValueError("at byte 7")


def chatter(path: Path) -> str:
    os.write(1, b"a library prints\n")
    print("and so does Python", flush=True)
    return "answer"


def pieces(path: Path, sizes: list[int]) -> Iterator[bytes]:
    for number, size in enumerate(sizes):
        yield bytes([number]) * size


def broken(path: Path) -> Iterator[bytes]:
    yield b"12345678"
    raise OSError("in the middle")
