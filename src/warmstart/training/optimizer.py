"""AdamW over a model's parameters, and its moments as arrays under canonical parameter names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from warmstart.errors import Problem, TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.training.config import Adam

_STATE = {"m": "exp_avg", "v": "exp_avg_sq"}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """First name → parameter, every tied parameter once, frozen ones left out."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def build_optimizer(model: nn.Module, config: Adam) -> torch.optim.AdamW:
    """A fused AdamW; weight decay goes to parameters of two and more dimensions only."""
    parameters = list(trainable(model).values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=config.betas, eps=config.epsilon, fused=True
    )


def dump_slots(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[tuple[str, str], Array]:
    """(parameter, ``m`` or ``v``) → float32 array of the parameter's shape; empty before the first update."""
    slots: dict[tuple[str, str], Array] = {}
    for name, parameter in trainable(model).items():
        state = optimizer.state.get(parameter, {})
        for slot, key in _STATE.items():
            if key in state:
                slots[name, slot] = state[key].detach().cpu().numpy()
    return slots


def dump_steps(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, int]:
    """Parameter → updates that its moments hold, where it has any."""
    states = ((name, optimizer.state.get(p, {})) for name, p in trainable(model).items())
    return {name: int(state["step"]) for name, state in states if "step" in state}


def load_slots(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    slots: Mapping[tuple[str, str], Array],
    step: int | Mapping[str, int],
) -> None:
    """Set the moments of parameters, and the number of updates that they hold (one, or one a parameter).

    A tied parameter may be named by any of its names. A parameter without slots starts afresh, its bias correction
    included.

    Raises:
        TrainingError: with every slot that is unknown, half of a pair, given twice or of another shape; nothing has
            been changed then.
    """
    owners = {id(p): name for name, p in trainable(model).items()}
    aliases = {name: owners.get(id(p)) for name, p in model.named_parameters(remove_duplicate=False)}
    parameters = trainable(model)
    given: dict[tuple[str, str], Array] = {}
    problems: list[Problem] = []
    for (alias, slot), array in slots.items():
        name = aliases.get(alias)
        if name is None or slot not in _STATE:
            problems.append(Problem("this slot belongs to no trainable parameter", where=f"{slot} of {alias}"))
        elif array.shape != tuple(parameters[name].shape):
            problems.append(
                Problem(
                    "this slot has another shape than its parameter",
                    where=f"{slot} of {alias}",
                    expected=str(tuple(parameters[name].shape)),
                    found=str(array.shape),
                )
            )
        elif (name, slot) in given:
            problems.append(Problem("this slot is given twice, by two names of one tie", where=f"{slot} of {alias}"))
        else:
            given[name, slot] = array
    for name in {name for name, _ in given}:
        missing = [slot for slot in _STATE if (name, slot) not in given]
        if missing:
            problems.append(Problem("one of the two slots is missing", where=f"{missing[0]} of {name}"))
    if problems:
        raise TrainingError("the optimizer's state does not fit the model", problems=problems)
    for name in sorted({name for name, _ in given}):
        parameter = parameters[name]
        state = optimizer.state[parameter]
        done = step if isinstance(step, int) else step[name]
        state["step"] = torch.tensor(float(done), dtype=torch.float32, device=parameter.device)
        for slot, key in _STATE.items():
            moment = torch.empty_like(parameter, memory_format=torch.preserve_format, requires_grad=False)
            state[key] = moment.copy_(torch.from_numpy(np.array(given[name, slot], dtype=np.float32)))
