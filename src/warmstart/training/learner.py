"""A model with everything that trains it: objective, optimizer, frozen groups, average, adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.errors import Problem, TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.lean import dataclass
from warmstart.training.average import MovingAverage
from warmstart.training.clipping import clip_gradients
from warmstart.training.config import TrainingConfig
from warmstart.training.device import compile_layers
from warmstart.training.groups import Freezing, in_some_group
from warmstart.training.lora import add_lora, canonical_name, canonical_parameters
from warmstart.training.objective import CrossEntropy
from warmstart.training.optimizer import build_optimizer, dump_slots, dump_steps, load_slots, set_learning_rate
from warmstart.training.precision import autocast, resolve
from warmstart.training.ranks import Ranks
from warmstart.training.state import Snapshot, State, open_arrays, read_state
from warmstart.training.terms import Objective


@dataclass(frozen=True)
class Gradient:
    """What one update's batches came to: sums over the ``units`` of the objective, the ``work`` that they were, the
    global L2 ``norm`` of the gradient before clipping, and of each batch the losses of its examples, where the
    objective has them apart."""

    loss: float
    nll: float
    units: int
    work: float
    norm: float
    rows: tuple[Tensor | None, ...] = ()

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Learner:
    """Makes updates; its whole state goes into a snapshot and comes back from a checkpoint.

    Args:
        model: with its first values.
        objective: what is minimised; cross entropy of text pairs by default.
        stages: parameter → stage, for groups that name stages.
        seed: of the run; adapters begin from it.
        ranks: the processes that make the training together; this one alone by default.

    Raises:
        ConfigError: groups or adapters do not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        seed: int,
        objective: Objective | None = None,
        stages: Mapping[str, str] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.model, self.config, stages = model, config, stages or {}
        if config.lora is not None:
            add_lora(model, config.lora, seed, in_some_group(model, config.groups, stages))
        self.objective, self.ranks = objective or CrossEntropy(config), ranks or Ranks()
        self.device = next(model.parameters()).device
        self.precision, self.why_precision = resolve(config.precision, self.device)
        self.compiled = config.compile and self.device.type != "cpu"
        if self.compiled:
            compile_layers(model)
        self.optimizer = build_optimizer(model, config, stages)
        self.freezing = Freezing(model, config.groups, stages)
        self.average = MovingAverage(model, config.average) if config.average else None
        self._parameters = list(canonical_parameters(model).values())

    def gradient(self, batches: Sequence[Any], step: int, plateaus: int) -> Gradient:
        """Compute the clipped gradient of update ``step``; the model stays as it is.

        ``batches`` are this rank's, and the result is that of all ranks' batches, as if one had accumulated them.
        """
        self.freezing.apply(step, plateaus)
        (weight,) = self.ranks.sum([sum(map(self.objective.weight, batches))])
        divisor = self.objective.divisor(weight)
        work, units, rows, losses = 0.0, 0, [], list[Tensor]()
        for batch in batches:
            with autocast(self.precision, self.device):
                loss = self.objective(self.model, batch)
            loss.backward(divisor)
            losses += [loss.loss.detach(), loss.nll]
            units += loss.units
            work += self.objective.amount(batch)
            rows.append(loss.rows)
        self.ranks.sum_gradients(self._parameters)
        found = torch.stack(losses).tolist()  # a GPU is waited for once
        loss_sum, nll_sum, units_sum, work = self.ranks.sum([sum(found[::2]), sum(found[1::2]), units, work])
        norm = clip_gradients(self._parameters, self.config.clip_norm)
        return Gradient(loss_sum, nll_sum, max(1, int(units_sum)), work, norm, tuple(rows))

    def apply(self, step: int, rate: float) -> None:
        """Move the weights by the gradient that was computed, as update ``step``."""
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(step)
        self.forget()

    def forget(self) -> None:
        """Drop the gradient."""
        for parameter in self._parameters:
            parameter.grad = None

    def reset_optimizer(self) -> None:
        """Begin with fresh moments, their bias correction too."""
        self.optimizer.state.clear()

    def require_same_weights(self, step: int) -> None:
        """Raises ``TrainingError``: another rank has other weights."""
        self.ranks.require_same(self._parameters, f"step {step}")

    def evaluated(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are evaluated and shipped: the average where there is one."""
        return self.average.applied() if self.average is not None else nullcontext()

    def load_slots(self, slots: Mapping[tuple[str, str], Array], step: int) -> None:
        """Take over the optimizer state of another training; see ``optimizer.load_slots``."""
        load_slots(self.optimizer, self.model, slots, step)

    def snapshot(self, state: State) -> Snapshot:
        """A copy of everything, under canonical names, with ``state``."""
        files = {
            "model": {name: _copy(tensor) for name, tensor in _unique(self.model).items()},
            "optimizer": {
                f"{slot}.{name}": np.array(a) for (name, slot), a in dump_slots(self.optimizer, self.model).items()
            },
        }
        if self.average is not None:
            files["average"] = {name: np.array(array) for name, array in self.average.dump().items()}
        steps, betas = dump_steps(self.optimizer, self.model), self.optimizer.defaults.get("betas")
        return Snapshot(replace(state, optimizer_steps=steps, betas=betas), files)

    def restore(self, checkpoint: Path) -> State:
        """Set everything to a checkpoint's and return its state.

        Raises:
            TrainingError: the checkpoint is not of this model, or its state cannot be read.
        """
        state = read_state(checkpoint)
        load_weights(checkpoint, self.model)
        moments = open_arrays(checkpoint, "optimizer")
        slots = {}
        for name in moments.entries:
            slot, _, parameter = name.partition(".")
            slots[parameter, slot] = moments.read(name)
        load_slots(self.optimizer, self.model, slots, state.optimizer_steps)
        if self.average is not None:
            arrays = open_arrays(checkpoint, "average")
            self.average.load({name: arrays.read(name) for name in arrays.entries})
        return state


def _copy(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", copy=True).numpy()


def _unique(model: nn.Module) -> dict[str, Tensor]:
    """Canonical name → parameter or buffer; of a tie, only the first."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[canonical_name(name)] = tensor
    return tensors


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Set the model's parameters to the checkpoint's.

    Raises:
        TrainingError: names or shapes differ; the model is as it was.
    """
    arrays = open_arrays(checkpoint, "model")
    wanted = _unique(model)
    problems = [Problem("this parameter is not in the checkpoint", where=n) for n in wanted if n not in arrays.entries]
    problems += [Problem("the model has no such parameter", where=n) for n in arrays.entries if n not in wanted]
    problems += [
        Problem(
            "this parameter has another shape",
            where=n,
            expected=str(tuple(t.shape)),
            found=str(arrays.entries[n].shape),
        )
        for n, t in wanted.items()
        if n in arrays.entries and arrays.entries[n].shape != tuple(t.shape)
    ]
    if problems:
        raise TrainingError(
            "the checkpoint is not of this model",
            where=checkpoint,
            todo="resume with the configuration the run began with, or begin a new run",
            problems=problems,
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(np.array(arrays.read(name))))
