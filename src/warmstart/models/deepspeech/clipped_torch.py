"""Clipped layers with dropout, forwards and backwards, for trainings on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warmstart.models.layers.dropout import Noise, keep_probability
from warmstart.models.layers.linear import product

Gradients = tuple[Tensor | None, Tensor | None]
"""Of a layer's weight and bias; None where there is no need."""


class Layer(NamedTuple):
    """min(relu(x·Wᵀ + b), clip)·kept·factor, and what its gradients are computed from: input [N, inputs], weight and
    result [N, outputs], all of one type. What the clip let through is read off the result.

    ``kept`` is of :func:`draw`, ``factor`` 1 over the probability of a one there, ``limit`` is clip·factor.
    """

    x: Tensor
    weight: Tensor
    y: Tensor
    limit: float
    factor: float

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor, clip: float, rate: float, kept: Tensor | None) -> Layer:
        """Apply the layer to ``x``, in its type. There may be fill rows, for which nothing is ``kept``."""
        factor, limit = _scaled(clip, rate, x.dtype)
        own = weight.to(x.dtype)
        if own is weight:
            y = torch.addmm(bias, x, weight.t(), beta=factor, alpha=factor)
            y.clamp_(0.0, limit)
        else:
            y = product(x, own, bias.to(x.dtype)).clamp_(0.0, clip)
            if factor != 1.0:
                y.mul_(factor)
        if kept is not None:
            rows = kept.shape[0]
            (y if rows == y.shape[0] else y[:rows]).mul_(kept)
        return cls(x, own, y, limit, factor)

    def slopes(self, gradient: Tensor) -> Tensor:
        """The gradient of x·Wᵀ + b, where the result has ``gradient``."""
        slopes: Tensor = torch.ops.aten.hardtanh_backward.default(gradient, self.y, 0.0, self.limit)
        return slopes if self.factor == 1.0 else slopes.mul_(self.factor)


def of_parameters(slopes: Tensor, x: Tensor, dtype: torch.dtype, needed: Sequence[bool]) -> Gradients:
    """In ``dtype``, where x·Wᵀ + b has the gradient ``slopes``."""
    needs_weight, needs_bias = needed
    return (
        torch.mm(slopes.t(), x).to(dtype) if needs_weight else None,
        slopes.sum(0).to(dtype) if needs_bias else None,
    )


def draw(noise: Noise, count: int, units: int, rates: Sequence[float]) -> Sequence[Tensor | None]:
    """Of a layer [N, H] for each rate of dropout: uint8, 1 where an element is kept, else 0; None if all are."""
    if len(set(rates)) > 1:
        return [draw(noise, count, units, [rate])[0] for rate in rates]
    return noise.kept((len(rates), count, units), rates[0]).unbind() if rates[0] else [None] * len(rates)


@cache
def _scaled(clip: float, rate: float, dtype: torch.dtype) -> tuple[float, float]:
    """The factor of a dropout, and clip·factor as it stands in a result of ``dtype``."""
    factor = 1.0 / keep_probability(rate)
    return factor, float(torch.tensor(clip, dtype=dtype).mul_(factor))


def clipped(x: Tensor, weight: Tensor, bias: Tensor, clip: float, rate: float, noise: Noise) -> Tensor:
    """dropout(min(relu(x·Wᵀ + b), clip)) [N, H] of ``x`` [N, inputs], computed in its type."""
    result: Tensor = _Clipped.apply(x, weight, bias, clip, rate, noise)  # type: ignore[no-untyped-call]
    return result


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, clip: float, rate: float, noise: Noise) -> Tensor:
        layer = Layer.of(x, weight, bias, clip, rate, *draw(noise, len(x), len(weight), [rate]))
        ctx.save_for_backward(*layer[:3])
        ctx.rest, ctx.dtype = layer[3:], weight.dtype
        return layer.y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layer = Layer(*ctx.saved_tensors, *ctx.rest)
        slopes, (needs_x, *needed) = layer.slopes(gradient), ctx.needs_input_grad[:3]
        back = torch.mm(slopes, layer.weight) if needs_x else None
        return (back, *of_parameters(slopes, layer.x, ctx.dtype, needed), None, None, None)
