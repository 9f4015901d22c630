"""Configuration of the encoder-only Transformer."""

from __future__ import annotations

from typing import Annotated, Literal

from warmstart.checked import Config, Limits

Rate = Annotated[float, Limits(ge=0.0, lt=1.0)]
Positive = Annotated[int, Limits(gt=0)]


class EncoderConfig(Config):
    """Post-norm encoder with learned positions and normalised embeddings (BERT, Devlin et al. 2019).

    ``max_positions`` counts the positions that text can have; RoBERTa's kind counts them from ``position_offset``
    (the row of ``<pad>`` and one), whose rows before are never computed with. ``token_types`` is the number of
    segments, 0 where there is no table of them. ``pooler`` is a layer and a tanh on the first token.
    ``architecture`` is the class that the model comes from: they differ in names, and in what a tokenizer is like.
    """

    architecture: Literal["bert", "distilbert", "roberta", "xlm-roberta", "camembert"] = "bert"
    vocab_size: Positive
    d_model: Positive = 768
    num_heads: Positive = 12
    num_layers: Positive = 12
    d_ff: Positive = 3072
    activation: Literal["relu", "swish", "gelu", "gelu_tanh", "gelu_erf"] = "gelu_erf"
    max_positions: Positive = 512
    position_offset: Annotated[int, Limits(ge=0)] = 0
    token_types: Annotated[int, Limits(ge=0)] = 2
    pooler: bool = True
    layer_norm_epsilon: Annotated[float, Limits(gt=0.0)] = 1e-12
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1

    def check(self) -> None:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")
