"""DeepSpeech as the TensorFlow Lite model that Coqui's own client opens, in every language that it was made for.

It computes the next 16 frames of one recording, given the state of the LSTM, and returns that state. Tensors have the
names by which the client finds them (Coqui STT 1.4.0, ``native_client/tflitemodelstate.cc``; what is in them:
``training/coqui_stt_training/export.py``). Inputs: ``input_node`` float32 [1, 16, window, n_input], each frame with
those around it; ``previous_state_c`` and ``previous_state_h`` [1, n_hidden], zeros at first; ``input_samples``, one
window of audio. Outputs: ``logits`` [16, vocab_size], which are probabilities; ``new_state_c`` and ``new_state_h``;
``mfccs`` [1, n_input] of the samples; and what the client must know, each in a tensor ``metadata_…``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from warmstart.lean import dataclass
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.beside import alphabet_of, config_file
from warmstart.models.deepspeech.mfcc import CHANNELS, LOWEST_HZ, Mfcc
from warmstart.models.deepspeech.parameters import GATES, parameters
from warmstart.models.family import Dialect, Facts
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.vocabulary import Vocabulary

FRAMES = 16  # Coqui's default of --n_steps
BEAMS = 500  # Coqui's default of --export_beam_width; a client may ask for others
VERSION = 6  # of the graph; the client refuses older ones
_EPSILON = 1e-12

Constant = list[int] | float | str


@dataclass(frozen=True)
class TfliteDialect(Dialect):
    """A TensorFlow Lite graph with weights as they are, [out, in]. Written, not read."""

    name: str = "tflite"
    layout: str = "tflite"
    readable: bool = False
    quantizations: tuple[str, ...] = ("int8",)
    names_beams: bool = True

    def rules(self, config: DeepSpeechConfig) -> list[Rule]:
        return [rule(p.name, p.name) for p in parameters(config)]

    def header(self, config: DeepSpeechConfig, facts: Facts) -> Mapping[str, str]:
        return {"graph": json.dumps(graph(config, alphabet_of(facts.vocabularies), facts.beams or BEAMS))}

    def files(
        self, config: DeepSpeechConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        return config_file(config, vocabularies, frames=FRAMES)


def graph(config: DeepSpeechConfig, alphabet: Alphabet, beams: int = BEAMS) -> dict[str, Any]:
    """The model without its arrays, which are those of :meth:`TfliteDialect.rules`.

    ``tensors`` are shapes by name, float32 but for those of ``types``; ``constants`` are int32 (lists), float32 or
    strings of bytes (hexadecimal); ``nodes`` stand in the order in which they run.
    """
    nodes = _Nodes()
    _features(nodes, config)
    _acoustic(nodes, config)
    _metadata(nodes, config, alphabet, beams)
    said = [name for name in nodes.tensors if name.startswith("metadata_")]
    return {**vars(nodes), "outputs": ["logits", "new_state_c", "new_state_h", "mfccs", *said]}


class _Nodes:
    """Nodes in order, and what they take and make."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.tensors: dict[str, list[int]] = {}
        self.types: dict[str, str] = {}
        self.constants: dict[str, Constant] = {}
        self.nodes: list[dict[str, Any]] = []

    def input(self, name: str, *shape: int) -> str:
        self.inputs.append(name)
        self.tensors[name] = list(shape)
        return name

    def constant(self, name: str, value: Constant) -> str:
        self.constants[name] = value
        return name

    def several(self, op: str, inputs: Sequence[str], made: Mapping[str, Sequence[int]], **options: Any) -> list[str]:
        """A node that makes the tensors of these shapes."""
        self.tensors |= {name: list(shape) for name, shape in made.items()}
        self.nodes.append({"op": op, "inputs": list(inputs), "outputs": list(made), "options": options})
        return list(made)

    def one(self, op: str, inputs: Sequence[str], name: str, shape: Sequence[int], **options: Any) -> str:
        return self.several(op, inputs, {name: shape}, **options)[0]

    def reshape(self, x: str, name: str, *shape: int) -> str:
        to = self.constant(f"{name}.shape", list(shape))
        return self.one("RESHAPE", [x, to], name, shape, newShape=list(shape))


