"""The real tokens of a padded batch, back to back.

Everything but attention treats tokens one by one, so it need not see padding at all: it works on rows, and attention
alone lays them out as a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

NEVER = -1e30  # added to a score, it makes the weight exactly zero; finite, so that a row without any key stays finite


class Rows:
    """Where rows and places of a batch [B, T] belong to each other, and how rows become attention heads.

    There are ``count`` real rows, sentence by sentence, and after them at least one fill row. Nothing that is read
    afterwards depends on fill rows, and their gradients are zero. With ``rounded`` there are as many as make a round
    number: for every new number of rows oneDNN compiles new bfloat16 products, which takes longer than many of them.

    Attributes:
        place: [rows], the place b·T + t of each row (0 for fill rows).
        slot: [B·T], the row at each place (a fill row where there is padding).
    """

    def __init__(self, lengths: Tensor, width: int, *, rounded: bool = False) -> None:
        self.size, self.width = len(lengths), width
        self.real = torch.arange(width, device=lengths.device) < lengths[:, None]  # [B, T]
        place = self.real.flatten().nonzero()[:, 0]
        self.count = len(place)
        unit = round_number(self.count) if rounded else 1
        self.total = (self.count // unit + 1) * unit
        self.place = torch.nn.functional.pad(place, (0, self.total - self.count))
        self.slot = torch.full((self.size * width,), self.total - 1, device=lengths.device)
        self.slot[place] = torch.arange(self.count, device=lengths.device)
        self._made: dict[tuple[Hashable, ...], Any] = {}

    @cached_property
    def step(self) -> Tensor:
        """[rows], the place of each row in its sentence."""
        return self.place % self.width

    def take(self, values: Tensor) -> Tensor:
        """The rows of ``values`` [B, T, …]; what stands in fill rows means nothing."""
        return _Moved.apply(values.flatten(0, 1), self.place, self.slot, self.count, False)  # type: ignore[no-any-return, no-untyped-call]

    def lay_out(self, rows: Tensor) -> Tensor:
        """``rows`` [rows, …] as [B, T, …]; what stands at padding means nothing."""
        laid: Tensor = _Moved.apply(rows, self.place, self.slot, self.count, True)  # type: ignore[no-untyped-call]
        return laid.view(self.size, self.width, *rows.shape[1:])

    def spread(self, rows: Tensor, parts: int, num_heads: int) -> Tensor:
        """``rows`` [rows, parts·D] as heads [parts, B·H, T, K]."""
        heads = rows.reshape(self.total * parts * num_heads, -1).index_select(0, self._index(parts, num_heads)[0])
        return heads.view(parts, self.size * num_heads, self.width, -1)

    def gather(self, heads: Tensor) -> Tensor:
        """The inverse of :meth:`spread`; fill rows become zero."""
        parts, num_heads = len(heads), heads.shape[1] // self.size
        rows = heads.flatten(0, 2).index_select(0, self._index(parts, num_heads)[1]).view(self.total, -1)
        rows[self.count :].zero_()
        return rows

    def padding(self, dtype: torch.dtype, num_heads: int, queries: int) -> Tensor:
        """What is added to scores [B·H, queries, T] of ``dtype`` so that no padding is seen."""

        def make() -> Tensor:
            bias = torch.zeros(self.real.shape, dtype=dtype, device=self.real.device).masked_fill_(~self.real, NEVER)
            return bias[:, None, None].expand(-1, num_heads, queries, -1).reshape(-1, queries, self.width)

        return self._kept(("padding", dtype, num_heads, queries), make)  # type: ignore[no-any-return]

    def future(self, dtype: torch.dtype, num_heads: int) -> Tensor:
        """What is added to scores [B·H, T, T] of ``dtype`` so that nothing is seen from before it."""

        def make() -> Tensor:
            bias = torch.full((self.width, self.width), NEVER, dtype=dtype, device=self.real.device).triu_(1)
            return bias.expand(self.size * num_heads, -1, -1)

        return self._kept(("future", dtype, num_heads), make)  # type: ignore[no-any-return]

    def _kept(self, key: tuple[Hashable, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` makes, the first time: the layers of a model ask for the same."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _index(self, parts: int, num_heads: int) -> tuple[Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor]:
            b, t, h = self.size, self.width, num_heads
            device = self.slot.device
            part, head = torch.arange(parts, device=device), torch.arange(h, device=device)
            columns = part[:, None] * h + head  # [parts, H]
            there = self.slot.view(b, 1, t) * (parts * h) + columns[:, None, :, None]  # [parts, B, H, T]
            first = part[:, None] * (b * h * t) + head * t  # [parts, H]: of sentence 0 at step 0
            back = (self.place // t * (h * t) + self.step)[:, None, None] + first  # [rows, parts, H]
            return there.flatten(), back.flatten()

        return self._kept(("index", parts, num_heads), make)  # type: ignore[no-any-return]


class _Moved(torch.autograd.Function):
    """Places [B·T, …] to rows, or with ``out`` rows to places. Each is the other's gradient, where every row comes from
    one place: sums by index, which torch has for it, are slower, and on a GPU not the same each time."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, place: Tensor, slot: Tensor, count: int, out: bool) -> Tensor:
        ctx.save_for_backward(place, slot)
        ctx.count, ctx.out = count, out
        return values.index_select(0, slot if out else place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        place, slot = ctx.saved_tensors
        back = gradient.index_select(0, place if ctx.out else slot)
        if ctx.out:
            back[ctx.count :] = 0.0  # of fill rows
        return back, None, None, None, None


def round_number(count: int) -> int:
    """What round numbers about as large as ``count`` are multiples of: 32, or a larger power of two that is at most
    1/64 of it."""
    return 1 << max(5, count.bit_length() - 7)
