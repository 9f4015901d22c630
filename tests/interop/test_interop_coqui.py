"""Coqui's graph, written out in TensorFlow 1's terms, restores what we write and computes what we compute."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
import pytest
import tensorflow as tf
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import coqui_models
from warmstart.bundle.model import open_model
from warmstart.export.convert import convert_model
from warmstart.models.deepspeech.config import DeepSpeechConfig

REQUIRES = ["tensorflow-cpu==2.21.0", "torch==2.13.0"]
v1 = tf.compat.v1
CONFIGS = [coqui_models.config(n_hidden=16), coqui_models.config(n_hidden=16, layer_norm=True, relu_clip=1.5)]
LENGTHS = [11, 1, 6]


def variable(name: str, shape: tuple[int, ...]) -> Any:
    return v1.get_variable(name, shape, tf.float32)


def dense(c: DeepSpeechConfig, name: str, x: Any, width: int, last: bool = False) -> Any:
    with v1.variable_scope(name):
        y = tf.matmul(x, variable("weights", (x.shape[-1], width))) + variable("bias", (width,))
        if last:
            return y
        y = tf.minimum(tf.nn.relu(y), c.relu_clip)
        if c.layer_norm:  # as tf.contrib.layers.layer_norm
            with v1.variable_scope("LayerNorm"):
                mean, variance = tf.nn.moments(y, [1], keepdims=True)
                beta, gamma = variable("beta", (width,)), variable("gamma", (width,))
                y = tf.nn.batch_normalization(y, mean, variance, beta, gamma, 1e-12)
        return y


def logits_of(c: DeepSpeechConfig, features: np.ndarray) -> Any:
    """Coqui's ``create_model`` with the fused LSTM: logits [T, B, A] of ``features`` [B, T, F]."""
    batch, time, h = *features.shape[:2], c.n_hidden
    padded = tf.pad(tf.constant(features), [[0, 0], [c.n_context] * 2, [0, 0]])
    windows = tf.reshape(tf.signal.frame(padded, c.window, 1, axis=1), [batch, time, c.window * c.n_input])
    x = tf.reshape(tf.transpose(windows, [1, 0, 2]), [time * batch, c.window * c.n_input])
    for name in ("layer_1", "layer_2", "layer_3"):
        x = dense(c, name, x, h)
    with v1.variable_scope(coqui_models.CELL):
        kernel, bias = variable("kernel", (2 * h, 4 * h)), variable("bias", (4 * h,))
    nothing, state = tf.zeros([h]), tf.zeros([batch, h])
    *_, outputs = tf.raw_ops.BlockLSTM(
        seq_len_max=time, x=tf.reshape(x, [time, batch, h]), cs_prev=state, h_prev=state, w=kernel,
        wci=nothing, wcf=nothing, wco=nothing, b=bias, forget_bias=0.0, cell_clip=-1.0,
    )  # fmt: skip
    real = tf.transpose(tf.sequence_mask(LENGTHS, time, tf.float32))[:, :, None]
    x = dense(c, "layer_5", tf.reshape(outputs * real, [time * batch, h]), h)
    return tf.reshape(dense(c, "layer_6", x, c.vocab_size, last=True), [time, batch, c.vocab_size])


def made(c: DeepSpeechConfig) -> np.ndarray:
    features = np.random.default_rng(2).normal(size=(3, max(LENGTHS), c.n_input)).astype(np.float32)
    for row, length in enumerate(LENGTHS):
        features[row, length:] = 0.0
    return features


def ours(path: Path, features: np.ndarray) -> np.ndarray:
    family, config, reading = open_model(path).require()
    with torch.device("meta"):
        module = family.build(config)
    arrays = {name: torch.from_numpy(np.array(reading.read(name), order="C")) for name in reading.origins}
    module.load_state_dict(arrays, assign=True)
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(features), torch.tensor(LENGTHS)).numpy()


@pytest.fixture(params=CONFIGS, ids=["plain", "layer_norm"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DeepSpeechConfig, Path]:
    """A checkpoint that was converted to a bundle's names and back, by way of cuDNN's layout."""
    source = coqui_models.trained(tmp_path / "source", request.param)
    for k, (before, to) in enumerate([(source, "coqui-cudnn"), (tmp_path / "0", "coqui")]):
        convert_model(open_model(before), tmp_path / str(k), to)
    return request.param, tmp_path / "1"


def test_coquis_training_graph_restores_every_variable_and_its_saver_writes_our_bytes(run, tmp_path: Path) -> None:
    c, folder = run
    features = made(c)
    with tf.Graph().as_default(), v1.Session() as session:
        logits = logits_of(c, features)
        loss = tf.reduce_sum(tf.square(logits))
        step = v1.train.get_or_create_global_step()
        rate = v1.get_variable("learning_rate", [], tf.float32, trainable=False)
        v1.train.AdamOptimizer(rate).minimize(loss, global_step=step)
        saver = v1.train.Saver()
        path = v1.train.latest_checkpoint(str(folder))
        assert Path(path).name == "best_dev-12"
        assert v1.train.latest_checkpoint(str(folder), "best_dev_checkpoint") == path
        saver.restore(session, path)
        theirs = session.run(logits)
        assert session.run(step) == 12
        names = {v.op.name for v in v1.global_variables()}
        saver.save(session, str(tmp_path / "best_dev-12"), write_meta_graph=False, write_state=False)
    np.testing.assert_allclose(theirs.transpose(1, 0, 2), ours(folder, features), rtol=0, atol=2e-5)
    written = {name for name, _ in v1.train.list_variables(path)}
    assert written == names
    for ending in (".index", ".data-00000-of-00001"):
        name = f"best_dev-12{ending}"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_tensorflow_reads_what_we_write_for_cudnn(run) -> None:
    _, folder = run
    reader = v1.train.load_checkpoint(str(folder.parent / "0"))
    names = reader.get_variable_to_shape_map()
    assert names[coqui_models.OPAQUE] == names[f"{coqui_models.OPAQUE}/Adam"] == [4 * 16 * 34]
    kernel = reader.get_tensor(f"{coqui_models.CELL}/kernel")
    before = v1.train.load_checkpoint(str(folder)).get_tensor(f"{coqui_models.CELL}/kernel")
    assert kernel.tobytes() == before.tobytes()
