"""Canonical parameters of the encoder-only Transformer, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.encoder.config import EncoderConfig
from warmstart.models.family import Parameter
from warmstart.models.parameters import layer_norm, linear

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
    yield from layer_norm("embedding_norm", "embedding", d)
    for i in range(c.num_layers):
        layer = f"layers.{i}"
        for part in ("query", "key", "value", "output"):
            yield from linear(f"{layer}.self_attention.{part}", "encoder", (d, d), ("d_model", "d_model"))
        yield from layer_norm(f"{layer}.self_attention_norm", "encoder", d)
        yield from linear(f"{layer}.ffn.up", "encoder", (c.d_ff, d), ("d_ff", "d_model"))
        yield from linear(f"{layer}.ffn.down", "encoder", (d, c.d_ff), ("d_model", "d_ff"))
        yield from layer_norm(f"{layer}.ffn_norm", "encoder", d)
    if c.pooler:
        yield from linear("pooler", "pooler", (d, d), ("d_model", "d_model"))
