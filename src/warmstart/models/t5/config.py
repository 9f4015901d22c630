"""Configuration of T5 (Raffel et al. 2020) and its successors."""

from __future__ import annotations

from typing import Annotated, Literal

from warmstart.checked import Config, Limits

Rate = Annotated[float, Limits(ge=0.0, lt=1.0)]
Positive = Annotated[int, Limits(gt=0)]


class T5Config(Config):
    """Encoder-decoder with RMS norms before each block, no biases, and scores shifted by a learned bias of distance.

    Queries are not scaled, and embeddings are not either. One vocabulary serves both sides; row 0 pads and starts the
    decoder, row 1 ends.

    ``d_kv`` is the width of one head; ``num_heads * d_kv`` need not be ``d_model``. ``gated`` multiplies the activated
    half of the inner layer by a linear one (T5 1.1). ``tied_output`` takes the embedding for the output layer, and
    ``scale_outputs`` multiplies what enters it by 1/√d_model: the first T5 does both, its successors neither.
    ``position_bias`` is one table [``num_buckets``, heads] for each side (``shared``) or for each layer (umT5);
    distances beyond ``max_distance`` share a bucket.

    Presets: T5 1.0 is relu, tied, scaled, shared; T5 1.1, mT5 and ByT5 are gelu_tanh, gated, shared; umT5 is gelu_tanh,
    gated, per_layer.
    """

    vocab_size: Positive
    d_model: Positive = 512
    d_kv: Positive = 64
    num_heads: Positive = 8
    d_ff: Positive = 2048
    encoder_layers: Positive = 6
    decoder_layers: Positive = 6
    activation: Literal["relu", "swish", "gelu", "gelu_tanh", "gelu_erf"] = "relu"
    gated: bool = False
    tied_output: bool = True
    scale_outputs: bool = True
    position_bias: Literal["shared", "per_layer"] = "shared"
    num_buckets: Annotated[int, Limits(gt=1)] = 32
    max_distance: Positive = 128
    layer_norm_epsilon: Annotated[float, Limits(gt=0.0)] = 1e-6
    dropout: Rate = 0.1

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv

    def check(self) -> None:
        if self.max_distance <= self.num_buckets // 2:
            raise ValueError(f"max_distance {self.max_distance} is within the buckets of {self.num_buckets} themselves")
