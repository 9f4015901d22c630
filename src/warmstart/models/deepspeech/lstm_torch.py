"""The frames of recordings of different lengths as rows, and an LSTM over them for trainings on a CPU.

Rows go time after time, so that each time is one block of them, and every product but the two recurrent ones is a
single one for all. In :class:`Frames`, which our LSTM takes, there is no padding: first the first frame of every
recording, the longest recording first, then the second frame of those that have one. After the frames there are fill
rows: at least one, which stands for all padding. In :class:`Grid`, which torch's takes, padding has rows of its own.

Shape letters: N frames, R rows, n of one time, H units, G = 4·H gates in the order input, forget, candidate, output.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.models.deepspeech.parameters import GATES
from warmstart.models.layers.linear import product
from warmstart.models.layers.rows import round_number

LOW_FROM = 2**20  # recurrent weights (512 units) that no longer fit a processor's own cache in float32


class Frames:
    """Where rows and places of a batch [B, T] belong to each other.

    With ``rounded`` there are as many fill rows as make a round number; see
    :class:`~warmstart.models.layers.rows.Rows`.

    Attributes:
        sizes: frames of each time.
        count: N.
        place: int64 [R], the place b·T + t of each row (0 for fill rows).
        slot: [B·T], the row at each place.
        before: [N - frames of the first time], of every later frame the row of the one before it.
    """

    def __init__(self, lengths: Tensor, width: int, *, rounded: bool = False) -> None:
        counts, device = lengths.cpu().numpy(), lengths.device
        order = np.argsort(-counts, kind="stable")
        real = np.arange(width)[:, None] < counts[order]  # [T, B]
        time, rank = real.nonzero()
        sizes = real[: counts.max()].sum(1)
        self.shape, self.sizes, self.count = (len(counts), width), sizes.tolist(), len(time)
        unit = round_number(self.count) if rounded else 1
        total = (self.count // unit + 1) * unit
        place, slot = np.zeros(total, np.int64), np.full(real.size, total - 1)
        place[: self.count] = order[rank] * width + time
        slot[place[: self.count]] = np.arange(self.count)
        before = np.arange(sizes[0], self.count) - np.repeat(sizes[:-1], sizes[1:])
        self.place = place
        self.slot, self.before = (torch.from_numpy(a).to(device) for a in (slot, before))

    def windows(self, around: int) -> Tensor:
        """int64 [R]: the frame with which the window of each row begins, where every recording has ``around`` frames
        more before it and behind it."""
        return _windows(self.place, self.shape[1], around).to(self.slot.device)

    def filled(self, rows: Tensor) -> Tensor:
        """``rows`` [R, …] as [B, T, …]; padding is the last fill row."""
        return rows.index_select(0, self.slot).view(*self.shape, *rows.shape[1:])

    def previous(self, rows: Tensor) -> Tensor:
        """[R, …]: of each frame what ``rows`` [R, …] has one time before; zero at the first and in fill rows."""
        result = torch.zeros_like(rows)
        torch.index_select(rows, 0, self.before, out=result[self.sizes[0] : self.count])
        return result


class Grid:
    """Every place of a batch [B, T] as a row, time after time and padding too: as torch's LSTM has them.

    With ``rounded`` there are fill rows after them, as many as make a round number.

    Attributes:
        count: N = B·T.
        total: R.
    """

    def __init__(self, lengths: Tensor, width: int, *, rounded: bool = False) -> None:
        self._lengths = lengths
        self.shape, self.count = (width, len(lengths)), len(lengths) * width
        unit = round_number(self.count) if rounded else 1
        self.total = -(-self.count // unit) * unit

    def windows(self, around: int) -> Tensor:
        """See :meth:`Frames.windows`."""
        return _grid_windows(*self.shape, self.total, around).to(self._lengths.device)

    @cached_property
    def real(self) -> Tensor | None:
        """bool [T, B, 1], where there are frames; None if there is no padding."""
        counts, width = self._lengths.cpu().numpy(), self.shape[0]
        if counts.min() == width:
            return None
        return torch.from_numpy(np.arange(width)[:, None, None] < counts[:, None]).to(self._lengths.device)

    def rows(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """``rows`` [R or N, …] in ``dtype``: with fill rows for bfloat16, and else without."""
        wanted = self.total if dtype == torch.bfloat16 else self.count
        if rows.dtype == dtype and rows.shape[0] == wanted:
            return rows
        if rows.shape[0] >= wanted:
            return rows[:wanted].to(dtype)
        filled = rows.new_zeros(wanted, *rows.shape[1:], dtype=dtype)
        filled[: self.count] = rows
        return filled

    def lay_out(self, rows: Tensor) -> Tensor:
        """``rows`` [R or N, …] as [T, B, …]."""
        return rows[: self.count].view(*self.shape, -1)

    def masked(self, values: Tensor) -> Tensor:
        """``values`` [T, B, …] where there are frames; else zero."""
        return values if self.real is None else values * self.real

    def filled(self, rows: Tensor) -> Tensor:
        """``rows`` [R or N, …] as [B, T, …]."""
        return self.lay_out(rows).transpose(0, 1)


def _windows(place: Any, width: int, around: int) -> Tensor:
    return torch.from_numpy(place + place // width * (2 * around))


@lru_cache(maxsize=128)  # batches of some shape come again and again
def _grid_windows(width: int, batch: int, total: int, around: int) -> Tensor:
    place = np.zeros(total, np.int64)  # b·T + t of each row, 0 of fill rows
    place[: width * batch].reshape(width, batch)[:] = np.arange(width * batch).reshape(batch, width).T
    with torch.inference_mode(False):  # they are for every mode
        return _windows(place, width, around)


def recur(x: Tensor, weight: Tensor, bias: Tensor, frames: Frames) -> Tensor:
    """What an LSTM that begins with zeros says, of the type of ``weight``, [R, H], of ``x`` [R, H]; zero in fill rows.

    Args:
        weight: [G, 2·H]: of ``x``, and of what was said before.

    Products with ``x`` are computed in its type, the recurrence in that of ``weight``; from ``LOW_FROM`` recurrent
    weights on, its products are in the type of ``x``, too: each time reads them all anew.
    """
    result: Tensor = _Recurrence.apply(x, weight, bias, frames)  # type: ignore[no-untyped-call]
    return result


class _Recurrence(torch.autograd.Function):
    """i, f, o = σ(...), g = tanh(...) of W·[x; h₋] + b;  c = f·c₋ + i·g;  h = o·tanh(c)  (Hochreiter and Schmidhuber
    1997, Gers et al. 2000)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, frames: Frames) -> Tensor:
        weight, bias = _inner(weight), _inner(bias)
        inputs, recurrent = weight.chunk(2, 1)
        inputs = inputs.to(x.dtype)
        if recurrent.numel() >= LOW_FROM:
            recurrent = recurrent.to(x.dtype)
        turned = recurrent.t()
        gates = product(x, inputs, bias.to(x.dtype)).to(weight.dtype)
        h, c, squashed = (gates.new_empty(len(x), len(weight) // GATES) for _ in range(3))
        h[frames.count :] = 0.0
        parts = (gates, gates[:, : -h.shape[1]], *gates.chunk(GATES, 1), c, squashed, h)
        blocks = [torch.split(part[: frames.count], frames.sizes) for part in parts]
        last = cell = h[:0]
        for gate, switches, o, i, f, g, now, tanh, said in zip(*blocks, strict=True):
            if len(gate) < len(last):
                last, cell = last[: len(gate)], cell[: len(gate)]
            if len(last):
                _add_product(gate, last, turned)
            switches.sigmoid_()
            g.tanh_()
            torch.mul(i, g, out=now)
            if len(last):
                now.addcmul_(f, cell)
            torch.tanh(now, out=tanh)
            torch.mul(o, tanh, out=said)
            last, cell = said, now
        ctx.save_for_backward(x, inputs, recurrent, gates, c, squashed, h)
        ctx.frames = frames
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, inputs, recurrent, gates, c, squashed, h = ctx.saved_tensors
        frames: Frames = ctx.frames
        width = h.shape[1]
        # the gradient of a gate's argument, for a gradient of 1 of the cell (for o: of the output)
        slopes = torch.empty_like(gates)
        switches, (o, i, f, g) = gates[:, :-width], gates.chunk(GATES, 1)
        of_o, of_i, of_f, of_g = slopes.chunk(GATES, 1)
        torch.addcmul(switches, switches, switches, value=-1.0, out=slopes[:, :-width])
        of_o.mul_(squashed)
        of_i.mul_(g)
        of_f.mul_(frames.previous(c))
        torch.addcmul(i, i * g, g, value=-1.0, out=of_g)
        slopes[frames.count :] = 0.0
        through = torch.addcmul(o, o * squashed, squashed, value=-1.0)
        dh, dc = gradient.clone(), gradient.new_zeros(frames.sizes[0], 1, width)
        of_cells = slopes.view(-1, GATES, width)[:, 1:]
        parts = (dh, through, of_o, of_cells, slopes, f)
        blocks = [torch.split(part[: frames.count], frames.sizes)[::-1] for part in parts]
        later, cells = slopes[:0], dc[:0]
        for said, slope, of_output, of_cell, dgate, forget in zip(*blocks, strict=True):
            if len(later):
                _add_product(said if len(said) == len(later) else said[: len(later)], later, recurrent)
            if len(cells) < len(said):
                cells = dc[: len(said)]
                cell = cells[:, 0]
            cell.addcmul_(said, slope)
            of_cell.mul_(cells)
            of_output.mul_(said)
            cell.mul_(forget)
            later = dgate
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        dbias = _outer(slopes.sum(0)) if needs_bias else None
        slopes = slopes.to(x.dtype)
        dx = torch.mm(slopes, inputs) if needs_x else None
        if not needs_weight:
            return dx, None, dbias, None
        seen = torch.cat([x, frames.previous(h).to(x.dtype)], 1)
        return dx, _outer(torch.mm(slopes.t(), seen)).to(h.dtype), dbias, None


def _add_product(result: Tensor, rows: Tensor, matrix: Tensor) -> None:
    """``result`` += ``rows`` · ``matrix``, multiplied in the type of ``matrix``."""
    if matrix.dtype == result.dtype:
        result.addmm_(rows, matrix)
    else:
        result.add_(torch.mm(rows.to(matrix.dtype), matrix))


def _inner(rows: Tensor) -> Tensor:
    """``rows`` [G, …] in the order output, input, forget, candidate: the three that are switches side by side, and the
    three that the cell's gradient goes through."""
    i, f, g, o = rows.chunk(GATES)
    return torch.cat([o, i, f, g])


def _outer(rows: Tensor) -> Tensor:
    """The inverse of :func:`_inner`."""
    o, i, f, g = rows.chunk(GATES)
    return torch.cat([i, f, g, o])
