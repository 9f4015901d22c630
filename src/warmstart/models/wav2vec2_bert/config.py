"""Configuration of wav2vec2-BERT."""

from __future__ import annotations

from typing import Annotated

from warmstart.checked import Config, Limits

Positive = Annotated[int, Limits(gt=0)]


class Wav2Vec2BertConfig(Config):
    """wav2vec2-BERT (Barrault et al. 2023): ``input_size`` filters a frame; Conformer layers (Gulati et al. 2020) with
    causal depthwise convolutions of ``conv_kernel`` frames and embeddings of distances from ``-left_positions`` to
    ``right_positions``; ``num_adapter_layers`` that halve the frames by convolutions of ``adapter_kernel``, stride 2.
    Swish, ReLU in adapters, ε = 1e-5.

    ``head`` is a linear layer to the ``vocab_size`` outputs of CTC; without it the model gives states.
    """

    vocab_size: Annotated[int, Limits(gt=0, lt=2**15)]
    input_size: Positive = 160
    d_model: Positive = 1024
    num_heads: Positive = 16
    num_layers: Positive = 24
    d_ff: Positive = 4096
    conv_kernel: Positive = 31
    left_positions: Annotated[int, Limits(ge=0)] = 64
    right_positions: Annotated[int, Limits(ge=0)] = 8
    num_adapter_layers: Annotated[int, Limits(ge=0)] = 1
    adapter_kernel: Positive = 3
    head: bool = True

    def check(self) -> None:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")
