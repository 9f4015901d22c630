"""CTranslate2's model.bin: versions 1 to 6, against files that CTranslate2 itself wrote."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError, SourceError, UnknownFormat
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.ctranslate2 import CTranslate2Checkpoint, read_vocabulary
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import TYPES, write_ctranslate2

GOLDEN = Path(__file__).parent.parent / "golden" / "ctranslate2"
Variable = tuple[str, tuple[int, ...], str, bytes]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<H", len(data) + 1) + data + b"\0"


def header(version: int, name: str, shape: tuple[int, ...], dtype: str, size: int) -> bytes:
    """A variable up to its data."""
    start = text(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    if version > 3:
        return start + struct.pack("<BI", TYPES.index(dtype), size)
    item = {"float32": 4, "int16": 2, "int8": 1}[dtype]
    return start + struct.pack("<BI", item, size // item)


def model_bin(
    version: int,
    variables: list[Variable],
    aliases: Mapping[str, str] | None = None,
    specification: str = "TransformerSpec",
    revision: int = 3,
) -> bytes:
    """The bytes of a file, made here from the layout alone."""
    parts = [struct.pack("<I", version)]
    if version > 1:
        parts += [text(specification), struct.pack("<I", revision)]
    parts.append(struct.pack("<I", len(variables)))
    for name, shape, dtype, data in variables:
        parts += [header(version, name, shape, dtype, len(data)), data]
    if version > 2:
        parts.append(struct.pack("<I", len(aliases or {})))
        parts += [text(alias) + text(target) for alias, target in (aliases or {}).items()]
    return b"".join(parts)


def variables_of(arrays: Mapping[str, Array]) -> list[Variable]:
    return [(name, array.shape, array.dtype.name, array.tobytes()) for name, array in arrays.items()]


def opened(path: Path) -> CTranslate2Checkpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, CTranslate2Checkpoint)
    return checkpoint


class TestContract(FormatContract):
    FORMAT = "ctranslate2"
    DTYPES = TYPES

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
        write_ctranslate2(directory / "model.bin", "TransformerSpec", 7, entries, arrays.values())
        return directory

    def twice(self, directory: Path) -> Path:
        one: Variable = ("a", (2,), "int8", b"ab")
        (directory / "model.bin").write_bytes(model_bin(6, [one, one]))
        return directory

    def sparse(self, directory: Path) -> Path:
        """Version 3 counts items, so an array may have 16 GB; from version 4 on it counts bytes, below 4 GiB."""
        path, length = directory / "model.bin", 1_250_000_000
        start = struct.pack("<I", 3) + text("TransformerSpec") + struct.pack("<II", 3, 1)
        start += header(3, "decoder/embeddings/weight", (length,), "float32", 4 * length)
        with path.open("wb") as file:
            file.write(start)
            file.truncate(len(start) + 4 * length)
            file.seek(0, 2)
            file.write(struct.pack("<I", 0))
        return path


class TestDamagedModel(FormatContract):
    """A whole model of an old version, whose small files are damaged too."""

    FORMAT = "ctranslate2"
    DTYPES = ("float32", "int8", "int16")
    NAMES = ("encoder/layer_0/ffn/linear_0/weight", "decoder/projection/bias")

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        (directory / "model.bin").write_bytes(model_bin(2, variables_of(arrays)))
        (directory / "config.json").write_text('{"unk_token": "<unk>"}')
        (directory / "source_vocabulary.txt").write_text("<unk>\na\n")
        (directory / "target_vocabulary.json").write_text('["<unk>", "b"]')
        (directory / "vmap.txt").write_text("\t<unk> b\n")
        return directory


@pytest.mark.parametrize("name", ["v4", "v4-int16", "v5", "v6"])
def test_files_of_the_library(name: str) -> None:
    checkpoint = opened(GOLDEN / name)
    ties = json.loads((GOLDEN / f"{name}.aliases.json").read_text())
    assert checkpoint.ties == ties
    assert checkpoint.metadata["binary_version"] == int(name[1])
    assert checkpoint.metadata["specification"] == "TransformerSpec"
    assert checkpoint.metadata["revision"] == {"v4": 3, "v5": 4, "v6": 7}[name[:2]]
    assert next(iter(checkpoint.metadata["vocabularies"].values()))["size"] == 5
    with np.load(GOLDEN / f"{name}.npz") as truth:
        assert [*truth.files, *ties] == list(checkpoint.entries)
        for key in truth.files:
            assert checkpoint.read(key).dtype == truth[key].dtype
            np.testing.assert_array_equal(checkpoint.read(key), truth[key])
        for alias, target in ties.items():
            np.testing.assert_array_equal(checkpoint.read(alias), truth[target])
            np.testing.assert_array_equal(checkpoint.scale(alias), truth[f"{target}_scale"])


@pytest.mark.parametrize("name", ["v4", "v5", "v6"])
def test_what_is_written_has_the_bytes_of_the_library(name: str, tmp_path: Path) -> None:
    """Version 6 byte for byte; of versions 4 and 5 only the version's own number differs."""
    checkpoint = opened(GOLDEN / name)
    entries = [entry for key, entry in checkpoint.entries.items() if key not in checkpoint.ties]
    write_ctranslate2(
        tmp_path / "model.bin",
        checkpoint.metadata["specification"],
        checkpoint.metadata["revision"],
        entries,
        (checkpoint.read(entry.name) for entry in entries),
        checkpoint.ties,
    )
    written, truth = (tmp_path / "model.bin").read_bytes(), (GOLDEN / name / "model.bin").read_bytes()
    assert written[:4] == struct.pack("<I", 6)
    assert written[4:] == truth[4:]


