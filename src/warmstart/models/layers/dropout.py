"""Dropout (Srivastava et al. 2014) whose random numbers cost little.

On a CPU the masks come from a generator of numpy's, 16 random bits an element, because torch's Bernoulli numbers cost
as much as a large part of the matrix products of a small model. An element is kept with probability k / 65,536, the
nearest to 1 - rate, and divided by just that probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from warmstart.models.layers.device import has_own_functions
from warmstart.models.layers.seeds import Seed

LEVELS = 1 << 16


class Noise:
    """The random numbers of one forward pass, a function of the state of torch's own generator, which moves on.

    Draws of one ``Noise`` are independent of each other, and of those of another.
    """

    def __init__(self) -> None:
        seed: Any = Seed(int(torch.randint(2**63 - 1, ())))  # numpy's stubs know its own class only
        self._bits = np.random.SFC64(seed)

    def kept(self, shape: Sequence[int], rate: float) -> Tensor:
        """uint8 of ``shape``: 1 with probability :func:`keep_probability`, else 0."""
        count = math.prod(shape)
        words = self._bits.random_raw(-(-count // 4))
        kept = words.view(np.uint16)[:count] <= np.uint16(keep_probability(rate) * LEVELS - 1)
        return torch.from_numpy(kept.view(np.uint8)).view(*shape)


def keep_probability(rate: float) -> float:
    """The probability with which an element is kept, to which 1 - ``rate`` (0 ≤ rate < 1) is rounded."""
    return max(1, round((1.0 - rate) * LEVELS)) / LEVELS


def dropout(x: Tensor, rate: float, noise: Noise | None) -> Tensor:
    """x·kept / keep probability; ``x`` itself without ``noise``, which is for evaluation."""
    if noise is None or not rate:
        return x
    if not has_own_functions(x):
        return functional.dropout(x, rate)
    result: Tensor = _Dropout.apply(None, x, noise.kept(x.shape, rate), 1.0 / keep_probability(rate))  # type: ignore[no-untyped-call]
    return result


def add_dropout(x: Tensor, change: Tensor, rate: float, noise: Noise | None) -> Tensor:
    """x + dropout(change), both of one shape and type."""
    if noise is None or not rate:
        return x + change
    if not has_own_functions(x):
        return x + functional.dropout(change, rate)
    kept = noise.kept(change.shape, rate)
    result: Tensor = _Dropout.apply(x, change, kept, 1.0 / keep_probability(rate))  # type: ignore[no-untyped-call]
    return result


class _Dropout(torch.autograd.Function):
    """``x`` (zero if None) + change·kept·factor, multiplied in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor | None, change: Tensor, kept: Tensor, factor: float) -> Tensor:
        kept = kept.to(change.dtype)
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return torch.addcmul(change.new_zeros(()) if x is None else x, change, kept, value=factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        change = torch.addcmul(gradient.new_zeros(()), gradient, kept, value=ctx.factor)
        return gradient if ctx.needs_input_grad[0] else None, change, None, None
