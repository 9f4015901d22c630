"""TensorFlow's checkpoints: files by TensorFlow itself (golden/tensorflow, the fixtures), and the promises of all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from bundles import HEADER, bundle, entry
from contract import FormatContract

from warmstart.errors import CorruptCheckpoint, FormatError, SourceError, StorageError, UnknownFormat
from warmstart.formats.checkpoint import Array
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.tensorflow import BundleCheckpoint, write_bundle, write_state
from warmstart.formats.tensorflow.crc32c import crc32c, masked
from warmstart.formats.tensorflow.protobuf import put_number

GOLDEN = Path(__file__).parents[1] / "golden/tensorflow"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
DATA, INDEX = ".data-00000-of-00001", ".index"


class TestContract(FormatContract):
    FORMAT = "tensorflow"
    DTYPES = (
        *("float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool", "uint16", "uint32"),
        *("uint64", "complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e4m3b11fnuz", "float8_e5m2fnuz", "int4", "uint4"),
    )

    def write(self, directory: Path, arrays: Mapping[str, Array]) -> Path:
        write_bundle(directory / "model-1", arrays.items())
        return directory / "model-1"

    def twice(self, directory: Path) -> Path:
        item = (b"a", entry(1, [2], size=8))
        return bundle(directory / "model", [item, item], b"\0" * 8)

    def sparse(self, directory: Path) -> Path:
        size = 5 * 10**9
        items = [(b"a", entry(1, [size // 4], size=size)), (b"b", entry(1, [2], offset=size, size=8))]
        prefix = bundle(directory / "model", items)
        with (directory / f"model{DATA}").open("wb") as file:
            file.truncate(size + 8)
        return prefix


def opened(path: Path | str) -> BundleCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, BundleCheckpoint)
    return checkpoint


@pytest.mark.parametrize("name", ["saver", "objects", "keras2", "keras3"])
def test_tensorflow_reads_the_same(name: str) -> None:
    checkpoint = opened(GOLDEN / name)
    values = dict(checkpoint.tensors())
    with np.load(GOLDEN / name / "expected.npz") as expected:
        truth = {key.replace("|", "/"): expected[key] for key in expected.files}
    strings = {key for key, value in values.items() if value.dtype == object}
    assert set(values) - strings == set(truth)
    for key, value in truth.items():
        checkpoint.verify(key)
        wide = values[key].astype("f4") if values[key].dtype.name == "bfloat16" else values[key]
        assert wide.dtype == value.dtype
        np.testing.assert_array_equal(wide, value)
        assert values[key].shape == value.shape


def test_what_the_saver_of_version_1_writes() -> None:
    checkpoint = opened(GOLDEN / "saver")
    assert checkpoint.step == 3
    assert checkpoint.optimizer["learning_rate"] == 0.5
    assert checkpoint.optimizer["beta1_power"] == pytest.approx(0.9**4)
    assert list(checkpoint.slots) == [(f"layer/{name}", slot) for name in ("bias", "weights") for slot in "mv"]
    assert checkpoint.slot_names["layer/bias", "v"] == "layer/bias/Adam_1"
    assert (checkpoint.read_slot("layer/bias", "v") >= 0).all()
    assert {"columns", "rows", "layer/bias", "layer/weights", "empty"} < set(checkpoint.entries)
    assert not any("Adam" in name or name.startswith("beta") for name in checkpoint.entries)
    assert (checkpoint.read("columns") == 1).all()  # three slices
    assert checkpoint.metadata["strings"] == {"words": [["a", "ä"], ["", "long " * 30]], "word": "\\xff\x00"}
    assert dict(checkpoint.tensors())["word"].item() == b"\xff\x00"
    assert [str(file) for file in checkpoint.files] == [
        f"model-3{ending}" for ending in (INDEX, ".data-00000-of-00002", ".data-00001-of-00002")
    ]


@pytest.mark.parametrize(
    ("name", "model", "optimizer"),
    [
        ("objects", "model/layer_with_weights-0/{}", {"beta_1", "beta_2", "decay", "iter", "learning_rate"}),
        ("keras2", "model/layer_with_weights-0/{}", {"_iterations", "_learning_rate"}),
        ("keras3", "optimizer/_trainable_variables/{}", {"_iterations", "_learning_rate"}),
    ],
)
def test_object_names_and_three_kinds_of_optimizers(name: str, model: str, optimizer: set[str]) -> None:
    checkpoint = opened(GOLDEN / name)
    own = checkpoint.metadata["full_names"]
    kernel, bias = ("0", "1") if name == "keras3" else ("kernel", "bias")
    kernel, bias = (model.format(part) + VALUE for part in (kernel, bias))
    assert set(checkpoint.entries) == {kernel, bias}
    assert own[kernel].endswith("dense/kernel")
    assert set(checkpoint.slots) == {(parameter, slot) for parameter in (kernel, bias) for slot in "mv"}
    assert all(entry.shape == checkpoint.entries[parameter].shape for (parameter, _), entry in checkpoint.slots.items())
    assert (checkpoint.read_slot(bias, "v") >= 0).all()
    assert (checkpoint.step, checkpoint.metadata["save_counter"]) == (7, 1)
    assert set(checkpoint.optimizer) == {f"optimizer/{key}" for key in optimizer}


@pytest.mark.parametrize("name", ["saver/model-3", "objects/ckpt-1", "keras3/ckpt-1"])
def test_everything_again_gives_the_same_tensors(name: str, tmp_path: Path) -> None:
    whole = dict(opened(GOLDEN / name).tensors())
    write_bundle(tmp_path / "again", whole.items())
    again = dict(opened(tmp_path / "again").tensors())
    assert list(again) == list(whole)
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(again.values(), whole.values(), strict=True))


@pytest.mark.parametrize("name", ["coqui-digits-en/best_dev-3354", "coqui-digits-en/train-4680",
                                  "coqui-bytes-en/best_dev-2128", "coqui-bytes-en/train-2800"])  # fmt: skip
def test_rewriting_gives_the_same_bytes_as_the_saver(fixtures: Path, name: str, tmp_path: Path) -> None:
    prefix = fixtures / "fixtures" / name
    write_bundle(tmp_path / prefix.name, opened(prefix).tensors())
    for ending in (INDEX, DATA):
        assert (tmp_path / (prefix.name + ending)).read_bytes() == prefix.with_name(prefix.name + ending).read_bytes()


def test_a_moved_directory_of_coqui(fixtures: Path) -> None:
    directory = fixtures / "fixtures/coqui-digits-en"
    assert list(map(str, find_candidates(directory))) == ["best_dev-3354 (best)", "train-4680 (last)"]
    for source, step in (("@best", 3354), ("@last", 4680), ("/best_dev_checkpoint", 3354), ("/train-4680", 4680)):
        checkpoint = opened(f"{directory}{source}")
        assert checkpoint.step == step
        assert len(checkpoint.entries) == 12
        assert len(checkpoint.slots) == 24
        assert checkpoint.entries["layer_1/weights"].shape == (494, 64)
        for name in checkpoint.entries:
            checkpoint.verify(name)
    with pytest.raises(FormatError, match="best_dev-3354"):
        open_checkpoint(directory)


def test_adams_slots_are_those_of_tensorflows_next_step(fixtures: Path) -> None:
    """``resume_step.npz`` has the gradients of one more step, and what TensorFlow's Adam made of the variables."""
    directory = fixtures / "fixtures/coqui-digits-en"
    checkpoint = opened(f"{directory}@last")
    first, second, rate = (checkpoint.optimizer[key] for key in ("beta1_power", "beta2_power", "learning_rate"))
    with np.load(directory / "expected/resume_step.npz") as file:
        truth = {key: file[key] for key in file.files}
    names = [key.removeprefix("grad|") for key in truth if key.startswith("grad|")]
    assert len(names) == 7
    for name in names:
        gradient = truth[f"grad|{name}"].astype("f8")
        m = 0.9 * checkpoint.read_slot(name, "m") + 0.1 * gradient
        v = 0.999 * checkpoint.read_slot(name, "v") + 0.001 * gradient**2
        after = checkpoint.read(name) - rate * np.sqrt(1 - second) / (1 - first) * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(after, truth[f"after|{name}"], rtol=0, atol=3e-7)