def test_version_3_by_hand(tmp_path: Path) -> None:
    """The golden of version 4 with sizes as version 3 has them (the interop tests show it to CTranslate2)."""
    golden = opened(GOLDEN / "v4")
    arrays = {name: golden.read(name) for name in golden.entries if name not in golden.ties}
    (tmp_path / "model.bin").write_bytes(model_bin(3, variables_of(arrays), golden.ties))
    checkpoint = opened(tmp_path)
    assert (checkpoint.metadata["binary_version"], checkpoint.metadata["revision"]) == (3, 3)
    assert checkpoint.entries == golden.entries
    assert checkpoint.ties == golden.ties
    assert all(np.array_equal(checkpoint.read(name), golden.read(name)) for name in golden.entries)


def test_scalars_are_entries_and_attributes() -> None:
    new, old = opened(GOLDEN / "v6"), opened(GOLDEN / "v5")
    assert new.metadata["attributes"]["decoder/num_heads"] == 2
    assert new.entries["decoder/num_heads"] == Entry("decoder/num_heads", (), "int16")
    assert new.metadata["attributes"]["decoder/alignment_layer"] == -1
    assert new.metadata["config"]["unk_token"] == "<unk>"
    assert old.metadata["attributes"]["eos_token"] == "</s>"
    assert not any(name.endswith("_scale") for name in opened(GOLDEN / "v4-int16").metadata["attributes"])


def test_scales(tmp_path: Path) -> None:
    weights = {
        "a/weight": np.ones((2, 3), "i1"),
        "a/weight_scale": np.array([1, 2], "f4"),
        "b/weight": np.ones((2, 3), "i2"),
        "b/bias": np.ones(3, "f4"),
        "num_heads": np.array(8, "i2"),
    }
    (tmp_path / "model.bin").write_bytes(model_bin(2, variables_of(weights)))
    checkpoint = opened(tmp_path)
    np.testing.assert_array_equal(checkpoint.scale("a/weight"), [1, 2])
    assert checkpoint.scale("b/weight") == 1000
    assert checkpoint.scale("b/bias") is None
    assert checkpoint.scale("num_heads") is None
    with pytest.raises(KeyError):
        checkpoint.scale("c/weight")


