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
            parts: dict[int, list[tuple[Tensor, ...]]] = {}
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    state = self.state[parameter] or self._begin(parameter)
                    state["step"] += 1
                    moments = state["exp_avg"], state["exp_avg_sq"]
                    parts.setdefault(state["step"], []).append((parameter, gradient, *moments))
            for step, part in parts.items():
                self._update(part, step, group)

    step.hooked = True  # type: ignore[attr-defined]  # else torch measures every step, which takes as long as that

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {"step": 0, **{key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}}
        self.state[parameter] = state
        return state

    def _update(self, part: list[tuple[Tensor, ...]], step: int, group: dict[str, Any]) -> None:
        """Update number ``step`` of parameters, each with its gradient and moments."""
        parameters, gradients, m, v = (list(tensors) for tensors in zip(*part, strict=True))
        (beta1, beta2), epsilon = group["betas"], group["eps"]
        if self.tensorflow:
            epsilon /= math.sqrt(1.0 - beta2**step)
        steps = [torch.full((), float(step), device=m[0].device)] * len(m)
        update = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        options = {"lr": group["lr"], "weight_decay": group["weight_decay"], "amsgrad": False, "maximize": False}
        update(parameters, gradients, m, v, [], steps, beta1=beta1, beta2=beta2, eps=epsilon, **options)


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
