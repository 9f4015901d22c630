"""Linear layers side by side as one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from warmstart.models.layers.device import has_own_functions
from warmstart.models.layers.rows import round_number


def linear(x: Tensor, *layers: nn.Linear, relu: bool = False) -> Tensor:
    """x·Wᵀ + b of each of ``layers`` beside each other: [N, Σ out] of ``x`` [N, in]; with ``relu`` its positive part.

    Only ``weight`` and ``bias`` of a layer are read, and a :class:`LowRank` that its ``weight`` is parametrized with.
    On a CPU the product is computed in the type of ``x``, whatever that of the weights, which get gradients of their
    own type.
    """
    biases = [layer.bias for layer in layers]
    if has_own_functions(x):
        adapters = [_adapter(layer) for layer in layers]
        weights = [_weight(layer, adapter) for layer, adapter in zip(layers, adapters, strict=True)]
        factors: list[Tensor | None] = []
        if any(adapters):
            factors = [None if a is None else getattr(a, name) for name in ("lora_a", "lora_b") for a in adapters]
        scales = [1.0 if a is None else a.scale for a in adapters]
        result: Tensor = _Linear.apply(x, scales, relu, *weights, *biases, *factors)  # type: ignore[no-untyped-call]
        return result
    weights = [layer.weight for layer in layers]
    if len(layers) == 1:
        y = functional.linear(x, weights[0], biases[0])
    else:
        bias = None if biases[0] is None else torch.cat(cast("list[Tensor]", biases))
        y = functional.linear(x, torch.cat(weights), bias)
    return functional.relu(y) if relu else y


class LowRank(nn.Module):
    """W [out, in] ↦ W + ``scale``·B·A with A [rank, in] and B [out, rank], in float32 always (Hu et al. 2021)."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.lora_a, self.lora_b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return torch.addmm(weight, self.lora_b, self.lora_a, alpha=self.scale)


def _adapter(layer: nn.Linear) -> LowRank | None:
    """The adapter of a layer whose own weight is frozen."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    found = layer.parametrizations.weight  # type: ignore[union-attr]
    own = isinstance(found[0], LowRank) and not found.original.requires_grad  # type: ignore[index, union-attr]
    return cast(LowRank, found[0]) if own else None  # type: ignore[index]


def _weight(layer: nn.Linear, adapter: LowRank | None) -> Tensor:
    if adapter is None:
        return layer.weight
    with torch.no_grad():  # the adapter's gradients are computed without that of the sum
        return layer.weight


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: list[float], relu: bool, *tensors: Tensor | None) -> Tensor:
        """``tensors``: weights, biases, and of adapters, whose sum with them the weights are already, A and B."""
        count = len(scales)
        weight = _joined(tensors[:count], x.dtype)
        bias = _joined(tensors[count : 2 * count], x.dtype)
        y = product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None, *tensors[2 * count :])
        ctx.scales = scales
        ctx.sizes = [cast(Tensor, w).shape[0] for w in tensors[:count]]
        ctx.dtype = cast(Tensor, tensors[0]).dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, positive, *factors = ctx.saved_tensors
        if positive is not None:
            gradient = torch.ops.aten.threshold_backward.default(gradient, positive, 0)
        count, (needs_x, _, _, *needs) = len(ctx.sizes), ctx.needs_input_grad
        pieces = _pieces(x)
        back = _times(gradient, weight, pieces) if needs_x else None
        weights: Sequence[Tensor | None] = (None,) * count
        biases = weights
        if any(needs[:count]):
            turned = _turned(gradient, x)
            whole = torch.mm(turned[:, pieces[0]], x[pieces[0]])
            for rows in pieces[1:]:
                whole.addmm_(turned[:, rows], x[rows])
            weights = _parts(whole.to(ctx.dtype), ctx.sizes)
        if any(needs[count : 2 * count]):
            biases = _parts(gradient.sum(0).to(ctx.dtype), ctx.sizes)
        adapted: Sequence[tuple[Tensor | None, Tensor | None]] = ()
        if factors:
            gradients = torch.split(gradient, ctx.sizes, 1)
            adapted = [
                (None, None) if a is None else _adapter_gradients(x, g, a, b, scale)
                for g, a, b, scale in zip(gradients, factors[:count], factors[count:], ctx.scales, strict=True)
            ]
        found = zip((*weights, *biases, *(a for a, _ in adapted), *(b for _, b in adapted)), needs, strict=True)
        return back, None, None, *(g if needed else None for g, needed in found)


def _times(x: Tensor, weight: Tensor, pieces: list[slice]) -> Tensor:
    """x·W, one piece of the rows after the other."""
    if len(pieces) == 1:
        return torch.mm(x, weight)
    y = x.new_empty(x.shape[0], weight.shape[1])
    for rows in pieces:
        torch.mm(x[rows], weight, out=y[rows])
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """x·Wᵀ + b, all of one type on a CPU, outside of autograd; with ``relu`` its positive part."""
    pieces = _pieces(x)
    if x.dtype == torch.bfloat16 and len(pieces) == 1 and torch._C._has_mkldnn:
        # the product that adds the bias as it writes; addmm writes it first, and reads it again
        function = torch.ops.mkldnn._linear_pointwise.default
        return cast(Tensor, function(x, weight, bias, "relu" if relu else "none", [], ""))
    y = x.new_empty(len(x), len(weight))
    for rows in pieces:
        if bias is None:
            torch.mm(x[rows], weight.t(), out=y[rows])
        else:
            torch.addmm(bias, x[rows], weight.t(), out=y[rows])
    return y.relu_() if relu else y


def _adapter_gradients(x: Tensor, gradient: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Of A and B, where y = … + scale·(x·Aᵀ)·Bᵀ has ``gradient``: products with the rank, not of [out, in]."""
    da = torch.mm(torch.mm(gradient, b.to(x.dtype)).t(), x)
    db = torch.mm(gradient.t(), torch.mm(x, a.to(x.dtype).t()))
    return da.to(a.dtype).mul_(scale), db.to(b.dtype).mul_(scale)


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
    sizes = [part.shape[0] for part in tensors]
    whole = tensors[0].new_empty((sum(sizes), *tensors[0].shape[1:]), dtype=dtype)
    torch._foreach_copy_(torch.split(whole, sizes), [part.detach() for part in tensors])
    return whole


def _parts(whole: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    return (whole,) if len(sizes) == 1 else torch.split(whole, sizes)
