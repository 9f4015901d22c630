"""TensorFlow's checkpoints made to harm: each is one clear error, soon and in little memory."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from bundles import ALL, HEADER, bundle, entry, shape

import hostile
from warmstart.errors import CorruptCheckpoint, FormatError, SourceError, WarmstartError
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.tensorflow import BundleCheckpoint, write_bundle
from warmstart.formats.tensorflow.crc32c import crc32c, masked
from warmstart.formats.tensorflow.names import full_names
from warmstart.formats.tensorflow.protobuf import Malformed, fields, put_bytes, put_number, put_varint, varint
from warmstart.formats.tensorflow.slices import slice_key
from warmstart.formats.tensorflow.snappy import decompress
from warmstart.formats.tensorflow.sstable import MAGIC, read_table

GOLDEN = Path(__file__).parents[1] / "golden/tensorflow"
Item = tuple[bytes, bytes]


def slow_crc(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_crc32c() -> None:
    """The check value and the examples of RFC 3720, B.4, and the definition, at lengths that change the way."""
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert {data: crc32c(data) for data in known} == known
    chance = random.Random(1)
    for length in (0, 1, 511, 512, 513, 4099, 45_481, 322_152 - 1, 322_152, 322_155, 598_829):
        data = chance.randbytes(length)
        whole = crc32c(data)
        if length < 5000 or length == 322_155:
            assert whole == slow_crc(data), length
        for cut in (length // 3, length - length // 5):
            assert crc32c(memoryview(data)[cut:], crc32c(data[:cut])) == whole, (length, cut)


def test_snappy() -> None:
    """Literals of all lengths and copies of all kinds, by the format's description."""
    long = bytes(range(256)) * 300
    assert decompress(b"\0") == b""
    assert decompress(b"\x03\x08abc") == b"abc"
    assert decompress(put_varint(100) + bytes([60 << 2, 99]) + long[:100]) == long[:100]
    assert (
        decompress(put_varint(70_000) + bytes([62 << 2]) + (69_999).to_bytes(3, "little") + long[:70_000])
        == long[:70_000]
    )
    assert decompress(b"\x0b\x08abc" + bytes([(8 - 4) << 2 | 1, 3])) == b"abcabcabcab"
    assert decompress(put_varint(65) + b"\0x" + bytes([63 << 2 | 2, 1, 0])) == b"x" * 65
    assert decompress(put_varint(9) + b"\x08abc" + bytes([5 << 2 | 3, 2, 0, 0, 0])) == b"abcbcbcbc"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        put_varint(2**40) + b"\0x",
        put_varint(2**63) * 2,
        b"\x04\x08abc",
        b"\x02\x08abc",
        b"\x05\xf0",
        b"\x05\xfc\xff\xff\xff\x7fabc",
        b"\x06\x08abc\x05",
        b"\x06\x08abc\x09\x04",
        b"\x06\x08abc\x0a\x00\x00",
        b"\x80\x01" + b"\0x" + bytes([63 << 2 | 2, 1, 0]) * 3,
    ],
)
def test_snappy_that_lies(data: bytes) -> None:
    with pytest.raises(Malformed):
        decompress(data)


def test_a_snappy_bomb_takes_no_memory() -> None:
    bomb = put_varint(2**30) + b"\0x" + bytes([63 << 2 | 2, 1, 0]) * 1000
    with hostile.limits(1), pytest.raises(Malformed):
        decompress(bomb)


def test_numbers() -> None:
    for value in (0, 127, 128, 2**32, 2**64 - 1):
        assert varint(b"x" + put_varint(value), 1) == (value, 1 + len(put_varint(value)))
    for wrong in (b"", b"\x80", b"\x80" * 10 + b"\0", b"\xff" * 9 + b"\x02"):
        with pytest.raises(Malformed):
            varint(wrong, 0)
    for wrong in (b"\x0a\x05abcd", b"\x0b", b"\x09abc", b"\x00\x00", b"\x0a" + b"\xff" * 9 + b"\x01"):
        with pytest.raises(Malformed):
            list(fields(wrong))


