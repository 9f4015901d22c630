"""Gradient clipping by the global norm (Pascanu et al. 2013)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float | None) -> float:
    """The L2 norm of all gradients together, which are scaled so that it is at most ``limit``.

    They are only read where nothing is to be scaled, and stay as they are where the norm is not finite.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    if gradients[0].device.type == "cpu":
        norm = math.hypot(*norms)
    else:  # is waited for once
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if limit is not None and math.isfinite(norm) and norm > limit:
        torch._foreach_mul_(gradients, limit / norm)
    return norm
