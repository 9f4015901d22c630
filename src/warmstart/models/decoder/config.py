"""Configuration of the decoder-only Transformer: every difference between architectures is a flag here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from warmstart.checked import Config, Limits

Positive = Annotated[int, Limits(gt=0)]
PositiveFloat = Annotated[float, Limits(gt=0.0)]


class RotaryScaling(Config):
    """How rotary angles are stretched beyond the length that a model was first trained with.

    ``linear`` divides positions by ``factor``; ``llama3`` does so for slow frequencies only, between the two frequency
    factors; ``long`` (LongRoPE, Ding et al. 2024) has a factor for each of the rotary_dim / 2 frequencies, one set up
    to ``original_max_positions`` tokens and one beyond.
    """

    kind: Literal["linear", "llama3", "long"]
    factor: PositiveFloat | None = None
    low_frequency_factor: PositiveFloat | None = None
    high_frequency_factor: PositiveFloat | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float | None = None


class Packing(Config):
    """Linear layers in a few bits, as AutoAWQ packs them (Lin et al. 2024): integers of several values each, and a
    scale and a zero for every ``group_size`` inputs. ``layout`` says which axis is packed: outputs (gemm) or inputs."""

    layout: Literal["gemm", "gemv"]
    bits: Literal[4] = 4
    group_size: Positive


class DecoderConfig(Config):
    """A stack of self-attention and feed-forward blocks that predicts the next token.

    Attributes:
        architecture: which of the equal spellings it was found in (``llama`` …): details in which frameworks' own
            converters differ follow it.
        original: the configuration as it was found, for the way back; it changes nothing.
        embedding_size: width of the embeddings where it is not ``d_model``: they are projected in and out.
        gated: the feed-forward block is down(activation(gate(x)) · up(x)), else down(activation(up(x))).
        norm: LayerNorm or RMSNorm, with a bias where ``norm_bias``; ``norm_offset``: scaled by 1 + weight.
        norm_place: before a block, after it (and its residual sum), or on both sides of it (before the sum).
        parallel: attention and feed-forward block read one input and are summed; with one norm or one each.
        query_key_norm: queries and keys of each head are normalised.
        positions: a learned table, computed sines before cosines from position 1 on (tensor2tensor), rotated queries
            and keys (Su et al. 2021), ALiBi (Press et al. 2022), or a vector for each distance up to
            ``max_relative_positions``, which is added to keys and values (Shaw et al. 2018).
        relative_tables: whether a layer has one table of these vectors for keys and values; ``relative_scaled``: what
            they add to scores is divided by √head_dim as scores are.
        original_max_positions: length that the model was first trained with, before ``rotary_scaling``.
        position_offset: rows of the foreign table before position 0.
        alibi_positive: distances are counted from the first key on; ``alibi_scaled``: and scaled like the product.
        rotary_dim: the first dimensions of each head that are rotated, as two halves.
        rotary_pairs: they were found as neighbours, two by two; our own parameters lie as halves in any case.
        local_rotary_base: base in layers that attend within the window, where it is another.
        sliding_window: how far back a layer attends; ``sliding_layers`` says which layers do, None all.
        query_scale: factor of query · key where it is not 1/√head_dim.
        attention_softcap, logit_softcap: c·tanh(x/c) of attention's scores, and of the output's.
        scale_embeddings: embeddings are multiplied by √d_model.
        packing: how the layers' linear weights are packed, where they are.
    """

    architecture: str | None = None
    vocab_size: Positive
    d_model: Positive
    num_layers: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    d_ff: Positive
    embedding_size: Positive | None = None
    activation: Literal["relu", "swish", "gelu", "gelu_tanh", "gelu_erf"] = "gelu_tanh"
    gated: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    norm_offset: bool = False
    norm_place: Literal["pre", "post", "both"] = "pre"
    norm_epsilon: PositiveFloat = 1e-5
    final_norm: bool = True
    embedding_norm: bool = False
    parallel: Literal["none", "shared", "separate"] = "none"
    query_key_norm: bool = False
    attention_bias: bool = True
    attention_output_bias: bool = True
    ffn_bias: bool = True
    output_bias: bool = False
    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "relative"] = "learned"
    max_positions: Positive | None = None
    original_max_positions: Positive | None = None
    position_offset: Annotated[int, Limits(ge=0)] = 0
    max_relative_positions: Positive | None = None
    relative_tables: Literal["one", "two"] = "two"
    relative_scaled: bool = True
    alibi_positive: bool = False
    alibi_scaled: bool = False
    rotary_dim: Positive | None = None
    rotary_pairs: bool = False
    rotary_base: PositiveFloat = 10000.0
    rotary_scaling: RotaryScaling | None = None
    local_rotary_base: PositiveFloat | None = None
    sliding_window: Positive | None = None
    sliding_layers: tuple[bool, ...] | None = None
    query_scale: PositiveFloat | None = None
    attention_softcap: PositiveFloat | None = None
    logit_softcap: PositiveFloat | None = None
    scale_embeddings: bool = False
    tied_output: bool = True
    packing: Packing | None = None
    original: Mapping[str, Any] = {}

    @property
    def q_dim(self) -> int:
        """Width of all queries."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys, and of all values."""
        return self.num_kv_heads * self.head_dim

    def check(self) -> None:
        problems = [text for holds, text in self._requirements() if not holds]
        if problems:
            raise ValueError("; ".join(problems))

    def _requirements(self) -> list[tuple[bool, str]]:
        rotary, factors = self.rotary_dim, self.rotary_scaling
        return [
            (self.num_heads % self.num_kv_heads == 0, f"{self.num_heads} heads do not share {self.num_kv_heads} keys"),
            (self.positions != "learned" or self.max_positions is not None, "learned positions need max_positions"),
            (
                (self.positions == "relative") == (self.max_relative_positions is not None),
                "max_relative_positions goes with positions: relative",
            ),
            (
                self.relative_scaled or (self.positions, self.relative_tables) == ("relative", "one"),
                "relative_scaled: false goes with positions: relative and relative_tables: one",
            ),
            ((self.positions == "rotary") == (rotary is not None), "rotary_dim goes with positions: rotary"),
            (rotary is None or rotary % 2 == 0, f"rotary_dim {rotary} is odd"),
            (rotary is None or rotary <= self.head_dim, f"rotary_dim {rotary} is more than head_dim {self.head_dim}"),
            (not self.rotary_pairs or rotary is not None, "rotary_pairs goes with positions: rotary"),
            (not self.rotary_pairs or self.packing is None, "packed weights are not rotated in pairs"),
            (self.parallel == "none" or self.norm_place == "pre", "parallel blocks are normalised before"),
            (self.norm == "layer" or not self.norm_bias, "RMSNorm has no bias"),
            (
                self.sliding_layers is None or len(self.sliding_layers) == self.num_layers,
                f"sliding_layers does not name {self.num_layers} layers",
            ),
            (self.sliding_layers is None or self.sliding_window is not None, "sliding_layers needs sliding_window"),
            (
                factors is None or factors.kind != "long" or rotary is None
                or len(factors.long_factors) == len(factors.short_factors) == rotary // 2,
                "LongRoPE needs a factor for each of rotary_dim / 2 frequencies",
            ),
        ]  # fmt: skip
