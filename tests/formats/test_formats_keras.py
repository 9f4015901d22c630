"""HDF5 of Keras, through h5py in a child process."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import contract
import h5py
import ml_dtypes
import numpy as np
import pytest
from jax_arrays import numbers

import hostile
from warmstart.errors import CorruptCheckpoint, FormatError, WarmstartError
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import open_checkpoint

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"


class TestHDF5(contract.FormatContract):
    FORMAT = "hdf5"
    DTYPES = tuple(DTYPES.split())

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        path = directory / "model.h5"
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array)
        return path

    def sparse(self, directory: Path) -> Path:
        path = directory / "model.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("w", (1250, 2**20), "f4")[-1, -1] = 1
        return path

    def test_damage_never_goes_unsaid(self, tmp_path: Path) -> None:
        """Each mutant costs a process; no fuzzing of ours could vouch for the library, which is why it has one."""
        arrays = {name: array for name, array in self.example().items() if array.dtype.kind in "fi"}
        directory = tmp_path / "whole"
        directory.mkdir()
        path = self.write(directory, arrays)
        count = 1000 if os.environ.get("WARMSTART_NIGHTLY") else 18
        hostile.run(path, [path], tmp_path / "work", slow=20, mutants=count)


def weights() -> dict[str, Array]:
    described = {
        "first/kernel": (4, 3),
        "first/bias": (3,),
        "norm/gamma": (3,),
        "norm/beta": (3,),
        "norm/moving_mean": (3,),
        "norm/moving_variance": (3,),
    }
    return {name: numbers(f"sequential/{name}", shape) for name, shape in described.items()}


def test_h5_of_keras_3() -> None:
    checkpoint = open_checkpoint(GOLDEN / "keras" / "model.h5")
    assert (checkpoint.format, checkpoint.step) == ("keras", 12)
    expected = {f"{name.split('/')[0]}/sequential/{name}": array for name, array in weights().items()}
    assert list(checkpoint.entries) == list(expected), "in Keras's order"
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), array)
    trained = [name for name in expected if "moving" not in name]
    assert set(checkpoint.slots) == {(name, slot) for name in trained for slot in "mv"}
    for name, slot in checkpoint.slots:
        flat = name.partition("/")[2].replace("/", "_")
        source = f"adam/{flat}_{'momentum' if slot == 'm' else 'velocity'}"
        np.testing.assert_array_equal(checkpoint.read_slot(name, slot), numbers(source, expected[name].shape))
    assert checkpoint.optimizer == {"adam/learning_rate": pytest.approx(1e-3)}
    assert checkpoint.metadata["backend"] == "jax"
    assert checkpoint.metadata["model_config"]["class_name"] == "Sequential"
    assert checkpoint.metadata["training_config"]["loss"] == "mse"


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_weights_of_keras_3(name: str) -> None:
    checkpoint: Any = open_checkpoint(GOLDEN / "keras" / name)
    assert (checkpoint.format, checkpoint.step) == ("keras", 12)
    layers = {"first": "layers/dense", "norm": "layers/batch_normalization"}
    assert checkpoint.metadata["names"] == {
        "": "sequential", "optimizer": "adam", **{place: layer for layer, place in layers.items()},
    }  # fmt: skip
    counts = dict.fromkeys(layers, 0)
    for weight, array in weights().items():
        layer = weight.split("/")[0]
        np.testing.assert_array_equal(checkpoint.read(f"{layers[layer]}/vars/{counts[layer]}"), array)
        counts[layer] += 1
    assert len(checkpoint.entries) == sum(counts.values())
    others = checkpoint.optimizer["other_arrays"]
    assert others == [f"optimizer/vars/{k}" for k in range(2, 10)], "which of them belongs to which is not in the file"
    np.testing.assert_array_equal(
        checkpoint.read_other("optimizer/vars/2"), numbers("adam/sequential_first_kernel_momentum", (4, 3))
    )
    if name == "model.keras":
        assert checkpoint.metadata["config"]["class_name"] == "Sequential"
        assert checkpoint.metadata["metadata"]["keras_version"] == "3.15.1"


def test_a_deflated_keras_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / "keras" / "model.keras") as source, zipfile.ZipFile(tmp_path / "f", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(
        open_checkpoint(tmp_path / "f").read("layers/dense/vars/0"), weights()["first/kernel"]
    )


class TestFixtures:
    """Keras 2.4 and 2.14, trained: keyword spotting of MLPerf Tiny."""

    @pytest.mark.parametrize(
        ("name", "step", "entries", "slots", "version"),
        [("pretrainedResnet.h5", 781_500, 48, 68, "2.4.0"), ("str_ww_ref_model.h5", 59_400, 26, 36, "2.14.0")],
    )
    def test_what_h5py_reads_itself(
        self, fixtures: Path, name: str, step: int, entries: int, slots: int, version: str
    ) -> None:
        path = fixtures / "fixtures/tf-mlperf-tiny-kws" / name
        checkpoint = open_checkpoint(path)
        assert (checkpoint.step, len(checkpoint.entries), len(checkpoint.slots)) == (step, entries, slots)
        assert checkpoint.metadata["keras_version"] == version
        assert "layers" in checkpoint.metadata["model_config"]["config"]
        with h5py.File(path) as file:
            listed = [
                f"{layer}/{weight}"
                for layer in file["model_weights"].attrs["layer_names"].astype(str)
                for weight in np.asarray(file["model_weights"][layer].attrs["weight_names"]).astype(str)
            ]
            assert list(checkpoint.entries) == listed
            for entry in listed:
                np.testing.assert_array_equal(checkpoint.read(entry), file["model_weights"][entry][()])
            state = {}
            file["optimizer_weights"].visititems(
                lambda place, node: state.update({place: node[()]} if isinstance(node, h5py.Dataset) else {})
            )
            for parameter, slot in checkpoint.slots:
                weight = parameter.partition("/")[2]
                spelling = f"Adam/{weight[:-2]}/{slot}:0" if version == "2.4.0" else f"Adam/{slot}/{weight}"
                np.testing.assert_array_equal(checkpoint.read_slot(parameter, slot), state.pop(spelling))
            assert sorted(state) in (["Adam/iter:0"], ["iteration:0"], ["Adam/learning_rate:0", "iteration:0"])


def test_what_is_no_number_is_metadata(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["w"] = np.arange(3, dtype=">f4")
        file["half"] = np.ones(2, ml_dtypes.bfloat16).view("V2")
        file["half"].attrs["dtype"] = "bfloat16"
        file["text"] = "слово"
        file["words"] = ["a", "b"]
        file["tie"] = file["w"]
        file["soft"] = h5py.SoftLink("/w")
        file.attrs["author"] = "x"
    checkpoint = open_checkpoint(tmp_path / "f.h5")
    assert checkpoint.format == "hdf5"
    assert checkpoint.ties == {"w": "tie"}
    np.testing.assert_array_equal(checkpoint.read("w"), [0, 1, 2])
    assert checkpoint.read("half").astype("f4").tolist() == [1, 1]
    assert checkpoint.metadata["author"] == "x"
    assert checkpoint.metadata["texts"] == {"text": "слово"}
    assert checkpoint.metadata["links_in_file"] == {"soft": "/w"}
    assert list(checkpoint.metadata["other"]) == ["words"]


@pytest.mark.parametrize("block", [0, 512, 2048])
def test_contiguous_arrays_are_views(tmp_path: Path, block: int) -> None:
    array = np.arange(1000.0).reshape(10, 100)
    with h5py.File(tmp_path / "f.h5", "w", userblock_size=block) as file:
        file["little"], file["big"], file["flags"] = array, array.astype(">f8"), array > 3
        file.create_dataset("chunked", data=array, chunks=(5, 5))
    checkpoint = open_checkpoint(tmp_path / "f.h5")
    for name in checkpoint.entries:
        np.testing.assert_array_equal(checkpoint.read(name), array > 3 if name == "flags" else array)
    child = checkpoint._child  # type: ignore[attr-defined]
    child._running().kill()
    child._module = "no_such_module"
    np.testing.assert_array_equal(checkpoint.read("little"), array)
    with pytest.raises(CorruptCheckpoint):
        checkpoint.read("chunked")


@pytest.mark.parametrize(
    ("chunks", "compression"), [(None, None), ((1000, 700), None), ((701, 99), "gzip"), ((6001, 10), "lzf")]
)
def test_arrays_in_many_pieces(tmp_path: Path, chunks: tuple[int, int] | None, compression: str | None) -> None:
    array = (np.arange(6001 * 700, dtype="i4") % 1009).reshape(6001, 700)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("w", data=array, chunks=chunks, compression=compression)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "f.h5").read("w"), array)


def _external_link(file: h5py.File, outside: Path) -> None:
    file["w"] = h5py.ExternalLink(str(outside), "/w")


def _external_storage(file: h5py.File, outside: Path) -> None:
    file.create_dataset("w", (2,), "f4", external=[(str(outside), 0, 8)])


def _virtual(file: h5py.File, outside: Path) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource(str(outside), "w", (2,))
    file.create_virtual_dataset("w", layout)


def _never_written(file: h5py.File, outside: Path) -> None:
    file.create_dataset("w", (2**40,), "f4")


def _never_written_chunks(file: h5py.File, outside: Path) -> None:
    file.create_dataset("w", (2**50,), "f4", chunks=(2**20,), compression="gzip")


def _within_itself(file: h5py.File, outside: Path) -> None:
    file["g/h/w"] = np.ones(2)
    file["g/h/i"] = file["g"]


def _deep(file: h5py.File, outside: Path) -> None:
    file["/".join(["g"] * 60)] = np.ones(2)


def _nothing(file: h5py.File, outside: Path) -> None:
    file.create_group("g")


@pytest.mark.parametrize(
    "make",
    [
        _external_link, _external_storage, _virtual, _never_written, _never_written_chunks, _within_itself, _deep,
        _nothing,
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    with h5py.File(tmp_path / "outside.h5", "w") as other:
        other["w"] = np.ones(2, "f4")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        make(file, tmp_path / "outside.h5")
    with pytest.raises(FormatError) as caught:
        open_checkpoint(tmp_path / "f.h5").read("w")
    assert str(tmp_path / "f.h5") in str(caught.value.where)


def test_a_weight_that_is_listed_and_missing(tmp_path: Path) -> None:
    (tmp_path / "f.h5").write_bytes((GOLDEN / "keras" / "model.h5").read_bytes())
    with h5py.File(tmp_path / "f.h5", "a") as file:
        del file["model_weights/first/sequential/first/bias"]
    with pytest.raises(CorruptCheckpoint, match="sequential/first/bias"):
        open_checkpoint(tmp_path / "f.h5")


@pytest.mark.parametrize("count", [0, 8, 100, 2000, 20_000])
def test_truncated_files(tmp_path: Path, count: int) -> None:
    (tmp_path / "f.h5").write_bytes((GOLDEN / "keras" / "model.h5").read_bytes()[:count])
    with pytest.raises(WarmstartError):
        open_checkpoint(tmp_path / "f.h5")


def test_a_bomb_in_a_keras_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "f.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 50_000_000)
    with pytest.raises(CorruptCheckpoint):
        open_checkpoint(tmp_path / "f.keras")
