"""Cross entropy as Marian defines it, alone or mixed with what teachers say: what a training on text minimises."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from warmstart.data.batches import Batch
from warmstart.errors import TrainingError
from warmstart.inference.device import move
from warmstart.training.config import TrainingConfig
from warmstart.training.cross_entropy import smoothed_cross_entropy
from warmstart.training.distillation import Inputs, Teacher, divergence, mean_probabilities
from warmstart.training.terms import Loss


class CrossEntropy:
    """The loss of a batch of text pairs, and what the losses of an update's batches are divided by.

    With distillation at word level the loss is (1 - ``weight``)·cross entropy + ``weight``·T²·KL(teachers ‖ student).
    At sequence level the data are other ones (:func:`~warmstart.training.distillation.distilled_split`) and the loss
    is the ordinary one.

    Raises:
        TrainingError: distillation at word level without a teacher.
    """

    unit, work = "tokens", "tokens"

    def __init__(self, config: TrainingConfig, teachers: Sequence[Teacher] = ()) -> None:
        self.config, self.teachers = config, tuple(teachers)
        at_word_level = config.distillation is not None and config.distillation.level == "word"
        self.distillation = config.distillation if at_word_level else None
        if at_word_level and not teachers:
            raise TrainingError("distillation at word level needs its teachers", where="training.distillation")

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss of ``batch``, summed over its real target tokens; padding counts for nothing.

        Computes in the precision of the surrounding ``autocast``, the teachers too; losses are float32.
        """
        inputs, targets = _inputs(model, batch)
        logits = model(*inputs)
        distillation = self.distillation
        weight = 0.0 if distillation is None else distillation.weight
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight < 1.0):
            loss, nll = smoothed_cross_entropy(logits, targets, self.config.label_smoothing, self.config.z_loss)
        if distillation is not None and weight > 0.0:
            probabilities = mean_probabilities(self.teachers, inputs, distillation.temperature)
            towards = weight * divergence(logits, probabilities, distillation.temperature)
            loss = towards if weight == 1.0 else (1.0 - weight) * loss + towards
        return _loss(loss, nll, batch)

    def weight(self, batch: Batch) -> float:
        """Its target tokens, or sequences."""
        by_sequences = self.config.loss_normalizer == "sequences"
        return float(len(batch.target_lengths) if by_sequences else batch.target_lengths.sum())

    def divisor(self, weight: float) -> float:
        """The target tokens or sequences of an update's batches, or the number that ``loss_normalizer`` is. So
        accumulated batches equal one large batch."""
        normalizer = self.config.loss_normalizer
        return max(1.0, weight) if normalizer is None or isinstance(normalizer, str) else normalizer

    def amount(self, batch: Batch) -> float:
        """Target tokens."""
        return float(batch.target_lengths.sum())


def batch_loss(model: nn.Module, batch: Batch, label_smoothing: float) -> Loss:
    """The cross entropy of ``batch``, summed over its real target tokens, as evaluation wants it."""
    inputs, targets = _inputs(model, batch)
    return _loss(*smoothed_cross_entropy(model(*inputs), targets, label_smoothing), batch)


def _inputs(model: nn.Module, batch: Batch) -> tuple[Inputs, Tensor]:
    """What the model is called with for logits [N, V] at real positions only, and their targets [N]."""
    device = next(model.parameters()).device
    source, source_lengths, target, target_lengths = (
        move(array, device, torch.long)
        for array in (batch.source, batch.source_lengths, batch.target, batch.target_lengths)
    )
    real = torch.arange(target.shape[1], device=device)[None, :] < target_lengths[:, None]
    return (source, source_lengths, target, real), target[real]


def _loss(loss: Tensor, nll: Tensor, batch: Batch) -> Loss:
    return Loss(loss, nll, int(batch.target_lengths.sum()))
