"""Orbax beside our reader: what it writes today in every layout, and T5X's own fine-tuning run."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "formats"))
import contract  # noqa: E402
from jax_arrays import nested, numbers, others, parameters  # noqa: E402

import hostile  # noqa: E402
from warmstart.errors import CorruptCheckpoint, FormatError  # noqa: E402
from warmstart.formats.checkpoint import Array, Checkpoint  # noqa: E402
from warmstart.formats.detect import open_checkpoint  # noqa: E402

REQUIRES = ["orbax-checkpoint==0.12.8", "flax==0.12.8", "optax==0.2.8", "tensorstore==0.1.86"]
LAYOUTS: dict[str, dict[str, Any]] = {
    "ocdbt": {},
    "zarr": {"use_ocdbt": False},
    "zarr3": {"use_ocdbt": False, "use_zarr3": True},
    "ocdbt-zarr3": {"use_zarr3": True},
}


def save(path: Path, tree: Any, layout: str = "ocdbt") -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**LAYOUTS[layout])) as checkpointer:
        checkpointer.save(path, tree)
    return path


class OrbaxContract(contract.FormatContract):
    """Through the child process."""

    FORMAT = "orbax"
    LAYOUT = "ocdbt"
    DTYPES = (*contract.FormatContract.DTYPES, "bfloat16", "uint32", "complex64")

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        if any(array.size == 0 for array in arrays.values()):
            pytest.skip("Orbax saves no empty arrays")
        return save(directory / "item", nested(dict(arrays)), self.LAYOUT)

    def test_damage_never_goes_unsaid(self, tmp_path: Path) -> None:
        directory = tmp_path / "whole"
        directory.mkdir()
        arrays = {"a": numbers("a", (3, 5)), "b": numbers("b", (4,), "bfloat16")}
        path = self.write(directory, arrays)
        count = 1000 if os.environ.get("WARMSTART_NIGHTLY") else 60
        hostile.run(path, self.damaged(directory), tmp_path / "work", slow=20, mutants=count)


class TestOCDBT(OrbaxContract):
    pass


class TestZarr(OrbaxContract):
    LAYOUT = "zarr"


class TestZarr3(OrbaxContract):
    LAYOUT = "zarr3"


class TestZarr3InOCDBT(OrbaxContract):
    LAYOUT = "ocdbt-zarr3"


def compare(checkpoint: Checkpoint, expected: Mapping[str, Array]) -> None:
    assert set(checkpoint.entries) == set(expected)
    for name, array in expected.items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("layout", ["ocdbt", "zarr", "zarr3"])
def test_golden_files(layout: str) -> None:
    checkpoint = open_checkpoint(TESTS / "golden" / "orbax" / layout)
    assert (checkpoint.step, checkpoint.metadata["word"]) == (7, "слово")
    expected = {f"params/{name}": array for name, array in parameters().items()}
    compare(checkpoint, expected | {name: array for name, array in others().items() if name != "wave"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_several_chunks(tmp_path: Path, layout: str) -> None:
    arrays = {"a": numbers("a", (64, 33)), "b": numbers("b", (7, 5, 11), "bfloat16"), "zeros": np.zeros((40, 40), "f4")}
    chunks = jax.tree.map(lambda array: ocp.SaveArgs(chunk_byte_size=256), arrays)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**LAYOUTS[layout])) as checkpointer:
        checkpointer.save(tmp_path / "item", args=ocp.args.PyTreeSave(arrays, save_args=chunks))
    compare(open_checkpoint(tmp_path / "item"), arrays)


def test_large_arrays_come_in_pieces(tmp_path: Path) -> None:
    base = np.arange(40 * 2**20, dtype="u1").reshape(5, 8, 2**20)
    arrays = {"a": np.concatenate([base] * 3), "b": base.reshape(-1), "c": base.reshape(2, -1), "d": base.T.copy()}
    compare(open_checkpoint(save(tmp_path / "item", arrays)), arrays)


def test_a_training_with_orbax_manager(tmp_path: Path) -> None:
    params = {name: jnp.asarray(array) for name, array in parameters().items() if array.dtype == np.float32}
    params = nested(params)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda metrics: -metrics["loss"])
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step in range(1, 4):
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state)
            params = optax.apply_updates(params, updates)
            tree = {"params": params, "opt_state": state}
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree),
                    ema=ocp.args.StandardSave({"w": params}),
                    note=ocp.args.JsonSave({"by": "x"}),
                ),
                metrics={"loss": 1 / step},
            )
    with pytest.raises(FormatError, match=r"2, 3 \(last\)"):
        open_checkpoint(tmp_path / "run")
    checkpoint = open_checkpoint(f"{tmp_path / 'run'}@last")
    assert checkpoint.step == 3
    assert checkpoint.metadata["metrics"] == {"loss": pytest.approx(1 / 3)}
    assert checkpoint.metadata["note"] == {"by": "x"}
    np.testing.assert_array_equal(checkpoint.read("ema/w/encoder/stacked"), params["encoder"]["stacked"])
    one = open_checkpoint(tmp_path / "run" / "3" / "state")
    assert {name.partition("/")[0] for name in one.entries} == {"params"}
    assert len(one.slots) == 2 * len(one.entries)
    np.testing.assert_array_equal(one.read_slot("params/encoder/stacked", "v"), state[0].nu["encoder"]["stacked"])


def test_t5x_fine_tuning(fixtures: Path) -> None:
    """Step 10; every parameter within 7.5e-7 of a replay without JAX; every array as TensorStore reads it itself."""
    run = fixtures / "fixtures/t5x/run"
    checkpoint = open_checkpoint(f"{run / 'model'}@last")
    assert (checkpoint.format, checkpoint.step) == ("orbax", 10)
    assert len(checkpoint.entries) == len(checkpoint.slots) == 52
    assert checkpoint.optimizer == {"unused_slots": {"m": 52, "v_row": 52, "v_col": 52}}
    base = f"file://{run / 'model/checkpoint_10/state'}/"
    keys = {name: name for name in checkpoint.entries}
    keys |= {key: f"state/param_states/{key[0].partition('/')[2]}/{key[1]}" for key in checkpoint.slots}
    for key, name in keys.items():
        store = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".") + "/"}
        expected = ts.open({"driver": "zarr", "kvstore": store}, open=True).result().read().result()
        np.testing.assert_array_equal(
            checkpoint.read(key) if isinstance(key, str) else checkpoint.read_slot(*key), expected
        )
    with np.load(run / "torch_final.npz") as replay:
        matched = {re.sub(r"[^a-z0-9]", "", name.lower()): replay[name] for name in replay.files}
        worst, count = 0.0, 0
        for name in checkpoint.entries:
            spelled = re.sub(r"[^a-z0-9]", "", name.removeprefix("target/").lower())
            if spelled in matched:
                count += 1
                worst = max(worst, float(np.abs(checkpoint.read(name) - matched[spelled]).max()))
    assert count == 52
    assert worst <= 7.5e-7


class TestHostile:
    def item(self, tmp_path: Path) -> Path:
        return save(tmp_path / "item", {"a": numbers("a", (64, 64)), "b": numbers("b", (3,))})

    def test_missing_database_files(self, tmp_path: Path) -> None:
        path = self.item(tmp_path)
        for file in (*path.glob("d/*"), *path.glob("ocdbt.process_0/d/*")):
            file.unlink()
        with pytest.raises(CorruptCheckpoint):
            open_checkpoint(path).read("a")

    def test_missing_chunks(self, tmp_path: Path) -> None:
        path = save(tmp_path / "item", {"a": numbers("a", (64, 64)) + 1})
        base = {"driver": "ocdbt", "base": f"file://{path}/"}
        store = ts.KvStore.open(base).result()
        store.write(b"a/0.0", None).result()
        with pytest.raises(CorruptCheckpoint, match="a chunk is missing"):
            open_checkpoint(path).read("a")

    def test_a_missing_array(self, tmp_path: Path) -> None:
        path = self.item(tmp_path)
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
        store.write(b"a/.zarray", None).result()
        with pytest.raises(CorruptCheckpoint, match="an array of the tree is missing"):
            open_checkpoint(path)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"shape":[64,64]', '"shape":[640000,640000]'),
            ('"shape":[64,64]', '"shape":[1000000000000,64]'),
            ('"chunks":[64,64]', '"chunks":[1000000,1000000]'),
            ('"dtype":"<f4"', '"dtype":"|O"'),
            ('"dtype":"<f4"', '"dtype":"<f8"'),
            ('"id":"zstd"', '"id":"nothing"'),
        ],
    )
    def test_descriptions_that_lie(self, tmp_path: Path, old: str, new: str) -> None:
        path = self.item(tmp_path)
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{path}/"}).result()
        text = store.read(b"a/.zarray").result().value.decode()
        assert old in text
        store.write(b"a/.zarray", text.replace(old, new).encode()).result()
        with pytest.raises(FormatError):
            open_checkpoint(path).read("a")

    def test_links_that_lead_outside(self, tmp_path: Path) -> None:
        path = self.item(tmp_path)
        shutil.move(path / "ocdbt.process_0", tmp_path / "elsewhere")
        (path / "ocdbt.process_0").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FormatError, match="outside"):
            open_checkpoint(path)

    def test_zarr_3_says_what_to_fill_in(self, tmp_path: Path) -> None:
        path = save(tmp_path / "item", {"a": numbers("a", (4, 4))}, "zarr3")
        (path / "a" / "c" / "0" / "0").unlink()
        assert not open_checkpoint(path).read("a").any()
