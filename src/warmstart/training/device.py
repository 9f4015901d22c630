"""What a training on a GPU sets up. Everything else follows the device of the model's parameters."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from warmstart.training.config import TrainingConfig

logger = logging.getLogger(__name__)


@contextmanager
def computing_on(device: torch.device, config: TrainingConfig) -> Iterator[None]:
    """Inside, this process computes on ``device`` as ``config`` says; outside it is as it was.

    With ``config.deterministic`` torch takes kernels that repeat bit for bit, and refuses those that cannot.
    """
    if device.type == "cpu":
        for key, value in (("compile", True), ("deterministic", False)):
            if getattr(config, key) is value:
                logger.warning("training.%s changes nothing: this training is on the CPU", key)
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums with a workspace of its own
    torch.cuda.set_device(device)
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(config.deterministic)
    settings.fill_uninitialized_memory = False  # nothing is read before it is written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def compile_layers(model: nn.Module, backend: Any = "inductor") -> None:
    """Have torch compile what each of the model's ``layers`` computes, once for any number of rows."""
    for stack in model.modules():
        for layer in getattr(stack, "layers", ()):
            layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)