def test_saved_model_and_object_names_of_others(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/tf-mlperf-tiny-kws")
    assert checkpoint.entries[f"layer_with_weights-0/kernel{VALUE}"].shape == (10, 4, 1, 64)
    assert len(list(checkpoint.tensors())) == 142  # and a header: 143 keys
    assert checkpoint.step == checkpoint.optimizer["optimizer/iter"] == 30816
    assert len(checkpoint.slots) == 76
    assert checkpoint.metadata["full_names"][f"layer_with_weights-0/kernel{VALUE}"] == "conv2d/kernel"
    assert [str(file) for file in checkpoint.files] == [f"variables/variables{ending}" for ending in (INDEX, DATA)]
    for name in checkpoint.entries:
        checkpoint.verify(name)


def test_the_smallest_of_version_1(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/tf1-regression")
    assert {name: round(checkpoint.read(name).item(), 5) for name in checkpoint.entries} == {"W": 0.21396, "b": 1.04953}


def test_snappy_and_a_missing_data_file(fixtures: Path) -> None:
    checkpoint = opened(fixtures / "fixtures/t5x/testdata/mtf_tiny_t5")
    assert (len(checkpoint.entries), len(checkpoint.slots), checkpoint.step) == (52, 52, 0)
    assert {entry.dtype for entry in checkpoint.entries.values()} == {"bfloat16"}
    assert {(slot.slot, slot.dtype) for slot in checkpoint.slots.values()} == {("v", "float32")}
    assert checkpoint.metadata["missing_files"] == ["model.ckpt-0.data-00001-of-00002"]
    with pytest.raises(SourceError, match=r"model\.ckpt-0\.data-00001-of-00002"):
        checkpoint.read("shared/embedding")


def test_every_path_that_means_a_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saver", tmp_path / "in")
    (tmp_path / "in/model-3.meta").write_bytes(b"a graph")
    paths = ["", "/model-3", "/model-3.index", "/model-3.meta", "/model-3.data-00001-of-00002", "/checkpoint", "@last"]
    assert {opened(f"{tmp_path}/in{path}").step for path in paths} == {3}
    (tmp_path / "in/model-3.index").rename(tmp_path / "in/renamed")
    with pytest.raises(FormatError, match=r"ends in \.index"):
        open_checkpoint(tmp_path / "in/renamed")
    with pytest.raises(SourceError, match="state file") as caught:
        open_checkpoint(tmp_path / "in/checkpoint")
    assert "model-3.index" in str(caught.value.expected)


def test_parts_that_mean_nothing_alone_are_named(tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "saver/model-3.data-00000-of-00002", tmp_path / "model-3.data-00000-of-00002")
    with pytest.raises(UnknownFormat, match="without its index"):
        open_checkpoint(tmp_path / "model-3.data-00000-of-00002")
    (tmp_path / "model-3.index").write_bytes(b"\1\2\3\4" * 30)
    with pytest.raises(UnknownFormat, match="damaged one"):
        open_checkpoint(tmp_path / "model-3.index")
    with pytest.raises(UnknownFormat, match="damaged TensorFlow checkpoint"):
        open_checkpoint(tmp_path)
    index = (GOLDEN / "saver/model-3.index").read_bytes()
    (tmp_path / "model-3.index").write_bytes(index[:-1])
    with pytest.raises(CorruptCheckpoint, match="footer"):
        open_checkpoint(tmp_path / "model-3")


def test_version_1_files_are_refused_by_name() -> None:
    for path in ("model-3", "checkpoint"):
        with pytest.raises(FormatError, match="version 1"):
            open_checkpoint(GOLDEN / "version1" / path)


def test_a_data_file_that_is_too_short_is_named(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "saver", tmp_path / "in")
    short = tmp_path / "in/model-3.data-00001-of-00002"
    short.write_bytes(short.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint, match="00001-of-00002"):
        open_checkpoint(tmp_path / "in")


@pytest.mark.parametrize("dtype", ["float32", "complex64", "bfloat16", "int64", "bool"])
def test_big_endian_is_converted(dtype: str, tmp_path: Path) -> None:
    codes = {"float32": 1, "complex64": 8, "bfloat16": 14, "int64": 9, "bool": 10}
    value = np.arange(6).reshape(2, 3).astype(dtype)
    unit = value.view(f"u{value.itemsize // (2 if dtype == 'complex64' else 1)}")
    text = b"\3\1" + (masked(crc32c(b"\0\0\0\3\0\0\0\1"))).to_bytes(4, "big") + b"abcd"
    crc = masked(crc32c(b"\0\0\0\3\0\0\0\1" + text[2:]))
    data = unit.byteswap().tobytes() + text
    items = [
        (b"a", entry(codes[dtype], [2, 3], size=value.nbytes, crc=masked(crc32c(data[: value.nbytes])))),
        (b"s", entry(7, [2], offset=value.nbytes, size=len(text), crc=crc)),
    ]
    checkpoint = opened(bundle(tmp_path / "big", items, data, header=HEADER + put_number(2, 1)))
    assert checkpoint.read("a").dtype == value.dtype
    np.testing.assert_array_equal(checkpoint.read("a"), value)
    checkpoint.verify("a")
    assert checkpoint.metadata["strings"] == {"s": ["abc", "d"]}


def slots_of(shapes: dict[str, tuple[int, ...]], directory: Path) -> tuple[set[str], dict[tuple[str, str], int | None]]:
    """The arrays that remain entries, and (parameter, slot) → axis, of a checkpoint with these shapes."""
    write_bundle(directory / "m", ((name, np.zeros(shape, "f4")) for name, shape in shapes.items()), force=True)
    checkpoint = opened(directory / "m")
    for key, slot in checkpoint.slots.items():
        assert checkpoint.read_slot(*key).shape == slot.shape
    return set(checkpoint.entries), {key: slot.axis for key, slot in checkpoint.slots.items()}


def test_factors_of_adafactor_are_told_by_their_shapes(tmp_path: Path) -> None:
    shapes = {"w": (3, 5, 4), "w_slot_vr": (3, 4), "w_slot_vc": (3, 5), "w_slot_m": (3, 5, 4), "x": (2, 2),
              "x_slot_vr": (3,), "y": (6,), "y_slot_v": (6,), "z": (3, 3), "z_slot_vr": (3,)}  # fmt: skip
    entries, slots = slots_of(shapes, tmp_path)
    assert entries == {"w", "x", "x_slot_vr", "y", "z"}
    assert slots == {("w", "v_row"): 1, ("w", "v_col"): 2, ("w", "m"): None, ("y", "v"): None, ("z", "v_row"): 0}
    shapes = {"w": (3, 5), "training/w/Adafactor": (3,), "training/w/Adafactor_1": (5,), "b": (4,), "b/Adafactor": (4,),
              "u": (2, 2), "u/Adafactor": (2, 2), "u/Adafactor_1": (2,), "u/Adafactor_2": (2,), "c": (2,),
              "c/Adafactor": (2,), "c/Adafactor_1": (2,), "d": (2, 3), "d/Adafactor": (3,)}  # fmt: skip
    entries, slots = slots_of(shapes, tmp_path)
    assert entries == {"w", "b", "u", "c", "d", "d/Adafactor"}
    assert slots == {("w", "v_row"): 1, ("w", "v_col"): 0, ("b", "v"): None, ("u", "m"): None, ("u", "v_row"): 1,
                     ("u", "v_col"): 0, ("c", "m"): None, ("c", "v"): None}  # fmt: skip


def test_slots_have_the_shape_of_a_parameter(tmp_path: Path) -> None:
    shapes = {"b": (2,), "b/RMSProp": (2,), "b/RMSProp_1": (2,), "b/adam_m": (2,), "b/Adam": (3,), "c/Adam": (2,),
              "training/b/Adam_1": (2,), "b/Adam_2": (2,), "global_step": (1,), "beta1_power": (1,)}  # fmt: skip
    entries, slots = slots_of(shapes, tmp_path)
    assert set(slots) == {("b", "RMSProp"), ("b", "RMSProp_1"), ("b", "m"), ("b", "v")}
    assert entries == {"b", "b/Adam", "c/Adam", "b/Adam_2", "global_step", "beta1_power"}


@pytest.mark.parametrize("length", [246, 250, 255])
def test_names_that_are_too_long_for_a_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(SourceError):
        open_checkpoint(tmp_path / ("n" * length))


def test_damaged_data_is_found_by_verify(tmp_path: Path) -> None:
    write_bundle(tmp_path / "m", {"a": np.arange(9.0), "b": np.ones(300_000, "f4")}.items())
    file = tmp_path / f"m{DATA}"
    data = bytearray(file.read_bytes())
    data[900_000] ^= 4
    file.write_bytes(data)
    checkpoint = opened(tmp_path / "m")
    checkpoint.verify("a")
    with pytest.raises(CorruptCheckpoint, match="'b'"):
        checkpoint.verify("b")
    with pytest.raises(KeyError):
        checkpoint.verify("c")


def test_the_writer_replaces_only_when_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    one = {"a": np.ones(2)}
    write_bundle(tmp_path / "m", one.items())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StorageError, match="exists"):
        write_bundle(tmp_path / "m", one.items())
    for wrong in (
        [("a", np.ones(1)), ("a", np.ones(1))],
        [("", np.ones(1))],
        [("\0a", np.ones(1))],
        [("a", np.zeros(2, "M8[s]"))],
        [("a", np.array(["text", None], object))],
    ):
        with pytest.raises(FormatError):
            write_bundle(tmp_path / "m", wrong, force=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_bundle(tmp_path / "m", {"a": np.zeros((2, 3), ">f4").T}.items(), force=True)
    assert opened(tmp_path / "m").read("a").shape == (3, 2)
    assert sorted(before) == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(), (0,), (0, 2), (2, 3)])
