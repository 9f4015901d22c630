"""Orbax's directories without TensorStore; with it: tests/interop/test_interop_orbax.py."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
from jax_arrays import others, parameters

from warmstart.errors import CorruptCheckpoint, FormatError, MissingExtra, UnknownFormat
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.msgpack_tree import DTYPES, pack
from warmstart.formats.orbax_child import regions

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def write_orbax(path: Path, arrays: Mapping[str, Array], **more: Any) -> Path:
    """The layout that Orbax had before OCDBT: one zarr directory for each array."""
    tree = {}
    for name, array in arrays.items():
        key = name.split("/")
        folder = path / ".".join(key)
        folder.mkdir(parents=True)
        native = array.dtype.type.__module__ == "numpy"
        described = {
            "chunks": [max(n, 1) for n in array.shape], "compressor": None, "shape": list(array.shape),
            "dtype": array.dtype.str if native else array.dtype.name, "order": "C", "fill_value": None,
            "filters": None, "zarr_format": 2, "dimension_separator": ".",
        }  # fmt: skip
        (folder / ".zarray").write_text(json.dumps(described))
        if array.size:
            (folder / (".".join("0" * array.ndim) or "0")).write_bytes(array.tobytes())
        tree[str(tuple(key))] = {
            "key_metadata": [{"key": part, "key_type": 2} for part in key],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
    path.mkdir(exist_ok=True)
    (path / "_METADATA").write_text(json.dumps({"tree_metadata": tree, "use_zarr3": False, **more}))
    return path


class TestOrbax(contract.FormatContract):
    FORMAT = "orbax"
    DTYPES = tuple(sorted(DTYPES))

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        return write_orbax(directory / "params", arrays)

    def twice(self, directory: Path) -> Path:
        path = write_orbax(directory / "params", {"a": np.ones(2)})
        tree = json.loads((path / "_METADATA").read_text())
        tree["tree_metadata"]["again"] = tree["tree_metadata"]["('a',)"]
        (path / "_METADATA").write_text(json.dumps(tree))
        return path

    def sparse(self, directory: Path) -> Path:
        path = write_orbax(directory / "params", {"w": np.zeros((1, 1), "f4")})
        text = (path / "w" / ".zarray").read_text().replace("[1, 1]", "[1250, 1048576]")
        (path / "w" / ".zarray").write_text(text)
        with (path / "w" / "0.0").open("wb") as file:
            file.truncate(1250 * 2**22)
        return path


def test_what_orbax_wrote_is_read() -> None:
    checkpoint = open_checkpoint(GOLDEN / "orbax" / "zarr")
    assert (checkpoint.format, checkpoint.step) == ("orbax", 7)
    assert checkpoint.metadata["word"] == "слово"
    assert "PyTreeCheckpointHandler" in checkpoint.metadata["item_handlers"]
    expected = {f"params/{name}": array for name, array in parameters().items()}
    expected |= {name: array for name, array in others().items() if name != "wave"}
    assert set(checkpoint.entries) == set(expected)
    for name, array in expected.items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


@pytest.mark.skipif(importlib.util.find_spec("tensorstore") is not None, reason="tensorstore is here")
@pytest.mark.parametrize("name", ["ocdbt", "zarr3"])
def test_without_tensorstore_the_extra_is_named(name: str) -> None:
    with pytest.raises(MissingExtra, match=r"warmstart\[orbax\]"):
        open_checkpoint(GOLDEN / "orbax" / name)


@pytest.mark.skipif(importlib.util.find_spec("tensorstore") is None, reason="tensorstore is not here")
@pytest.mark.parametrize("name", ["ocdbt", "zarr3"])
def test_arrays_are_the_same_in_every_order(name: str) -> None:
    """In the file's order the next array begins to be read before it is asked for."""
    ahead, behind = (open_checkpoint(GOLDEN / "orbax" / name) for _ in range(2))
    forward = {array: ahead.read(array) for array in ahead.entries}
    assert len(forward) > 3
    for array in [*reversed(forward), *forward, *list(forward)[::2]]:
        np.testing.assert_array_equal(behind.read(array), forward[array])
        assert behind.entries[array].shape == forward[array].shape


@pytest.mark.skipif(importlib.util.find_spec("tensorstore") is None, reason="tensorstore is not here")
def test_an_array_before_a_damaged_one_is_read(tmp_path: Path) -> None:
    path = Path(shutil.copytree(GOLDEN / "orbax" / "zarr3", tmp_path / "zarr3"))
    whole = open_checkpoint(GOLDEN / "orbax" / "zarr3")
    (path / "params.encoder.stacked" / "c" / "0" / "0" / "0").write_bytes(b"damaged")
    checkpoint, damaged = open_checkpoint(path), []
    for name in checkpoint.entries:
        try:
            np.testing.assert_array_equal(checkpoint.read(name), whole.read(name))
        except CorruptCheckpoint:
            damaged.append(name)
    assert damaged == ["params/encoder/stacked"]