def test_object_graphs_that_lie() -> None:
    graph = next(text for name, text in open_all(GOLDEN / "keras3") if name.startswith("_CHECKPOINTABLE")).item()
    assert len(full_names(graph)) > 5
    for number in range(hostile.count()):
        with contextlib.suppress(Malformed), hostile.limits(1):
            assert all(isinstance(name, str) for name in full_names(hostile.mutate(graph, number)))


def open_all(path: Path) -> Iterable[tuple[str, Array]]:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, BundleCheckpoint)
    return checkpoint.tensors()


def test_strings_that_share_their_bytes_take_no_memory(tmp_path: Path) -> None:
    """A thousand names for the same 60,000 strings."""
    write_bundle(tmp_path / "m", [("s", np.array([b""] * 60_000, object))])
    index = (tmp_path / "m.index").read_bytes()
    _, (_, described) = read_table(memoryview(index))
    data = (tmp_path / "m.data-00000-of-00001").read_bytes()
    prefix = bundle(tmp_path / "many", [(b"s%03d" % number, described) for number in range(1000)], data)
    with hostile.limits(2):
        strings = open_checkpoint(prefix).metadata["strings"]
    assert strings["s999"] == {"shape": [60_000], "nbytes": len(data)}


def test_the_keys_of_slices_sort_like_slices() -> None:
    """As TensorFlow itself wrote them (two of golden/tensorflow/saver), and in the order of the numbers."""
    assert slice_key(b"columns", [(0, 2), (100, 100)]) == b"\0columns\0\1\1\2\x80\x82\xc0d\xc0d"
    assert slice_key(b"a\0b\xff", [ALL]) == b"\0a\0\xffb\xff\0\0\1\1\1\x80\x7f"
    numbers = sorted({sign * 2**power + step for power in range(63) for sign in (-1, 1) for step in (-1, 0, 1)})
    keys = [slice_key(b"a", [(number, 1)]) for number in numbers]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def simple(**changes: object) -> list[Item]:
    return [(b"a", entry(1, [2], **{"size": 8, **changes}))]  # type: ignore[arg-type]


def cut(*parts: tuple[list[tuple[int, int]], tuple[int, ...], int], full: tuple[int, ...] = (4, 2)) -> list[Item]:
    """The variable ``a``, partitioned into ``parts``: extents, the shape that is stored, and an offset."""
    listed = [(b"a", entry(1, full, slices=[extents for extents, _, _ in parts]))]
    stored = {
        slice_key(b"a", extents): entry(1, lengths, offset=offset, size=4 * int(np.prod(lengths)))
        for extents, lengths, offset in parts
    }
    return sorted([*stored.items(), *listed])


UPPER, LOWER = [(0, 2), (0, 2)], [(2, 2), (0, 2)]


