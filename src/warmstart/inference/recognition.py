"""What a speech model makes of batches: likeliest labels frame by frame, and the loss of the right ones.

Shape letters: B utterances, T frames, A labels with the blank (the last), L labels of the longest transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from warmstart.data.speech.batches import SpeechBatch
from warmstart.inference.ctc.labels import collapse
from warmstart.inference.device import move
from warmstart.lean import dataclass

Floats = NDArray[np.float32]
Decode = Callable[[Floats], Sequence[int]]


@dataclass
class Recognised:
    """Of every recording, in the order of its split: ``outputs`` (labels without blanks) and ``losses`` in nats."""

    outputs: list[list[int]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def recognise(model: nn.Module, batches: Iterable[SpeechBatch], count: int, decode: Decode | None = None) -> Recognised:
    """Outputs and CTC losses of all ``count`` recordings of a split, which ``batches`` hold once each.

    The model is used as it is: in evaluation mode and without gradients if the caller has set it so.

    Args:
        decode: log-probabilities float32 (T, A) of one recording → its labels; greedy by default.
    """
    found = Recognised([[]] * count, [0.0] * count)
    for batch in batches:
        logits = logits_of(model, batch)
        outputs = best_paths(logits, batch)
        if decode is not None:
            outputs = [list(decode(log_probs)) for log_probs in log_probabilities(logits, batch)]
        for index, labels, loss in zip(
            batch.indices.tolist(), outputs, ctc_losses(logits, batch).tolist(), strict=True
        ):
            found.outputs[index], found.losses[index] = labels, loss
    return found


def log_probabilities(logits: Tensor, batch: SpeechBatch) -> list[Floats]:
    """Log-probabilities float32 (T, A) of each recording's own frames."""
    rows = torch.log_softmax(logits.detach().float(), -1).cpu().numpy()
    return [row[:length] for row, length in zip(rows, batch.feature_lengths, strict=True)]


def logits_of(model: nn.Module, batch: SpeechBatch) -> Tensor:
    """Logits [B, T, A] of a batch, on the model's device."""
    device = next(model.parameters()).device
    logits: Tensor = model(move(batch.features, device), move(batch.feature_lengths, device, torch.long))
    return logits


def ctc_losses(logits: Tensor, batch: SpeechBatch) -> Tensor:
    """-ln p(transcript | audio) of each utterance, float32 [B], not divided by any length; ``logits`` are [B, T, A].

    Equal to TensorFlow's ``ctc_loss(preprocess_collapse_repeated=False, ctc_merge_repeated=True)``; infinite where
    there are fewer frames than the transcript needs.
    """
    log_probs = torch.log_softmax(logits.float(), -1).transpose(0, 1)
    labels, frames, lengths = (
        torch.as_tensor(array, dtype=torch.long) for array in (batch.labels, batch.feature_lengths, batch.label_lengths)
    )
    if torch.are_deterministic_algorithms_enabled():  # a GPU's gradients of it are not the same each time
        log_probs = log_probs.cpu()
    losses: Tensor = nn.functional.ctc_loss(
        log_probs, labels.to(log_probs.device), frames, lengths, blank=logits.shape[-1] - 1, reduction="none"
    )
    return losses.to(logits.device)


def best_paths(logits: Tensor, batch: SpeechBatch) -> list[list[int]]:
    """Labels of each utterance by its likeliest path: :func:`~warmstart.inference.ctc.greedy.greedy` of a batch."""
    blank = logits.shape[-1] - 1
    best = logits.argmax(-1).cpu().numpy()
    paths = [row[:length] for row, length in zip(best, batch.feature_lengths, strict=True)]
    return [path[collapse(path, blank)].tolist() for path in paths]
