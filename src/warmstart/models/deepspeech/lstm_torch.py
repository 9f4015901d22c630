"""The frames of recordings of different lengths as rows, and an LSTM over them for trainings on a CPU.

Rows go time after time: first the first frame of every recording, the longest recording first, then the second frame
of those that have one. So each time is one block of rows, no padding is computed, and every product but the two
recurrent ones is a single one for all frames.

Shape letters: N rows, n of one time, H units, G = 4·H gates in the order input, forget, candidate, output.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from warmstart.models.deepspeech.parameters import GATES
from warmstart.models.layers.linear import product


class Frames:
    """Where rows and places of a batch [B, T] belong to each other.

    There are as many rows as there are real frames, and after them one that stands for all padding.

    Attributes:
        sizes: rows of each time.
        place: [N + 1], the place b·T + t of each row (0 for the last).
        slot: [B·T], the row at each place.
    """

    def __init__(self, lengths: Tensor, width: int) -> None:
        self.shape, device = (len(lengths), width), lengths.device
        ordered, order = lengths.sort(descending=True, stable=True)
        real = torch.arange(width, device=device)[:, None] < ordered  # [T, B]
        time, rank = real.nonzero(as_tuple=True)
        place = order[rank] * width + time
        self.sizes = [size for size in real.sum(1).tolist() if size]
        self.place = torch.nn.functional.pad(place, (0, 1))
        self.slot = torch.full((len(lengths) * width,), len(place), device=device)
        self.slot[place] = torch.arange(len(place), device=device)

    def take(self, values: Tensor) -> Tensor:
        """The rows [N, …] of ``values`` [B, T, …], without the one for padding."""
        return values.flatten(0, 1).index_select(0, self.place[:-1])

    def lay_out(self, rows: Tensor) -> Tensor:
        """``rows`` [N + 1, …] as [B, T, …]."""
        return rows.index_select(0, self.slot).view(*self.shape, *rows.shape[1:])


def recur(x: Tensor, weight: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
    """What an LSTM that begins with zeros says, float32 [N, H], of ``x`` [N, H] in the order of :class:`Frames`.

    Args:
        weight: float32 [G, 2·H]: of ``x``, and of what was said before.
        sizes: n of each time, none larger than the one before; their sum is N.

    Products with ``x`` are computed in its type, the recurrence in float32.
    """
    result: Tensor = _Recurrence.apply(x, weight, bias, sizes)  # type: ignore[no-untyped-call]
    return result


class _Recurrence(torch.autograd.Function):
    """i, f, o = σ(...), g = tanh(...) of W·[x; h₋] + b;  c = f·c₋ + i·g;  h = o·tanh(c)  (Hochreiter and Schmidhuber
    1997, Gers et al. 2000)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, sizes: list[int]) -> Tensor:
        width = len(weight) // GATES
        inputs, recurrent = weight.chunk(2, 1)
        ahead = product(x, inputs.to(x.dtype), bias.to(x.dtype))
        gates = weight.new_empty(GATES, len(x), width)
        gates.copy_(ahead.view(-1, GATES, width).transpose(0, 1))
        turned = [part.t() for part in recurrent.chunk(GATES)]
        h, c, squashed = (gates.new_empty(len(x), width) for _ in range(3))
        parts = (gates, gates[:2], gates[2], gates[3], gates[0], gates[1], c, squashed, h)
        blocks = [torch.split(part, sizes, -2) for part in parts]
        last = cell = None
        for size, gate, switches, g, o, i, f, now, tanh, said in zip(sizes, *blocks, strict=True):
            if last is not None:
                for own, matrix in zip(gate, turned, strict=True):
                    own.addmm_(last[:size], matrix)
            switches.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(i, g, out=now)
            if cell is not None:
                now.addcmul_(f, cell[:size])
            torch.tanh(now, out=tanh)
            torch.mul(o, tanh, out=said)
            last, cell = said, now
        ctx.save_for_backward(x, weight, gates, c, squashed, h)
        ctx.sizes = sizes
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gates, c, squashed, h = ctx.saved_tensors
        sizes, (i, f, g, o) = ctx.sizes, gates
        inputs, recurrent = weight.chunk(2, 1)
        matrices, previous = recurrent.chunk(GATES), _previous(sizes)
        # the gradient of a gate's argument, for a gradient of 1 of the cell (for o: of the output)
        slopes = torch.empty_like(gates)
        torch.mul(torch.addcmul(i, i, i, value=-1.0), g, out=slopes[0])
        torch.mul(torch.addcmul(f, f, f, value=-1.0), _gather(c, previous), out=slopes[1])
        torch.addcmul(i, i * g, g, value=-1.0, out=slopes[2])
        torch.mul(torch.addcmul(o, o, o, value=-1.0), squashed, out=slopes[3])
        through = torch.addcmul(o, o * squashed, squashed, value=-1.0)
        dh, dc = gradient.clone(), gradient.new_zeros(sizes[0], h.shape[1])
        blocks = [torch.split(part, sizes, -2) for part in (dh, through, slopes[:3], slopes[3], slopes, f)]
        later: Tensor | None = None
        for size, dout, slope, of_cell, of_output, dgate, forget in reversed(list(zip(sizes, *blocks, strict=True))):
            if later is not None:
                for own, matrix in zip(later, matrices, strict=True):
                    dout[: later.shape[1]].addmm_(own, matrix)
            cell = dc[:size]
            cell.addcmul_(dout, slope)
            of_cell.mul_(cell)
            of_output.mul_(dout)
            cell.mul_(forget)
            later = dgate
        dgates = slopes.transpose(0, 1).flatten(1)
        return *_gradients(ctx.needs_input_grad, x, inputs, _gather(h, previous), dgates), None


def _gradients(
    needs: Sequence[bool], x: Tensor, inputs: Tensor, before: Tensor, dgates: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, weight and bias."""
    bias = dgates.sum(0) if needs[2] else None
    dgates = dgates.to(x.dtype)
    dx = product(dgates, inputs.to(x.dtype).t().contiguous(), None) if needs[0] else None
    if not needs[1]:
        return dx, None, bias
    turned = dgates.t()
    weight = torch.cat([torch.mm(turned, side.to(x.dtype)).to(inputs.dtype) for side in (x, before)], 1)
    return dx, weight, bias


def _previous(sizes: list[int]) -> Tensor:
    """[N - n of the first time], the row of the same recording one time before."""
    starts = [0, *accumulate(sizes)]
    blocks = [torch.arange(start, start + size) for start, size in zip(starts, sizes[1:], strict=False)]
    return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.long)


def _gather(values: Tensor, previous: Tensor) -> Tensor:
    """Of each row what ``values`` [N, H] were one time before; zero at the first."""
    first = len(values) - len(previous)
    return torch.cat([values.new_zeros(first, values.shape[1]), values.index_select(0, previous)])
