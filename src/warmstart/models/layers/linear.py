"""Linear layers side by side as one product."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.layers.rows import round_number


def linear(x: Tensor, *layers: nn.Linear, relu: bool = False) -> Tensor:
    """x·Wᵀ + b of each of ``layers`` beside each other: [N, Σ out] of ``x`` [N, in]; with ``relu`` its positive part.

    Only ``weight`` and ``bias`` of a layer are read, so an adapter is one that presents its own ``weight``. On a CPU
    the product is computed in the type of ``x``, whatever that of the weights, which get gradients of their own type.
    """
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    if x.device.type == "cpu":
        result: Tensor = _Linear.apply(x, len(layers), relu, *weights, *biases)  # type: ignore[no-untyped-call]
        return result
    if len(layers) == 1:
        y = functional.linear(x, weights[0], biases[0])
    else:
        bias = None if biases[0] is None else torch.cat(cast("list[Tensor]", biases))
        y = functional.linear(x, torch.cat(weights), bias)
    return functional.relu(y) if relu else y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, relu: bool, *tensors: Tensor | None) -> Tensor:
        weight = _joined(tensors[:count], x.dtype)
        bias = _joined(tensors[count:], x.dtype)
        y = _product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.sizes = [len(cast(Tensor, w)) for w in tensors[:count]]
        ctx.dtype = cast(Tensor, tensors[0]).dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, positive = ctx.saved_tensors
        if positive is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, positive, 0)
        count, (needs_x, _, _, *needs) = len(ctx.sizes), ctx.needs_input_grad
        pieces = _pieces(x)
        back = torch.empty_like(x) if needs_x else None
        if back is not None:
            for rows in pieces:
                torch.mm(gradient[rows], weight, out=back[rows])
        weights: tuple[Tensor | None, ...] = (None,) * count
        biases = weights
        if any(needs[:count]):
            turned = _turned(gradient, x)
            whole = torch.mm(turned[:, pieces[0]], x[pieces[0]])
            for rows in pieces[1:]:
                whole.addmm_(turned[:, rows], x[rows])
            weights = torch.split(whole.to(ctx.dtype), ctx.sizes)
        if any(needs[count:]):
            biases = torch.split(gradient.sum(0).to(ctx.dtype), ctx.sizes)
        found = zip((*weights, *biases), needs, strict=True)
        return back, None, None, *(g if needed else None for g, needed in found)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    pieces = _pieces(x)
    if x.dtype == torch.bfloat16 and len(pieces) == 1 and torch._C._has_mkldnn:
        # the product that adds the bias as it writes; addmm writes it first, and reads it again
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], ""))
    y = x.new_empty(len(x), len(weight))
    for rows in pieces:
        if bias is None:
            torch.mm(x[rows], weight.t(), out=y[rows])
        else:
            torch.addmm(bias, x[rows], weight.t(), out=y[rows])
    return y.relu_() if relu else y


def _turned(gradient: Tensor, x: Tensor) -> Tensor:
    """The transpose of ``gradient``; copied where it is small beside ``x`` and the product with that, which takes
    twice as long with a bfloat16 factor that lies the other way, gains more than the copy costs."""
    turned = gradient.t()
    small = gradient.dtype == torch.bfloat16 and 2 * gradient.shape[1] <= x.shape[1]
    return turned.contiguous() if small else turned


def _pieces(x: Tensor) -> list[slice]:
    """All rows; of bfloat16 a round number and the rest. oneDNN compiles every product of a new number of rows, which
    takes longer than many of them."""
    rows = len(x)
    main = rows - rows % round_number(rows)
    if x.dtype != torch.bfloat16 or main in (0, rows):
        return [slice(rows)]
    return [slice(main), slice(main, rows)]


def _joined(parts: tuple[Tensor | None, ...], dtype: torch.dtype) -> Any:
    """The parts one below the other in ``dtype``; not copied where there is no need."""
    if parts[0] is None:
        return None
    tensors = [cast(Tensor, part) for part in parts]
    if len(tensors) == 1:
        return tensors[0].detach().to(dtype)
    whole = tensors[0].new_empty((sum(map(len, tensors)), *tensors[0].shape[1:]), dtype=dtype)
    for end, part in zip(accumulate(map(len, tensors)), tensors, strict=True):
        whole[end - len(part) : end] = part.detach()
    return whole
