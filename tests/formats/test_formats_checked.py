"""What a training starts from is checked against the file's checksums, where reading alone is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from warmstart.errors import CorruptCheckpoint
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.tensorflow import write_bundle
from warmstart.formats.torch_write import write_torch

VALUES = np.arange(1000, dtype="f4")


def tensorflow(directory: Path) -> tuple[Path, Path]:
    write_bundle(directory / "m", [("a", VALUES)])
    return directory / "m", directory / "m.data-00000-of-00001"


def torch(directory: Path) -> tuple[Path, Path]:
    write_torch(directory / "m.pt", [Entry("a", VALUES.shape, "float32")], [VALUES])
    return directory / "m.pt", directory / "m.pt"


@pytest.mark.parametrize("write", [tensorflow, torch])
def test_a_flipped_bit_is_found_when_it_counts(tmp_path: Path, write: object) -> None:
    path, file = write(tmp_path)  # type: ignore[operator]
    assert np.array_equal(open_checkpoint(path).read_checked("a"), VALUES)
    data = bytearray(file.read_bytes())
    data[data.find(VALUES.tobytes()) + 400] ^= 1
    file.write_bytes(data)
    checkpoint = open_checkpoint(path)
    assert not np.array_equal(checkpoint.read("a"), VALUES)
    with pytest.raises(CorruptCheckpoint):
        checkpoint.read_checked("a")