def test_strings_of_every_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    texts = np.full(shape, None, object)
    texts[...] = b"\xff" * 200
    write_bundle(tmp_path / "m", [("s", texts), ("a", np.ones(2))])
    checkpoint = opened(tmp_path / "m")
    assert list(checkpoint.entries) == ["a"]
    found = dict(checkpoint.tensors())["s"]
    assert (found.shape, found.tolist()) == (shape, texts.tolist())


@pytest.mark.parametrize("name", ["model-3", 'a "b" c', "имя", "tab\t"])
def test_state_files(name: str, tmp_path: Path) -> None:
    write_bundle(tmp_path / name, {"a": np.ones(2)}.items())
    write_bundle(tmp_path / "older", {"a": np.zeros(2)}.items())
    write_state(tmp_path / "best_dev_checkpoint", name)
    write_state(tmp_path / "checkpoint", "older", [name])
    assert opened(f"{tmp_path}@best").read("a").tolist() == [1, 1]
    assert opened(f"{tmp_path}@last").read("a").tolist() == [0, 0]
    write_state(tmp_path / "checkpoint", name)
    assert (f"{name} (best, last)") in map(str, find_candidates(tmp_path))
    with pytest.raises(FormatError):
        write_state(tmp_path / "checkpoint", "../x")


def test_a_state_file_is_what_tensorflow_writes(tmp_path: Path) -> None:
    write_state(tmp_path / "checkpoint", "model-3")
    assert (tmp_path / "checkpoint").read_bytes() == (GOLDEN / "saver/checkpoint").read_bytes()
