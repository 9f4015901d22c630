"""Checkpoints that TensorFlow writes are read equal, and ours are restored by it; the Saver's bytes are ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cramjam
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from warmstart.errors import CorruptCheckpoint
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.tensorflow import BundleCheckpoint, write_bundle, write_state
from warmstart.formats.tensorflow.index import DTYPES
from warmstart.formats.tensorflow.snappy import decompress

try:
    import tf_keras as keras2
except ImportError:
    keras2 = tf.keras  # which is Keras 2 itself

REQUIRES = {
    "tensorflow": ["tensorflow-cpu==2.21.0", "tf-keras==2.21.0", "cramjam==2.14.0"],
    "tensorflow-2.18": ["tensorflow-cpu==2.18.1", "tf-keras==2.18.0", "cramjam==2.14.0"],
}
v1 = tf.compat.v1
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
ENDINGS = (".index", ".data-00000-of-00001")
TWO = v1.ConfigProto(device_count={"CPU": 2})


def opened(path: Path | str) -> BundleCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, BundleCheckpoint)
    return checkpoint


def same_bytes(left: Path, right: Path) -> None:
    for ending in ENDINGS:
        assert left.with_name(left.name + ending).read_bytes() == right.with_name(right.name + ending).read_bytes()


def variables() -> list[Any]:
    """A small model of TensorFlow 1 with an optimizer, over two devices."""
    chance = np.random.default_rng(0)
    weights = v1.get_variable("layer/weights", initializer=chance.random((30, 40), "f4"))
    with tf.device("/cpu:1"):
        bias = v1.get_variable("layer/bias", initializer=chance.random(40, "f4"))
    rate = v1.get_variable("learning_rate", initializer=0.1, trainable=False)
    step = v1.train.get_or_create_global_step()
    loss = tf.reduce_sum(tf.square(tf.matmul(np.ones((2, 30), "f4"), weights) + bias))
    return [loss, step, rate, weights, bias]


@pytest.mark.parametrize("sharded", [False, True])
def test_the_saver(tmp_path: Path, sharded: bool) -> None:
    with tf.Graph().as_default():
        loss, step, rate, *parameters = variables()
        train = v1.train.AdamOptimizer(rate).minimize(loss, step, var_list=parameters)
        for axis, count in ((0, 3), (1, 5)):
            v1.get_variable(f"parts{axis}", (9, 700), partitioner=v1.fixed_size_partitioner(count, axis))
        v1.get_variable("words", initializer=tf.constant([[b"a", b"\xff" * 200], [b"", b"\xff\x00"]]))
        saver = v1.train.Saver(sharded=sharded)
        with v1.Session(config=TWO) as session:
            session.run(v1.global_variables_initializer())
            for _ in range(3):
                session.run(train)
            saver.save(session, str(tmp_path / "model"), step)
            values = {v.op.name: session.run(v) for v in v1.global_variables() if "part_" not in v.op.name}
            for axis in (0, 1):
                parts = [v for v in v1.global_variables() if v.op.name.startswith(f"parts{axis}/")]
                values[f"parts{axis}"] = np.concatenate(session.run(parts), axis)
    checkpoint = opened(tmp_path)
    found = dict(checkpoint.tensors())
    assert set(found) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
        checkpoint.verify(name)
    assert checkpoint.step == 3
    assert set(checkpoint.slots) == {(f"layer/{name}", slot) for name in ("weights", "bias") for slot in "mv"}
    np.testing.assert_array_equal(checkpoint.read_slot("layer/bias", "v"), values["layer/bias/Adam_1"])
    assert [str(candidate) for candidate in find_candidates(tmp_path)] == ["model-3 (last)"]


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (lambda: v1.train.MomentumOptimizer(0.1, 0.9), {"Momentum"}),
        (lambda: v1.train.RMSPropOptimizer(0.1, momentum=0.5), {"RMSProp", "RMSProp_1"}),
        (lambda: v1.train.AdagradOptimizer(0.1), {"Adagrad"}),
        (lambda: v1.train.AdadeltaOptimizer(0.1), {"Adadelta", "Adadelta_1"}),
        (lambda: v1.train.FtrlOptimizer(0.1), {"Ftrl", "Ftrl_1"}),
        (lambda: v1.train.AdamOptimizer(0.1), {"m", "v"}),
    ],
)
@pytest.mark.parametrize("scope", ["", "training"])
def test_slots_of_every_optimizer(tmp_path: Path, optimizer: Callable[[], Any], slots: set[str], scope: str) -> None:
    with tf.Graph().as_default():
        loss, step, _, *parameters = variables()
        with v1.variable_scope(scope) if scope else v1.name_scope(None):
            trainer = optimizer()
            train = trainer.minimize(loss, step, var_list=parameters)
        with v1.Session(config=TWO) as session:
            session.run(v1.global_variables_initializer())
            session.run(train)
            v1.train.Saver().save(session, str(tmp_path / "model"), step)
            names = {"m": "m", "v": "v"} if "m" in slots else {}
            truth = {(p.op.name, s): session.run(trainer.get_slot(p, s)) for p in parameters for s in names}
    checkpoint = opened(tmp_path)
    assert set(checkpoint.slots) == {(f"layer/{name}", slot) for name in ("weights", "bias") for slot in slots}
    assert set(checkpoint.entries) == {"layer/weights", "layer/bias"}
    for key, value in truth.items():
        np.testing.assert_array_equal(checkpoint.read_slot(*key), value)


def test_the_savers_bytes(tmp_path: Path) -> None:
    with tf.Graph().as_default():
        loss, step, rate, *parameters = variables()
        v1.train.AdamOptimizer(rate).minimize(loss, step, var_list=parameters)
        v1.get_variable("words", initializer=tf.constant([[b"a", b"\xff" * 200], [b"", b"\xff\x00"]]))
        v1.get_variable("empty", initializer=np.zeros((0, 3), "f4"))
        with v1.Session(config=TWO) as session:
            session.run(v1.global_variables_initializer())
            values = {v.op.name: session.run(v) for v in v1.global_variables()}
            v1.train.Saver(save_relative_paths=True).save(session, str(tmp_path / "theirs/model"))
    arrays = ((name, np.asarray(values[name])) for name in sorted(values, key=str.encode))
    write_bundle(tmp_path / "ours/model", arrays)
    write_state(tmp_path / "ours/checkpoint", "model")
    same_bytes(tmp_path / "ours/model", tmp_path / "theirs/model")
    assert (tmp_path / "ours/checkpoint").read_bytes() == (tmp_path / "theirs/checkpoint").read_bytes()


def test_the_bytes_of_many_blocks(tmp_path: Path) -> None:
    """12,000 names need several blocks, with separators between them."""
    names = [f"layer_{k}/with/a/long/name/{k % 7}" for k in range(12_000)]
    values = {name: np.float32(k) for k, name in enumerate(names)}
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "theirs"), tensor_names=names, shape_and_slices=[""] * len(names),
                      tensors=[tf.constant(values[name]) for name in names])  # fmt: skip
    write_bundle(tmp_path / "ours", ((name, np.asarray(value)) for name, value in values.items()))
    same_bytes(tmp_path / "ours", tmp_path / "theirs")
    checkpoint = opened(tmp_path / "theirs")
    assert all(checkpoint.read(name) == value for name, value in values.items())


def numbers(code: int, name: str) -> Any:
    values = np.random.default_rng(code).integers(0, 2, (3, 5))
    if name.startswith("q"):
        plain = name.replace("qu", "u", 1).replace("q", "", 1)
        return tf.bitcast(tf.constant(values.astype(plain)), tf.dtypes.as_dtype(code))
    return tf.constant(values.astype(getattr(ml_dtypes, name, name)))


@pytest.mark.parametrize(("code", "name"), [(c, n) for c, n in DTYPES.items() if n not in ("resource", "variant")])
def test_every_dtype(tmp_path: Path, code: int, name: str) -> None:
    try:
        value = tf.constant(["a", "b" * 300, ""]) if name == "string" else numbers(code, name)
    except (TypeError, ValueError) as error:
        pytest.skip(f"this TensorFlow has no {name}: {error}")
    tf.raw_ops.SaveV2(prefix=str(tmp_path / "model"), tensor_names=["x"], shape_and_slices=[""], tensors=[value])
    checkpoint = opened(tmp_path / "model")
    checkpoint.verify("x")
    tensors = dict(checkpoint.tensors())
    assert tensors["x"].tobytes() == value.numpy().tobytes() if name != "string" else True
    assert tensors["x"].tolist() == value.numpy().tolist() or name.startswith("q")
    write_bundle(tmp_path / "again", tensors.items())
    if name.startswith("q"):
        assert checkpoint.metadata["dtypes"] == {"x": name}
        return
    same_bytes(tmp_path / "again", tmp_path / "model")
    back = tf.raw_ops.RestoreV2(
        prefix=str(tmp_path / "again"), tensor_names=["x"], shape_and_slices=[""], dtypes=[value.dtype]
    )[0]
    assert back.numpy().tobytes() == value.numpy().tobytes() or name == "string"


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Nadam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "SGD"])
@pytest.mark.parametrize("kind", ["legacy", "keras2", "keras"])
def test_keras(tmp_path: Path, kind: str, name: str) -> None:
    library = tf.keras if kind == "keras" else keras2
    if kind == "keras" and keras2 is tf.keras:
        pytest.skip("this TensorFlow's Keras is Keras 2")
    home = library.optimizers.legacy if kind == "legacy" else library.optimizers
    if not hasattr(home, name):
        pytest.skip(f"no {name} there")
    optimizer = getattr(home, name)(0.01, **({"momentum": 0.9} if name == "SGD" else {}))
    model = library.Sequential([library.layers.Input((3,)), *(library.layers.Dense(4, name=n) for n in ("one", "two"))])
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 4)), epochs=2, verbose=0)
    tf.train.Checkpoint(model=model, optimizer=optimizer).save(str(tmp_path / "ckpt"))
    checkpoint = opened(tmp_path)
    assert len(checkpoint.entries) == 4
    own = checkpoint.metadata["full_names"]
    slots = {slot for _, slot in checkpoint.slots}
    assert len(checkpoint.slots) == 4 * len(slots) > 0
    if name in ("Adam", "AdamW", "Nadam"):
        assert slots == {"m", "v"}
    for variable in model.trainable_variables:
        path = getattr(variable, "path", variable.name).removesuffix(":0")
        entry = next(key for key in checkpoint.entries if own[key] == path)
        np.testing.assert_array_equal(checkpoint.read(entry), variable.numpy())
        for slot in slots if kind == "legacy" else ():
            truth = optimizer.get_slot(variable, slot).numpy()
            np.testing.assert_array_equal(checkpoint.read_slot(entry, slot), truth)
    state = [v.numpy() for v in (optimizer.weights if kind == "legacy" else optimizer.variables) if len(v.shape)]
    held = [checkpoint.read_slot(*key) for key in checkpoint.slots]
    assert all(any(np.array_equal(h, s) for s in state) for h in held)
    assert checkpoint.step == 2


def test_weights_and_saved_models_of_keras(tmp_path: Path) -> None:
    model = keras2.Sequential([keras2.layers.Input((3,)), keras2.layers.Dense(4), keras2.layers.BatchNormalization()])
    model.save_weights(tmp_path / "weights/model", save_format="tf")
    model.save(tmp_path / "saved", save_format="tf")
    tf.saved_model.save(model, str(tmp_path / "exported"))
    for place in ("weights", "weights/model", "saved", "saved/variables", "exported"):
        checkpoint = opened(tmp_path / place)
        shapes = sorted(entry.shape for entry in checkpoint.entries.values())
        assert shapes == [(3, 4), *[(4,)] * 5]
        kernel = next(name for name in checkpoint.entries if name.endswith("kernel" + VALUE))
        np.testing.assert_array_equal(checkpoint.read(kernel), model.weights[0].numpy())


def test_what_is_no_array(tmp_path: Path) -> None:
    data = iter(tf.data.Dataset.range(10).shuffle(5))
    next(data)
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(tf.constant(["a", "b"]), tf.constant([1, 2], tf.int64))
    tf.train.Checkpoint(data=data, table=table, w=tf.Variable([1.0])).write(str(tmp_path / "model"))
    checkpoint = opened(tmp_path / "model")
    assert checkpoint.read(f"w{VALUE}") == [1]
    opaque = [entry for entry in checkpoint.entries.values() if not entry.readable]
    assert {entry.dtype for entry in opaque} == {"variant"}
    assert any(sorted(np.ravel(text)) == ["a", "b"] for text in checkpoint.metadata["strings"].values())


def test_ours_are_restored(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    arrays = {
        "w": chance.random((300, 500), "f4"), "b": chance.random(7), "half": chance.random((2, 3)).astype("f2"),
        "brain": chance.random((4, 4)).astype(ml_dtypes.bfloat16), "step": np.array(3, "i8"),
        "none": np.zeros((0, 2), "f4"),
        "words": np.array([[b"a", "ä".encode()], [b"", b"x" * 1000]], object), "имя": np.array([True, False]),
    }  # fmt: skip
    write_bundle(tmp_path / "model-3", arrays.items())
    write_state(tmp_path / "checkpoint", "model-3")
    latest = tf.train.latest_checkpoint(tmp_path)
    assert latest == str(tmp_path / "model-3")
    reader = tf.train.load_checkpoint(latest)
    assert set(reader.get_variable_to_shape_map()) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array)
    with tf.Graph().as_default():
        made = {name: v1.get_variable(name.encode("idna").decode(), initializer=tf.zeros(a.shape, a.dtype))
                for name, a in arrays.items() if a.dtype != object}  # fmt: skip
        with v1.Session() as session:
            v1.train.Saver(made).restore(session, latest)
            for name, variable in made.items():
                np.testing.assert_array_equal(session.run(variable), arrays[name])


def test_objects_again_are_restored(tmp_path: Path) -> None:
    def make() -> tuple[Any, Any]:
        model = keras2.Sequential([keras2.layers.Input((3,)), keras2.layers.Dense(4)])
        optimizer = keras2.optimizers.Adam(0.01)
        model.compile(optimizer, "mse")
        model.fit(np.random.rand(4, 3), np.ones((4, 4)), verbose=0)
        return model, tf.train.Checkpoint(model=model, optimizer=optimizer)

    model, checkpoint = make()
    write_bundle(tmp_path / "ours", opened(checkpoint.write(str(tmp_path / "theirs"))).tensors())
    other, target = make()
    target.read(str(tmp_path / "ours")).assert_consumed()
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize("size", [0, 1, 59, 60, 61, 255, 256, 257, 65_535, 65_536, 70_000, 300_000])
def test_what_snappy_compresses(size: int) -> None:
    """TensorFlow writes no compressed index any more; Snappy's own compressor stands in for it."""
    chance = np.random.default_rng(size)
    words = [chance.bytes(int(length)) for length in chance.integers(1, 90, 50)]
    texts = b"".join(words[int(k)] for k in chance.integers(0, 50, size))[:size]
    for data in (texts, chance.bytes(size), b"a" * size):
        assert decompress(bytes(cramjam.snappy.compress_raw(data))) == data


def test_both_refuse_the_same_damage(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", {"a": np.arange(500_000.0)}.items())
    file = tmp_path / "model.data-00000-of-00001"
    data = bytearray(file.read_bytes())
    data[2_000_001] ^= 1
    file.write_bytes(data)
    with pytest.raises(tf.errors.DataLossError):
        tf.raw_ops.RestoreV2(
            prefix=str(tmp_path / "model"), tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float64]
        )
    with pytest.raises(CorruptCheckpoint):
        opened(tmp_path / "model").verify("a")
