"""Layer normalisation (Ba et al. 2016; by the root of the mean square alone, Zhang and Sennrich 2019) of bfloat16 with
parameters in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.layers.device import has_own_functions

Norm = nn.LayerNorm | nn.RMSNorm


def normalise(x: Tensor, norm: Norm) -> Tensor:
    """``norm`` of ``x``, in the type of ``x``.

    On a CPU torch sums the gradients of a norm's parameters in bfloat16 if the input is, and most of a sum over a
    thousand rows is lost so. Here they are summed in float32.
    """
    if isinstance(norm, nn.RMSNorm):
        return functional.rms_norm(x.to(norm.weight.dtype), norm.normalized_shape, norm.weight, norm.eps).to(x.dtype)
    if not has_own_functions(x) or x.dtype != torch.bfloat16:
        return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    result: Tensor = _LayerNorm.apply(x, norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return result


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, deviation = torch.native_layer_norm(x, weight.shape, weight, bias, eps)  # 1 / standard deviation
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, deviation = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]

        def back(gradient: Tensor, x: Tensor, wanted: list[bool]) -> Any:
            shape = weight.shape
            function = torch.ops.aten.native_layer_norm_backward.default
            return function(gradient, x, shape, mean, deviation, weight, bias, wanted)

        dx = back(gradient, x, [needs[0], False, False])[0]
        if not any(needs[1:]):
            return dx, None, None, None
        return dx, *back(gradient.float(), x.float(), [False, *needs[1:]])[1:], None
