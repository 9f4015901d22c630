"""Canonical parameters of T5, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from warmstart.models.family import Parameter
from warmstart.models.t5.config import T5Config

STAGES = ("embedding", "encoder", "decoder", "output")
VOCABULARY = "text"
EMBEDDING = "embedding.weight"


def parameters(config: T5Config) -> tuple[Parameter, ...]:
    """Every parameter in the order of the computation; linear weights are [out, in], position biases [bucket, head]."""
    return tuple(_parameters(config))


def _parameters(c: T5Config) -> Iterator[Parameter]:
    table = (f"vocabulary:{VOCABULARY}", "d_model")
    yield Parameter(EMBEDDING, (c.vocab_size, c.d_model), table, "embedding", "embedding")
    for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
        if c.position_bias == "shared":
            yield _bias(c, f"{side}.position_bias.weight", side)
        for i in range(layers):
            yield from _layer(c, f"{side}.layers.{i}", side)
        yield _norm(c, f"{side}.norm", side)
    tied = EMBEDDING if c.tied_output else ""
    yield Parameter("decoder.output.weight", (c.vocab_size, c.d_model), table, "output", "glorot", tied)


def _layer(c: T5Config, prefix: str, side: str) -> Iterator[Parameter]:
    for attention in ("self_attention", "cross_attention")[: 1 if side == "encoder" else 2]:
        yield _norm(c, f"{prefix}.{attention}_norm", side)
        for part in ("query", "key", "value"):
            name, shape = f"{prefix}.{attention}.{part}.weight", (c.inner, c.d_model)
            yield Parameter(name, shape, ("heads", "d_model"), side, "glorot")
        if attention == "self_attention" and c.position_bias == "per_layer":
            yield _bias(c, f"{prefix}.{attention}.position_bias.weight", side)
        yield Parameter(
            f"{prefix}.{attention}.output.weight", (c.d_model, c.inner), ("d_model", "heads"), side, "glorot"
        )
    yield _norm(c, f"{prefix}.ffn_norm", side)
    for part in ("gate", "up") if c.gated else ("up",):
        yield Parameter(f"{prefix}.ffn.{part}.weight", (c.d_ff, c.d_model), ("d_ff", "d_model"), side, "glorot")
    yield Parameter(f"{prefix}.ffn.down.weight", (c.d_model, c.d_ff), ("d_model", "d_ff"), side, "glorot")


def _bias(c: T5Config, name: str, side: str) -> Parameter:
    return Parameter(name, (c.num_buckets, c.num_heads), ("buckets", "head"), side, "glorot")


def _norm(c: T5Config, name: str, side: str) -> Parameter:
    return Parameter(f"{name}.weight", (c.d_model,), ("d_model",), side, "ones")
