"""Connectionist temporal classification (Graves et al. 2006): what a training on speech minimises."""

from __future__ import annotations

from torch import nn

from warmstart.data.speech.batches import SpeechBatch
from warmstart.inference.recognition import ctc_losses, logits_of
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
        return float(batch.feature_lengths.sum()) * self.step_seconds
