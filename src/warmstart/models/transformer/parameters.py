"""Canonical parameters of the encoder-decoder Transformer, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from warmstart.models.family import Parameter
from warmstart.models.parameters import layer_norm, linear
from warmstart.models.transformer.config import TransformerConfig

STAGES = ("source_embedding", "encoder", "target_embedding", "decoder", "output")


@lru_cache(maxsize=8)
def parameters(config: TransformerConfig) -> tuple[Parameter, ...]:
    """Every parameter in the module's order; linear weights are [out, in]."""
    return tuple(_parameters(config))


def _parameters(c: TransformerConfig) -> Iterator[Parameter]:
    d = c.d_model
    shared = "encoder.embedding.weight" if c.tied_embeddings in ("all", "inputs") else "decoder.embedding.weight"
    target = ("vocabulary:target", "d_model")
    words = (c.source_vocab_size, c.source_width)
    source = ("vocabulary:source", "d_model" if c.source_width == d else "d_words")
    yield Parameter("encoder.embedding.weight", words, source, "source_embedding", "embedding")
    for k, shape in enumerate(c.features):
        axes = (f"vocabulary:source_{k + 2}", "d_model" if shape[1] == d else f"d_feature_{k}")
        same = "encoder.embedding.weight" if c.tied_features else ""
        yield Parameter(f"encoder.features.{k}.weight", shape, axes, "source_embedding", "embedding", same)
    if c.positions == "learned" and c.max_positions:
        own = "encoder.positions.weight" if c.positions_per_side else "positions.weight"
        yield Parameter(own, (c.max_positions, d), ("positions", "d_model"), "encoder", "embedding")
    if c.layernorm_embedding:
        yield from _norm(c, "encoder.embedding_norm", "encoder")
    for i in range(c.encoder_layers):
        yield from _layer(c, f"encoder.layers.{i}", "encoder", c.d_ff, ("self_attention",))
    if c.norm == "pre":
        yield from _norm(c, "encoder.norm", "encoder")
    yield Parameter(
        "decoder.embedding.weight", (c.target_vocab_size, d), target, "target_embedding", "embedding", shared
    )
    if c.positions_per_side and c.max_positions:
        table = (c.decoder_max_positions or c.max_positions, d)
        yield Parameter("decoder.positions.weight", table, ("positions", "d_model"), "decoder", "embedding")
    if c.layernorm_embedding:
        yield from _norm(c, "decoder.embedding_norm", "decoder")
    for i in range(c.decoder_layers):
        attentions = ("self_attention", "cross_attention")
        yield from _layer(c, f"decoder.layers.{i}", "decoder", c.decoder_d_ff or c.d_ff, attentions)
    if c.norm == "pre":
        yield from _norm(c, "decoder.norm", "decoder")
    tied = shared if c.tied_embeddings in ("target", "all") else ""
    yield Parameter("decoder.output.weight", (c.target_vocab_size, d), target, "output", "glorot", tied)
    if c.output_bias:
        yield Parameter("decoder.output.bias", (c.target_vocab_size,), target[:1], "output", "zeros")


def _layer(
    c: TransformerConfig, prefix: str, stage: str, d_ff: int, attentions: tuple[str, ...]
) -> Iterator[Parameter]:
    d = c.d_model
    for attention in attentions:
        for part in ("query", "key", "value", "output"):
            name = f"{prefix}.{attention}.{part}"
            yield from linear(name, stage, (d, d), ("d_model", "d_model"), c.attention_bias)
        if c.max_relative_positions is not None and attention == "self_attention":
            keys, values = (f"{prefix}.{attention}.relative_{part}" for part in ("keys", "values"))
            shape, axes = (2 * c.max_relative_positions + 1, d // c.num_heads), ("distances", "d_head")
            yield Parameter(keys, shape, axes, stage, "glorot")
            yield Parameter(values, shape, axes, stage, "glorot", keys if c.relative_tables == "one" else "")
        yield from _norm(c, f"{prefix}.{attention}_norm", stage)
    if c.gated:
        yield from linear(f"{prefix}.ffn.gate", stage, (d_ff, d), ("d_ff", "d_model"), c.ffn_bias)
    yield from linear(f"{prefix}.ffn.up", stage, (d_ff, d), ("d_ff", "d_model"), c.ffn_bias)
    yield from linear(f"{prefix}.ffn.down", stage, (d, d_ff), ("d_model", "d_ff"), c.ffn_bias)
    yield from _norm(c, f"{prefix}.ffn_norm", stage)


def _norm(c: TransformerConfig, name: str, stage: str) -> Iterator[Parameter]:
    return layer_norm(name, stage, c.d_model, bias=not c.rms_norm)
