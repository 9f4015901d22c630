"""Relatives of Adam that torch lacks: TensorFlow's place of ε, and AdaBelief."""

from __future__ import annotations

import math
from typing import Any

import torch

from warmstart.training.config import AdaBelief as AdaBeliefConfig


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
        ages: dict[int, list[torch.Tensor]] = {}
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
        beta1, beta2 = self.betas
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self.state[p] for p in parameters]
            for parameter, state in zip(parameters, states, strict=True):
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(parameter), "s": torch.zeros_like(parameter)}
                state["step"] += 1
            grads, m, s = [p.grad for p in parameters], [x["m"] for x in states], [x["s"] for x in states]
            torch._foreach_lerp_(m, grads, 1.0 - beta1)
            surprise = torch._foreach_sub(grads, m)
            torch._foreach_mul_(s, beta2)
            torch._foreach_addcmul_(s, surprise, surprise, 1.0 - beta2)
            torch._foreach_add_(s, self.epsilon)
            below = torch._foreach_sqrt(s)
            torch._foreach_div_(below, [math.sqrt(1.0 - beta2 ** x["step"]) for x in states])
            torch._foreach_add_(below, self.epsilon)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
            rates = [-group["lr"] / (1.0 - beta1 ** x["step"]) for x in states]
            torch._foreach_addcdiv_(parameters, m, below, rates)
