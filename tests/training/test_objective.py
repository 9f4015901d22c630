"""The objective: cross entropy with z-loss, what it is divided by, and what teachers change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from warmstart.data.batches import Batch
from warmstart.data.plan import Position
from warmstart.errors import TrainingError
from warmstart.training.config import Distillation, TrainingConfig
from warmstart.training.distillation import Teacher
from warmstart.training.objective import CrossEntropy, batch_loss, smoothed_cross_entropy


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    """All gradients of ``loss`` in one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def joined(batches: list[Batch]) -> Batch:
    """All rows as one batch."""
    fields = {}
    for name in ("source", "target"):
        arrays = [getattr(b, name) for b in batches]
        width = max(a.shape[1] for a in arrays)
        fields[name] = np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays])
        fields[f"{name}_lengths"] = np.concatenate([getattr(b, f"{name}_lengths") for b in batches])
    rows = np.arange(len(fields["source"]))
    return Batch(**fields, tasks=rows * 0, indices=rows)


def test_z_loss_is_t5xs(fixtures: Path) -> None:
    """Sums that T5X itself computed for these logits, with z_loss 1e-4."""
    with np.load(fixtures / "fixtures/t5x/tiny_oracle.npz") as oracle:
        targets = torch.from_numpy(oracle["tgt"]).long()
        logits = torch.from_numpy(oracle["logits"])[targets > 0]
    targets = targets[targets > 0]
    cross_entropy, _ = smoothed_cross_entropy(logits, targets, 0.0)
    total, nll = smoothed_cross_entropy(logits, targets, 0.0, 1e-4)
    assert cross_entropy.item() == pytest.approx(126.07058, abs=1e-5)
    assert (total - cross_entropy).item() == pytest.approx(0.141861, abs=2e-5)
    assert nll.item() == cross_entropy.item()


def test_smoothing_and_z_loss_have_the_plain_gradient() -> None:
    logits = (torch.randn(6, 9) * 3).requires_grad_()
    targets = torch.randint(0, 9, (6,))
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.1)
    reference = reference + 0.02 * logits.logsumexp(-1).square().sum()
    ours, _ = smoothed_cross_entropy(logits, targets, 0.1, 0.02)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(reference, logits))


@pytest.mark.parametrize("normalizer", ["tokens", "sequences", 7.5])
def test_accumulated_batches_equal_the_large_one(build, stream, config: TrainingConfig, normalizer: Any) -> None:  # type: ignore[no-untyped-def]
    batches = [batch for _, (_, batch) in zip(range(3), stream().iterate(Position()), strict=False)]
    objective = CrossEntropy(config.model_copy(update={"loss_normalizer": normalizer, "z_loss": 1e-3}))
    tokens = sum(int(b.target_lengths.sum()) for b in batches)
    divisor = objective.divisor(sum(map(objective.weight, batches)))
    assert divisor == {"tokens": tokens, "sequences": 9, 7.5: 7.5}[normalizer]
    model, large = build(dropout=0.0), joined(batches)
    whole = objective(model, large)
    assert whole.units == tokens
    parts = sum(gradient(model, objective(model, b).loss / divisor) for b in batches)
    torch.testing.assert_close(parts, gradient(model, whole.loss / objective.divisor(objective.weight(large))))


def test_without_weight_teachers_change_nothing(build, batch, config: TrainingConfig) -> None:  # type: ignore[no-untyped-def]
    model, other = build(), build(seed=7)
    distilling = config.model_copy(update={"distillation": Distillation(teachers=("t",), weight=0.0)})
    losses = []
    for objective in (CrossEntropy(config), CrossEntropy(distilling, [Teacher("t", other.config, other)])):
        torch.manual_seed(3)
        losses.append(objective(model, batch))
    plain, distilled = losses
    assert torch.equal(plain.loss, distilled.loss)
    assert torch.equal(gradient(model, plain.loss), gradient(model, distilled.loss))
    torch.manual_seed(3)
    assert torch.equal(batch_loss(model, batch, config.label_smoothing).loss, plain.loss)


def test_word_level_needs_teachers_and_sequence_level_does_not(build, batch, config: TrainingConfig) -> None:  # type: ignore[no-untyped-def]
    model = build(dropout=0.0)
    word, sequence = (
        config.model_copy(update={"distillation": Distillation(teachers=("t",), level=level)})
        for level in ("word", "sequence")
    )
    with pytest.raises(TrainingError, match="needs its teachers"):
        CrossEntropy(word)
    assert torch.equal(CrossEntropy(sequence)(model, batch).loss, CrossEntropy(config)(model, batch).loss)
