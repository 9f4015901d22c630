"""Sharded safetensors, against the reference implementation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError, StorageError
from warmstart.formats import safetensors_index
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.safetensors import DTYPES
from warmstart.formats.safetensors_index import write_sharded

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def entries_of(arrays: Mapping[str, Array]) -> list[Entry]:
    return [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]


class TestContract(FormatContract):
    FORMAT = "sharded safetensors"
    DTYPES = tuple(DTYPES.values())

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        """Always at least two shards: one has an array of its own that is put in and taken out again."""
        path = directory / "model"
        write_sharded(path, entries_of(arrays), arrays.values(), 40, {"format": "pt"})
        if not (path / INDEX).is_file():
            (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
            (path / INDEX).write_text(
                json.dumps({"weight_map": dict.fromkeys(arrays, "model-00001-of-00001.safetensors")})
            )
        return path

    def twice(self, directory: Path) -> Path:
        path = self.write(directory, {"a": np.ones(100, "u1"), "b": np.ones(100, "u1")})
        text = (path / INDEX).read_text().replace('"b": ', '"a": ')
        (path / INDEX).write_text(text)
        return path

    def sparse(self, directory: Path) -> Path:
        for name, array in zip(SHARDS, "ab", strict=True):
            size = 5_000_000_000
            header = {array: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
            data = json.dumps(header).encode()
            with (directory / name).open("wb") as file:
                file.write(len(data).to_bytes(8, "little") + data)
                file.truncate(8 + len(data) + size)
        (directory / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))
        return directory


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Two shards by the reference implementation, with an index as transformers writes it."""
    path = tmp_path / "sharded"
    path.mkdir()
    safetensors.numpy.save_file({"a": np.arange(6.0), "b": np.ones((2, 2), "f2")}, path / SHARDS[0], {"format": "pt"})
    safetensors.numpy.save_file({"c": np.arange(3, dtype="i8")}, path / SHARDS[1], {"format": "pt"})
    write_index(path, {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}, 48 + 8 + 24)
    return path


def write_index(path: Path, places: Mapping[str, str], size: Any = None, **more: Any) -> None:
    index = {"metadata": {} if size is None else {"total_size": size, **more}, "weight_map": places}
    (path / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def test_reads_what_others_write(sharded: Path) -> None:
    for source in (sharded, sharded / INDEX, f"{sharded}@{INDEX}"):
        checkpoint = open_checkpoint(source)
        assert list(checkpoint.entries) == ["a", "b", "c"]
        np.testing.assert_array_equal(checkpoint.read("a"), np.arange(6.0))
        np.testing.assert_array_equal(checkpoint.read("c"), np.arange(3))
        assert checkpoint.metadata == {"index": {"total_size": 80}, "format": "pt"}
        assert [str(file) for file in checkpoint.files] == [INDEX, *SHARDS]
    assert [str(candidate) for candidate in find_candidates(sharded)] == [INDEX]
    assert open_checkpoint(sharded / SHARDS[1]).format == "safetensors"


def test_shards_and_a_single_file_ask(sharded: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(2)}, sharded / "consolidated.safetensors")
    with pytest.raises(FormatError, match="several") as caught:
        open_checkpoint(sharded)
    assert caught.value.found == f"consolidated.safetensors, {INDEX}"


def test_others_read_what_is_written(tmp_path: Path) -> None:
    arrays = {f"layer.{number}": np.full((10, 10), number, "f4") for number in range(5)} | {"big": np.ones(1000, "f4")}
    write_sharded(tmp_path / "out", entries_of(arrays), arrays.values(), 1000, {"format": "pt"})
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 5 * 400 + 4000}
    names = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([INDEX, *names])
    assert list(dict.fromkeys(index["weight_map"].values())) == [names[3], *names[:3]]
    for name, array in arrays.items():
        shard = safetensors.numpy.load_file(tmp_path / "out" / index["weight_map"][name])
        np.testing.assert_array_equal(shard[name], array)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert all(np.array_equal(checkpoint.read(name), array) for name, array in arrays.items())


