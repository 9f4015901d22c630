"""Canonical parameters of Whisper, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.family import Parameter
from warmstart.models.parameters import layer_norm, linear
from warmstart.models.whisper.config import WhisperConfig

STAGES = ("features", "encoder", "embedding", "decoder", "output")


def parameters(config: WhisperConfig) -> tuple[Parameter, ...]:
    """Every parameter; linear weights are [out, in], convolutions [out, in, width]."""
    return tuple(_parameters(config))


def _parameters(c: WhisperConfig) -> Iterator[Parameter]:
    d = c.d_model
    for name, columns, axis in (("conv1", c.num_mel_bins, "mel"), ("conv2", d, "d_model")):
        axes = ("d_model", axis, "width")
        yield Parameter(f"encoder.{name}.weight", (d, columns, 3), axes, "features", "glorot")
        yield Parameter(f"encoder.{name}.bias", (d,), ("d_model",), "features", "zeros")
    yield _table("encoder.positions.weight", c.max_source_positions, d, "positions", "encoder")
    for i in range(c.encoder_layers):
        yield from _layer(f"encoder.layers.{i}", "encoder", d, c.encoder_d_ff, ("self_attention",))
    yield from layer_norm("encoder.norm", "encoder", d)
    yield _table("decoder.embedding.weight", c.vocab_size, d, "vocabulary:text", "embedding")
    yield _table("decoder.positions.weight", c.max_target_positions, d, "positions", "decoder")
    for i in range(c.decoder_layers):
        attentions = ("self_attention", "cross_attention")
        yield from _layer(f"decoder.layers.{i}", "decoder", d, c.decoder_d_ff, attentions)
    yield from layer_norm("decoder.norm", "decoder", d)
    tied = "decoder.embedding.weight" if c.tied_output else ""
    rows = ("vocabulary:text", "d_model")
    yield Parameter("decoder.output.weight", (c.vocab_size, d), rows, "output", "embedding", tied)


def _table(name: str, rows: int, d: int, axis: str, stage: str) -> Parameter:
    return Parameter(name, (rows, d), (axis, "d_model"), stage, "embedding")


def _layer(prefix: str, stage: str, d: int, d_ff: int, attentions: tuple[str, ...]) -> Iterator[Parameter]:
    for attention in attentions:
        for part in ("query", "key", "value", "output"):
            name = f"{prefix}.{attention}.{part}"
            yield from linear(name, stage, (d, d), ("d_model", "d_model"), bias=part != "key")
        yield from layer_norm(f"{prefix}.{attention}_norm", stage, d)
    yield from linear(f"{prefix}.ffn.up", stage, (d_ff, d), ("d_ff", "d_model"))
    yield from linear(f"{prefix}.ffn.down", stage, (d, d_ff), ("d_model", "d_ff"))
    yield from layer_norm(f"{prefix}.ffn_norm", stage, d)
