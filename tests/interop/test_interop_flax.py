"""Flax and TensorStore, which is what T5X reads and writes with, beside our readers and our writer.

T5X itself is on no package index. What its restore does (t5x/checkpoints.py, ``_read_ts`` and ``load_t5x_checkpoint``)
is done here by the same two libraries: the tree by ``flax.serialization``, each array by TensorStore from its
specification without ``metadata.chunks`` and ``metadata.compressor``, the path joined to the checkpoint's directory.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore as ts
from flax.training import checkpoints
from flax.training.train_state import TrainState

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "formats"))
from jax_arrays import nested, numbers, others, parameters, slots  # noqa: E402

from warmstart.formats import t5x_write  # noqa: E402
from warmstart.formats.checkpoint import dtype_of  # noqa: E402
from warmstart.formats.detect import open_checkpoint  # noqa: E402
from warmstart.formats.msgpack_tree import DTYPES, pack  # noqa: E402
from warmstart.formats.t5x_write import write_t5x  # noqa: E402

REQUIRES = ["flax==0.12.8", "optax==0.2.8", "tensorstore==0.1.86"]


def restored(directory: Path) -> dict[str, Any]:
    """Flat name → array of a checkpoint, as T5X gets them."""
    tree = flax.serialization.msgpack_restore((directory / "checkpoint").read_bytes())
    assert tree["version"] == 3
    found: dict[str, Any] = {}

    def visit(node: dict[str, Any], above: str) -> None:
        for key, value in node.items():
            name = f"{above}/{key}" if above else key
            if isinstance(value, dict) and "driver" in value:
                spec = copy.deepcopy(value)
                spec["kvstore"]["path"] = str(directory / spec["kvstore"]["path"])
                del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
                found[name] = ts.open(spec, open=True).result().read().result()
            elif isinstance(value, dict):
                visit(value, name)
            else:
                found[name] = value

    visit(tree["optimizer"], "")
    return found


@pytest.mark.parametrize("compress", [True, False])
def test_what_we_write_is_what_t5x_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool) -> None:
    monkeypatch.setattr(t5x_write, "CHUNK", 64)
    arrays = {f"target/{name}": array for name, array in parameters().items()}
    state = {(f"target/{name}", slot): array for (name, slot), array in slots().items()}
    write_t5x(tmp_path / "checkpoint_1000", arrays.items(), step=1000, slots=state.items(), compress=compress)
    found = restored(tmp_path / "checkpoint_1000")
    assert found.pop("state/step") == 1000
    for name, array in arrays.items():
        read = found.pop(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)
        for slot in ("m", "v", "v_row", "v_col"):
            expected = state.get((name, slot), np.zeros(1, "f4"))
            np.testing.assert_array_equal(found.pop(f"state/param_states/{name.partition('/')[2]}/{slot}"), expected)
    assert not found


@pytest.mark.parametrize("dtype", sorted(t5x_write.WRITTEN))
def test_every_dtype_that_we_write(tmp_path: Path, dtype: str) -> None:
    array = (numbers("w", (3, 5), "int32") % 7).astype(dtype_of(dtype))
    write_t5x(tmp_path / "c", [("target/w", array), ("target/s", array[0, 0])], step=0)
    found = restored(tmp_path / "c")
    for name, expected in (("target/w", array), ("target/s", array[0, 0])):
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == expected.tobytes()


def test_a_fixture_written_again(tmp_path: Path, fixtures: Path) -> None:
    path = fixtures / "fixtures/t5x/testdata/test_t5_tiny.checkpoint_0"
    source = open_checkpoint(path)
    write_t5x(
        tmp_path / "checkpoint_0",
        ((name, source.read(name)) for name in source.entries),
        step=0,
        slots=((key, source.read_slot(*key)) for key in source.slots),
    )
    expected = flax.serialization.msgpack_restore(path.read_bytes())["optimizer"]
    found = restored(tmp_path / "checkpoint_0")
    assert len(found) == 261
    for name, array in found.items():
        node = expected
        for part in name.split("/"):
            node = node[part]
        assert np.asarray(node).shape == array.shape
        np.testing.assert_array_equal(array, node)


def test_flax_reads_our_msgpack() -> None:
    tree = {**nested(parameters()), **others(), "text": "слово", "step": 5, "rate": 0.5, "nothing": None}
    back = flax.serialization.msgpack_restore(b"".join(pack(tree)))
    assert (back["text"], back["step"], back["rate"], back["nothing"]) == ("слово", 5, 0.5, None)
    for name, array in others().items():
        np.testing.assert_array_equal(back[name], array)
    assert flax.serialization.msgpack_serialize(back) == flax.serialization.msgpack_serialize(tree)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_flax_writes_what_we_read(tmp_path: Path, dtype: str) -> None:
    array = (numbers("w", (3, 5), "int32") % 7).astype(dtype_of(dtype))
    (tmp_path / "f").write_bytes(flax.serialization.msgpack_serialize({"w": array, "s": array[0, 0]}))
    checkpoint = open_checkpoint(tmp_path / "f")
    for name, expected in (("w", array), ("s", array[0, 0])):
        assert checkpoint.read(name).dtype == array.dtype
        assert checkpoint.read(name).tobytes() == expected.tobytes()


def test_chunked_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    arrays = {"a": numbers("a", (7, 9)), "b": numbers("b", (3,)), "c": numbers("c", (2, 5, 3), "bfloat16")}
    (tmp_path / "f").write_bytes(flax.serialization.msgpack_serialize(dict(arrays)))
    checkpoint = open_checkpoint(tmp_path / "f")
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)


def test_flax_training(tmp_path: Path) -> None:
    """The legacy checkpoints of ``flax.training``, with optax's Adam in a chain."""
    params = {name: jnp.asarray(array) for name, array in parameters().items() if array.dtype == np.float32}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    state = TrainState.create(apply_fn=None, params=nested(params), tx=optimizer)
    for _ in range(3):
        state = state.apply_gradients(grads=nested({name: array + 1 for name, array in params.items()}))
        checkpoints.save_checkpoint_multiprocess(tmp_path, state, int(state.step), keep=3, orbax_checkpointer=None)
    checkpoint = open_checkpoint(f"{tmp_path}@last")
    assert checkpoint.step == 3
    assert set(checkpoint.entries) == {f"params/{name}" for name in params}
    assert len(checkpoint.slots) == 2 * len(params)
    mu = state.opt_state[1][0].mu["token_embedder"]["embedding"]
    np.testing.assert_array_equal(checkpoint.read_slot("params/token_embedder/embedding", "m"), mu)
    np.testing.assert_array_equal(checkpoint.read("params/encoder/stacked"), state.params["encoder"]["stacked"])
    assert [value for name, value in checkpoint.optimizer.items() if name.endswith("count")] == [3]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("compressor", [None, {"id": "gzip", "level": 1}, {"id": "zlib", "level": 1}, {"id": "zstd"}])
