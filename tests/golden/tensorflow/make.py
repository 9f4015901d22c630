"""Writes the files beside it with TensorFlow 2.21.0, tf-keras 2.21.0 and Keras 3.15.1 (Python 3.11):

    saver/     tf.compat.v1.train.Saver(sharded=True): two data files, Adam's slots, partitioned variables, strings,
               every dtype that a variable can have, and the state file
    version1/  a Saver with write_version=V1, which is refused by name
    objects/   tf.train.Checkpoint with a legacy Keras optimizer: object names and slots among them
    keras2/    the same with the optimizer of Keras 2.11 and later: numbered variables
    keras3/    the same with Keras 3

All but the second have ``expected.npz``: what TensorFlow itself reads. Numbers are counted, not drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

v1 = tf.compat.v1
HERE = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
HERE = HERE if HERE.is_dir() else HERE.parent
DTYPES = (
    *("float64", "float16", "bfloat16", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64", "complex64", "complex128", "bool"),
)


def counted(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype="f4").reshape(shape) / 8 - 1


def expect(directory: Path, prefix: str) -> None:
    reader = tf.train.load_checkpoint(prefix)
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    numbers = {name: np.asarray(value) for name, value in values.items() if np.asarray(value).dtype.kind in "biufcV"}
    wide = {name: value.astype("f4") if value.dtype.kind == "V" else value for name, value in numbers.items()}
    np.savez_compressed(directory / "expected.npz", **{name.replace("/", "|"): value for name, value in wide.items()})


def saver(directory: Path, version: int = v1.train.SaverDef.V2) -> None:
    with tf.Graph().as_default():
        weights = v1.get_variable("layer/weights", initializer=counted(3, 4))
        with tf.device("/cpu:1"):
            bias = v1.get_variable("layer/bias", initializer=counted(4))
        v1.get_variable("rows", (5, 70), initializer=v1.zeros_initializer(), partitioner=v1.fixed_size_partitioner(2))
        v1.get_variable(
            "columns", (2, 300), initializer=v1.ones_initializer(), partitioner=v1.fixed_size_partitioner(3, axis=1)
        )
        if version == v1.train.SaverDef.V2:
            v1.get_variable("words", initializer=tf.constant([["a", "ä"], ["", "long " * 30]]))
            v1.get_variable("word", initializer=tf.constant(b"\xff\x00"))
            for dtype in DTYPES:
                v1.get_variable(f"dtypes/{dtype}", initializer=tf.cast(counted(2, 9), dtype))
        v1.get_variable("empty", initializer=counted(0, 3))
        step = v1.train.get_or_create_global_step()
        rate = v1.get_variable("learning_rate", initializer=0.5, trainable=False)
        loss = tf.reduce_sum(tf.square(tf.matmul(counted(2, 3), weights) + bias))
        train = v1.train.AdamOptimizer(rate).minimize(loss, step, var_list=[weights, bias])
        keep = v1.train.Saver(sharded=version == v1.train.SaverDef.V2, save_relative_paths=True, write_version=version)
        with v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as session:
            session.run(v1.global_variables_initializer())
            for _ in range(3):
                session.run(train)
            prefix = keep.save(session, str(directory / "model"), step, write_meta_graph=False)
    if version == v1.train.SaverDef.V2:
        expect(directory, prefix)


def keras(directory: Path, library: Any, optimizer: Any) -> None:
    model = library.Sequential([library.layers.Input((3,)), library.layers.Dense(2, name="dense")])
    model.compile(optimizer, "mse")
    model.set_weights([counted(3, 2), counted(2)])
    model.fit(counted(4, 3), counted(4, 2), epochs=2, verbose=0)
    step = tf.Variable(7, dtype=tf.int64)
    expect(directory, tf.train.Checkpoint(model=model, optimizer=optimizer, step=step).save(str(directory / "ckpt")))


def main() -> None:
    for name in ("saver", "version1", "objects", "keras2", "keras3"):
        (HERE / name).mkdir(exist_ok=True)
    with v1.Graph().as_default(), tf.device("/cpu:0"):
        saver(HERE / "saver")
        saver(HERE / "version1", v1.train.SaverDef.V1)
    keras(HERE / "objects", tf_keras, tf_keras.optimizers.legacy.Adam(0.5))
    keras(HERE / "keras2", tf_keras, tf_keras.optimizers.Adam(0.5))
    keras(HERE / "keras3", tf.keras, tf.keras.optimizers.Adam(0.5))


if __name__ == "__main__":
    main()