@pytest.mark.parametrize("shape", [(), (0,), (7,), (7, 5), (4, 6, 5), (1, 9, 1, 8)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("most", [1, 8, 40, 10_000])
def test_boxes_follow_in_order_and_no_chunk_is_in_two(shape: tuple[int, ...], chunk: int, most: int) -> None:
    array = np.arange(int(np.prod(shape, dtype=int)), dtype="i2").reshape(shape)
    chunks = tuple(min(chunk, max(length, 1)) for length in shape)
    grid = np.zeros(shape, "i4")
    for axis, (length, size) in enumerate(zip(shape, chunks, strict=True)):
        number = (np.arange(length) // size).reshape([-1 if k == axis else 1 for k in range(len(shape))])
        grid = grid * 100 + number
    boxes = list(regions(shape, chunks, 2, most))
    np.testing.assert_array_equal(np.concatenate([array[box].reshape(-1) for box in boxes]), array.reshape(-1))
    numbers = [set(grid[box].reshape(-1).tolist()) for box in boxes]
    assert sum(map(len, numbers)) == len(set().union(*numbers))
    row = 2 * chunks[0] * int(np.prod(shape[1:], dtype=int)) if shape else 2
    assert all(array[box].nbytes <= max(most, row) for box in boxes)


def test_several_items_and_steps(tmp_path: Path) -> None:
    for step in (1, 20):
        for item in ("state", "ema"):
            write_orbax(tmp_path / str(step) / item, {"w": np.full(2, step)})
        (tmp_path / str(step) / "metrics").mkdir()
        (tmp_path / str(step) / "metrics" / "metrics").write_text('{"loss": 0.5}')
    shutil.copytree(tmp_path / "20", tmp_path / "300.orbax-checkpoint-tmp-5")
    with pytest.raises(FormatError, match=r"1, 20 \(last\)"):
        open_checkpoint(tmp_path)
    checkpoint = open_checkpoint(f"{tmp_path}@last")
    assert (set(checkpoint.entries), checkpoint.step) == ({"state/w", "ema/w"}, 20)
    assert checkpoint.metadata == {"metrics": {"loss": 0.5}}
    with pytest.raises(CorruptCheckpoint, match="never finished"):
        open_checkpoint(tmp_path / "300.orbax-checkpoint-tmp-5")
    shutil.rmtree(tmp_path / "1")
    shutil.rmtree(tmp_path / "20")
    with pytest.raises(UnknownFormat, match=r"unfinished checkpoints, 300\.orbax"):
        open_checkpoint(tmp_path)


def test_the_oldest_layout(tmp_path: Path) -> None:
    """A msgpack tree with placeholders beside the directories, as T5X's testdata has it."""
    write_orbax(
        tmp_path / "1", {"_optimizer.target.w": np.arange(3.0), "_optimizer.state.param_states.w.v": np.ones(3)}
    )
    (tmp_path / "1" / "_METADATA").unlink()
    tree = {
        "_optimizer": {
            "target": {"w": "PLACEHOLDER://_optimizer.target.w", "b": np.ones(2)},
            "state": {
                "step": np.array(5),
                "param_states": {"w": {"v": "PLACEHOLDER://_optimizer.state.param_states.w.v"}},
            },
        },
        "flax_mutables": None,
    }
    (tmp_path / "1" / "checkpoint").write_bytes(b"".join(pack(tree)))
    checkpoint = open_checkpoint(tmp_path / "1")
    assert (set(checkpoint.entries), set(checkpoint.slots)) == ({"target/w", "target/b"}, {("target/w", "v")})
    assert (checkpoint.step, checkpoint.metadata) == (5, {"flax_mutables": None})
    np.testing.assert_array_equal(checkpoint.read("target/w"), [0, 1, 2])
    np.testing.assert_array_equal(checkpoint.read("target/b"), [1, 1])
    for name in ("../outside", "/etc", ".."):
        tree["_optimizer"]["target"]["w"] = f"PLACEHOLDER://{name}"
        (tmp_path / "1" / "checkpoint").write_bytes(b"".join(pack(tree)))
        with pytest.raises(FormatError):
            open_checkpoint(tmp_path / "1")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"tree_metadata": []}',
        '{"tree_metadata": {"a": 3}}',
        '{"tree_metadata": {"a": {"key_metadata": [], "value_metadata": {"value_type": "jax.Array"}}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": ".."}], "value_metadata": {"value_type": "jax.Array"}}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "/etc"}], "value_metadata": {"value_type": "jax.Array"}}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "b"}], "value_metadata": {"value_type": "jax.Array"}}}}',
        "{" + '"a":{' * 50_000,
    ],
)
def test_trees_that_are_refused(tmp_path: Path, text: str) -> None:
    path = write_orbax(tmp_path / "item", {"a": np.ones(2)})
    (path / "_METADATA").write_text(text)
    with pytest.raises(FormatError):
        open_checkpoint(path)


def test_links_that_lead_outside(tmp_path: Path) -> None:
    path = write_orbax(tmp_path / "item", {"a": np.ones(2)})
    (tmp_path / "secret").write_bytes(b"\0" * 16)
    (path / "a" / "0").unlink()
    (path / "a" / "0").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="outside"):
        open_checkpoint(path)


def test_the_fine_tuning_run_of_t5x(fixtures: Path) -> None:
    """``last`` is found, finished or not installed: the values are compared in tests/interop/test_interop_orbax.py."""
    if importlib.util.find_spec("tensorstore") is None:
        with pytest.raises(MissingExtra):
            open_checkpoint(f"{fixtures / 'fixtures/t5x/run/model'}@last")
    else:
        assert open_checkpoint(f"{fixtures / 'fixtures/t5x/run/model'}@last").step == 10
