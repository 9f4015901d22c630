"""Linear layers side by side as one product."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.layers.rows import round_number


def linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """x·Wᵀ + b of each of ``layers`` beside each other: [N, Σ out] of ``x`` [N, in].

    Only ``weight`` and ``bias`` of a layer are read, so an adapter is one that presents its own ``weight``. On a CPU
    the product is computed in the type of ``x``, whatever that of the weights, which get gradients of their own type.
    """
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    if x.device.type == "cpu":
        result: Tensor = _Linear.apply(x, len(layers), *weights, *biases)  # type: ignore[no-untyped-call]
        return result
    if len(layers) == 1:
        return functional.linear(x, weights[0], biases[0])
    return functional.linear(
        x, torch.cat(weights), None if biases[0] is None else torch.cat(cast("list[Tensor]", biases))
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int, *tensors: Tensor | None) -> Tensor:
        weight = _joined(tensors[:count], x.dtype)
        bias = _joined(tensors[count:], x.dtype)
        ctx.save_for_backward(x, weight)
        ctx.sizes = [len(cast(Tensor, w)) for w in tensors[:count]]
        ctx.dtype = cast(Tensor, tensors[0]).dtype
        y = x.new_empty(len(x), len(weight))
        for rows in _pieces(x):
            if bias is None:
                torch.mm(x[rows], weight.t(), out=y[rows])
            else:
                torch.addmm(bias, x[rows], weight.t(), out=y[rows])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        count, needs = len(ctx.sizes), ctx.needs_input_grad
        pieces = _pieces(x)
        back = torch.empty_like(x) if needs[0] else None
        if back is not None:
            for rows in pieces:
                torch.mm(gradient[rows], weight, out=back[rows])
        weights: tuple[Tensor | None, ...] = (None,) * count
        biases = weights
        if any(needs[2 : 2 + count]):
            whole = torch.mm(gradient[pieces[0]].t(), x[pieces[0]])
            for rows in pieces[1:]:
                whole.addmm_(gradient[rows].t(), x[rows])
            weights = torch.split(whole.to(ctx.dtype), ctx.sizes)
        if any(needs[2 + count :]):
            biases = torch.split(gradient.sum(0).to(ctx.dtype), ctx.sizes)
        found = zip((*weights, *biases), needs[2:], strict=True)
        return back, None, *(g if needed else None for g, needed in found)


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
