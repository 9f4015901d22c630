"""Relatives of Adam that torch lacks: TensorFlow's place of ε, and AdaBelief."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from warmstart.training.methods import AdaBelief as AdaBeliefConfig


class Adam(torch.optim.Adam):
    """torch's fused Adam, or with ``decoupled`` AdamW, without what torch's own ``step`` does around it, which takes
    longer than the step of a small model.

    With ``tensorflow`` it is TensorFlow's: θ ← θ - lr·√(1 - β₂ᵗ) / (1 - β₁ᵗ)·m / (√v + ε), "epsilon hat" of Kingma and
    Ba 2015, §2 (``tf.compat.v1.train.AdamOptimizer``). That is torch's rule with ε / √(1 - β₂ᵗ) in the place of ε, once
    for every number of updates that parameters have behind them.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        epsilon: float,
        *,
        decoupled: bool,
        tensorflow: bool,
    ) -> None:
        super().__init__(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)
        self.decoupled, self.tensorflow = decoupled, tensorflow

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            parts = {group["eps"]: members} if members else {}
            if self.tensorflow:
                parts = self._by_epsilon(members, group)
            for epsilon, part in parts.items():
                self._update(part, epsilon, group)

    def _by_epsilon(self, members: list[Tensor], group: dict[str, Any]) -> dict[float, list[Tensor]]:
        """The members that have the same number of updates behind them, under what stands for ε in the next."""
        found: dict[float, list[Tensor]] = {}
        for parameter in members:
            done = int(self.state[parameter]["step"]) if self.state[parameter] else 0
            epsilon = group["eps"] / math.sqrt(1.0 - float(group["betas"][1]) ** (done + 1))
            found.setdefault(epsilon, []).append(parameter)
        return found

    def _update(self, parameters: list[Tensor], epsilon: float, group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
        gradients: Any = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        steps, m, v = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1.0)
        update = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        (beta1, beta2), rest = group["betas"], {"weight_decay": group["weight_decay"], "eps": epsilon}
        options = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "amsgrad": False, "maximize": False, **rest}
        update(parameters, gradients, m, v, [], steps, **options)


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
