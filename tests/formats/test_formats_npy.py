"""npy, against numpy."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.npy import write_npy

NUMBERS = ("float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


class TestContract(FormatContract):
    FORMAT = "npy"
    DTYPES = ("float32",)
    NAMES = ("arr_0",)

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        ((_, array),) = arrays.items()
        write_npy(directory / "weights.npy", array)
        return directory / "weights.npy"

    def sparse(self, directory: Path) -> Path:
        path, length = directory / "weights.npy", 1_250_000_000
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (length,)})
            file.truncate(file.tell() + 4 * length)
        return path

    def example(self) -> dict[str, Array]:
        return {"arr_0": np.arange(15, dtype="f4").reshape(3, 5)}


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool", "complex64", "complex128", ">f4", ">i2", ">c16"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_reads_what_numpy_writes(tmp_path: Path, dtype: str, version: tuple[int, int]) -> None:
    path = tmp_path / "x.npy"
    for array in (np.arange(6).reshape(2, 3).astype(dtype), np.asfortranarray(np.ones((3, 2), dtype))):
        with path.open("wb") as file:
            np.lib.format.write_array(file, array, version=version)
        checkpoint = open_checkpoint(path)
        read = checkpoint.read("arr_0")
        np.testing.assert_array_equal(read, array)
        assert read.dtype.isnative
        assert (checkpoint.entries["arr_0"].dtype, checkpoint.entries["arr_0"].shape) == (array.dtype.name, array.shape)
        assert not read.flags.writeable


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numpy_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype).astype(f">{np.dtype(dtype).str[1:]}"))
    write_npy(tmp_path / "x.npy", array)
    read = np.load(tmp_path / "x.npy", allow_pickle=False)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype)
    assert read.flags.c_contiguous


def test_a_view_into_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(10.0))
    read = open_checkpoint(tmp_path / "x.npy").read("arr_0")
    assert read.base is not None
    assert not read.flags.owndata


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([{"a": 1}, None], object), "Python objects"),
        (np.zeros(2, [("name", "f4"), ("value", "i8")]), "'name'"),
        (np.array(["text"]), "<U4"),
        (np.array([b"text"]), "S4"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
        (np.zeros(2, ml_dtypes.bfloat16), "may have been bfloat16"),
    ],
)
def test_what_is_not_numbers_is_named(tmp_path: Path, array: Array, words: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(FormatError, match=words):
        open_checkpoint(tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2", "float8_e4m3fn"])
def test_types_that_numpy_lacks_are_not_written(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(FormatError, match=dtype):
        write_npy(tmp_path / "x.npy", np.zeros(2, dtype))
    assert list(tmp_path.iterdir()) == []


def header(text: str, data: bytes = b"", version: bytes = b"\x01\0") -> bytes:
    size = len(text).to_bytes(2 if version == b"\x01\0" else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode() + data


HOSTILE = {
    "more than the file": header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**12,), }"),
    "more in digits": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"),
    "negative": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
    "overflow": header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904), }"),
    "too many": header("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" + "1," * 40 + ")" + ", }", b"1234"),
    "a byte less": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"123"),
    "a byte more": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"12345"),
    "nesting": header("(" * 5000),
    "a call": header("__import__('os').system('true')"),
    "a length beyond": header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }")[:30],
    "version 9": header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", b"1234", b"\x09\0"),
    "a header of 4 GB": b"\x93NUMPY\x02\0\xff\xff\xff\xff{",
    "no header": b"\x93NUMPY",
    "a dtype of no one": header("{'descr': 'hello', 'fortran_order': False, 'shape': (1,), }", b"1234"),
    "a number as shape": header("{'descr': '<f4', 'fortran_order': False, 'shape': 1, }", b"1234"),
    "keys": header("{'descr': '<f4', 'shape': (1,), }", b"1234"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.npy").write_bytes(HOSTILE[what])
    with pytest.raises(CorruptCheckpoint, match="npy"):
        open_checkpoint(tmp_path / "x.npy")


def test_headers_of_python_2(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }"
    (tmp_path / "x.npy").write_bytes(header(text, np.ones(2, "<f4").tobytes()))
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "x.npy").read("arr_0"), [1, 1])


def test_a_real_array(fixtures: Path) -> None:
    path = fixtures / "fixtures/silero-vad/probs.npy"
    np.testing.assert_array_equal(open_checkpoint(path).read("arr_0"), np.load(path))


def test_bytes_are_those_of_numpy(tmp_path: Path) -> None:
    array, stream = np.arange(6, dtype="f4").reshape(2, 3), io.BytesIO()
    np.save(stream, array)
    write_npy(tmp_path / "x.npy", array)
    assert (tmp_path / "x.npy").read_bytes() == stream.getvalue()
