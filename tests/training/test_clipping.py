"""Clipping against torch's own, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from warmstart.training.clipping import clip_gradients


def parameters(scale: float) -> list[Tensor]:
    torch.manual_seed(3)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((5, 7), (3,), (2, 2), (4,))]
    for p in made[:-1]:  # the last one is frozen
        p.grad = torch.randn_like(p) * scale
    return made


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_as_torch_clips(scale: float) -> None:
    ours, theirs = parameters(scale), parameters(scale)
    norm = clip_gradients(ours, 1.0)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, 1.0)), rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_small_gradient_and_one_without_limit_stay_bit_equal() -> None:
    for scale, limit in ((0.01, 1.0), (1000.0, None)):
        ours = parameters(scale)
        assert clip_gradients(ours, limit) > 0
        assert all(a.grad is None or torch.equal(a.grad, b.grad) for a, b in zip(ours, parameters(scale), strict=True))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_said_and_only_that_is(value: float) -> None:
    ours = parameters(1.0)
    ours[1].grad[0] = value  # type: ignore[index]
    assert not math.isfinite(clip_gradients(ours, 1.0))
    for k in (0, 2):
        assert torch.equal(ours[k].grad, parameters(1.0)[k].grad)  # type: ignore[arg-type]


def test_nothing_to_clip() -> None:
    assert clip_gradients([nn.Parameter(torch.zeros(2))], 1.0) == 0.0
