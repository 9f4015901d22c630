"""Canonical parameters of wav2vec 2.0, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.family import Parameter
from warmstart.models.parameters import layer_norm, linear
from warmstart.models.wav2vec2.config import POSITION_GROUPS, POSITION_WIDTH, Wav2Vec2Config

STAGES = ("features", "projection", "encoder", "output")


def parameters(config: Wav2Vec2Config) -> tuple[Parameter, ...]:
    """Every parameter from input to output; linear weights are [out, in], convolutions [out, in, width]."""
    return tuple(_parameters(config))


def _parameters(c: Wav2Vec2Config) -> Iterator[Parameter]:
    d, before = c.d_model, 1
    for i, (channels, width) in enumerate(zip(c.conv_dim, c.conv_kernel, strict=True)):
        name, axes = f"features.{i}.conv", ("channels", "channels", "width")
        yield Parameter(f"{name}.weight", (channels, before, width), axes, "features", "glorot")
        yield Parameter(f"{name}.bias", (channels,), axes[:1], "features", "zeros")
        yield from layer_norm(f"features.{i}.norm", "features", channels, "channels")
        before = channels
    yield from layer_norm("projection_norm", "projection", before, "channels")
    yield from linear("projection", "projection", (d, before), ("d_model", "channels"))
    axes = ("d_model", "group", "width")
    yield Parameter("positions.scale", (1, 1, POSITION_WIDTH), ("one", "one", "width"), "encoder", "ones")
    yield Parameter("positions.direction", (d, d // POSITION_GROUPS, POSITION_WIDTH), axes, "encoder", "glorot")
    yield Parameter("positions.bias", (d,), axes[:1], "encoder", "zeros")
    for i in range(c.num_layers):
        layer = f"layers.{i}"
        for part in ("query", "key", "value", "output"):
            yield from linear(f"{layer}.self_attention.{part}", "encoder", (d, d), ("d_model", "d_model"))
        yield from layer_norm(f"{layer}.self_attention_norm", "encoder", d)
        yield from linear(f"{layer}.ffn.up", "encoder", (c.d_ff, d), ("d_ff", "d_model"))
        yield from linear(f"{layer}.ffn.down", "encoder", (d, c.d_ff), ("d_model", "d_ff"))
        yield from layer_norm(f"{layer}.ffn_norm", "encoder", d)
    yield from layer_norm("norm", "encoder", d)
    if c.head:
        yield from linear("output", "output", (c.vocab_size, d), ("vocabulary:text", "d_model"))
