"""Marian's binary files, against what marian-conv itself wrote."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError, WarmstartError
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.marian import MarianCheckpoint
from warmstart.formats.marian_bin import DESCRIBED, TYPES

GOLDEN = Path(__file__).parent.parent / "golden" / "marian-bin"
CODES = {name: code for code, name in {**TYPES, **DESCRIBED}.items()}
Item = tuple[str, int, tuple[int, ...], bytes]


def binary(items: Sequence[Item], *, version: int = 1, count: int | None = None, padding: int | None = None) -> bytes:
    """The bytes of a file, made here from the layout alone, with data padded to 256 bytes as Marian pads it."""
    parts = [struct.pack("<QQ", version, len(items) if count is None else count)]
    padded = [data + b"\0" * (-len(data) % 256) for *_, data in items]
    for (name, kind, shape, _), data in zip(items, padded, strict=True):
        parts.append(struct.pack("<4Q", len(name.encode()) + 1, kind, len(shape), len(data)))
    parts += [name.encode() + b"\0" for name, *_ in items]
    parts += [struct.pack(f"<{len(shape)}i", *shape) for _, _, shape, _ in items]
    at = sum(map(len, parts)) + 8
    gap = (at // 256 + 1) * 256 - at
    return b"".join([*parts, struct.pack("<Q", gap if padding is None else padding), b"\0" * gap, *padded])


def items_of(arrays: Mapping[str, Array]) -> list[Item]:
    return [(name, CODES[array.dtype.name], array.shape, array.tobytes()) for name, array in arrays.items()]


def opened(path: Path) -> MarianCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, MarianCheckpoint)
    return checkpoint


class TestContract(FormatContract):
    FORMAT = "marian"
    DTYPES = tuple(TYPES.values())

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        (directory / "model.bin").write_bytes(binary(items_of(arrays)))
        return directory

    def twice(self, directory: Path) -> Path:
        one: Item = ("a", CODES["float32"], (1, 1), b"1234")
        (directory / "model.bin").write_bytes(binary([one, one]))
        return directory

    def sparse(self, directory: Path) -> Path:
        path, rows = directory / "model.bin", 4_883  # of 256,000 floats
        start = struct.pack("<QQ4Q", 1, 1, 5, CODES["float32"], 2, rows * 1_024_000) + b"Wemb\0"
        start += struct.pack("<2iQ", rows, 256_000, 0)
        with path.open("wb") as file:
            file.write(start)
            file.truncate(len(start) + rows * 1_024_000)
        return path


@pytest.mark.parametrize("kind", ["float32", "packed8avx2", "intgemm8", "intgemm8avx2", "intgemm8avx512", "intgemm16"])
def test_files_of_marian_conv(kind: str) -> None:
    checkpoint, truth = opened(GOLDEN / f"{kind}.bin"), opened(GOLDEN / "model.npz")
    assert set(checkpoint.entries) == set(truth.entries)
    assert checkpoint.metadata["config"] == truth.metadata["config"] == {"type": "transformer", "dim-emb": 64}
    matrices = {"encoder_l1_ffn_W1"} if kind != "float32" else set()
    for name, entry in checkpoint.entries.items():
        assert entry.shape == truth.entries[name].shape
        assert entry.dtype == (kind if name in matrices else "float32")
        assert entry.readable == (name not in matrices)
        if entry.readable:
            np.testing.assert_array_equal(checkpoint.read(name), truth.read(name))
        else:
            assert entry.nbytes % 256 == 0
            with pytest.raises(FormatError, match="can only be described"):
                checkpoint.read(name)


@pytest.mark.parametrize("kind", ["intgemm8", "intgemm16"])
def test_integers_that_are_alike_for_every_processor(kind: str) -> None:
    values, factor = opened(GOLDEN / f"{kind}.bin").quantized("encoder_l1_ffn_W1")
    weights = opened(GOLDEN / "model.npz").read("encoder_l1_ffn_W1")
    assert values.shape == weights.shape
    assert np.abs(values / factor - weights).max() <= 0.5001 / factor
    for name in ("encoder_Wemb", "intgemm8avx2"):
        with pytest.raises((FormatError, KeyError)):
            opened(GOLDEN / f"{'intgemm8avx2' if name == 'intgemm8avx2' else kind}.bin").quantized(name)


def test_a_directory_as_it_is_published(tmp_path: Path) -> None:
    (tmp_path / "model.intgemm8.bin").write_bytes((GOLDEN / "intgemm8.bin").read_bytes())
    (tmp_path / "model.intgemm8.bin.decoder.yml").write_text("beam-size: 1\n")
    (tmp_path / "lex.bin").write_bytes(b"\xf5\x17\x34\x01\xd5\x48\x1a\xf1" + b"\0" * 100)
    checkpoint = opened(tmp_path)
    assert checkpoint.metadata["decoder"] == {"beam-size": 1}
    assert [str(file) for file in checkpoint.files] == ["model.intgemm8.bin", "model.intgemm8.bin.decoder.yml"]


F32, ONE = CODES["float32"], ("Wemb", CODES["float32"], (1, 2), b"12345678")
HOSTILE = {
    "count": binary([ONE], count=2**40),
    "count of 2": binary([ONE], count=2),
    "negative length": binary([("Wemb", F32, (-1, -2), b"12345678")]),
    "lengths that overflow": binary([("Wemb", F32, (2**31 - 1,) * 4, b"12345678")]),
    "rank": binary([ONE]).replace(struct.pack("<4Q", 5, F32, 2, 256), struct.pack("<4Q", 5, F32, 2**31, 256)),
    "a type of no one": binary([ONE]).replace(struct.pack("<4Q", 5, F32, 2, 256), struct.pack("<4Q", 5, 0x999, 2, 256)),
    "size": binary([ONE]).replace(struct.pack("<4Q", 5, F32, 2, 256), struct.pack("<4Q", 5, F32, 2, 2**63)),
    "size below the shape's": binary([("Wemb", F32, (100, 100), b"12345678")]),
    "intgemm below the shape's": binary([("Wemb", CODES["intgemm8"], (16, 16), b"1" * 256)]),
    "name without end": binary([ONE]).replace(b"Wemb\0", b"Wembx"),
    "name with a zero": binary([ONE]).replace(b"Wemb\0", b"W\0mb\0"),
    "name length": binary([ONE]).replace(struct.pack("<4Q", 5, F32, 2, 256), struct.pack("<4Q", 2**50, F32, 2, 256)),
    "name of nothing": binary([ONE]).replace(struct.pack("<4Q", 5, F32, 2, 256), struct.pack("<4Q", 0, F32, 2, 256)),
    "padding": binary([ONE], padding=2**63),
    "truncated": binary([ONE])[:-1],
    "bytes behind": binary([ONE]) + b"\0",
    "no array at all": binary([]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(tmp_path: Path, what: str) -> None:
    (tmp_path / "model.bin").write_bytes(HOSTILE[what])
    with pytest.raises(WarmstartError):
        open_checkpoint(tmp_path / "model.bin")


def test_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(binary([ONE], version=2))
    with pytest.raises(FormatError, match="encrypted"):
        open_checkpoint(path)
    path.write_bytes(struct.pack(">QQ4Q", 1, 1, 5, F32, 2, 256) + b"Wemb\0" + b"\0" * 300)
    with pytest.raises(FormatError, match="big-endian"):
        open_checkpoint(path)


def test_damaged_options(tmp_path: Path) -> None:
    for text in (b"a: [\0", b"- list\0", b"\xff\xfe"):
        options: Item = ("special:model.yml", CODES["int8"], (len(text),), text)
        (tmp_path / "model.bin").write_bytes(binary([ONE, options]))
        with pytest.raises(CorruptCheckpoint, match="YAML"):
            open_checkpoint(tmp_path)
