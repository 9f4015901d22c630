"""Files of two generations of numpy are read, and they read files of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from warmstart.formats.detect import open_checkpoint
from warmstart.formats.npy import write_npy
from warmstart.formats.npz import write_npz

REQUIRES = {"numpy-1.26": ["numpy==1.26.4"], "numpy-2": ["numpy>=2.2"]}
DTYPES = ("?", "i1", "u1", "<i2", ">i2", "<u4", ">u8", "<f2", ">f2", "<f4", ">f4", "<f8", "<c8", ">c16")
ARRAYS = {
    f"{order}{dtype}": np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype, order=order)  # type: ignore[call-overload]
    for dtype in DTYPES
    for order in "CF"
} | {"scalar": np.array(2.5), "empty": np.zeros((0, 3)), "имя/вес": np.ones(1)}


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "deflated.npz", **ARRAYS)
    write_npz(tmp_path / "ours.npz", ARRAYS.items())
    for name in ("stored", "deflated", "ours"):
        checkpoint = open_checkpoint(tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as truth:
            assert truth.files == list(checkpoint.entries) == list(ARRAYS)
            for key, array in ARRAYS.items():
                np.testing.assert_array_equal(checkpoint.read(key), array)
                np.testing.assert_array_equal(truth[key], array)
                assert truth[key].dtype.newbyteorder("=") == checkpoint.read(key).dtype


@pytest.mark.parametrize("name", ARRAYS)
def test_npy(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "theirs.npy", ARRAYS[name])
    write_npy(tmp_path / "ours.npy", ARRAYS[name])
    for path in (tmp_path / "theirs.npy", tmp_path / "ours.npy"):
        np.testing.assert_array_equal(open_checkpoint(path).read("arr_0"), ARRAYS[name])
        np.testing.assert_array_equal(np.load(path, allow_pickle=False), ARRAYS[name])
