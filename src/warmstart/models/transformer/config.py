"""Configuration of the encoder-decoder Transformer, as Marian defines it."""

from __future__ import annotations

from typing import Annotated, Literal

from warmstart.checked import Config, Limits

Rate = Annotated[float, Limits(ge=0.0, lt=1.0)]
Positive = Annotated[int, Limits(gt=0)]


class TransformerConfig(Config):
    """Encoder-decoder Transformer (Vaswani et al. 2017) with Marian's choices.

    Embeddings are multiplied by √d_model when ``scale_embeddings``; the decoder starts from a zero
    embedding instead of a start token; ``activation: gelu`` is Marian's x·σ(1.702x),
    ``gelu_tanh`` and ``gelu_erf`` are what others call so.
    ``normalize_keys`` is False for pre-norm models trained by a Marian older than February 2022, whose
    self-attention took keys and values from the layer's input before normalisation.
    ``max_positions`` is the length of the table of learned positions (later positions share the last row), or, of
    sinusoids, the length of the table that the model came with; ``positions_per_side`` gives each side a table of
    its own, whose lengths may differ (``decoder_max_positions``).
    ``positions: relative`` (Shaw et al. 2018) adds to keys and values of self-attention a vector for each distance, up
    to ``max_relative_positions`` to either side; ``relative_tables`` says whether a layer has one table for both, and
    ``relative_scaled`` whether what it adds to scores is divided by √d_head as they are.
    ``features`` are further words at each source position: (rows, width) of their tables, which are joined with the
    word's embedding to d_model columns (``feature_merge: concat``) or added to it; with ``tied_features`` all of these
    tables are the words'.
    ``rms_norm`` says that norms divide by the root of the mean square and have no bias (Zhang and Sennrich 2019).
    ``gated`` multiplies the activated half of the feed-forward layer by a linear one (Shazeer 2020).
    ``tied_embeddings: inputs`` shares one table between the two sides, but not with the output.
    ``attention_bias`` and ``ffn_bias`` say whether the linear layers of attention and of feed-forward have biases.
    ``sinusoids`` names the formula (``positions.py``). ``layernorm_embedding`` normalises the sum of embeddings and
    positions. ``decoder_start`` is what the decoder is fed first: a zero embedding, a special token, or what the
    user gives; ``source_bos`` and ``source_eos`` frame the source. Decoder layer ``alignment_layer`` (-1 is the
    last, -2 the one before it) gives word alignments by the mean of its first ``alignment_heads`` heads.
    """

    source_vocab_size: Positive
    target_vocab_size: Positive
    d_model: Positive = 256
    num_heads: Positive = 4
    d_ff: Positive = 1024
    decoder_d_ff: Positive | None = None
    encoder_layers: Positive = 3
    decoder_layers: Positive = 3
    activation: Literal["relu", "swish", "gelu", "gelu_tanh", "gelu_erf"] = "relu"
    norm: Literal["pre", "post"] = "post"
    normalize_keys: bool = True
    tied_embeddings: Literal["none", "target", "inputs", "all"] = "none"
    output_bias: bool = True
    attention_bias: bool = True
    ffn_bias: bool = True
    gated: bool = False
    rms_norm: bool = False
    positions: Literal["sinusoidal", "learned", "relative"] = "sinusoidal"
    max_relative_positions: Positive | None = None
    relative_tables: Literal["one", "two"] = "two"
    relative_scaled: bool = True
    features: tuple[tuple[Positive, Positive], ...] = ()
    feature_merge: Literal["concat", "sum"] = "concat"
    tied_features: bool = False
    max_positions: Positive | None = None
    decoder_max_positions: Positive | None = None
    positions_per_side: bool = False
    sinusoids: Literal["marian", "transformers", "from_one", "fairseq"] = "marian"
    layernorm_embedding: bool = False
    scale_embeddings: bool = True
    decoder_start: Literal["zero", "bos", "eos", "pad", "given"] = "zero"
    source_bos: bool = False
    source_eos: bool = True
    alignment_layer: int = -1
    alignment_heads: Annotated[int, Limits(ge=0)] = 1
    layer_norm_epsilon: Annotated[float, Limits(gt=0.0)] = 1e-6
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    ffn_dropout: Rate = 0.0
    source_dropout: Rate = 0.0
    target_dropout: Rate = 0.0

    @property
    def source_width(self) -> int:
        """Columns of the table of source words."""
        joined = self.features if self.feature_merge == "concat" else ()
        return self.d_model - sum(width for _, width in joined)

    def check(self) -> None:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"sinusoidal positions need an even d_model, not {self.d_model}")
        if self.positions == "learned" and self.max_positions is None:
            raise ValueError("positions: learned needs max_positions")
        if not -self.decoder_layers <= self.alignment_layer < self.decoder_layers:
            raise ValueError(f"alignment_layer {self.alignment_layer} is none of {self.decoder_layers} decoder layers")
        if not self.normalize_keys and self.norm == "post":
            raise ValueError("normalize_keys: false concerns pre-norm models only")
        if self.decoder_max_positions is not None and self.positions == "learned" and not self.positions_per_side:
            raise ValueError("decoder_max_positions goes with two tables of positions")
        if self.positions_per_side and self.positions != "learned":
            raise ValueError("positions_per_side goes with positions: learned")
        if (self.positions == "relative") != (self.max_relative_positions is not None):
            raise ValueError("max_relative_positions goes with positions: relative")
        if not self.relative_scaled and (self.positions, self.relative_tables) != ("relative", "one"):
            raise ValueError("relative_scaled: false goes with positions: relative and relative_tables: one")
        if self.features and self.tied_embeddings in ("all", "inputs") and not self.tied_features:
            raise ValueError("a source with features has a table of words of its own")
        if self.tied_features and {(self.source_vocab_size, self.source_width)} != set(self.features):
            raise ValueError("tied_features needs features with tables of the words' size")
        if self.tied_embeddings in ("all", "inputs") and self.source_width != self.d_model:
            raise ValueError(f"a table that both sides share is {self.d_model} wide, not {self.source_width}")
        if self.source_width < 1:
            raise ValueError(f"the features leave no columns of {self.d_model} for the words")
        if self.feature_merge == "sum" and any(width != self.d_model for _, width in self.features):
            raise ValueError(f"features that are added are {self.d_model} wide")
        if self.tied_embeddings in ("all", "inputs") and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                f"tied_embeddings: {self.tied_embeddings} needs one vocabulary; sizes are {self.source_vocab_size} and "
                f"{self.target_vocab_size}"
            )
