"""How far the answers of two models may be apart and still be one model's.

Two things explain a difference. Sums are computed in another order: that is a part of the answers' spread, since a
model whose log-probabilities lie far apart is as exact as one whose lie close together. And weights are rounded: what
that does depends on the model (on its depth, and on how near its attention is to a tie), so that it is measured, beside
a part of the spread: a rounded ``model.bin`` is rounded once more, every weight a step up or down where chance says so,
and run on the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.bundle.model import Model
from warmstart.formats.model_bin import Variable, read_header
from warmstart.inference.sides import Side, kind_of, narrowest
from warmstart.lean import dataclass

MEAN = 0.1  # of a tolerance that a person gives
LARGEST_MOVE, MEAN_MOVE = 8.0, 2.5
"""How often what another rounding does, in its largest and its mean difference, a correct model may differ.

Measured on 29 models of all families in float16, bfloat16, int16 and int8 (docs/decisions/0069): at most 5.0 and 2.2
times, in the median 1; a damaged one mostly 3 to 1,000 times.
"""
PARTS = {
    "float32": (1e-3, 1e-4), "float16": (5e-3, 5e-4), "bfloat16": (4e-2, 4e-3), "int16": (2e-2, 2e-3),
    "int8": (1e-1, 1e-2),
}  # fmt: skip
"""The largest and the mean difference that are allowed in any case, as parts of the answers' spread.

So much does rounding in the steadier models of the table there; in float32 they differ by a millionth. It is needed
where all answers of a model move together: then another rounding may by chance move them very little.
"""
_ALONE = 3  # times as much where no ``model.bin`` can be rounded again
_BLOCK = 1 << 20  # weights
_CHANCE = 24  # one up and one down of so many: the variance of a rounding, 1/12


@dataclass(frozen=True)
class Allowed:
    largest: float
    mean: float


@dataclass(frozen=True)
class Judge:
    """What is allowed of a comparison.

    Attributes:
        given: a person's tolerance of the largest difference, in place of all else.
        parts: of the spread, largest and mean.
        rounded: which of the two sides (0, 1) ``again`` is another rounding of.
    """

    given: float | None = None
    parts: tuple[float, float] = PARTS["float32"]
    rounded: int = 1
    again: Any = None

    def allowed(self, spread: float, moved: tuple[float, float] = (0.0, 0.0)) -> Allowed:
        """``moved``: largest and mean difference that another rounding makes. What is infinite explains nothing."""
        if self.given is not None:
            return Allowed(self.given, MEAN * self.given)
        largest, mean = (part * spread if math.isfinite(spread) else 0.0 for part in self.parts)
        if all(map(math.isfinite, moved)):
            largest, mean = max(largest, LARGEST_MOVE * moved[0]), max(mean, MEAN_MOVE * moved[1])
        return Allowed(largest, mean)


@contextmanager
def judge_of(models: tuple[Model, Model], sides: tuple[Side, Side], given: float | None, seed: int) -> Iterator[Judge]:
    """Who judges the answers of ``sides``; while it is open, another rounding of one of them can be run."""
    kinds = [side.quantization for side in sides]
    narrow = narrowest(set(kinds))
    places = [k for k in (1, 0) if kinds[k] == narrow and models[k].checkpoint.format == "ctranslate2"]
    if given is not None or narrow == "float32" or not places:
        yield judge_alone(kinds, given)
    else:
        from warmstart.inference.engine_sides import ENGINE_SIDES

        model = models[places[0]]
        with TemporaryDirectory(prefix="warmstart-") as folder:
            there = round_again(model.path if model.path.is_dir() else model.path.parent, Path(folder), seed)
            again = ENGINE_SIDES[kind_of(model)](replace(model, path=there))
            yield Judge(parts=PARTS[narrow], rounded=places[0], again=again)


def judge_alone(kinds: Sequence[str], given: float | None) -> Judge:
    """Who judges answers of models in the quantizations ``kinds``, where none can be rounded again."""
    narrow = narrowest(set(kinds))
    times = 1 if narrow == "float32" else _ALONE
    largest, mean = PARTS[narrow]
    return Judge(given, (times * largest, times * mean))


def round_again(source: Path, target: Path, seed: int) -> Path:
    """The directory of a ``model.bin`` in the empty folder ``target``, with other roundings of the same weights.

    An integer moves by one, a number in half precision to its neighbour, each way with a chance of 1 in 24.
    """
    from shutil import copyfile

    for path in source.iterdir():
        if path.name == "model.bin":
            copyfile(path, target / path.name)
        else:
            (target / path.name).symlink_to(path.resolve())
    generator = np.random.default_rng(seed)
    header = read_header(target / "model.bin")
    with (target / "model.bin").open("r+b") as file:
        for variable in header.variables.values():
            if _is_rounded(variable):
                size, each = int(np.prod(variable.entry.shape)), np.dtype(_STORED[variable.entry.dtype]).itemsize
                for first in range(0, size, _BLOCK):
                    place, count = variable.offset + first * each, min(_BLOCK, size - first)
                    file.seek(place)
                    found = np.frombuffer(file.read(count * each), _STORED[variable.entry.dtype])
                    file.seek(place)
                    file.write(_moved(found, generator).tobytes())
    return target


_STORED = {"int8": "<i1", "int16": "<i2", "float16": "<u2", "bfloat16": "<u2"}


def _is_rounded(variable: Variable) -> bool:
    """Whether it is no number of the configuration, and no text, which old versions keep as a line of int8."""
    dtype, shape = variable.entry.dtype, variable.entry.shape
    return dtype in _STORED and len(shape) > (1 if dtype.startswith("int") else 0)


def _moved(stored: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    chance = generator.integers(0, _CHANCE, stored.shape, np.int8)
    step = (chance == 0).astype(np.int32) - (chance == 1)
    if stored.dtype.kind == "i":
        most = np.iinfo(stored.dtype).max
        moved: NDArray[Any] = np.clip(stored + step, -most, most).astype(stored.dtype)
    else:
        sign, size = stored & 0x8000, (stored & 0x7FFF).astype(np.int32)  # bits of neighbours differ by one
        moved = sign | np.where(size > 0, size + step, size).astype(stored.dtype)
    return moved
