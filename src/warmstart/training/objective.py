"""Label-smoothed cross entropy, as Marian defines it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from warmstart.data.batches import Batch


@dataclass(frozen=True)
class Loss:
    """Sums over target tokens: ``loss`` (differentiable) and ``nll`` (detached), in nats; ``tokens`` counted."""

    loss: Tensor
    nll: Tensor
    tokens: int


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Sums over N tokens of (1 - ε)·(-log p[target]) + ε·mean over the vocabulary of (-log p), and of -log p[target].

    Szegedy et al. 2016 with Marian's uniform prior over the whole vocabulary, the target included. Computed in
    float32 from log Σ exp, so that no array of log probabilities is kept.

    Args:
        logits: [N, V], any floating type.
        targets: [N], int64.
    """
    logits = logits.float()
    log_normalizer = logits.logsumexp(-1)
    nll = (log_normalizer - logits.gather(-1, targets[:, None])[:, 0]).sum()
    if label_smoothing == 0.0:
        return nll, nll.detach()
    uniform = (log_normalizer - logits.mean(-1)).sum()
    return (1.0 - label_smoothing) * nll + label_smoothing * uniform, nll.detach()


def batch_loss(model: nn.Module, batch: Batch, label_smoothing: float) -> Loss:
    """The loss of ``batch``, summed over its real target tokens; padding counts for nothing."""
    device = next(model.parameters()).device
    source, source_lengths, target, target_lengths = (
        torch.as_tensor(array, dtype=torch.long).to(device)
        for array in (batch.source, batch.source_lengths, batch.target, batch.target_lengths)
    )
    real = torch.arange(target.shape[1], device=device)[None, :] < target_lengths[:, None]
    logits = model(source, source_lengths, target, real)  # [N, V], real positions only
    loss, nll = smoothed_cross_entropy(logits, target[real], label_smoothing)
    return Loss(loss, nll, int(batch.target_lengths.sum()))
