"""Objective and precision, each against its definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from warmstart.training.objective import batch_loss, smoothed_cross_entropy
from warmstart.training.precision import cpu_flags, resolve


def test_label_smoothing_closed_form() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
    targets = np.array([0, 2])
    nll = -np.log([0.7, 0.5]).sum()
    expected = 0.9 * nll + 0.1 * -np.log(p).mean(1).sum()
    logits = torch.log(torch.tensor(p)) + 3.0  # a constant changes nothing
    loss, plain = smoothed_cross_entropy(logits, torch.tensor(targets), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert plain.item() == pytest.approx(nll, rel=1e-6)


def test_loss_and_gradient_equal_torchs() -> None:
    logits = torch.randn(7, 5, requires_grad=True)
    targets = torch.randint(0, 5, (7,))
    reference = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.2)
    ours, _ = smoothed_cross_entropy(logits, targets, 0.2)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(reference, logits))


def test_padding_counts_for_nothing(build, batch) -> None:  # type: ignore[no-untyped-def]
    model = build(dropout=0.0)
    before = batch_loss(model, batch, 0.1)
    for row, length in zip(batch.target, batch.target_lengths, strict=True):
        row[length:] = 5
    after = batch_loss(model, batch, 0.1)
    assert before.units == after.units == batch.target_lengths.sum()
    torch.testing.assert_close(before.loss, after.loss)


def test_precision_follows_the_processor(tmp_path: Path) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nflags\t\t: sse amx_bf16\n")
    cpu = torch.device("cpu")
    assert resolve("auto", cpu, cpu_flags(listed)) == ("bfloat16", "the processor has amx_bf16")
    assert resolve("auto", cpu, ("avx2", "avx512_bf16")) == ("float32", "the processor has no amx_bf16")
    assert resolve("float32", cpu, ("amx_bf16",))[0] == "float32"
    assert cpu_flags(tmp_path / "none") == ()
