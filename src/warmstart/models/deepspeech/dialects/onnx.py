"""DeepSpeech as an ONNX graph that is given the state of its LSTM and returns it, so that it runs in pieces or at once.

Inputs: ``features`` float32 [B, K + 2·n_context, n_input], K frames with those around them (zeros beyond the ends);
``h`` and ``c`` float32 [1, B, n_hidden], zeros at first. Outputs: ``log_probs`` float32 [B, K, vocab_size], and
``h_out`` and ``c_out`` for the next piece. What a program needs beside it (alphabet, sample rate …) is in config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from warmstart.lean import dataclass
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.beside import config_file
from warmstart.models.deepspeech.parameters import DENSE, GATES
from warmstart.models.family import Dialect, Facts
from warmstart.spec.fused import Filled, Inverse
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Chain, PermuteBlocks, Reshape, Split, Transpose
from warmstart.vocabularies.vocabulary import Vocabulary

_GATES = PermuteBlocks((0, 2, 3, 1))  # ONNX has input, output, forget, cell
_EPSILON = 1e-12


@dataclass(frozen=True)
class OnnxDialect(Dialect):
    """An ONNX graph; layer 1 with its context is a convolution over frames. Written, not read."""

    name: str = "onnx"
    layout: str = "onnx"
    readable: bool = False
    quantizations: tuple[str, ...] = ("int8",)

    def rules(self, config: DeepSpeechConfig) -> list[Rule]:
        c = config
        kernel = (c.n_hidden, c.window, c.n_input)
        part = (1, GATES * c.n_hidden, c.n_hidden)
        rules = [
            rule("layer_1.weight", "layer_1.weight", Chain((Transpose((0, 2, 1)), Reshape(kernel, (c.n_hidden, -1))))),
            rule("layer_1.bias", "layer_1.bias"),
            rule(
                ("lstm.W", "lstm.R"),
                "lstm.weight",
                Chain((Reshape(part, part[1:]), _GATES, Inverse(Split(2, axis=1)))),
            ),
            rule("lstm.B", "lstm.bias", Chain((Reshape((1, -1), (-1,)), Filled(2, (0,)), _GATES))),
        ]
        for stage in ("layer_2", "layer_3", "layer_5", "layer_6"):
            rules += [
                rule(f"{stage}.weight", f"{stage}.weight", Transpose()),
                rule(f"{stage}.bias", f"{stage}.bias"),
            ]
        if c.layer_norm:
            rules += [rule(f"{s}.norm.{part}", f"{s}.norm.{part}") for s in DENSE for part in ("weight", "bias")]
        return rules

    def header(self, config: DeepSpeechConfig, facts: Facts) -> Mapping[str, str]:
        return {"graph": json.dumps(graph(config))}

    def files(
        self, config: DeepSpeechConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        return config_file(config, vocabularies)


def graph(config: DeepSpeechConfig) -> dict[str, Any]:
    """Inputs, outputs and nodes, in order; what is no output of a node is an array of :meth:`OnnxDialect.rules`."""
    c, nodes = config, list[dict[str, Any]]()

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        nodes.append({"op": kind, "inputs": inputs, "outputs": outputs, "attributes": attributes})

    def activate(stage: str, x: str) -> str:
        node("Relu", [x], [f"{stage}.relu"])
        node("Min", [f"{stage}.relu", "relu_clip"], [f"{stage}.out"])
        if not c.layer_norm:
            return f"{stage}.out"
        norm = [f"{stage}.out", f"{stage}.norm.weight", f"{stage}.norm.bias"]
        node("LayerNormalization", norm, [f"{stage}.normed"], axis=-1, epsilon=_EPSILON)
        return f"{stage}.normed"

    def linear(stage: str, x: str) -> str:
        node("MatMul", [x, f"{stage}.weight"], [f"{stage}.product"])
        node("Add", [f"{stage}.product", f"{stage}.bias"], [f"{stage}.sum"])
        return f"{stage}.sum"

    node("Transpose", ["features"], ["channels"], perm=[0, 2, 1])
    node("Conv", ["channels", "layer_1.weight", "layer_1.bias"], ["layer_1.conv"], kernel_shape=[c.window])
    node("Transpose", ["layer_1.conv"], ["layer_1.sum"], perm=[2, 0, 1])  # frames first, as LSTM wants them
    x = activate("layer_1", "layer_1.sum")
    for stage in ("layer_2", "layer_3"):
        x = activate(stage, linear(stage, x))
    inputs = [x, "lstm.W", "lstm.R", "lstm.B", "", "h", "c"]
    node("LSTM", inputs, ["lstm.all", "h_out", "c_out"], hidden_size=c.n_hidden)
    node("Squeeze", ["lstm.all", "direction"], ["lstm.out"])
    x = linear("layer_6", activate("layer_5", linear("layer_5", "lstm.out")))
    node("LogSoftmax", [x], ["layer_6.log_probs"], axis=-1)
    node("Transpose", ["layer_6.log_probs"], ["log_probs"], perm=[1, 0, 2])
    state = [1, "batch", c.n_hidden]
    return {
        "name": "deepspeech",
        "inputs": {"features": ["batch", "padded_frames", c.n_input], "h": state, "c": state},
        "outputs": {"log_probs": ["batch", "frames", c.vocab_size], "h_out": state, "c_out": state},
        "constants": {"relu_clip": c.relu_clip, "direction": [1]},
        "nodes": nodes,
    }
