"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from warmstart.errors import Problem, TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.training.config import Average
from warmstart.training.lora import canonical_parameters


class MovingAverage:
    """a ← d·a + (1 - d)·w in float32 over every parameter w, every tie once; a begins as the weights are now.

    d is ``decay``, but with ``warmup`` at most (t + 1) / (t + 10) where t counts the updates before this one: Marian's
    ``--exponential-smoothing`` (marian-dev ``src/optimizers/exponential_smoothing.cpp``) of 1 - ``decay``.
    """

    def __init__(self, model: nn.Module, config: Average) -> None:
        self._config = config
        self._parameters = canonical_parameters(model)
        self._weights = [p.detach() for p in self._parameters.values()]
        self._average = [w.to(torch.float32, copy=True) for w in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update ``step`` (from 1)."""
        decay = self._config.decay
        if self._config.warmup:
            decay = min(decay, step / (step + 9))
        torch._foreach_lerp_(self._average, self._weights, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the average inside, and has its own weights again, bit for bit, outside."""
        own = [w.clone() for w in self._weights]
        try:
            torch._foreach_copy_(self._weights, self._average)
            yield
        finally:
            torch._foreach_copy_(self._weights, own)

    def dump(self) -> dict[str, Array]:
        """First name → average, float32; on the CPU views that the next update changes."""
        return {name: a.cpu().numpy() for name, a in zip(self._parameters, self._average, strict=True)}

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Go on from what :meth:`dump` gave.

        Raises:
            TrainingError: names or shapes are not the model's; nothing has been changed then.
        """
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        found = {name: array.shape for name, array in arrays.items()}
        problems = [
            Problem(
                "this average does not fit the model",
                where=name,
                expected=str(shapes.get(name, "none")),
                found=str(found.get(name, "none")),
            )
            for name in sorted(shapes.keys() | found.keys())
            if shapes.get(name) != found.get(name)
        ]
        if problems:
            raise TrainingError("the averaged weights are not of this model", problems=problems)
        for name, average in zip(self._parameters, self._average, strict=True):
            average.copy_(torch.from_numpy(np.array(arrays[name], dtype=np.float32)))
