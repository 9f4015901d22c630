"""What a training is given by its caller, and what it comes to.

The loop does not look into batches: one is whatever the objective of its kind of task takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol, Self

from torch import Tensor, nn

from warmstart.data.plan import Position
from warmstart.lean import dataclass
from warmstart.storage.records import Record


@dataclass(frozen=True)
class Loss:
    """Sums over the ``units`` of a batch: ``loss`` and ``nll`` (detached), in nats.

    ``rows`` are the losses of the batch's examples [B], detached, where the objective has them apart.
    ``without_autograd`` is what ``backward`` does where ``loss`` is not differentiable.
    """

    loss: Tensor
    nll: Tensor
    units: int
    rows: Tensor | None = None
    without_autograd: Callable[[float], None] | None = None

    def backward(self, divisor: float) -> None:
        """Add the gradient of ``loss`` / ``divisor`` to those of the parameters."""
        if self.without_autograd is not None:
            self.without_autograd(divisor)
        else:
            (self.loss / divisor).backward()  # type: ignore[no-untyped-call]


class Objective(Protocol):
    """What a training minimises.

    Attributes:
        unit: what losses are means over, in the plural: ``tokens``, ``utterances``.
        work: what is counted for the speed: ``tokens``, ``audio_seconds``.
    """

    unit: str
    work: str

    def __call__(self, model: nn.Module, batch: Any) -> Loss:
        """The loss of ``batch``, summed. Computes in the precision of the surrounding ``autocast``."""

    def weight(self, batch: Any) -> float:
        """What ``batch`` adds to the number that its update's summed loss is divided by."""

    def divisor(self, weight: float) -> float:
        """What an update's summed loss is divided by; ``weight`` is that of all its batches."""

    def amount(self, batch: Any) -> float:
        """How much of ``work`` there is in ``batch``."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation returns: metrics by name, and sample outputs to be written down."""

    metrics: Mapping[str, float]
    samples: Sequence[Record] = ()


def validation_prefix(task: str, tasks: Collection[str]) -> str:
    """What stands before the metrics of ``task``, one of ``tasks``: one task alone has no name of its own."""
    return "validation" if len(tasks) == 1 else f"validation/{task}"


Evaluate = Callable[[nn.Module, int], Measured]
Describe = Callable[[Any], Any]


class BatchStream(Protocol):
    """Batches without end, from any position on."""

    def iterate(self, position: Position) -> Iterator[tuple[Position, Any]]:
        """Each batch with the position after it."""

    def deal(self, position: Position, rank: int, size: int) -> Iterator[tuple[Position, Any]]:
        """The same, but None for batches that are not those of ``rank``, one of ``size``; asked for where there are
        several ranks."""

    def reordered(self, order: int) -> Self:
        """The same examples in order number ``order``; 0 is this one."""


@dataclass(frozen=True)
class TrainResult:
    """What a training came to. ``history`` holds all records of the run; ``seconds`` are of this call alone;
    ``stopped`` says why it ended before its last step, if it did."""

    steps: int
    best_step: int | None
    best_metrics: dict[str, float]
    history: list[Record] = field(repr=False)
    seconds: float
    stopped: str | None = None


def best_metrics(history: Sequence[Record], step: int | None) -> dict[str, float]:
    """What the validation at ``step`` measured; nothing for None."""
    measured = [r for r in history if r["kind"] == "validation" and r["step"] == step]
    return {k: v for k, v in measured[-1].items() if k not in ("step", "kind", "time")} if measured else {}
