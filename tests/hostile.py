"""Damaged files by the hundred: whatever is done to a file, a reader gives data or one clear error.

Each mutant is opened and read in this process, under a limit on memory and a clock; the seed and number of a mutant
that fails are in the message, so that it can be made again.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from warmstart.errors import WarmstartError
from warmstart.formats.detect import open_checkpoint

MEMORY = 256 * 2**20
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


def count() -> int:
    return 10_000 if os.environ.get("WARMSTART_NIGHTLY") else 300


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(len(data))
        data[place] ^= 1 << chance.randrange(8)


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _splice(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((1, 4, 16, 200))
    source, target = (chance.randrange(len(data)) for _ in range(2))
    piece = bytes(data[source : source + size])
    if chance.random() < 0.5:
        data[target : target + len(piece)] = piece
    else:
        data[target:target] = piece


def _huge(data: bytearray, chance: random.Random) -> None:
    width = chance.choice((1, 2, 4, 8))
    value = chance.choice(HUGE) & ((1 << 8 * width) - 1)
    place = chance.randrange(len(data))
    data[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))


def _cut_out(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    del data[place : place + chance.choice((1, 2, 8, 100))]


def _noise(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    piece = chance.randbytes(min(chance.choice((4, 32)), len(data) - place))
    data[place : place + len(piece)] = piece


KINDS: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _truncate, _splice, _huge, _cut_out, _noise)


def mutate(original: bytes, seed: int) -> bytes:
    """The mutant number ``seed``; half of the damage goes into the first and last 300 bytes, where headers are."""
    chance = random.Random(seed)
    data = bytearray(original)
    if not data:
        return chance.randbytes(chance.randrange(1, 50))
    kind = KINDS[seed % len(KINDS)]
    if len(data) > 1200 and chance.random() < 0.5:
        start = chance.choice((0, len(data) - 300))
        part = data[start : start + 300]
        kind(part, chance)
        data[start : start + 300] = part
    else:
        kind(data, chance)
    return bytes(data)


def run(
    path: Path,
    files: list[Path],
    work: Path,
    *,
    slow: float = 2.0,
    mutants: int | None = None,
    read: Callable[[Path], object] | None = None,
    mend: Callable[[bytes], bytes] = bytes,
) -> None:
    """Opens and reads ``path`` again and again, each time with one of ``files`` (which it consists of, all below one
    directory) damaged, in a copy below ``work``.

    Args:
        read: gives the same for the same content; a checkpoint is read where it is None.
        mend: makes checksums right again, so that the damage behind them is seen.
    """
    read = read or read_all
    directory = Path(os.path.commonpath([*(file.parent for file in files), path.parent]))
    copy = work / "copy"
    shutil.copytree(directory, copy, symlinks=True)
    opened = copy / path.relative_to(directory)
    clean = read(opened)
    for number in range(count() if mutants is None else mutants):
        file = files[number // len(KINDS) % len(files)]
        original, damaged = file.read_bytes(), copy / file.relative_to(directory)
        data = mend(mutate(original, number))
        damaged.unlink()
        damaged.write_bytes(data)
        what = f"mutant {number} ({KINDS[number % len(KINDS)].__name__}) of {file.name}"
        began = time.perf_counter()
        try:
            with limits(slow), contextlib.suppress(WarmstartError):
                read(opened)
        except Exception as error:  # MemoryError and TimeoutError among them
            raise AssertionError(f"{what}: {type(error).__name__} {error}") from error
        assert time.perf_counter() - began < slow, what
        damaged.write_bytes(original)
    assert read(opened) == clean


def read_all(path: Path) -> int:
    """Reads everything; the number of bytes."""
    checkpoint = open_checkpoint(path)
    total = sum(checkpoint.read(name).nbytes for name, entry in checkpoint.entries.items() if entry.readable)
    return total + sum(checkpoint.read_slot(*slot).nbytes for slot in checkpoint.slots)


@contextlib.contextmanager
def limits(seconds: float) -> Iterator[None]:
    """``MEMORY`` more than now, and a clock."""

    def late(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
