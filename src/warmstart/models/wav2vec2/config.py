"""Configuration of wav2vec 2.0."""

from __future__ import annotations

from typing import Annotated

from warmstart.checked import Config, Limits

Positive = Annotated[int, Limits(gt=0)]

POSITION_WIDTH, POSITION_GROUPS = 128, 16


class Wav2Vec2Config(Config):
    """wav2vec 2.0 (Baevski et al. 2020) as its large models are: convolutions with biases over samples (``conv_dim``
    channels of ``conv_kernel`` samples, stride 5 and then 2), each normalised; a convolution of 128 positions in 16
    groups, with a normed weight; a pre-norm encoder. GELU throughout, ε = 1e-5.

    ``head`` is a linear layer to the ``vocab_size`` outputs of CTC; without it the model gives states.
    """

    vocab_size: Annotated[int, Limits(gt=0, lt=2**15)] = 32
    d_model: Positive = 1024
    num_heads: Positive = 16
    num_layers: Positive = 24
    d_ff: Positive = 4096
    conv_dim: tuple[Positive, ...] = (512,) * 7
    conv_kernel: tuple[Positive, ...] = (10, 3, 3, 3, 3, 2, 2)
    head: bool = True

    def check(self) -> None:
        if self.d_model % self.num_heads or self.d_model % POSITION_GROUPS:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads} and of 16 groups")
        if len(self.conv_dim) != len(self.conv_kernel) or len(self.conv_dim) < 2:
            raise ValueError("conv_dim and conv_kernel say different numbers of convolutions, or fewer than two")
