"""How soon the command line answers, and how little it reads to do so.

Compares ``warmstart --help`` with ``python -c "import numpy"`` (CPU time, medians of 7), measures ``warmstart inspect``
on 1 GB files (wall time and peak memory), and checks that neither imports torch. The files are sparse: they
take almost no room on disk. Exit status 1 when a limit is passed.

    python benchmarks/startup.py
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import NamedTuple

REPEATS = 7
NUM_ARRAYS = 64
SHAPE = (4096, 1024)
NUM_BYTES = SHAPE[0] * SHAPE[1] * 4
HELP_RATIO, INSPECT_SECONDS, INSPECT_MB = 3.0, 0.5, 80.0
WITHOUT_TORCH = """
import sys
from warmstart.cli import main
try:
    main()
except SystemExit as exit:
    if exit.code:
        raise
heavy = {"torch", "transformers"} & set(sys.modules)
assert not heavy, f"imported: {heavy}"
"""


class Cost(NamedTuple):
    """What a process took: seconds of wall clock, seconds of processor, peak memory in MB (10⁶ bytes)."""

    wall: float
    cpu: float
    memory: float


def run(command: list[str]) -> Cost:
    """Cost of one run of ``command``; stops the benchmark with its error output when it fails."""
    with tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def median(command: list[str]) -> Cost:
    """Medians over ``REPEATS`` runs, after one that warms the caches of the file system."""
    run(command)
    return Cost(*(statistics.median(column) for column in zip(*(run(command) for _ in range(REPEATS)), strict=True)))


def write_safetensors(path: Path) -> None:
    """``NUM_ARRAYS`` float32 arrays of zeros, as one hole behind the header."""
    header = {
        f"layers.{i}.weight": {
            "dtype": "F32",
            "shape": SHAPE,
            "data_offsets": (i * NUM_BYTES, (i + 1) * NUM_BYTES),
        }
        for i in range(NUM_ARRAYS)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + NUM_ARRAYS * NUM_BYTES)


def write_npz(path: Path) -> None:
    """The same arrays as stored members of a zip (PKWARE APPNOTE 4.3), each with a hole for its data."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {SHAPE}, }}"
    npy = text.ljust(128 - 10 - 1).encode() + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(npy)) + npy
    crc = zlib.crc32(bytes(NUM_BYTES), zlib.crc32(npy))
    size = len(npy) + NUM_BYTES
    directory = b""
    with path.open("wb") as file:
        for i in range(NUM_ARRAYS):
            name = f"layer_{i}_W.npy".encode()
            common = struct.pack("<5H3L2H", 20, 0, 0, 0, 0x21, crc, size, size, len(name), 0)
            directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
            directory += struct.pack("<3H2L", 0, 0, 0, 0, file.tell()) + name
            file.write(b"PK\x03\x04" + common + name + npy)
            file.seek(NUM_BYTES, os.SEEK_CUR)
        start = file.tell()
        file.write(directory)
        file.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, NUM_ARRAYS, NUM_ARRAYS, len(directory), start, 0))


def measure(folder: Path) -> list[tuple[str, float, str, float]]:
    """(what, value, unit, limit) of every figure."""
    warmstart = Path(sys.executable).with_name("warmstart")
    if not warmstart.exists():
        sys.exit(f"{warmstart} is missing: install warmstart for the Python that runs this script")
    numpy = median([sys.executable, "-c", "import numpy"])
    help_ = median([str(warmstart), "--help"])
    run([sys.executable, "-c", WITHOUT_TORCH, "--help"])
    print(f"CPU time: import numpy {numpy.cpu:.3f} s, warmstart --help {help_.cpu:.3f} s")
    rows = [("--help / import numpy, CPU time", help_.cpu / numpy.cpu, "x", HELP_RATIO)]
    for name, write in (("safetensors", write_safetensors), ("npz", write_npz)):
        path = folder / f"model.{name}"
        write(path)
        cost = median([str(warmstart), "inspect", str(path)])
        run([sys.executable, "-c", WITHOUT_TORCH, "inspect", str(path)])
        about = f"inspect {path.stat().st_size / 1e9:.2f} GB {name}"
        rows.append((f"{about}, wall time", cost.wall, "s", INSPECT_SECONDS))
        rows.append((f"{about}, peak memory", cost.memory, "MB", INSPECT_MB))
    return rows


def main() -> int:
    """Prints the table; 1 when a figure is above its limit, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    print(f"{'figure':<42}{'measured':>12}{'limit':>12}{'of limit':>10}")
    for what, value, unit, limit in rows:
        measured, allowed = f"{value:.2f} {unit}", f"{limit:.2f} {unit}"
        print(f"{what:<42}{measured:>12}{allowed:>12}{value / limit:>10.0%}{'' if value <= limit else '  ABOVE'}")
    print("neither imports torch or transformers")
    return int(any(value > limit for _, value, _, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
