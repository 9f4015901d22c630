"""Which functions compute a layer."""

from __future__ import annotations

from torch import Tensor


def has_own_functions(x: Tensor) -> bool:
    """Whether layers compute ``x`` with functions of their own: those are for what a CPU is slow at. Tensors of every
    other device are given to torch's."""
    return x.device.type == "cpu"
