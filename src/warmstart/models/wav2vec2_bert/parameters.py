"""Canonical parameters of wav2vec2-BERT, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.family import Parameter
from warmstart.models.parameters import layer_norm, linear
from warmstart.models.wav2vec2_bert.config import Wav2Vec2BertConfig

STAGES = ("projection", "encoder", "adapter", "output")


def parameters(config: Wav2Vec2BertConfig) -> tuple[Parameter, ...]:
    """Every parameter from input to output; linear weights are [out, in], convolutions [out, in, width]."""
    return tuple(_parameters(config))


def _parameters(c: Wav2Vec2BertConfig) -> Iterator[Parameter]:
    d, square = c.d_model, ("d_model", "d_model")
    yield from layer_norm("projection_norm", "projection", c.input_size, "filters")
    yield from linear("projection", "projection", (d, c.input_size), ("d_model", "filters"))
    distances = (c.left_positions + c.right_positions + 1, d // c.num_heads)
    for i in range(c.num_layers):
        layer = f"layers.{i}"
        for ffn in ("ffn1", "ffn2"):
            yield from layer_norm(f"{layer}.{ffn}_norm", "encoder", d)
            yield from _ffn(f"{layer}.{ffn}", "encoder", c)
        yield from layer_norm(f"{layer}.self_attention_norm", "encoder", d)
        yield from _attention(f"{layer}.self_attention", "encoder", d)
        yield Parameter(
            f"{layer}.self_attention.distances.weight", distances, ("distance", "head_dim"), "encoder", "embedding"
        )
        yield from layer_norm(f"{layer}.convolution.norm", "encoder", d)
        yield from _convolution(f"{layer}.convolution.expand", "encoder", (2 * d, d, 1))
        yield from _convolution(f"{layer}.convolution.depthwise", "encoder", (d, 1, c.conv_kernel))
        yield from layer_norm(f"{layer}.convolution.depthwise_norm", "encoder", d)
        yield from _convolution(f"{layer}.convolution.project", "encoder", (d, d, 1))
        yield from layer_norm(f"{layer}.norm", "encoder", d)
    for i in range(c.num_adapter_layers):
        layer = f"adapters.{i}"
        for branch in ("residual", "self_attention"):
            yield from layer_norm(f"{layer}.{branch}_norm", "adapter", d)
            shape = (2 * d, d, c.adapter_kernel)
            yield from _convolution(f"{layer}.{branch}_convolution", "adapter", shape, bias=True)
        yield from _attention(f"{layer}.self_attention", "adapter", d)
        yield from layer_norm(f"{layer}.ffn_norm", "adapter", d)
        yield from _ffn(f"{layer}.ffn", "adapter", c)
    if c.head:
        yield from linear("output", "output", (c.vocab_size, d), ("vocabulary:text", square[0]))


def _attention(name: str, stage: str, d: int) -> Iterator[Parameter]:
    for part in ("query", "key", "value", "output"):
        yield from linear(f"{name}.{part}", stage, (d, d), ("d_model", "d_model"))


def _ffn(name: str, stage: str, c: Wav2Vec2BertConfig) -> Iterator[Parameter]:
    yield from linear(f"{name}.up", stage, (c.d_ff, c.d_model), ("d_ff", "d_model"))
    yield from linear(f"{name}.down", stage, (c.d_model, c.d_ff), ("d_model", "d_ff"))


def _convolution(name: str, stage: str, shape: tuple[int, int, int], bias: bool = False) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", shape, ("d_model", "d_model", "width"), stage, "glorot")
    if bias:
        yield Parameter(f"{name}.bias", shape[:1], ("d_model",), stage, "zeros")
