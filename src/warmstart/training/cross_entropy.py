"""Label-smoothed cross entropy over large vocabularies, in a few passes over the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 1 << 17  # logits that a thread of a CPU works on at a time: half a megabyte, which stays in its cache


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sums over N tokens of (1 - ε)·(-log p[target]) + ε·mean over the vocabulary of (-log p) + z·(log Σ exp)², and
    of -log p[target] (detached).

    Szegedy et al. 2016 with Marian's uniform prior over the whole vocabulary, the target included; the last term is
    T5X's z-loss (``t5x/losses.py``). Computed in float32 (float64 of float64) whatever the logits are. The gradient is
    computed along with the loss, where the exponentials are at hand, and cannot itself be differentiated.

    Args:
        logits: [N, V], any floating type.
        targets: [N], int64.
        label_smoothing: ε, from 0 to 1.
        z_loss: z, at least 0.
    """
    wanted = torch.is_grad_enabled() and logits.requires_grad
    loss, nll = _CrossEntropy.apply(logits, targets, label_smoothing, z_loss, wanted)  # type: ignore[no-untyped-call]
    return loss, nll


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        """The gradient is p·(1 + 2z·log Σ exp) - ε/V - (1 - ε)·[target]."""
        exact = torch.float64 if logits.dtype == torch.float64 else torch.float32
        normalizer = torch.empty(len(logits), dtype=exact, device=logits.device)  # log Σ exp
        mean = torch.zeros_like(normalizer)
        gradient = torch.empty_like(logits) if wanted else None
        for rows, chunk in _chunks(logits, exact):
            if label_smoothing:
                torch.mean(chunk, -1, out=mean[rows])
            highest = chunk.amax(-1, keepdim=True)
            total = chunk.sub_(highest).exp_().sum(-1, keepdim=True)
            normalizer[rows] = (highest + total.log())[:, 0]
            if gradient is not None:
                chunk.mul_((1.0 + 2.0 * z_loss * normalizer[rows, None]) / total)
                if label_smoothing:
                    chunk.sub_(label_smoothing / logits.shape[1])
                index = targets[rows, None]
                gradient[rows] = chunk.scatter_add_(-1, index, chunk.new_full(index.shape, label_smoothing - 1.0))
        nll = (normalizer - logits.gather(-1, targets[:, None])[:, 0]).sum()
        loss = nll.clone()
        if label_smoothing:
            loss = (1.0 - label_smoothing) * nll + label_smoothing * (normalizer - mean).sum()
        if z_loss:
            loss = loss + z_loss * normalizer.square().sum()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None


def _chunks(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, a copy of theirs in ``dtype``): the copies share one place, each is gone with the next."""
    count, width = logits.shape
    step = max(1, count if logits.is_cuda else min(count, CHUNK * torch.get_num_threads() // width))
    place = torch.empty(step, width, dtype=dtype, device=logits.device)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        yield rows, place[: rows.stop - start].copy_(logits[rows])
