"""safetensors, against its own library."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError, WarmstartError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import DTYPES, PACKED, write_safetensors


def arrays() -> dict[str, Array]:
    random_state = np.random.default_rng(1)
    return {
        "decoder.weight": random_state.standard_normal((3, 5)).astype("f4"),
        "odd": np.arange(3, dtype="i1"),
        "scalar": np.array(2.5, "f8"),
        "empty": np.zeros((0, 4), "f2"),
        "имя": np.array([[True, False]]),
        "brain": random_state.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "columns": np.asfortranarray(random_state.standard_normal((4, 2))),
    }


def entries(values: dict[str, Array]) -> list[Entry]:
    return [Entry(name, array.shape, array.dtype.name) for name, array in values.items()]


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


class TestContract(FormatContract):
    FORMAT = "safetensors"
    DTYPES = tuple(DTYPES.values())

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        write_safetensors(directory / "x.safetensors", entries(dict(arrays)), arrays.values())
        return directory

    def twice(self, directory: Path) -> Path:
        item = '{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
        return write(directory / "x.safetensors", f'{{"a": {item}, "a": {item}}}'.encode(), b"1")

    def sparse(self, directory: Path) -> Path:
        size = 5_000_000_000
        path = write(directory / "x", {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + size)
        return path


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    values = arrays()
    write_safetensors(tmp_path / "a", entries(values), iter(values.values()), {"format": "pt", "ключ": "1"})
    assert struct.unpack("<Q", (tmp_path / "a").read_bytes()[:8])[0] % 8 == 0
    with safetensors.safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {"format": "pt", "ключ": "1"}
        assert set(file.keys()) == set(values)
        for name, array in values.items():
            tensor = file.get_tensor(name)
            assert tuple(tensor.shape) == array.shape
            widened = array.astype("f4") if name == "brain" else array
            np.testing.assert_array_equal((tensor.float() if name == "brain" else tensor).numpy(), widened)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.arange(4).to(torch.float8_e4m3fn),
        "c": torch.arange(4).to(torch.float8_e5m2),
        "d": torch.arange(5, dtype=torch.int16),
        "e": torch.tensor(1 + 2j, dtype=torch.complex64),
    }
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"k": "v"})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.metadata) == ("safetensors", {"k": "v"})
    for name, tensor in tensors.items():
        read = checkpoint.read(name)
        assert str(tensor.dtype) == f"torch.{read.dtype.name}"
        assert read.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert read.shape == tuple(tensor.shape) == checkpoint.entries[name].shape
        assert not read.flags.writeable


def test_real_model_of_others(fixtures: Path) -> None:
    path = fixtures / "fixtures/silero-vad/silero_vad_16k.safetensors"
    truth = safetensors.numpy.load_file(path)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.entries) == set(truth)
    assert all(np.array_equal(checkpoint.read(name), truth[name]) for name in truth)


F4 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b'{"a": [', b"", "header"),
        (b'{"a": \xff}', b"", "header"),
        (b'{"a":1,"a":1}', b"", "twice"),
        (b'{"a":' + b"[" * 100_000, b"", "header"),
        ({"a": 1}, b"", "array 'a'"),
        ({"a": {**F4, "more": 1}}, b"1234", "array 'a'"),
        ({"a": F4}, b"123", "3 bytes"),
        ({"a": F4}, b"12345", "5 bytes"),
        ({"a": {**F4, "shape": [2]}}, b"1234", "8 bytes"),
        ({"a": {**F4, "shape": [-1]}}, b"1234", "shape"),
        ({"a": {**F4, "shape": [True]}}, b"1234", "shape"),
        ({"a": {**F4, "shape": [0, 2**62], "data_offsets": [0, 0]}}, b"", "shape"),
        ({"a": {**F4, "data_offsets": [4, 0]}}, b"1234", "data_offsets"),
        ({"a": F4, "b": F4}, b"1234", "array 'b'"),
        ({"a": F4, "b": {**F4, "data_offsets": [8, 12]}}, b"0" * 12, "begin at 4"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ],
)
def test_damaged_headers(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    path = write(tmp_path / "x", header, data)
    with pytest.raises(CorruptCheckpoint) as caught:
        open_checkpoint(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value.where)


def test_header_longer_than_the_file_or_the_bound(tmp_path: Path) -> None:
    for length in (50, 200_000_000):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b'{"a":1}')
        with pytest.raises(CorruptCheckpoint, match="header length"):
            open_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(("code", "nbytes"), [("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)])
def test_types_of_less_than_a_byte_are_described(tmp_path: Path, code: str, nbytes: int) -> None:
    header = {"a": {"dtype": code, "shape": [2, 4], "data_offsets": [0, nbytes]}}
    checkpoint = open_checkpoint(write(tmp_path / "x", header, b"\0" * nbytes))
    assert checkpoint.entries["a"] == Entry("a", (2, 4), PACKED[code][0], nbytes)
    with pytest.raises(FormatError, match="can only be described"):
        checkpoint.read("a")
    with safetensors.safe_open(tmp_path / "x", "np") as file:
        assert list(file.keys()) == ["a"]
    with pytest.raises(CorruptCheckpoint):
        open_checkpoint(write(tmp_path / "x", header, b"\0" * (nbytes - 1)))


def test_unknown_dtype_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": {**F4, "dtype": "F4"}}, b"1234")
    with pytest.raises(FormatError, match="'a'"):
        open_checkpoint(path)


def test_writer_checks_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    one = np.ones(2, "f4")
    for wrong, given in [
        ([Entry("a", (3,), "float32")], [one]),
        ([Entry("a", (2,), "float32")], []),
        ([Entry("a", (2,), "float32")], [one, one]),
        ([Entry("a", (2,), "float32")] * 2, [one, one]),
        ([Entry("a", (2,), "complex128")], [one]),
    ]:
        with pytest.raises(FormatError):
            write_safetensors(path, wrong, given, {})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_mutations_are_refused_or_read_as_the_library_reads_them(tmp_path: Path) -> None:
    values = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.arange(5, dtype="i2")}
    whole = tmp_path / "whole"
    write_safetensors(whole, entries(values), values.values(), {"k": "v"})
    data = whole.read_bytes()
    opened = 0
    for seed in range(200):
        path = tmp_path / "mutated"
        path.write_bytes(mutate(data, random.Random(seed)))
        try:
            checkpoint = open_checkpoint(path)
        except WarmstartError:
            continue
        opened += 1
        truth = safetensors.numpy.load_file(path)
        assert set(truth) == set(checkpoint.entries)
        for name in truth:
            assert checkpoint.read(name).tobytes() == truth[name].tobytes()
    assert 0 < opened < 190


def mutate(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)
