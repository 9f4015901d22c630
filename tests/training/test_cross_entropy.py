"""Cross entropy against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from warmstart.training import cross_entropy
from warmstart.training.cross_entropy import smoothed_cross_entropy


def plain(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    loss = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
    return loss + z_loss * logits.logsumexp(-1).square().sum()


@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.3, 0.02), (1.0, 0.0)])
def test_loss_and_gradient_are_torchs(label_smoothing: float, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 3 * 17)  # three rows at a time, and one over
    torch.manual_seed(0)
    logits = (4 * torch.randn(10, 17, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(17, (10,))
    loss, nll = smoothed_cross_entropy(logits, targets, label_smoothing, z_loss)
    expected = plain(logits, targets, label_smoothing, z_loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, functional.cross_entropy(logits, targets, reduction="sum"))
    assert not nll.requires_grad
    (ours,) = torch.autograd.grad(loss * 0.7, logits)
    torch.testing.assert_close(ours, torch.autograd.grad(expected * 0.7, logits)[0])


def test_gradcheck() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(7, (5,))
    assert torch.autograd.gradcheck(lambda x: smoothed_cross_entropy(x, targets, 0.2, 0.05)[0], (logits,))


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """The loss is that of the same numbers in float32; the gradient is rounded once."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(700, 333)).bfloat16().requires_grad_()
    targets = torch.randint(333, (700,))
    wide = logits.detach().float().requires_grad_()
    loss, nll = smoothed_cross_entropy(logits, targets, 0.1, 1e-3)
    expected = plain(wide, targets, 0.1, 1e-3)
    assert loss.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss / 700, logits)
    (theirs,) = torch.autograd.grad(expected / 700, wide)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs.bfloat16(), rtol=0.008, atol=1e-9)


def test_large_logits_stay_finite_and_bad_ones_are_seen() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss, _ = smoothed_cross_entropy(logits, torch.tensor([1]), 0.1)
    assert loss.item() == pytest.approx(0.9 * 2e4 + 0.1 * 1e4)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    assert not smoothed_cross_entropy(torch.tensor([[float("nan"), 0.0]]), torch.tensor([1]), 0.1)[0].isfinite()
    assert not smoothed_cross_entropy(torch.tensor([[float("inf"), 0.0]]), torch.tensor([1]), 0.1)[0].isfinite()


def test_no_tokens_are_no_loss() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    loss, nll = smoothed_cross_entropy(logits, torch.zeros(0, dtype=torch.int64), 0.1)
    assert loss.item() == nll.item() == 0.0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, 5)
