"""Keras 3 and Keras 2 beside our reader of their HDF5 files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "formats"))

from warmstart.formats.detect import open_checkpoint  # noqa: E402

REQUIRES = {
    "keras-3": ["keras==3.15.1", "jax==0.10.2", "h5py>=3.10"],
    "keras-2": ["tensorflow-cpu==2.21.0", "tf_keras==2.21.0", "h5py>=3.10"],
}
TWO = os.environ.get("WARMSTART_INTEROP") == "keras-2"
os.environ["KERAS_BACKEND"] = "jax"
if TWO:
    import tf_keras as keras
else:
    import keras


def trained(optimizer: Any = "adam", **options: Any) -> Any:
    """Convolutions, normalisation, recurrence and a model within the model."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="inside")], name="block")
    images = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, name="convolution")(images)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Reshape((36, 3))(x)
    x = layers.LSTM(6, name="memory")(x)
    model = keras.Model(images, layers.Dense(2, name="out")(inner(x)), **options)
    model.compile(optimizer, "mse")
    chance = np.random.default_rng(0)
    model.fit(chance.random((8, 8, 8, 2), "f4"), chance.random((8, 2), "f4"), epochs=3, batch_size=4, verbose=0)
    return model


def values(variables: Any) -> list[Any]:
    return [np.asarray(variable) for variable in variables]


def same_multiset(found: list[Any], expected: list[Any]) -> None:
    """The same arrays in any order."""
    assert sorted(a.tobytes() for a in found) == sorted(a.tobytes() for a in expected)


def test_h5(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "model.h5")
    checkpoint = open_checkpoint(tmp_path / "model.h5")
    assert (checkpoint.format, checkpoint.step) == ("keras", 6)
    expected = values(model.weights)
    assert len(checkpoint.entries) == len(expected)
    same_multiset([checkpoint.read(name) for name in checkpoint.entries], expected)
    assert checkpoint.metadata["model_config"]["class_name"] == "Functional"
    by_name = {(v.name if TWO else v.path): np.asarray(v) for v in model.weights}
    for name in checkpoint.entries:
        weight = name.partition("/")[2]
        spelled = weight if weight in by_name else weight.partition("/")[2]
        np.testing.assert_array_equal(checkpoint.read(name), by_name[spelled])
    assert {parameter for parameter, _ in checkpoint.slots} == {
        name for name in checkpoint.entries if "moving" not in name and "seed" not in name
    }
    moments: dict[str, list[Any]] = {"m": [], "v": []}
    for variable in model.optimizer.variables:
        name = variable.name
        for slot, words in {"m": ("momentum", "Adam/m/"), "v": ("velocity", "Adam/v/")}.items():
            if any(word in name for word in words):
                moments[slot].append(np.asarray(variable))
    for slot, arrays in moments.items():
        same_multiset([checkpoint.read_slot(*key) for key in checkpoint.slots if key[1] == slot], arrays)
    for (parameter, slot), entry in checkpoint.slots.items():
        weight = parameter.partition("/")[2]
        flat = f"{weight.replace('/', '_')}_{'momentum' if slot == 'm' else 'velocity'}"
        names = (f"Adam/{slot}/{weight}", flat)
        variable = next(variable for variable in model.optimizer.variables if variable.name in names)
        assert entry.shape == tuple(variable.shape)
        np.testing.assert_array_equal(checkpoint.read_slot(parameter, slot), np.asarray(variable))


def test_weights_alone(tmp_path: Path) -> None:
    model = trained()
    names = ["model.weights.h5", "model.h5"] if TWO else ["model.weights.h5"]
    for name in names:
        model.save_weights(tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.format == "keras"
        same_multiset([checkpoint.read(entry) for entry in checkpoint.entries], values(model.weights))


def test_keras_files(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "model.keras")
    checkpoint: Any = open_checkpoint(tmp_path / "model.keras")
    assert (checkpoint.format, checkpoint.step) == ("keras", 6)
    same_multiset([checkpoint.read(entry) for entry in checkpoint.entries], values(model.weights))
    assert checkpoint.metadata["config"]["class_name"] == "Functional"
    state = [checkpoint.read_other(name) for name in checkpoint.optimizer["other_arrays"]]
    same_multiset(state, [value for value in values(model.optimizer.variables) if value.ndim])


@pytest.mark.skipif(TWO, reason="Keras 3 only")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    model = keras.Sequential([keras.Input((4,), dtype=dtype), keras.layers.Dense(3, dtype=dtype)])
    for name in ("model.weights.h5", "model.keras"):
        (model.save_weights if "weights" in name else model.save)(tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / name)
        assert {entry.dtype for entry in checkpoint.entries.values()} == {model.weights[0].dtype}
        same_multiset([checkpoint.read(entry) for entry in checkpoint.entries], values(model.weights))


def test_stateless_and_other_optimizers(tmp_path: Path) -> None:
    """What belongs to no one parameter is named."""
    for optimizer in ("sgd", keras.optimizers.RMSprop(momentum=0.9)):
        model = trained(optimizer)
        model.save(tmp_path / "model.h5")
        checkpoint: Any = open_checkpoint(tmp_path / "model.h5")
        same_multiset([checkpoint.read(name) for name in checkpoint.entries], values(model.weights))
        others = [checkpoint.read_other(name) for name in checkpoint.optimizer.get("other_arrays", ())]
        found = [checkpoint.read_slot(*key) for key in checkpoint.slots] + others
        same_multiset(found, [value for value in values(model.optimizer.variables) if value.ndim])
        assert checkpoint.step == 6
