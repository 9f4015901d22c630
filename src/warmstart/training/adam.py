"""Relatives of Adam that torch lacks: TensorFlow's place of ε, and AdaBelief."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from warmstart.training.methods import AdaBelief as AdaBeliefConfig


class TensorFlowAdam(torch.optim.Adam):
    """TensorFlow's Adam: θ ← θ - lr·√(1 - β₂ᵗ) / (1 - β₁ᵗ)·m / (√v + ε), "epsilon hat" of Kingma and Ba 2015, §2
    (``tf.compat.v1.train.AdamOptimizer``); weight decay ``decoupled`` as in AdamW, or added to the gradient.

    It is torch's rule with ε / √(1 - β₂ᵗ) in the place of ε, so torch's fused step computes it, once for every number
    of updates that parameters have behind them.
    """

    def __init__(self, groups: list[dict[str, Any]], *, decoupled: bool, **options: Any) -> None:
        super().__init__(groups, **options)
        self.decoupled = decoupled

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in self._by_age(group)]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups

    @torch.no_grad()
    def _by_age(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        ages: dict[int, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                done = self.state[parameter]["step"] if self.state[parameter] else 0
                ages.setdefault(int(done), []).append(parameter)
        decay = group["weight_decay"]
        if decay and self.decoupled:
            for members in ages.values():
                torch._foreach_mul_(members, 1.0 - group["lr"] * decay)
            decay = 0.0
        return [
            {**group, "params": members, "weight_decay": decay, "eps": group["eps"] / _correction(group, done + 1)}
            for done, members in ages.items()
        ]


def _correction(group: dict[str, Any], step: int) -> float:
    return math.sqrt(1.0 - float(group["betas"][1]) ** step)


class AdaBelief(torch.optim.Optimizer):
    """AdaBelief (Zhuang et al. 2020, algorithm 2), in update t of a parameter:

    m ← β₁·m + (1 - β₁)·g;  s ← β₂·s + (1 - β₂)·(g - m)² + ε;
    θ ← (1 - lr·weight_decay)·θ - lr·m̂ / (√ŝ + ε) with m̂ = m / (1 - β₁ᵗ), ŝ = s / (1 - β₂ᵗ).

    State of a parameter: ``step``, ``m`` and ``s``.
    """

    def __init__(self, groups: list[dict[str, Any]], config: AdaBeliefConfig) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.betas, self.epsilon = config.betas, config.epsilon

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:  # one after the other, which a processor's cache holds
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, grad: Tensor, rate: float, weight_decay: float) -> None:
        (beta1, beta2), state = self.betas, self.state[parameter]
        if not state:
            state |= {"step": 0, "m": torch.zeros_like(parameter), "s": torch.zeros_like(parameter)}
        state["step"] += 1
        m, s = state["m"].lerp_(grad, 1.0 - beta1), state["s"]
        surprise = grad - m
        s.mul_(beta2).addcmul_(surprise, surprise, value=1.0 - beta2).add_(self.epsilon)
        below = torch.sqrt(s, out=surprise).div_(math.sqrt(1.0 - beta2 ** state["step"])).add_(self.epsilon)
        if weight_decay:
            parameter.mul_(1.0 - rate * weight_decay)
        parameter.addcdiv_(m, below, value=-rate / (1.0 - beta1 ** state["step"]))
