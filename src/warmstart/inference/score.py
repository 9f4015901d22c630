"""Log-probabilities of given outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from warmstart.inference.batches import length_sorted, pad
from warmstart.models.transformer.module import Transformer


def score_ids(
    model: Transformer,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_tokens: int = 4096,
) -> list[list[float]]:
    """log p of each token of each of ``targets``, given its source and the tokens before it, in their order.

    ``sources`` and ``targets`` are ids with their end tokens, as many of one as of the other. ``batch_tokens``
    bounds pairs × longest side of a batch. The model's mode (training or evaluation) is left as it was.
    """
    device = model.decoder.embedding.weight.device
    results: list[list[float]] = [[] for _ in targets]
    lengths = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in length_sorted(lengths, batch_tokens):
                source, source_lengths = (x.to(device) for x in pad([sources[i] for i in batch]))
                target, target_lengths = (x.to(device) for x in pad([targets[i] for i in batch]))
                real = torch.arange(target.shape[1], device=device) < target_lengths[:, None]  # [B, T]
                logits = model(source, source_lengths, target, real)  # [N, V]
                scores = torch.log_softmax(logits.float(), -1).gather(1, target[real][:, None])[:, 0].tolist()
                start = 0
                for i in batch:
                    results[i] = scores[start : start + len(targets[i])]
                    start += len(targets[i])
    finally:
        model.train(training)
    return results
