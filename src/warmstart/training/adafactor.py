"""Adafactor (Shazeer and Stern 2018), computing what T5X computes (``t5x/adafactor.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warmstart.training.methods import Adafactor as AdafactorConfig


def factored_axes(shape: Sequence[int], config: AdafactorConfig) -> tuple[int, int] | None:
    """Axes of the second largest and of the largest dimension, which the second moment is factored over; None where
    it is not: fewer than two dimensions, or the second largest below ``min_dim_size_to_factor``.

    ``vr`` is a mean over the second axis returned and ``vc`` over the first, as T5X's ``v_row`` and ``v_col``.
    """
    if not config.factored or len(shape) < 2:
        return None
    *_, short, long = (int(axis) for axis in np.argsort(shape, kind="stable"))
    return None if shape[short] < config.min_dim_size_to_factor else (short, long)


class Adafactor(torch.optim.Optimizer):
    """With t updates done before this one, all means over one parameter W of gradient g, and per parameter:

    * β₂ = 1 - (t - step_offset + 1)^-decay_rate, in float32 as T5X has it;
    * v ← β₂·v + (1 - β₂)·(g² + ε₁), or only its means vr and vc over the two largest dimensions, and then
      v̂ = vr·vc / mean(vr);
    * u = g / √v̂, divided by max(1, RMS(u) / clipping_threshold);
    * u ← learning rate · max(ε₂, RMS(W)) · u (without ``multiply_by_parameter_scale``: learning rate · u);
    * with β₁: m ← β₁·m + (1 - β₁)·u, which is subtracted in the place of u;
    * W ← (1 - weight_decay_rate)·W - u; the decay concerns every parameter and knows no learning rate.

    State of a parameter: ``step`` (t), ``vr`` and ``vc`` or ``v``, and with β₁ ``m``. A dimension more than two is kept
    in both factors.
    """

    def __init__(self, groups: list[dict[str, Any]], config: AdafactorConfig) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.config = config

    def slot_shapes(self, parameter: Tensor) -> dict[str, tuple[int, ...]]:
        """Slot → shape of the state of ``parameter``."""
        shape = tuple(parameter.shape)
        axes = factored_axes(shape, self.config)
        if axes is None:
            shapes = {"v": shape}
        else:
            short, long = axes
            shapes = {"vr": shape[:long] + shape[long + 1 :], "vc": shape[:short] + shape[short + 1 :]}
        return shapes if self.config.beta1 is None else shapes | {"m": shape}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, grad: Tensor, rate: float, weight_decay: float) -> None:
        config, state = self.config, self.state[parameter]
        if not state:
            state["step"] = 0
            for slot, shape in self.slot_shapes(parameter).items():
                state[slot] = torch.zeros(shape, device=parameter.device)
        keep, mix = _mixing(state["step"] - config.step_offset, config.decay_rate)
        state["step"] += 1
        update = _normalised(grad, state, factored_axes(parameter.shape, config), keep, mix, config.epsilon1)
        scale = torch.full((), rate, device=parameter.device)
        if config.multiply_by_parameter_scale:
            scale *= _rms(parameter).clamp_(min=config.epsilon2)
        if config.clipping_threshold is not None:
            scale /= (_rms(update) / config.clipping_threshold).clamp_(min=1.0)
        if weight_decay:
            parameter.mul_(1.0 - weight_decay)
        if config.beta1 is None:
            parameter.addcmul_(update, scale, value=-1.0)
        else:
            parameter.sub_(state["m"].mul_(config.beta1).addcmul_(update, scale, value=1.0 - config.beta1))


def _mixing(step: int, exponent: float) -> tuple[float, float]:
    """β₂ and 1 - β₂. Late in a training float32 holds few digits of 1 - β₂: T5X's own rounding is kept."""
    one = np.float32(1.0)
    keep = one - np.float32(max(0, step) + 1) ** np.float32(-exponent)
    return float(keep), float(one - keep)


def _normalised(
    grad: Tensor, state: dict[str, Any], axes: tuple[int, int] | None, keep: float, mix: float, epsilon: float
) -> Tensor:
    """g / √v̂ in a new tensor, once the second moment in ``state`` has seen g."""
    squared = grad.square().add_(epsilon)
    if axes is None:
        v = state["v"].mul_(keep).add_(squared, alpha=mix)
        return torch.rsqrt(v, out=squared).mul_(grad)
    short, long = axes
    rows = state["vr"].mul_(keep).add_(squared.mean(long), alpha=mix)
    columns = state["vc"].mul_(keep).add_(squared.mean(short), alpha=mix)
    rows = rows / rows.mean(short - (long < short), keepdim=True)
    return torch.mul(grad, rows.rsqrt_().unsqueeze(long), out=squared).mul_(columns.rsqrt().unsqueeze(short))


def _rms(x: Tensor) -> Tensor:
    """√mean(x²), a scalar. By rows, because one float32 sum over millions of squares loses digits."""
    return (torch.linalg.vector_norm(x, dim=-1).square().sum() / x.numel()).sqrt() if x.ndim else x.abs()