@pytest.mark.parametrize("fill", [None, 0, 3])
def test_tensorstore_writes_what_we_read(
    tmp_path: Path, order: str, separator: str, compressor: Any, fill: int | None
) -> None:
    metadata = {
        "shape": [7, 10], "chunks": [3, 4], "order": order, "dimension_separator": separator, "compressor": compressor,
        "fill_value": fill,
    }  # fmt: skip
    arrays = {"a": numbers("a", (7, 10)), "b": numbers("b", (7, 10), "bfloat16"), "z": np.zeros((7, 10), "i4")}
    arrays["a"][:3, :4] = fill or 0  # a chunk that TensorStore leaves out
    leaves = {}
    for name, array in arrays.items():
        store = {"driver": "file", "path": f"target.{name}/"}
        spec = {"driver": "zarr", "dtype": array.dtype.name, "kvstore": store, "metadata": metadata}
        there = {**spec, "kvstore": {**store, "path": str(tmp_path / f"target.{name}") + "/"}}
        there["metadata"] = {**metadata, "dtype": "bfloat16" if name == "b" else array.dtype.str}
        ts.open(there, create=True, open=True).result().write(array).result()
        leaves[name] = {**spec, "metadata": {key: metadata[key] for key in ("shape", "chunks", "compressor")}}
    tree = {"version": 3, "optimizer": {"target": leaves, "state": {"step": np.int32(1), "param_states": {}}}}
    (tmp_path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))
    checkpoint = open_checkpoint(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint.read(f"target/{name}"), array)
