"""Canonical parameters of the decoder-only Transformer, without torch.

They are made from :func:`modules`, which the dialects' tables go through as well: a dialect names modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Literal

from warmstart.lean import dataclass
from warmstart.models.decoder.config import DecoderConfig, Packing
from warmstart.models.family import PACKED, Parameter

STAGES = ("embedding", "decoder", "output")


@dataclass(frozen=True)
class Module:
    """A part that has a weight and maybe a bias.

    ``name`` is canonical, with ``{i}`` for the layer; ``kind`` says what the weight is: ``table`` [rows, width],
    ``linear`` [out, in] or ``norm`` [width]; ``tied`` is the module whose weight it shares.
    """

    name: str
    kind: Literal["table", "linear", "norm"]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stage: str
    bias: bool = False
    packing: Packing | None = None
    tied: str = ""

    @property
    def layered(self) -> bool:
        return "{i}" in self.name

    @property
    def whats(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What it consists of: ``weight``, or what a packed one is, and ``bias``."""
        shapes = {"weight": self.shape} if self.packing is None else packed(self.packing, *self.shape)
        return {**shapes, "bias": self.shape[:1]} if self.bias else shapes


def packed(packing: Packing, out: int, into: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a packed linear layer (AutoAWQ, ``modules/linear/gemm.py`` and ``gemv.py``)."""
    each, groups = 32 // packing.bits, into // packing.group_size
    if packing.layout == "gemm":
        return {"qweight": (into, out // each), "qzeros": (groups, out // each), "scales": (groups, out)}
    step = {32: 4, 64: 2}.get(packing.group_size, 1)
    zeros = ceil(ceil(groups / each) / step) * step
    return {"qweight": (out, into // each), "qzeros": (out, zeros), "scales": (out, zeros * each)}


def modules(c: DecoderConfig) -> Iterator[Module]:
    """Every module in order, layers once."""
    d, narrow = c.d_model, c.embedding_size or c.d_model
    vocabulary = "vocabulary:text"
    yield Module("embedding", "table", (c.vocab_size, narrow), (vocabulary, "d_embedding"), "embedding")
    if c.embedding_size:
        yield Module("project_in", "linear", (d, narrow), ("d_model", "d_embedding"), "embedding")
    if c.positions == "learned" and c.max_positions:
        yield Module("positions", "table", (c.max_positions, d), ("positions", "d_model"), "embedding")
    if c.embedding_norm:
        yield _norm("embedding_norm", c, d, "embedding")
    yield from _layer(c)
    if c.final_norm:
        yield _norm("norm", c, d, "decoder")
    if c.embedding_size:
        yield Module("project_out", "linear", (narrow, d), ("d_embedding", "d_model"), "output")
    tied = "embedding" if c.tied_output else ""
    shape, axes = (c.vocab_size, narrow), (vocabulary, "d_embedding")
    yield Module("output", "linear", shape, axes, "output", c.output_bias, tied=tied)


def _layer(c: DecoderConfig) -> Iterator[Module]:
    d, own, ffn = c.d_model, "layers.{i}.attention", "layers.{i}.ffn"

    def linear(name: str, out: int, into: int, axes: tuple[str, str], bias: bool) -> Module:
        return Module(name, "linear", (out, into), axes, "decoder", bias, c.packing)

    yield _norm("layers.{i}.attention_norm", c, d, "decoder")
    yield linear(f"{own}.query", c.q_dim, d, ("heads", "d_model"), c.attention_bias)
    yield linear(f"{own}.key", c.kv_dim, d, ("kv_heads", "d_model"), c.attention_bias)
    yield linear(f"{own}.value", c.kv_dim, d, ("kv_heads", "d_model"), c.attention_bias)
    if c.max_relative_positions is not None:
        shape, one = (2 * c.max_relative_positions + 1, c.head_dim), c.relative_tables == "one"
        yield Module(f"{own}.relative_keys", "table", shape, ("distances", "head_dim"), "decoder")
        tied = f"{own}.relative_keys" if one else ""
        yield Module(f"{own}.relative_values", "table", shape, ("distances", "head_dim"), "decoder", tied=tied)
    if c.query_key_norm:
        yield _norm(f"{own}.query_norm", c, c.head_dim, "decoder")
        yield _norm(f"{own}.key_norm", c, c.head_dim, "decoder")
    yield linear(f"{own}.output", d, c.q_dim, ("d_model", "heads"), c.attention_output_bias)
    if c.norm_place == "both":
        yield _norm("layers.{i}.attention_post_norm", c, d, "decoder")
    if c.parallel != "shared":
        yield _norm("layers.{i}.ffn_norm", c, d, "decoder")
    if c.gated:
        yield linear(f"{ffn}.gate", c.d_ff, d, ("d_ff", "d_model"), c.ffn_bias)
    yield linear(f"{ffn}.up", c.d_ff, d, ("d_ff", "d_model"), c.ffn_bias)
    yield linear(f"{ffn}.down", d, c.d_ff, ("d_model", "d_ff"), c.ffn_bias)
    if c.norm_place == "both":
        yield _norm("layers.{i}.ffn_post_norm", c, d, "decoder")


def _norm(name: str, c: DecoderConfig, width: int, stage: str) -> Module:
    return Module(name, "norm", (width,), ("head_dim" if "attention." in name else "d_model",), stage, c.norm_bias)


def parameters(config: DecoderConfig) -> tuple[Parameter, ...]:
    """Every parameter; linear weights are [out, in], rotated dimensions lie as two halves."""
    return tuple(_parameters(config))


def _parameters(c: DecoderConfig) -> Iterator[Parameter]:
    ordered = list(modules(c))
    layered = [m for m in ordered if m.layered]
    for module in ordered:
        if not module.layered:
            yield from _of(module, c)
        elif module is layered[0]:
            for i in range(c.num_layers):
                for part in layered:
                    yield from _of(part, c, i)


def _of(m: Module, c: DecoderConfig, i: int = 0) -> Iterator[Parameter]:
    first = {"table": "embedding", "linear": "glorot", "norm": "zeros" if c.norm_offset else "ones"}[m.kind]
    name, tied = (place.replace("{i}", str(i)) for place in (m.name, m.tied))
    for what, shape in m.shapes.items():
        if what == "weight":
            yield Parameter(f"{name}.weight", shape, m.axes, m.stage, first, f"{tied}.weight" if tied else "")
        else:
            axes = m.axes[:1] if what == "bias" else PACKED
            yield Parameter(f"{name}.{what}", shape, axes, m.stage, "zeros")
