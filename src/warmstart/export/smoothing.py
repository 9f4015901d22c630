"""SmoothQuant (Xiao et al. 2023): activations are made easier to round by moving their scale into the weights.

The arithmetic is that of CTranslate2 4.8.5 (``converters/utils.py``): a column of the weights that read a normalised
input is multiplied by √(largest activation / largest weight), and the norm divided by it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from warmstart.bundle.model import Model
from warmstart.errors import DialectError, Problem
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.views import View
from warmstart.models.registry import dialect

_SMALLEST = 1e-5


def smooth(model: Model, scales: str | Path) -> None:
    """``model`` with smoothed arrays; ``scales`` is a checkpoint of the largest activations by name of their layer.

    Raises:
        DialectError: the model's dialect does not say which arrays, or scales are missing.
    """
    family, config, reading = model.require()
    groups = dialect(family, str(model.dialect)).smoothed(config) if model.dialect not in (None, "warmstart") else ()
    if not groups:
        raise DialectError(
            "activations of this model cannot be smoothed", where=model.path, expected="OPT of transformers, pre-norm",
            todo="leave the activation scales out",
        )  # fmt: skip
    given = open_checkpoint(scales)
    problems = [
        Problem(f"{key} is missing, or not of {_width(model.checkpoint, group)} values")
        for key, group in groups.items()
        if key not in given.entries or given.entries[key].shape != (_width(model.checkpoint, group),)
    ]
    if problems:
        raise DialectError("the activation scales do not fit the model", where=scales, problems=problems)
    model.checkpoint = reading.checkpoint = Smoothed(model.checkpoint, given, groups)
    folder = given.path if given.path.is_dir() else given.path.parent
    model.inputs += [folder / name for name in given.files]
    model.remarks.append(f"smoothed by the activations in {given.path.name}")


def _width(checkpoint: Checkpoint, group: tuple[tuple[str, ...], tuple[str, ...]]) -> int:
    return checkpoint.entries[group[0][0]].shape[0]


class Smoothed(View):
    """``original`` with its norms divided and its weights multiplied. ``groups``: name of the scales → (arrays of the
    norm, weights that read it)."""

    def __init__(
        self, original: Checkpoint, scales: Checkpoint, groups: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    ) -> None:
        self._scales, self._groups = scales, groups
        self._of = {name: key for key, (norm, weights) in groups.items() for name in (*norm, *weights)}
        super().__init__(original)

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        array, key = super().seen(name, read), self._of.get(name)
        if key is None:
            return array
        factor = self._factor(key)
        moved: Array = array / factor if name in self._groups[key][0] else array * factor
        return moved

    def _factor(self, key: str) -> Array:
        weights = [np.abs(self.original.read(name)).max(axis=0) for name in self._groups[key][1]]
        largest = np.maximum(np.maximum.reduce(weights), weights[0].dtype.type(_SMALLEST))
        factor = np.sqrt(self._scales.read(key).astype(largest.dtype) / largest)
        bounded: Array = np.maximum(factor, largest.dtype.type(_SMALLEST))
        return bounded