def test_vocabularies_of_every_naming(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(model_bin(6, [("x", (), "int8", b"a")]))
    (tmp_path / "source_1_vocabulary.json").write_text('["<unk>", "a", "\\u0431"]')
    (tmp_path / "source_2_vocabulary.json").write_text("[]")
    (tmp_path / "target_vocabulary.txt").write_bytes(b"<unk>\r\n\r\n c\r\n")
    (tmp_path / "shared_vocabulary.txt").write_bytes("<unk>\nб\u2028\x85\r\n\n".encode())
    (tmp_path / "vocabulary.txt").write_text("old")
    (tmp_path / "vocabulary.json").write_text('["new", "er"]')
    (tmp_path / "vmap.txt").write_text("\ta b\nx\tc\n")
    checkpoint = opened(tmp_path)
    assert checkpoint.metadata["vocabularies"] == {
        "shared": {"file": "shared_vocabulary.txt", "size": 3},
        "source_1": {"file": "source_1_vocabulary.json", "size": 3},
        "source_2": {"file": "source_2_vocabulary.json", "size": 0},
        "target": {"file": "target_vocabulary.txt", "size": 3},
        "vocabulary": {"file": "vocabulary.json", "size": 2},
    }
    assert checkpoint.metadata["vocabulary_map"] == {"file": "vmap.txt", "size": 2}
    assert checkpoint.vocabulary("source_1") == ["<unk>", "a", "б"]
    assert checkpoint.vocabulary("target") == ["<unk>", "", " c"]
    assert checkpoint.vocabulary("shared") == ["<unk>", "б\u2028\x85\r", ""]
    assert checkpoint.vocabulary("vocabulary") == ["new", "er"]
    with pytest.raises(KeyError):
        checkpoint.vocabulary("source")
    for damaged in ("{}", "[1]", "[", "[" * 100_000, '["\ud800"]'):
        (tmp_path / "vocabulary.json").write_bytes(damaged.encode(errors="surrogatepass"))
        with pytest.raises(CorruptCheckpoint, match=r"vocabulary\.json"):
            read_vocabulary(tmp_path / "vocabulary.json")


def test_versions_above_and_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for version in (7, 12):
        path.write_bytes(model_bin(version, [("x", (), "int8", b"a")]))
        with pytest.raises(FormatError, match="newer version") as caught:
            open_checkpoint(tmp_path)
        assert (caught.value.expected, caught.value.found) == ("1 to 6", str(version))
    name = b"TransformerSpec\0"
    path.write_bytes(struct.pack(">IH", 6, len(name)) + name + struct.pack(">II", 7, 0) + b"\0" * 20)
    with pytest.raises(FormatError, match="big-endian"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"), (b"PK\x05\x06" + b"\0" * 18, "zip")],
)
def test_what_is_called_model_bin_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    (tmp_path / "vocabulary.json").write_text("[]")
    with pytest.raises(UnknownFormat) as caught:
        open_checkpoint(tmp_path)
    assert words in str(caught.value.found)


def test_a_model_beside_what_it_was_converted_from_asks(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(model_bin(6, [("x", (), "int8", b"a")]))
    np.savez(tmp_path / "model.npz", encoder_l1_self_Wq=np.ones((2, 2), "f4"))
    with pytest.raises(FormatError, match="several") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.found == "model.npz (last), model.bin"
    assert open_checkpoint(f"{tmp_path}@model.bin").format == "ctranslate2"


ONE = ("a/weight", (2, 2), "int8", b"abcd")


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new, 1)


HOSTILE = {
    "count of variables": patched(model_bin(6, [ONE]), struct.pack("<II", 3, 1), struct.pack("<II", 3, 2**32 - 1)),
    "one variable more": patched(model_bin(6, [ONE]), struct.pack("<II", 3, 1), struct.pack("<II", 3, 2)),
    "negative length": model_bin(6, [("a/weight", (2**32 - 1, 2), "int8", b"abcd")]),
    "lengths that overflow": model_bin(6, [("a/weight", (2**31, 2**31, 4), "float32", b"")]),
    "lengths beyond numpy": model_bin(6, [("a/weight", (0, *[2**32 - 1] * 3), "float32", b"")]),
    "rank of 200": patched(model_bin(6, [ONE]), b"weight\0\x02", b"weight\0\xc8"),
    "no closing zero": patched(model_bin(6, [ONE]), b"a/weight\0", b"a/weightx"),
    "a zero within": patched(model_bin(6, [ONE]), b"a/weight\0", b"a\0weight\0"),
    "an empty string": patched(model_bin(6, [ONE]), text("a/weight"), b"\0\0"),
    "a name without end": patched(model_bin(6, [ONE]), struct.pack("<H", 9) + b"a/", b"\xff\xffa/"),
    "not UTF-8": patched(model_bin(6, [ONE]), b"a/", b"\xff\xfe"),
    "type 6": patched(model_bin(6, [ONE]), struct.pack("<BI", 1, 4), struct.pack("<BI", 6, 4)),
    "items of 3 bytes": patched(model_bin(3, [ONE]), struct.pack("<BI", 1, 4), struct.pack("<BI", 3, 4)),
    "too few bytes": patched(model_bin(6, [ONE]), struct.pack("<BI", 1, 4), struct.pack("<BI", 1, 3)),
    "too many items": patched(model_bin(2, [ONE]), struct.pack("<BI", 1, 4), struct.pack("<BI", 1, 2**32 - 1)),
    "bytes behind": model_bin(6, [ONE]) + b"\0",
    "truncated": model_bin(6, [ONE])[:-1],
    "alias of nothing": model_bin(6, [ONE], {"b": "c"}),
    "alias of itself": model_bin(6, [ONE], {"b": "b"}),
    "alias of an alias": model_bin(6, [ONE], {"b": "a/weight", "c": "b"}),
    "alias of a variable's name": model_bin(6, [ONE], {"a/weight": "a/weight"}),
    "count of aliases": model_bin(6, [ONE])[:-4] + struct.pack("<I", 2**32 - 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers(tmp_path: Path, what: str) -> None:
    (tmp_path / "model.bin").write_bytes(HOSTILE[what])
    with pytest.raises(CorruptCheckpoint, match=r"model\.bin"):
        open_checkpoint(tmp_path)


def test_a_long_walk_is_short(tmp_path: Path) -> None:
    """Many tiny variables: the walk is linear, and stops where the file ends."""
    many: list[Variable] = [(f"v{number}", (), "int8", b"x") for number in range(20_000)]
    (tmp_path / "model.bin").write_bytes(model_bin(6, many))
    assert len(opened(tmp_path).entries) == 20_000


def test_the_writer_refuses_what_the_layout_cannot_hold(tmp_path: Path) -> None:
    path, ones = tmp_path / "model.bin", np.ones((2, 2), "f4")
    entry = Entry("a", (2, 2), "float32")
    cases: list[tuple[list[Entry], list[Array], dict[str, str], str]] = [
        ([entry, entry], [ones, ones], {}, "twice"),
        ([Entry("a", (2, 2), "float64")], [ones.astype("f8")], {}, "no such dtype"),
        ([Entry("a", (2**30, 2), "float32")], [ones], {}, "4 GiB"),
        ([Entry("a" * 65_535, (2, 2), "float32")], [ones], {}, "this name"),
        ([entry], [np.ones((4,), "f4")], {}, "not as announced"),
        ([entry], [], {}, "fewer"),
        ([entry], [ones, ones], {}, "more"),
        ([entry], [ones], {"b": "c"}, "alias"),
        ([entry], [ones], {"a": "a"}, "alias"),
    ]
    for entries, arrays, aliases, message in cases:
        with pytest.raises(FormatError, match=message):
            write_ctranslate2(path, "TransformerSpec", 7, entries, arrays, aliases)
        assert list(tmp_path.iterdir()) == []


def test_big_endian_and_fortran_arrays_are_written_as_the_layout_has_them(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    write_ctranslate2(tmp_path / "model.bin", "TransformerSpec", 7, [Entry("a", (2, 3), "float32")], [array])
    np.testing.assert_array_equal(opened(tmp_path).read("a"), array)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        open_checkpoint(tmp_path / "model.bin")


VERSIONS = {
    "aren-transliteration": (2, "TransformerBase", 2, 200),
    "aren-transliteration-i16": (2, "TransformerBase", 2, 269),
    "aren-transliteration-i8": (2, "TransformerBase", 2, 269),
    "v1/aren-transliteration": (1, "", 1, 200),
    "v1/aren-transliteration-i16": (1, "", 1, 200),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_trained_models_of_versions_1_and_2(fixtures: Path, name: str) -> None:
    checkpoint = opened(fixtures / "fixtures/ctranslate2-aren" / name)
    said = checkpoint.metadata
    assert (said["binary_version"], said["specification"], said["revision"], len(checkpoint.entries)) == VERSIONS[name]
    assert {k: v["size"] for k, v in said["vocabularies"].items()} == {"source": 50, "target": 42}
    assert checkpoint.vocabulary("target")[:3] == ["<blank>", "<s>", "</s>"]
    rebuilt = model_bin(
        said["binary_version"],
        variables_of({key: checkpoint.read(key) for key in checkpoint.entries}),
        specification=said["specification"],
        revision=said["revision"],
    )
    assert rebuilt == checkpoint.path.read_bytes()


def test_quantized_weights_are_the_trained_ones(fixtures: Path) -> None:
    folder = fixtures / "fixtures/ctranslate2-aren"
    plain, v1 = opened(folder / "aren-transliteration"), opened(folder / "v1/aren-transliteration")
    sums = sorted(float(plain.read(name).sum()) for name in plain.entries)
    assert sums == sorted(float(v1.read(name).sum()) for name in v1.entries)
    for suffix in ("-i8", "-i16"):
        quantized = opened(folder / f"aren-transliteration{suffix}")
        for name in plain.entries:
            scale = quantized.scale(name)
            values = quantized.read(name).astype("f4")
            if scale is not None:
                values /= scale[:, None] if scale.ndim else scale
                step = (1 / scale[:, None]) if scale.ndim else 1 / scale
                assert (np.abs(values - plain.read(name)) <= step * 1.001).all()
            else:
                np.testing.assert_array_equal(values, plain.read(name))


def test_a_language_model(fixtures: Path, tmp_path: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/ctranslate2-onmt-lm")
    said = checkpoint.metadata
    assert (said["binary_version"], said["specification"], said["revision"]) == (6, "TransformerDecoderSpec", 7)
    assert said["vocabularies"] == {"vocabulary": {"file": "vocabulary.json", "size": 16_377}}
    entries = [entry for name, entry in checkpoint.entries.items() if name not in checkpoint.ties]
    arrays = (checkpoint.read(entry.name) for entry in entries)
    write_ctranslate2(tmp_path / "m", said["specification"], said["revision"], entries, arrays, checkpoint.ties)
    assert (tmp_path / "m").read_bytes() == checkpoint.path.read_bytes()
