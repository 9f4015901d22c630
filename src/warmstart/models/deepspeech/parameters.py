"""Canonical parameters of DeepSpeech, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.family import Parameter

STAGES = ("layer_1", "layer_2", "layer_3", "lstm", "layer_5", "layer_6")
VOCABULARY = "text"
DENSE = ("layer_1", "layer_2", "layer_3", "layer_5")
GATES = 4


def parameters(config: DeepSpeechConfig) -> tuple[Parameter, ...]:
    """Every parameter from input to output; weights are [out, in].

    The rows of ``lstm.weight`` are its gates (input, forget, candidate, output: torch's and cuDNN's order), its
    columns the input and then the state before. It is one array, and there is one bias, because Coqui's kernel is one
    and is initialised as one.
    """
    return tuple(_parameters(config))


def _parameters(c: DeepSpeechConfig) -> Iterator[Parameter]:
    h = c.n_hidden
    for stage in STAGES:
        if stage == "lstm":
            yield Parameter("lstm.weight", (GATES * h, 2 * h), ("gates", "inputs"), stage, "glorot")
            yield Parameter("lstm.bias", (GATES * h,), ("gates",), stage, "zeros")
            continue
        inputs = c.window * c.n_input if stage == "layer_1" else h
        rows, outputs = (f"vocabulary:{VOCABULARY}", c.vocab_size) if stage == "layer_6" else ("hidden", h)
        yield Parameter(f"{stage}.weight", (outputs, inputs), (rows, "inputs"), stage, "glorot")
        yield Parameter(f"{stage}.bias", (outputs,), (rows,), stage, "zeros")
        if c.layer_norm and stage in DENSE:
            yield Parameter(f"{stage}.norm.weight", (h,), ("hidden",), stage, "ones")
            yield Parameter(f"{stage}.norm.bias", (h,), ("hidden",), stage, "zeros")
