"""Connectionist temporal classification (Graves et al. 2006): what a training on speech minimises."""

from __future__ import annotations

import torch
from torch import nn

from warmstart.data.speech.batches import SpeechBatch
from warmstart.inference.recognition import ctc_losses, logits_of
from warmstart.models.deepspeech.module import DeepSpeech
from warmstart.models.deepspeech.whole_torch import Whole
from warmstart.training.config import TrainingConfig
from warmstart.training.terms import Loss


class CTC:
    """-ln p(transcript | audio), summed over the utterances; the blank is the last label.

    What an update's sum is divided by is the number of its utterances, as Coqui STT has it, unless
    ``loss_normalizer`` says ``tokens`` (labels of the transcripts) or a number. An utterance that has fewer frames than
    its transcript needs has an infinite loss: such are left out when the data are read.

    Args:
        step_seconds: of audio from one frame to the next.
    """

    unit, work = "utterances", "audio_seconds"

    def __init__(self, config: TrainingConfig, step_seconds: float) -> None:
        self.normalizer = config.loss_normalizer or "sequences"
        self.step_seconds = step_seconds

    def __call__(self, model: nn.Module, batch: SpeechBatch) -> Loss:
        whole = _whole(model, batch)
        if whole is not None:
            return _without_autograd(whole, batch)
        losses = ctc_losses(logits_of(model, batch), batch)
        loss = losses.sum()
        return Loss(loss, loss.detach(), len(batch.feature_lengths), losses.detach())

    def weight(self, batch: SpeechBatch) -> float:
        """Its utterances, or labels."""
        return float(batch.label_lengths.sum() if self.normalizer == "tokens" else len(batch.label_lengths))

    def divisor(self, weight: float) -> float:
        return max(1.0, weight) if isinstance(self.normalizer, str) else self.normalizer

    def amount(self, batch: SpeechBatch) -> float:
        """Seconds of audio."""
        return float(sum(batch.feature_lengths.tolist())) * self.step_seconds


def _whole(model: nn.Module, batch: SpeechBatch) -> Whole | None:
    """The model's own pass in training, where it has one for the batch."""
    if not isinstance(model, DeepSpeech):
        return None
    return model.whole(torch.from_numpy(batch.features), torch.from_numpy(batch.feature_lengths))


def _without_autograd(whole: Whole, batch: SpeechBatch) -> Loss:
    """What autograd makes of ``ctc_losses``, by the functions that it calls."""
    labels = torch.from_numpy(batch.labels)
    lengths, blank = (batch.feature_lengths.tolist(), batch.label_lengths.tolist()), whole.logits.shape[-1] - 1
    with torch.inference_mode():
        log_probs = torch.log_softmax(whole.logits, -1)
        losses, alphas = torch._ctc_loss(log_probs, labels, *lengths, blank)
        loss = losses.sum()

    def backward(divisor: float) -> None:
        with torch.inference_mode():
            slopes = torch.full_like(losses, 1.0 / divisor)
            found = torch.ops.aten._ctc_loss_backward.default(
                slopes, log_probs, labels, *lengths, losses, alphas, blank, False
            )
            gradient = torch._log_softmax_backward_data(found, log_probs, -1, found.dtype)
        whole.backward(gradient)

    return Loss(loss, loss, len(losses), losses, backward)
