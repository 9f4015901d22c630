"""zarr directories: what TensorStore may write, and what points elsewhere or grows."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.checkpoint import Array
from warmstart.formats.zarr import Layout, ZarrArray, inside, parse_layout

PACK = {
    None: lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1),
    "zlib": lambda data: zlib.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def zarray(**changes: Any) -> str:
    described = {
        "chunks": [2], "compressor": None, "dtype": "<f4", "fill_value": None, "filters": None, "order": "C",
        "shape": [2], "zarr_format": 2,
    }  # fmt: skip
    return json.dumps({**described, **changes})


def make(root: Path, array: Array, chunks: tuple[int, ...], compressor: str | None = None, **changes: Any) -> ZarrArray:
    """``array`` below ``root`` in the directory ``w``, in chunks, written here."""
    order, separator = changes.get("order", "C"), changes.get("dimension_separator", ".")
    (root / "w").mkdir(parents=True)
    padded = np.zeros([-(-n // c) * c for n, c in zip(array.shape, chunks, strict=True)], array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    for index in np.ndindex(*(n // c for n, c in zip(padded.shape, chunks, strict=True))):
        piece = padded[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))]
        file = root / "w" / (separator.join(map(str, index)) or "0")
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(PACK[compressor](piece.tobytes(order)))
    described = {"id": compressor} if compressor else None
    text = zarray(
        shape=list(array.shape), chunks=list(chunks), compressor=described, **{"dtype": array.dtype.str, **changes}
    )
    return ZarrArray(root, "w", parse_layout(text, "here"), "w")


@pytest.mark.parametrize("compressor", PACK)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("chunks", [(5, 7), (2, 3), (1, 7), (5, 1)])
def test_every_way_to_lay_out(
    tmp_path: Path, compressor: str | None, order: str, separator: str, chunks: tuple[int, ...]
) -> None:
    array = np.arange(35, dtype="<i2").reshape(5, 7)
    stored = make(tmp_path, array, chunks, compressor, order=order, dimension_separator=separator)
    read = stored.read()
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype("i2")
    assert not read.flags.writeable


@pytest.mark.parametrize("dtype", ["|b1", "<i8", ">i4", ">f8", "<c8", ">c16", "|u1"])
@pytest.mark.parametrize("chunks", [(6,), (4,)])
def test_dtypes(tmp_path: Path, dtype: str, chunks: tuple[int, ...]) -> None:
    array = np.arange(6).astype(dtype)
    read = make(tmp_path, array, chunks, "zlib").read()
    np.testing.assert_array_equal(read, array)
    assert read.dtype.isnative


@pytest.mark.parametrize("code", ["bfloat16", "<V2", "|V2"])
def test_bfloat16(tmp_path: Path, code: str) -> None:
    read = make(tmp_path, np.array([0x3F80, 0x4000], "<u2"), (2,), dtype=code).read()
    assert read.dtype.name == "bfloat16"
    assert read.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("separator", [".", "/"])
def test_scalars(tmp_path: Path, separator: str) -> None:
    assert make(tmp_path, np.array(3.5), (), "gzip", dimension_separator=separator).read() == 3.5


def test_an_uncompressed_chunk_is_a_view(tmp_path: Path) -> None:
    assert not make(tmp_path, np.arange(100.0).reshape(10, 10), (10, 10), order="F").read().flags.owndata


@pytest.mark.parametrize(
    ("fill", "value"), [(0, 0), (1.5, 1.5), ("NaN", np.nan), ("Infinity", np.inf), ("-Infinity", -np.inf)]
)
def test_missing_chunks_are_filled_if_the_array_says_with_what(tmp_path: Path, fill: Any, value: float) -> None:
    array = np.arange(10, dtype="f4")
    stored = make(tmp_path, array, (4,), fill_value=fill)
    (tmp_path / "w" / "1").unlink()
    expected = array.copy()
    expected[4:8] = value
    np.testing.assert_array_equal(stored.read(), expected)
    for name in ("0", "2"):
        (tmp_path / "w" / name).unlink()
    np.testing.assert_array_equal(stored.read(), np.full(10, value, "f4"))


def test_a_missing_chunk_without_a_value_is_an_error(tmp_path: Path) -> None:
    stored = make(tmp_path, np.arange(20.0).reshape(4, 5), (2, 2))
    (tmp_path / "w" / "1.1").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"5, without w/1\.1"):
        stored.read()


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint, match="a directory w"):
        ZarrArray(tmp_path, "w", parse_layout(zarray(fill_value=0), "here"), "w").read()


@pytest.mark.parametrize(
    "changes",
    [
        {"zarr_format": 3},
        {"zarr_format": None},
        {"filters": [{"id": "delta"}]},
        {"compressor": {"id": "blosc", "cname": "lz4"}},
        {"compressor": {"id": ["gzip"]}},
        {"compressor": {}},
        {"compressor": 3},
        {"dtype": "|O"},
        {"dtype": "<U5"},
        {"dtype": "|S8"},
        {"dtype": "<M8[ns]"},
        {"dtype": "|V16"},
        {"dtype": [["a", "<f4"], ["b", "<f4"]]},
        {"dtype": "<f3"},
        {"dtype": "<f99"},
        {"dtype": None},
        {"shape": None},
        {"shape": [2.5]},
        {"shape": [True]},
        {"shape": [10**30]},
        {"shape": [10**9] * 3, "chunks": [1] * 3},
        {"shape": [2] * 40, "chunks": [2] * 40},
        {"chunks": [0]},
        {"chunks": [-1]},
        {"chunks": [1, 1]},
        {"chunks": "2"},
        {"order": "A"},
        {"dimension_separator": "../"},
        {"fill_value": "x"},
        {"fill_value": [1]},
        {"fill_value": {"a": 1}},
    ],
)
def test_descriptions_that_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="here"):
        parse_layout(zarray(**changes), "here")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"null"])
def test_descriptions_that_are_no_json(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse_layout(text, "here")


def test_a_grid_of_a_billion_chunks(tmp_path: Path) -> None:
    layout = parse_layout(zarray(shape=[10**12], chunks=[1000], fill_value=0), "here")
    with pytest.raises(CorruptCheckpoint, match="at most 1000000 chunks"):
        ZarrArray(tmp_path, "w", layout, "w")


def test_more_than_the_files_can_hold(tmp_path: Path) -> None:
    """A chunk may not be as large as its description says, nor the array around it."""
    for number, (compressor, chunks) in enumerate([(None, 2**40), ("gzip", 2**40), ("zstd", 2**40), ("gzip", 2**36)]):
        root = tmp_path / str(number)
        stored = make(root, np.zeros(4, "f4"), (4,), compressor)
        (root / "w" / "1").write_bytes(PACK[compressor](b"\0" * 16))
        layout = stored.layout
        huge = Layout((2**40,), (chunks,), layout.dtype, layout.compressor, fill=0)
        with pytest.raises(CorruptCheckpoint, match=r"bytes in its files|bytes when expanded"):
            ZarrArray(root, "w", huge, "w").read()


@pytest.mark.parametrize("compressor", ["gzip", "zlib", "zstd"])
def test_bombs(tmp_path: Path, compressor: str) -> None:
    """100 MB of zeros where 8 bytes belong are not expanded; a stream cut off, or with more after it, is damage."""
    stored = make(tmp_path, np.zeros(2, "f4"), (2,), compressor)
    bomb = PACK[compressor](b"\0" * 100_000_000)
    whole = PACK[compressor](b"\0" * 8)
    for data in (bomb, bomb * 2, whole[:-1], whole + b"x", b"", b"x", whole[: len(whole) // 2]):
        (tmp_path / "w" / "0").write_bytes(data)
        with pytest.raises(CorruptCheckpoint):
            stored.read()


@pytest.mark.parametrize("name", ["../w", "/etc", "a/../../b", "..", "", "a\0b", "a\\..\\b"])
def test_paths_that_lead_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="outside"):
        inside(tmp_path, name)


def test_links_that_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    array = np.arange(4, dtype="f4")
    stored = make(root, array, (2,))
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 8)
    (root / "w" / "1").rename(root / "elsewhere")
    (root / "w" / "1").symlink_to(root / "elsewhere")
    np.testing.assert_array_equal(stored.read(), array)
    (root / "w" / "1").unlink()
    (root / "w" / "1").symlink_to(secret)
    with pytest.raises(FormatError, match="outside"):
        stored.read()
    (root / "w" / "1").unlink()
    (root / "w" / "1").symlink_to("1")
    with pytest.raises(FormatError):
        stored.read()
    (root / "w").rename(tmp_path / "w")
    (root / "w").symlink_to(tmp_path / "w")
    with pytest.raises(FormatError, match="outside"):
        stored.read()


def test_linked_folders_and_pipes(tmp_path: Path) -> None:
    stored = make(tmp_path / "root", np.arange(4.0).reshape(2, 2), (1, 1), dimension_separator="/")
    (tmp_path / "root/w/1").rename(tmp_path / "1")
    (tmp_path / "root/w/1").symlink_to(tmp_path / "1")
    with pytest.raises(FormatError, match="outside"):
        stored.read()
    (tmp_path / "root/w/1").unlink()
    os.mkfifo(tmp_path / "root/w/1")
    with pytest.raises(CorruptCheckpoint, match="missing"):
        stored.read()
