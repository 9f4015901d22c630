"""What every format's tests inherit."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes  # noqa: F401  (its dtypes become known to numpy by name)
import numpy as np
import pytest

import hostile
from warmstart.errors import FormatError
from warmstart.formats.checkpoint import Array, Checkpoint, dtype_of
from warmstart.formats.detect import open_checkpoint

LAZY = """
import pathlib, re, sys, time
from warmstart.formats.detect import formats, open_checkpoint
list(formats())
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before, began = peak(), time.perf_counter()
checkpoint = open_checkpoint(sys.argv[1])
count = len(checkpoint.entries)
seconds = time.perf_counter() - began
print(count, max(e.nbytes for e in checkpoint.entries.values()), seconds)
print(peak(), peak() - before, "torch" in sys.modules)
"""


class FormatContract(ABC):
    """Inherit, say how the format is written, and every reader is held to the same promises."""

    FORMAT: str
    DTYPES: tuple[str, ...] = ("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
    NAMES: tuple[str, ...] = ("a", "encoder.layers.0.weight", "имя/вес", "with space", "很长" * 20)
    SLOW = 2.0  # seconds that one damaged file may take

    @abstractmethod
    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        """Writes a checkpoint below ``directory`` and returns what to open. A format that cannot hold an array calls
        ``pytest.skip``."""

    def twice(self, directory: Path) -> Path:
        """A checkpoint in which a name occurs twice, for formats whose files could say so."""
        pytest.skip("a name cannot occur twice in this format")

    def sparse(self, directory: Path) -> Path:
        """A checkpoint with an array of about 5 GB that takes no space on disk."""
        pytest.skip("this format cannot be sparse")

    def damaged(self, directory: Path) -> list[Path]:
        """The files whose damage is tried, after ``write``."""
        return sorted(path for path in directory.rglob("*") if path.is_file())

    def example(self) -> dict[str, Array]:
        chance = np.random.default_rng(0)
        return {
            f"{name}{number}": chance.integers(0, 2 if dtype == "bool" else 100, (3, 5)).astype(dtype_of(dtype))
            for number, (name, dtype) in enumerate(
                (self.NAMES[k % len(self.NAMES)], dtype) for k, dtype in enumerate(self.DTYPES)
            )
        }

    def same(self, checkpoint: Checkpoint, arrays: Mapping[str, Array]) -> None:
        assert checkpoint.format == self.FORMAT
        assert set(checkpoint.entries) == set(arrays)
        for name, array in arrays.items():
            entry, read = checkpoint.entries[name], checkpoint.read(name)
            assert (entry.shape, entry.dtype, entry.nbytes) == (array.shape, array.dtype.name, array.nbytes)
            assert (read.shape, read.dtype) == (array.shape, array.dtype.newbyteorder("="))
            assert read.tobytes() == array.tobytes(), name
            assert not read.flags.writeable

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        arrays = self.example()
        self.same(open_checkpoint(self.write(tmp_path, arrays)), arrays)

    @pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 1, 1, 2)])
    def test_shapes(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        arrays = {self.NAMES[0]: np.full(shape, 1, dtype_of(self.DTYPES[0]))}
        self.same(open_checkpoint(self.write(tmp_path, arrays)), arrays)

    def test_every_name(self, tmp_path: Path) -> None:
        arrays = {name: np.full((2,), k).astype(dtype_of(self.DTYPES[0])) for k, name in enumerate(self.NAMES)}
        self.same(open_checkpoint(self.write(tmp_path, arrays)), arrays)

    def test_a_missing_name_is_a_key_error(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(self.write(tmp_path, self.example()))
        with pytest.raises(KeyError):
            checkpoint.read("no such array")
        with pytest.raises(KeyError):
            checkpoint.read_slot("no such array", "m")

    def test_a_name_twice(self, tmp_path: Path) -> None:
        path = self.twice(tmp_path)
        with pytest.raises(FormatError):
            open_checkpoint(path)

    def test_every_checksum_holds(self, tmp_path: Path) -> None:
        checkpoint = open_checkpoint(self.write(tmp_path, self.example()))
        for name in checkpoint.entries:
            checkpoint.verify(name)

    def test_several_readers_at_once(self, tmp_path: Path) -> None:
        arrays = self.example()
        path = self.write(tmp_path, arrays)
        one = open_checkpoint(path)
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda k: self.same(one if k % 2 else open_checkpoint(path), arrays), range(16)):
                pass

    def test_opening_five_gigabytes_reads_none_of_them(self, tmp_path: Path) -> None:
        path = self.sparse(tmp_path)
        done = subprocess.run([sys.executable, "-c", LAZY, str(path)], capture_output=True, text=True, check=True)
        count, largest, seconds, kilobytes, touched, torch = done.stdout.split()
        assert int(count) >= 1
        assert int(largest) > 4.9e9
        assert torch == "False"
        assert int(kilobytes) < 80_000
        assert int(touched) < 10_000
        assert float(seconds) < 2  # the figure that counts is in benchmarks/open.py

    def test_damage_never_goes_unsaid(self, tmp_path: Path) -> None:
        directory = tmp_path / "whole"
        directory.mkdir()
        path = self.write(directory, self.example())
        hostile.run(path, self.damaged(directory), tmp_path / "work", slow=self.SLOW)