@pytest.mark.parametrize(
    "items",
    [
        simple(size=-8),
        simple(size=2**62),
        simple(size=4),
        simple(offset=-1),
        simple(offset=2**63 - 1),
        simple(offset=57),
        simple(shard=1),
        simple(shard=-1),
        simple(shard=2**31),
        [(b"a", entry(0, [2], size=8))],
        [(b"a", entry(99, [2], size=8))],
        [(b"a", entry(1, [-2], size=8))],
        [(b"a", entry(1, [2**62, 4], size=0))],
        [(b"a", entry(1, [1] * 40, size=4))],
        [(b"a", put_number(1, 1) + put_bytes(2, put_number(3, 1)) + put_number(5, 8))],
        [(b"a", put_bytes(1, b"x"))],
        [(b"a", put_number(2, 5))],
        [(b"a", b"\x28" + b"\xff" * 11)],
        [(b"\xff\xfe", entry(1, [2], size=8))],
        [(b"b", entry(1, [2], size=8)), (b"a", entry(1, [2], size=8))],
        [(b"a", entry(7, [2**40], size=20))],
        [(b"a", entry(7, [2], size=20))],
        [(b"\0a\0\1\1\1\x80\x82", entry(1, [2], size=8))],
        cut((UPPER, (2, 2), 0)),
        cut((UPPER, (2, 2), 0), ([(1, 3), (0, 2)], (3, 2), 16)),
        cut((UPPER, (2, 2), 0), (LOWER, (2, 2), 8)),
        cut((UPPER, (2, 2), 0), (LOWER, (2, 2), 0)),
        cut((UPPER, (2, 2), 0), ([(2, 3), (0, 2)], (3, 2), 16)),
        cut((UPPER, (2, 2), 0), ([(2, 2), (0, 2)], (1, 4), 16)),
        cut(([(0, -1), (0, -1)], (4, 2), 0), ([(0, 4), (0, 2)], (4, 2), 32)),
        cut(([(-4, 4), (0, 2)], (4, 2), 0)),
        cut((UPPER, (2, 2), 0), ([(2, 2)], (2, 2), 16)),
        cut((UPPER, (2, 2), 0), (LOWER, (2, 2), 16))[:2],
        cut((UPPER, (2, 2), 0), (LOWER, (2, 2), 2**40)),
    ],
)
def test_entries_that_lie(items: list[Item], tmp_path: Path) -> None:
    prefix = bundle(tmp_path / "model", items, bytes(64))
    with hostile.limits(2), pytest.raises(FormatError) as caught:
        hostile.read_all(prefix)
    assert "model" in str(caught.value.where)


