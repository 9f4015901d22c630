"""Canonical parameters of the encoder-only Transformer, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.encoder.config import EncoderConfig
from warmstart.models.family import Parameter

STAGES = ("embedding", "encoder", "pooler")


def parameters(config: EncoderConfig) -> tuple[Parameter, ...]:
    """Every parameter from input to output; linear weights are [out, in]."""
    return tuple(_parameters(config))


def _parameters(c: EncoderConfig) -> Iterator[Parameter]:
    d = c.d_model
    tables = [("embedding", c.vocab_size, "vocabulary:text"), ("positions", c.max_positions, "positions")]
    tables += [("token_types", c.token_types, "token_types")] if c.token_types else []
    for name, rows, axis in tables:
        yield Parameter(f"{name}.weight", (rows, d), (axis, "d_model"), "embedding", "embedding")
    yield from _norm("embedding_norm", "embedding", d)
    for i in range(c.num_layers):
        layer = f"layers.{i}"
        for part in ("query", "key", "value", "output"):
            yield from _linear(f"{layer}.self_attention.{part}", (d, d), ("d_model", "d_model"))
        yield from _norm(f"{layer}.self_attention_norm", "encoder", d)
        yield from _linear(f"{layer}.ffn.up", (c.d_ff, d), ("d_ff", "d_model"))
        yield from _linear(f"{layer}.ffn.down", (d, c.d_ff), ("d_model", "d_ff"))
        yield from _norm(f"{layer}.ffn_norm", "encoder", d)
    if c.pooler:
        yield from _linear("pooler", (d, d), ("d_model", "d_model"), "pooler")


def _linear(name: str, shape: tuple[int, int], axes: tuple[str, str], stage: str = "encoder") -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", shape, axes, stage, "glorot")
    yield Parameter(f"{name}.bias", shape[:1], axes[:1], stage, "zeros")


def _norm(name: str, stage: str, d: int) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (d,), ("d_model",), stage, "ones")
    yield Parameter(f"{name}.bias", (d,), ("d_model",), stage, "zeros")
