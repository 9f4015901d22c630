"""Makes the TensorFlow Lite file of a Coqui checkpoint as Coqui made it, for the peer of ``speech.py transcribe``.

The graph of one inference step of 16 frames is built in TensorFlow 1's mode and goes through its old converter, which
TensorFlow 2.16 no longer has. It runs alone, with ``tensorflow-cpu==2.15.1`` on Python 3.10, its ``bin`` on PATH:

    python benchmarks/speech_coqui_file.py CHECKPOINT_DIRECTORY output_graph.tflite [--quantize]
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import tensorflow as tf
from tensorflow.python.ops import gen_audio_ops

v1 = tf.compat.v1
CELL = "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
STEPS, CONTEXT, COEFFICIENTS, CLIP = 16, 9, 26, 20.0


def serialized(labels: list[str]) -> bytes:
    """The alphabet as Coqui's client reads it: their number, and of each its index, length and bytes; 16 bits each."""
    rows = [struct.pack("<HH", i, len(label.encode())) + label.encode() for i, label in enumerate(labels)]
    return struct.pack("<H", len(rows)) + b"".join(rows)


def graph(folder: Path) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    flags = json.loads((folder / "flags.txt").read_text())
    text = (folder / "alphabet.txt").read_text(encoding="utf-8")
    labels = [line.replace("\\#", "#") for line in text.splitlines() if line and not line.startswith("#")]
    state = tf.train.get_checkpoint_state(str(folder), "best_dev_checkpoint")
    arrays = tf.train.load_checkpoint(str(folder / Path(state.model_checkpoint_path).name))  # wherever it has been
    rate, milliseconds = flags["audio_sample_rate"], (flags["feature_win_len"], flags["feature_win_step"])
    window, step = (rate * length // 1000 for length in milliseconds)
    width = arrays.get_tensor("layer_1/bias").shape[0]

    samples = v1.placeholder(tf.float32, [window], "input_samples")
    spectrum = gen_audio_ops.audio_spectrogram(tf.expand_dims(samples, -1), window, step, magnitude_squared=True)
    mfccs = gen_audio_ops.mfcc(spectrum, rate, upper_frequency_limit=rate / 2, dct_coefficient_count=COEFFICIENTS)
    mfccs = tf.identity(tf.reshape(mfccs, [-1, COEFFICIENTS]), "mfccs")

    features = v1.placeholder(tf.float32, [1, STEPS, 2 * CONTEXT + 1, COEFFICIENTS], "input_node")
    cell = v1.placeholder(tf.float32, [1, width], "previous_state_c")
    output = v1.placeholder(tf.float32, [1, width], "previous_state_h")

    def dense(x: tf.Tensor, stage: int) -> tf.Tensor:
        named = (tf.constant(arrays.get_tensor(f"layer_{stage}/{part}")) for part in ("weights", "bias"))
        return tf.nn.bias_add(tf.matmul(x, next(named)), next(named))

    def clipped(x: tf.Tensor, stage: int) -> tf.Tensor:
        return tf.minimum(tf.nn.relu(dense(x, stage)), CLIP)

    x = tf.reshape(tf.transpose(features, [1, 0, 2, 3]), [-1, (2 * CONTEXT + 1) * COEFFICIENTS])
    for stage in (1, 2, 3):
        x = clipped(x, stage)
    kernel, bias = (tf.constant(arrays.get_tensor(f"{CELL}/{part}")) for part in ("kernel", "bias"))
    c, h, outputs = cell, output, []
    for frame in tf.unstack(tf.reshape(x, [STEPS, 1, width])):
        i, j, f, o = tf.split(tf.nn.bias_add(tf.matmul(tf.concat([frame, h], 1), kernel), bias), 4, axis=1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(j)
        h = tf.sigmoid(o) * tf.tanh(c)
        outputs.append(h)
    x = clipped(tf.concat(outputs, 0), 5)
    logits = tf.nn.softmax(dense(x, 6), name="logits")
    metadata = {"version": 6, "sample_rate": rate, "feature_win_len": milliseconds[0], "beam_width": 500}
    metadata |= {"feature_win_step": milliseconds[1]}
    facts = [tf.constant([value], name=f"metadata_{name}") for name, value in metadata.items()]
    facts.append(tf.constant([serialized(labels)], name="metadata_alphabet"))
    states = [tf.identity(c, "new_state_c"), tf.identity(h, "new_state_h")]
    return [features, cell, output, samples], [logits, *states, mfccs, *facts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="directory of flags.txt, alphabet.txt, best_dev_checkpoint")
    parser.add_argument("file", type=Path)
    parser.add_argument("--quantize", action="store_true", help="8-bit weights, Coqui's default")
    given = parser.parse_args()
    with v1.Graph().as_default(), v1.Session() as session:
        inputs, outputs = graph(given.checkpoint)
        converter = v1.lite.TFLiteConverter.from_session(session, inputs, outputs)
        converter.experimental_new_converter = False  # the new one leaves constant outputs without a node
        converter.allow_custom_ops = True
        if given.quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        given.file.write_bytes(converter.convert())


if __name__ == "__main__":
    main()