def _features(nodes: _Nodes, c: DeepSpeechConfig) -> None:
    """One frame's coefficients of its samples, by TensorFlow's own kernels (:mod:`..mfcc` computes the same)."""
    mfcc = Mfcc.of(c)
    samples = nodes.reshape(nodes.input("input_samples", mfcc.window), "samples", mfcc.window, 1)
    options: dict[str, Any] = {"window_size": mfcc.window, "stride": mfcc.step, "magnitude_squared": True}
    power = nodes.one("AudioSpectrogram", [samples], "spectrogram", [1, 1, mfcc.fft_length // 2 + 1], **options)
    rate = nodes.constant("sample_rate", [c.sample_rate])
    options = {"lower_frequency_limit": LOWEST_HZ, "upper_frequency_limit": c.sample_rate / 2}
    options |= {"filterbank_channel_count": CHANNELS, "dct_coefficient_count": c.n_input}
    nodes.reshape(nodes.one("Mfcc", [power, rate], "cepstra", [1, 1, c.n_input], **options), "mfccs", 1, c.n_input)


def _acoustic(nodes: _Nodes, c: DeepSpeechConfig) -> None:
    """Windows and state to probabilities and state. TensorFlow Lite's own LSTM keeps its state inside; this one is
    written out, frame by frame, as Coqui's is."""
    width = c.n_hidden

    def linear(stage: str, x: str, outputs: int, **options: Any) -> str:
        inputs = [x, f"{stage}.weight", f"{stage}.bias"]
        return nodes.one("FULLY_CONNECTED", inputs, f"{stage}.sum", [FRAMES, outputs], **options)

    def dense(stage: str, x: str) -> str:
        inputs = [linear(stage, x, width, fusedActivationFunction="RELU"), "relu_clip"]
        x = nodes.one("MINIMUM", inputs, f"{stage}.out", [FRAMES, width])
        return _normed(nodes, stage, x, width) if c.layer_norm else x

    nodes.constant("relu_clip", c.relu_clip)
    nodes.constant("frames", [0])
    nodes.constant("units", [1])
    x = nodes.input("input_node", 1, FRAMES, c.window, c.n_input)
    state = nodes.input("previous_state_c", 1, width), nodes.input("previous_state_h", 1, width)
    x = nodes.reshape(x, "windows", FRAMES, c.window * c.n_input)
    for stage in ("layer_1", "layer_2", "layer_3"):
        x = dense(stage, x)
    parts = {f"lstm.{k}.given": [1, width] for k in range(FRAMES)}
    outputs = []
    for k, given in enumerate(nodes.several("SPLIT", ["frames", x], parts, numSplits=FRAMES)):
        state = _recur(nodes, f"lstm.{k}", given, state, width, last=k == FRAMES - 1)
        outputs.append(state[1])
    x = nodes.one("CONCATENATION", outputs, "lstm.out", [FRAMES, width], axis=0)
    x = linear("layer_6", dense("layer_5", x), c.vocab_size)
    nodes.one("SOFTMAX", [x], "logits", [FRAMES, c.vocab_size], beta=1.0)


def _recur(nodes: _Nodes, at: str, given: str, state: tuple[str, str], width: int, last: bool) -> tuple[str, str]:
    """Cell and output of the LSTM after one frame."""

    def one(op: str, name: str, *inputs: str, wide: int = 1) -> str:
        final = last and name.startswith("new_state")
        return nodes.one(op, inputs, name if final else f"{at}.{name}", [1, wide * width])

    both = nodes.one("CONCATENATION", [given, state[1]], f"{at}.both", [1, 2 * width], axis=1)
    gates = one("FULLY_CONNECTED", "gates", both, "lstm.weight", "lstm.bias", wide=GATES)
    split = {f"{at}.gate.{k}": [1, width] for k in range(GATES)}
    i, f, g, o = nodes.several("SPLIT", ["units", gates], split, numSplits=GATES)
    kept = one("MUL", "kept", one("LOGISTIC", "forget", f), state[0])
    added = one("MUL", "added", one("LOGISTIC", "input", i), one("TANH", "candidate", g))
    cell = one("ADD", "new_state_c", kept, added)
    return cell, one("MUL", "new_state_h", one("LOGISTIC", "output", o), one("TANH", "squashed", cell))


def _normed(nodes: _Nodes, stage: str, x: str, width: int) -> str:
    def one(op: str, name: str, *inputs: str, wide: int = width, **options: Any) -> str:
        return nodes.one(op, inputs, f"{stage}.norm.{name}", [FRAMES, wide], **options)

    nodes.constant("epsilon", _EPSILON)
    mean = one("MEAN", "mean", x, "units", wide=1, keepDims=True)
    variance = one("MEAN", "variance", one("SQUARED_DIFFERENCE", "squares", x, mean), "units", wide=1, keepDims=True)
    scale = one("RSQRT", "scale", one("ADD", "variance.safe", variance, "epsilon", wide=1), wide=1)
    x = one("MUL", "scaled", one("SUB", "centred", x, mean), scale)
    return one("ADD", "out", one("MUL", "weighted", x, f"{stage}.norm.weight"), f"{stage}.norm.bias")


def _metadata(nodes: _Nodes, c: DeepSpeechConfig, alphabet: Alphabet, beams: int) -> None:
    """Facts that the client reads. It asks for the node that makes each, which a constant does not have; the string
    is last, because memory is planned up to the first tensor whose size is not known."""
    facts = {"version": VERSION, "sample_rate": c.sample_rate, "feature_win_len": c.win_ms}
    facts |= {"feature_win_step": c.step_ms, "beam_width": beams}
    for name, value in facts.items():
        nodes.types[f"metadata_{name}"] = "INT32"
        nodes.reshape(nodes.constant(name, [value]), f"metadata_{name}", 1)
    nodes.types |= {"alphabet": "STRING", "metadata_alphabet": "STRING"}
    nodes.reshape(nodes.constant("alphabet", serialized(alphabet).hex()), "metadata_alphabet", 1)


def serialized(alphabet: Alphabet) -> bytes:
    """How the client reads an alphabet (``native_client/alphabet.cc``): the number of labels, and of each its row,
    length and bytes, as 16 bits, little-endian."""
    labels = [bytes([k + 1]) if alphabet.utf8 else label.encode() for k, label in enumerate(alphabet.labels)]
    rows = (struct.pack("<HH", row, len(label)) + label for row, label in enumerate(labels))
    return struct.pack("<H", len(labels)) + b"".join(rows)
