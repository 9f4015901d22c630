"""Flax's msgpack files, as Flax writes them and as nobody should."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import contract
import ml_dtypes
import numpy as np
import pytest
from jax_arrays import nested, numbers, others, parameters

from warmstart.errors import CorruptCheckpoint, FormatError, UnknownFormat
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.msgpack_tree import DTYPES, Leaf, pack, walk

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def extension(code: int, data: bytes) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(data), code) + data


class TestFlax(contract.FormatContract):
    FORMAT = "flax"
    DTYPES = tuple(sorted(DTYPES))

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        path = directory / "model.msgpack"
        path.write_bytes(b"".join(pack(nested(dict(arrays)))))
        return path

    def twice(self, directory: Path) -> Path:
        path = directory / "model.msgpack"
        path.write_bytes(b"".join(pack({"a/b": np.ones(2), "a": {"b": np.ones(2)}})))
        return path

    def sparse(self, directory: Path) -> Path:
        """Five pieces of 2**30 bytes, as Flax divides an array."""
        path, piece = directory / "model.msgpack", 2**30
        inner = b"\x93" + b"".join(pack([piece // 4])) + b"".join(pack("float32")) + b"\xc6" + struct.pack(">I", piece)
        with path.open("wb") as file:
            file.write(b"\x82" + b"".join(pack("step")) + b"\x05" + b"".join(pack("params")) + b"\x81")
            file.write(b"".join(pack("w")) + b"\x83" + b"".join(pack("__msgpack_chunked_array__")) + b"\xc3")
            file.write(b"".join(pack("shape")) + b"".join(pack({"0": 5 * piece // 4})))
            file.write(b"".join(pack("chunks")) + b"\x85")
            for number in range(5):
                file.write(b"".join(pack(str(number))) + b"\xc9" + struct.pack(">Ib", len(inner) + piece, 1) + inner)
                file.seek(piece, 1)
            file.truncate()
        return path

    def test_a_key_twice(self, tmp_path: Path) -> None:
        key = b"".join(pack("a")) + b"".join(pack(np.ones(1)))
        (tmp_path / "f").write_bytes(b"\x82" + key + key)
        with pytest.raises(CorruptCheckpoint, match="twice"):
            open_checkpoint(tmp_path / "f")


def test_what_flax_wrote_is_read() -> None:
    checkpoint = open_checkpoint(GOLDEN / "t5x" / "state.msgpack")
    assert checkpoint.step == 7
    assert checkpoint.optimizer == {"opt_state/0/count": 7}
    assert set(checkpoint.entries) == {f"params/{name}" for name in parameters()}
    for name, array in parameters().items():
        np.testing.assert_array_equal(checkpoint.read(f"params/{name}"), array)
        for slot, moment in (("m", "mu"), ("v", "nu")):
            expected = numbers(f"{name}/{moment}", array.shape, array.dtype.name)
            np.testing.assert_array_equal(checkpoint.read_slot(f"params/{name}", slot), expected)
            assert checkpoint.slots[f"params/{name}", slot].axis is None


def test_values_that_are_no_arrays_are_metadata() -> None:
    checkpoint = open_checkpoint(GOLDEN / "t5x" / "odd.msgpack")
    assert checkpoint.metadata == {"complex": 1 + 2j, "text": "слово", "none": None, "number": 3}
    assert checkpoint.read("scalar") == np.float32(2.5)
    for name, array in others().items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


def test_arrays_are_views_of_the_map(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"".join(pack({"w": np.arange(1000.0)})))
    first, second = (open_checkpoint(tmp_path / "f").read("w") for _ in range(2))
    assert not first.flags.owndata
    assert not second.flags.writeable


def test_a_directory_of_flax_files(tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"checkpoint_{step}").write_bytes(b"".join(pack({"w": np.full(2, step)})))
    with pytest.raises(FormatError, match=r"checkpoint_9, checkpoint_10 \(last\)"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(f"{tmp_path}@last").read("w")[0] == 10
    assert open_checkpoint(f"{tmp_path}@checkpoint_9").read("w")[0] == 9


@pytest.mark.parametrize(
    "value",
    [
        0,
        127,
        128,
        255,
        256,
        65535,
        65536,
        2**32 - 1,
        2**32,
        2**64 - 1,
        -1,
        -32,
        -33,
        -128,
        -129,
        -(2**15) - 1,
        -(2**31) - 1,
    ],
)
def test_integers_come_back(tmp_path: Path, value: int) -> None:
    assert walk(b"".join(pack({"k": value})), tmp_path) == {"k": value}


@pytest.mark.parametrize("count", [0, 15, 16, 65535, 65536])
def test_maps_of_every_size_come_back(tmp_path: Path, count: int) -> None:
    tree = {str(k): k for k in range(count)}
    assert walk(b"".join(pack(tree)), tmp_path) == tree


def test_numbers_of_every_width_come_back(tmp_path: Path) -> None:
    tree = {"a": 1.5, "b": [True, False, None, "x" * 300], "c": np.arange(70000, dtype="u1")}
    found = walk(b"".join(pack(tree)), tmp_path)
    assert found["a"] == 1.5
    assert found["b"] == tree["b"]
    assert isinstance(found["c"], Leaf)
    assert found["c"].shape == (70000,)


def array(shape: Any, dtype: Any, data: bytes) -> bytes:
    return b"\x93" + b"".join(pack(shape)) + b"".join(pack(dtype)) + b"\xc6" + struct.pack(">I", len(data)) + data


HOSTILE: dict[str, Callable[[], bytes]] = {
    "map of 2**32 pairs": lambda: b"\xdf\xff\xff\xff\xff",
    "list of 2**32 values": lambda: b"\xdd\xff\xff\xff\xff",
    "bytes of 2**32": lambda: b"\xc6\xff\xff\xff\xff",
    "text of 2**32": lambda: b"\xdb\xff\xff\xff\xff",
    "extension of 2**32": lambda: b"\xc9\xff\xff\xff\xff\x01",
    "deep lists": lambda: b"\x91" * 100_000 + b"\x00",
    "deep maps": lambda: b"\x81\xa1a" * 100_000 + b"\x00",
    "a million numbers": lambda: b"\xdd" + struct.pack(">I", 10**6) + b"\x00" * 10**6,
    "too few bytes": lambda: extension(1, array([3], "float32", b"\0" * 8)),
    "too many bytes": lambda: extension(1, array([3], "float32", b"\0" * 16)),
    "more after the array": lambda: extension(1, array([1], "float32", b"\0" * 4) + b"\0"),
    "a shape beyond numpy": lambda: extension(1, array([2**62, 2**62], "float32", b"")),
    "a negative shape": lambda: extension(1, array([-1], "float32", b"\0" * 4)),
    "a shape of text": lambda: extension(1, array("3", "float32", b"\0" * 12)),
    "python objects": lambda: extension(1, array([1], "object", b"\0" * 8)),
    "python objects by code": lambda: extension(1, array([1], "|O", b"\0" * 8)),
    "a structure": lambda: extension(1, array([1], "f4,f4", b"\0" * 8)),
    "a dtype that is a list": lambda: extension(1, array([1], [1], b"\0" * 8)),
    "a dtype that is no text": lambda: extension(1, array([1], 5, b"\0" * 8)),
    "extension 7": lambda: extension(7, b"abc"),
    "an empty extension": lambda: extension(1, b""),
    "a complex of text": lambda: extension(2, b"\x92\xa1a\xa1b"),
    "nested extensions": lambda: extension(1, extension(1, extension(1, b""))),
    "chunks without shape": lambda: b"".join(pack({"__msgpack_chunked_array__": True})),
    "chunks of text": lambda: b"".join(
        pack({"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": {"0": "a"}})
    ),
    "chunks numbered wrongly": lambda: b"".join(
        pack({"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {"1": np.ones(1), "0": np.ones(1)}})
    ),
    "chunks of two dtypes": lambda: b"".join(
        pack({"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": np.ones(1), "1": np.ones(4, "f4")}})
    ),
    "a type that msgpack has not": lambda: b"\xc1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").write_bytes(b"\x81\xa1k" + HOSTILE[name]())
    with pytest.raises(FormatError) as caught:
        open_checkpoint(tmp_path / "f")
    assert str(tmp_path / "f") in str(caught.value.where)


def test_keys_that_are_no_names(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x82\xa1a\x01\x05\x01")
    with pytest.raises(CorruptCheckpoint, match="a name as key"):
        open_checkpoint(tmp_path / "f")


def test_a_map_without_arrays_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"".join(pack({"name": "x", "size": 3})))
    with pytest.raises(FormatError, match="without arrays"):
        open_checkpoint(tmp_path / "f")
    (tmp_path / "g").write_bytes(b"\x85\x01\x02\x03")
    with pytest.raises(UnknownFormat):
        open_checkpoint(tmp_path / "g")


def test_big_endian_arrays_are_written_little_endian(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"".join(pack({"w": np.array([1, 2], ">i4"), "b": np.ones(1, ml_dtypes.bfloat16)})))
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "f").read("w"), [1, 2])