def test_slices_that_do_not_lie(tmp_path: Path) -> None:
    value = np.arange(8, dtype="f4").reshape(4, 2)
    prefix = bundle(tmp_path / "rows", cut((UPPER, (2, 2), 0), (LOWER, (2, 2), 16)), value.tobytes())
    np.testing.assert_array_equal(open_checkpoint(prefix).read("a"), value)
    grid = cut(*(([(r, 2), (c, 1)], (2, 1), 16 * c + 8 * (r // 2)) for r in (0, 2) for c in (0, 1)))
    prefix = bundle(tmp_path / "grid", grid, value.T.tobytes())
    np.testing.assert_array_equal(open_checkpoint(prefix).read("a"), value)
    prefix = bundle(tmp_path / "all", cut(([ALL, ALL], (4, 2), 0)), value.tobytes())
    np.testing.assert_array_equal(open_checkpoint(prefix).read("a"), value)


@pytest.mark.parametrize(
    "header",
    [None, b"", put_number(1, 0), put_number(1, -1), put_number(1, 1) + put_number(2, 7), b"\xff", put_number(1, 2**40),
     put_number(1, 1) + put_bytes(3, put_number(2, 5)), put_number(1, 1) + put_number(3, 1)],
)  # fmt: skip
def test_headers_that_lie(header: bytes | None, tmp_path: Path) -> None:
    with pytest.raises(WarmstartError):
        open_checkpoint(bundle(tmp_path / "model", simple(), bytes(64), header=header))


def block(content: bytes, compression: int = 0) -> bytes:
    plain = content + bytes([compression])
    return plain + struct.pack("<I", masked(crc32c(plain)))


def items_block(*items: tuple[int, bytes, bytes], restarts: int = 1) -> bytes:
    """A block's content from (bytes shared with the key before, rest of the key, value)."""
    body = b"".join(put_varint(s) + put_varint(len(k)) + put_varint(len(v)) + k + v for s, k, v in items)
    return body + bytes(4) + struct.pack("<I", restarts)


def table(*contents: tuple[bytes, int], handles: list[tuple[int, int]] | None = None) -> bytes:
    """A table of blocks (content, compression), or with the handles given instead of the true ones."""
    data, places = b"", []
    for content, compression in contents:
        places.append((len(data), len(content)))
        data += block(content, compression)
    listed = handles or places
    index = items_block(*((0, b"%05d" % k, put_varint(o) + put_varint(s)) for k, (o, s) in enumerate(listed)))
    footer = put_varint(0) * 2 + put_varint(len(data)) + put_varint(len(index))
    return data + block(index) + footer.ljust(40, b"\0") + MAGIC


HEAD = items_block((0, b"", HEADER))
ONE = items_block((0, b"", HEADER), (0, b"a", entry(1, [2], size=8)))
GROWING = items_block((0, b"", HEADER), (0, b"a", b""), *((k, b"a", b"") for k in range(1, 30_000)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MAGIC,
        bytes(40) + MAGIC,
        b"\xff" * 40 + MAGIC,
        (put_varint(0) * 2 + put_varint(2**63) + put_varint(2**63)).ljust(40, b"\0") + MAGIC,
        table((HEAD, 0), handles=[(0, 2**40)]),
        table((HEAD, 0), handles=[(2**63, 2**63)]),
        table((HEAD, 0), handles=[(0, len(HEAD)), (0, len(HEAD))]),
        table((HEAD, 0), handles=[(0, len(HEAD) - 1)]),
        table((HEAD, 0), handles=[(0, 0)]),
        table((HEAD, 7)),
        table((HEAD, 1)),
        table((b"", 0)),
        table((b"abc", 0)),
        table((items_block((0, b"", HEADER), restarts=2**31), 0)),
        table((items_block((5, b"", HEADER)), 0)),
        table((items_block((0, b"", HEADER))[:-12] + bytes(8), 0)),
        table((ONE, 0), (ONE, 0)),
        table((put_varint(2**32) + b"\0x" + bytes([63 << 2 | 2, 1, 0]) * 3000, 1)),
        table((GROWING, 0)),
    ],
)
def test_tables_that_lie(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.index").write_bytes(data)
    with hostile.limits(2), pytest.raises(WarmstartError):
        open_checkpoint(tmp_path / "model.index")


def test_a_compressed_table_that_does_not_lie(tmp_path: Path) -> None:
    literal = bytes([61 << 2]) + (len(ONE) - 1).to_bytes(2, "little") + ONE
    (tmp_path / "model.index").write_bytes(table((put_varint(len(ONE)) + literal, 1)))
    (tmp_path / "model.data-00000-of-00001").write_bytes(struct.pack("<2f", 1, 2))
    assert open_checkpoint(tmp_path / "model").read("a").tolist() == [1, 2]


def test_tables_of_leveldb_are_not_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "000005.ldb").write_bytes(table((items_block((0, b"key", b"value")), 0)))
    with pytest.raises(FormatError, match="not a checkpoint"):
        open_checkpoint(tmp_path / "000005.ldb")


@pytest.mark.parametrize(
    "text",
    [
        "../secret",
        "a/../../secret",
        "/etc/../secret",
        "link/secret",
        "loop/secret",
        r"..\\secret",
        "..",
        "/",
        ".",
        "",
        r"\\000",
        "\\",
    ],
)
def test_state_files_do_not_lead_out(text: str, tmp_path: Path) -> None:
    write_bundle(tmp_path / "secret", {"a": np.ones(2)}.items())
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    (tmp_path / "in/loop").symlink_to(tmp_path / "in/loop")
    (tmp_path / "in/checkpoint").write_text(f'model_checkpoint_path: "{text}"\n')
    with pytest.raises(WarmstartError):
        open_checkpoint(tmp_path / "in/checkpoint")
    with pytest.raises(WarmstartError):
        open_checkpoint(tmp_path / "in")


def test_state_files_name_what_lies_beside_or_below_them(tmp_path: Path) -> None:
    write_bundle(tmp_path / "in/model", {"a": np.ones(2)}.items())
    write_bundle(tmp_path / "in/below/model", {"a": np.zeros(2)}.items())
    for text, value in (("/gone/model", 1), ("model", 1), ("below/model", 0), (r"C:\\gone\\model", 1),
                        ("gone/model", 1), ("../in/model", 1), (r"\155odel", 1), (r"\x6dodel", 1)):  # fmt: skip
        (tmp_path / "in/checkpoint").write_text(f'model_checkpoint_path: "{text}"\nall_model_checkpoint_paths: "x"\n')
        assert open_checkpoint(tmp_path / "in/checkpoint").read("a")[0] == value, text


def link_out(file: Path) -> None:
    target = file.parent.parent / "secret"
    file.rename(target)
    file.symlink_to(target)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(("harm", "error"), [(link_out, FormatError), (pipe, SourceError), (directory, SourceError)])
def test_data_files_that_are_something_else(
    harm: Callable[[Path], None], error: type[WarmstartError], tmp_path: Path
) -> None:
    write_bundle(tmp_path / "in/model", {"a": np.ones(2)}.items())
    harm(tmp_path / "in/model.data-00000-of-00001")
    with pytest.raises(error, match="data file"):
        open_checkpoint(tmp_path / "in/model").read("a")


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    """Caches keep files under their checksums and link to them: both files then lie in one other directory."""
    write_bundle(tmp_path / "blobs/model", {"a": np.ones(2)}.items())
    (tmp_path / "snapshot").mkdir()
    for ending in (".index", ".data-00000-of-00001"):
        (tmp_path / f"snapshot/model{ending}").symlink_to(tmp_path / f"blobs/model{ending}")
    assert open_checkpoint(tmp_path / "snapshot/model").read("a").tolist() == [1, 1]


@pytest.mark.parametrize("name", ["saver", "keras3"])
def test_damage_under_a_checksum_that_holds(name: str, tmp_path: Path) -> None:
    """Blocks have checksums, so that chance alone never gets to what is in them: here they are made to hold."""
    whole = GOLDEN / name
    index = next(whole.glob("*.index"))
    for file in whole.glob("*.data-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with contextlib.closing(io.BytesIO(index.read_bytes())) as file:
        items = list(read_table(memoryview(file.getvalue())))
    content = bytearray()
    for key, value in items:
        content += put_varint(0) + put_varint(len(key)) + put_varint(len(value)) + key + value
    opened = 0
    for number in range(hostile.count()):
        chance = random.Random(number)
        if number % 2:
            mutant = hostile.mutate(bytes(content), number)
        else:
            place = chance.randrange(len(items))
            changed = list(items)
            changed[place] = (items[place][0], hostile.mutate(items[place][1], number))
            mutant = items_block(*((0, key, value) for key, value in changed))[:-8]
        (tmp_path / index.name).write_bytes(table((mutant + bytes(4) + struct.pack("<I", 1), 0)))
        with hostile.limits(2), contextlib.suppress(WarmstartError):
            hostile.read_all(tmp_path / index.name)
            opened += 1
    assert opened  # some damage is none, or cannot be told


def test_damaged_data_is_the_right_data_or_refused(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(60.0),
        "b/Adam": np.ones(7, "f4"),
        "b": np.arange(7, dtype="f4"),
        "c": np.ones((3, 0), "i1"),
    }
    write_bundle(tmp_path / "model", [*arrays.items(), ("words", np.array([b"one", b"two" * 20], object))])
    file = tmp_path / "model.data-00000-of-00001"
    data = file.read_bytes()
    same = 0
    for number in range(hostile.count()):
        file.write_bytes(hostile.mutate(data, number))
        try:
            checkpoint = open_checkpoint(tmp_path / "model")
            for name in (*arrays, "words"):
                checkpoint.verify(name)
        except (CorruptCheckpoint, SourceError):
            continue
        same += 1
        assert all(np.array_equal(checkpoint.read(name), arrays[name]) for name in checkpoint.entries)
        assert np.array_equal(checkpoint.read_slot("b", "m"), arrays["b/Adam"])
    assert same < hostile.count() / 4


def test_shapes_are_encoded_as_tensorflow_does() -> None:
    assert shape() == b""
    assert shape(3, 0) == b"\x12\x02\x08\x03\x12\x00"
    assert entry(1, []) == b"\x08\x01\x12\x00"
