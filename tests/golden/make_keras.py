"""Makes keras/ with Keras 3.15.1 on JAX: the same small model in each of its formats.

KERAS_BACKEND=jax python tests/golden/make_keras.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "formats"))
from jax_arrays import numbers

HERE = Path(__file__).resolve().parent / "keras"


def model() -> keras.Model:
    """Every weight, and every number of the optimizer, follows from its name."""
    made = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="first"), keras.layers.BatchNormalization(name="norm")]
    )
    made.compile(keras.optimizers.Adam(1e-3), "mse")
    made.optimizer.build(made.trainable_variables)
    for variable in (*made.weights, *made.optimizer.variables[2:]):
        variable.assign(numbers(variable.path, tuple(variable.shape)))
    made.optimizer.variables[0].assign(12)
    return made


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    made = model()
    made.save(HERE / "model.keras")
    made.save(HERE / "model.h5")
    made.save_weights(HERE / "model.weights.h5")
    assert np.array_equal(made.weights[0], numbers("sequential/first/kernel", (4, 3)))


if __name__ == "__main__":
    main()