def test_what_fits_into_one_shard_has_no_index(tmp_path: Path) -> None:
    write_sharded(tmp_path / "out", [Entry("a", (2,), "float32")], [np.ones(2, "f4")], 100)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_the_writer_leaves_nothing_behind(tmp_path: Path) -> None:
    entries, array = [Entry(name, (2,), "float32") for name in "ab"], np.ones(2, "f4")
    for wrong, message in (([array], "fewer"), ([array] * 3, "more"), ([array, np.ones(3, "f4")], "announced")):
        with pytest.raises(FormatError, match=message):
            write_sharded(tmp_path / "out", entries, wrong, 8)
    with pytest.raises(FormatError, match="twice"):
        write_sharded(tmp_path / "out", [entries[0], entries[0]], [array, array], 8)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError):
        write_sharded(tmp_path / "out", entries, [array, array], 8)


def test_missing_shards_are_listed(sharded: Path) -> None:
    for name in SHARDS:
        (sharded / name).unlink()
    with pytest.raises(CorruptCheckpoint, match="missing") as caught:
        open_checkpoint(sharded)
    assert [problem.what for problem in caught.value.problems] == [f"{name} is missing" for name in SHARDS]


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"a": SHARDS[0], "c": SHARDS[1]}, "'b' of"),
        ({"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1], "d": SHARDS[1]}, "'d' is not in"),
        ({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}, "'b' is not in"),
        ({"a": SHARDS[0], "b": SHARDS[0], "c": "elsewhere.safetensors"}, "elsewhere"),
    ],
)
def test_index_and_shards_must_agree(sharded: Path, places: dict[str, str], words: str) -> None:
    write_index(sharded, places)
    with pytest.raises(CorruptCheckpoint, match=words):
        open_checkpoint(sharded)


def test_total_size(sharded: Path) -> None:
    places = {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}
    for size in (None, 80, 80.0):
        write_index(sharded, places, size, total_parameters=13)
        assert len(open_checkpoint(sharded).entries) == 3
    for size in (79, -1, "80", 2**70, [80], float("nan")):
        write_index(sharded, places, size)
        with pytest.raises(CorruptCheckpoint, match="total_size"):
            open_checkpoint(sharded)


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/outside.safetensors", "sub/x.safetensors", "..", "", ".", "a\0.safetensors", "..\\x"],
)
def test_no_name_leads_outside(sharded: Path, name: str) -> None:
    safetensors.numpy.save_file({"c": np.ones(2)}, sharded.parent / "outside.safetensors")
    write_index(
        sharded, {"a": SHARDS[0], "b": SHARDS[0], "c": name.replace("/outside", str(sharded.parent / "outside"))}
    )
    with pytest.raises(FormatError):
        open_checkpoint(sharded)


def test_links_may_not_lead_outside(sharded: Path) -> None:
    (sharded / SHARDS[1]).rename(sharded.parent / "outside")
    (sharded / SHARDS[1]).symlink_to("../outside")
    with pytest.raises(FormatError, match="leads outside"):
        open_checkpoint(sharded)
    (sharded / SHARDS[1]).unlink()
    (sharded.parent / "outside").rename(sharded / "inside")
    (sharded / SHARDS[1]).symlink_to("inside")
    assert len(open_checkpoint(sharded).entries) == 3


def test_the_cache_of_huggingface_hub(sharded: Path, tmp_path: Path) -> None:
    """Its snapshots hold links into the blobs beside them, and into nothing else."""
    snapshot, blobs = tmp_path / "models--x--y/snapshots/abc", tmp_path / "models--x--y/blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert len(open_checkpoint(snapshot).entries) == 3
    (blobs / "0").rename(tmp_path / "secret")
    (snapshot / SHARDS[0]).unlink()
    (snapshot / SHARDS[0]).symlink_to("../../../secret")
    with pytest.raises(FormatError, match="leads outside"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}',
        '{"weight_map": {"a": "x.safetensors", "b": 1}}',
        '{"weight_map": {"a": "x.safetensors"}, "weight_map": 1}',
        '{"weight_map": {"a": "x.safetensors"}',
        '{"weight_map": {"a": "x.safetensors"}, "b": ' + "[" * 100_000,
        '{"metadata": [], "weight_map": {"a": "' + "x" * 300 + '.safetensors"}}',
    ],
)
def test_damaged_indexes(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match="index"):
        open_checkpoint(tmp_path)


def test_an_index_of_nothing(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    assert dict(open_checkpoint(tmp_path).entries) == {}


def test_an_index_of_torch_files_is_not_one(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}')
    assert safetensors_index.candidates(tmp_path) == []
