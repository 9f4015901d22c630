"""The optimizer of a model, its learning rate, and its state as arrays under canonical parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.errors import Problem, TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.training import methods as settings
from warmstart.training.adafactor import Adafactor
from warmstart.training.adam import AdaBelief, Adam
from warmstart.training.config import TrainingConfig
from warmstart.training.groups import assign, tied_names
from warmstart.training.lora import canonical_parameters


def build_optimizer(model: nn.Module, config: TrainingConfig, stages: Mapping[str, str]) -> torch.optim.Optimizer:
    """The optimizer over all parameters, frozen ones too: a parameter without a gradient is skipped with its state.

    Weight decay concerns parameters of two and more dimensions (Adafactor's, as in T5X, all). Marian's Adam computes
    what torch's does (marian-dev ``src/optimizers/optimizers.cpp``), and its decay is that of ``adamw``.

    Args:
        stages: parameter name → stage, for the groups.

    Raises:
        ConfigError: the groups do not fit the model, or Nesterov's momentum is zero.
    """
    options = config.optimizer
    if isinstance(options, settings.Adafactor):
        return Adafactor(_groups(model, config, stages, options.weight_decay_rate or 0.0, smallest=0), options)
    groups = _groups(model, config, stages, options.weight_decay, smallest=2)
    if isinstance(options, settings.AdaBelief):
        return AdaBelief(groups, options)
    if isinstance(options, settings.SGD):
        # not fused: that step fails where one momentum begins later than another
        return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, nesterov=options.nesterov, foreach=True)
    decoupled, tensorflow = options.type == "adamw", options.epsilon_rule == "tensorflow"
    return Adam(groups, options.betas, options.epsilon, decoupled=decoupled, tensorflow=tensorflow)


def _groups(
    model: nn.Module, config: TrainingConfig, stages: Mapping[str, str], decay: float, *, smallest: int
) -> list[dict[str, Any]]:
    """As few groups as there are pairs of a rate's factor and a decay; ``smallest``: dimensions of what decays."""
    members = assign(model, config.groups, stages)
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in canonical_parameters(model).items():
        index = members[name]
        group = None if index is None else config.groups[index]
        own = decay if group is None or group.weight_decay is None else group.weight_decay
        key = (1.0 if group is None else group.learning_rate, own if parameter.ndim >= smallest else 0.0)
        found.setdefault(key, []).append(parameter)
    return [{"params": p, "factor": factor, "weight_decay": own} for (factor, own), p in found.items()]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the absolute rate of the next update; each group has its factor of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def slot_names(config: settings.OptimizerConfig) -> tuple[str, ...]:
    """Canonical names of the state that a parameter may have: Adam's moments ``m`` and ``v``; AdaBelief's ``m`` and
    ``s``; SGD's ``m``; Adafactor's ``vr`` and ``vc`` (see ``factored_axes``) or ``v``, and ``m``."""
    if isinstance(config, settings.Adafactor):
        names = ("vr", "vc", "v") if config.factored else ("v",)
        return names if config.beta1 is None else (*names, "m")
    if isinstance(config, settings.SGD):
        return ("m",) if config.momentum else ()
    return ("m", "s") if isinstance(config, settings.AdaBelief) else ("m", "v")


def _key(optimizer: torch.optim.Optimizer, slot: str) -> str:
    """What the optimizer itself calls a slot."""
    if isinstance(optimizer, torch.optim.SGD):
        return "momentum_buffer"
    return slot if isinstance(optimizer, Adafactor | AdaBelief) else {"m": "exp_avg", "v": "exp_avg_sq"}[slot]


def _shapes(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, tuple[int, ...]]:
    """Slot → shape of the state that ``parameter`` has in this optimizer."""
    if isinstance(optimizer, Adafactor):
        return optimizer.slot_shapes(parameter)
    if isinstance(optimizer, torch.optim.SGD):
        slots = ["m"] if optimizer.defaults["momentum"] else []
    else:
        slots = ["m", "s"] if isinstance(optimizer, AdaBelief) else ["m", "v"]
    return dict.fromkeys(slots, tuple(parameter.shape))


def dump_slots(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[tuple[str, str], Array]:
    """(parameter, slot) → float32 array, for parameters that have been updated.

    On the CPU these are views of the optimizer's state: the next update changes them.
    """
    return {
        (name, slot): optimizer.state[parameter][_key(optimizer, slot)].detach().cpu().numpy()
        for name, parameter in canonical_parameters(model).items()
        if optimizer.state.get(parameter)
        for slot in _shapes(optimizer, parameter)
    }


def dump_steps(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, int]:
    """Parameter → updates that its state holds, where it has any; SGD does not count them."""
    states = ((name, optimizer.state.get(p, {})) for name, p in canonical_parameters(model).items())
    return {name: int(state["step"]) for name, state in states if "step" in state}


def load_slots(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    slots: Mapping[tuple[str, str], Array],
    step: int | Mapping[str, int],
) -> None:
    """Set the state of parameters, and the number of updates that it holds (one, or one a parameter's first name).

    A tied parameter may be named by any of its names. A parameter without slots starts afresh, its bias correction
    included, whatever the optimizer held before.

    Raises:
        TrainingError: the slots are another optimizer's; or every slot that is unknown, missing beside another, given
            twice, uncounted or of another shape. Nothing has been changed then.
    """
    parameters = canonical_parameters(model)
    owners = {alias: first for first, names in tied_names(model).items() for alias in names}
    given: dict[str, dict[str, Array]] = {}
    problems: list[Problem] = []
    for (alias, slot), array in slots.items():
        name = owners.get(alias)
        if name is None:
            problems.append(Problem("the model has no such parameter", where=f"{slot} of {alias}"))
        elif slot in given.setdefault(name, {}):
            problems.append(Problem("this slot is given twice, by two names of one tie", where=f"{slot} of {alias}"))
        else:
            given[name][slot] = array
    shapes = {name: _shapes(optimizer, parameters[name]) for name in given}
    expected = {slot for wanted in shapes.values() for slot in wanted}
    found = {slot for arrays in given.values() for slot in arrays}
    if found != expected:
        raise TrainingError(
            "these slots are those of another optimizer",
            expected=f"{', '.join(sorted(expected)) or 'none'} ({type(optimizer).__name__})",
            found=", ".join(sorted(found)),
            todo="configure the optimizer that wrote them, or say `optimizer: fresh`",
        )
    for name, wanted in shapes.items():
        for slot in sorted(wanted.keys() | given[name].keys()):
            have = given[name].get(slot)
            if have is None or wanted.get(slot) != have.shape:
                problems.append(
                    Problem(
                        f"slot {slot} does not fit its parameter",
                        where=name,
                        expected=str(wanted.get(slot, "none")),
                        found="none" if have is None else str(have.shape),
                    )
                )
    if not isinstance(step, int) and not isinstance(optimizer, torch.optim.SGD):
        problems += [
            Problem("slots and counts of updates are not of the same parameters", where=name)
            for name in sorted(step.keys() ^ given.keys())
        ]
    if problems:
        raise TrainingError("the optimizer's state does not fit the model", problems=problems)
    optimizer.state.clear()
    for name, arrays in given.items():
        _load(optimizer, parameters[name], arrays, step if isinstance(step, int) else step.get(name, 0))


def _load(optimizer: torch.optim.Optimizer, parameter: Tensor, arrays: Mapping[str, Array], done: int) -> None:
    state = optimizer.state[parameter]
    if not isinstance(optimizer, torch.optim.SGD):
        state["step"] = done
    for slot, array in arrays.items():
        value = torch.from_numpy(np.array(array, dtype=np.float32)).to(parameter.device)
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state[_key(optimizer, slot)] = value
