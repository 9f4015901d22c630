"""Low-rank adapters (Hu et al. 2021): W + (alpha / rank)·B·A in the place of W, where only A and B are trained.

Whoever reads an adapted layer's ``weight`` sees the sum. torch keeps the layer's own weight under another name;
:func:`canonical_parameters` is where everything that stores or selects parameters gets their names from:
``LAYER.weight`` for W as always, ``LAYER.lora_a`` and ``LAYER.lora_b`` for the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from warmstart.bootstrap.apply import initial_values
from warmstart.errors import ConfigError, Problem, TrainingError
from warmstart.formats.checkpoint import Array
from warmstart.models.layers.linear import LowRank
from warmstart.spec.templates import matches, rename
from warmstart.training.config import LoRA

_NAMES = {
    "**.parametrizations.weight.original": "**.weight",
    "**.parametrizations.weight.0.lora_a": "**.lora_a",
    "**.parametrizations.weight.0.lora_b": "**.lora_b",
}


def add_lora(model: nn.Module, config: LoRA, seed: int, keep: Sequence[str] = ()) -> tuple[str, ...]:
    """Freeze ``model``, which holds its values, and give adapters to the linear layers that match ``config.modules``.

    A is uniform ±√(3 / in), the variance 1 / in of He et al. 2015 for a linear function, and depends on ``seed`` and
    the layer's name only; B is zero, so the model computes what it did. Returns the names of the adapted layers.

    Args:
        keep: canonical names of parameters that are trained as well.

    Raises:
        ConfigError: a pattern matches no linear layer, a layer's weight is tied, or ``keep`` names no parameter; every
            such problem. The model is as it was.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {name: m for name, m in linear.items() if any(matches(pattern, name) for pattern in config.modules)}
    parameters = canonical_parameters(model, remove_duplicate=False)
    ties: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        ties.setdefault(id(parameter), []).append(name)
    problems = [_matches_nothing(p, linear) for p in config.modules if not any(matches(p, n) for n in linear)]
    problems += [_tied(n, ties[id(m.weight)]) for n, m in found.items() if len(ties[id(m.weight)]) > 1]
    problems += [Problem("no parameter has this name", where=name) for name in keep if name not in parameters]
    if problems:
        raise ConfigError("the adapters do not fit the model", where="training.lora", problems=problems)
    model.requires_grad_(False)
    for name in keep:
        parameters[name].requires_grad_(True)
    for name, module in found.items():
        weight = module.weight
        a = torch.from_numpy(initial_values(f"{name}.lora_a", (config.rank, module.in_features), "embedding", seed))
        b = weight.new_zeros(module.out_features, config.rank)
        adapter = LowRank(a.to(weight), b, config.alpha / config.rank)
        parametrize.register_parametrization(module, "weight", adapter)
    return tuple(found)


def _matches_nothing(pattern: str, linear: Mapping[str, nn.Module]) -> Problem:
    kinds = {name.rpartition(".")[2]: name for name in linear}  # one example of each
    return Problem(
        f"{pattern!r} matches no linear layer",
        where="lora.modules",
        expected=f"a pattern for layers such as {', '.join(kinds.values()) or '(the model has none)'}",
    )


def _tied(layer: str, names: Sequence[str]) -> Problem:
    return Problem(
        "this layer's weight is tied, and an adapter would untie it",
        where=layer,
        found=f"one array is {' and '.join(names)}",
        todo="leave the layer out of lora.modules; to train the array itself, name it in a group",
    )


def canonical_name(name: str) -> str:
    """The canonical name of what ``named_parameters`` or ``state_dict`` calls ``name``."""
    renamed = (rename(pattern, replacement, name) for pattern, replacement in _NAMES.items())
    return next((found for found in renamed if found is not None), name)


def canonical_parameters(model: nn.Module, *, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """Canonical name → parameter, adapters among them; of a tie the first name only, unless ``remove_duplicate`` is
    False. For a model without adapters: ``dict(model.named_parameters())``."""
    named = model.named_parameters(remove_duplicate=remove_duplicate)
    return {canonical_name(name): parameter for name, parameter in named}


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {layer: module.parametrizations.weight[0] for layer, module in _adapted(model).items()}  # type: ignore[union-attr, index]
    return {f"{layer}.{part}": getattr(own, part) for layer, own in found.items() for part in ("lora_a", "lora_b")}


def _adapted(model: nn.Module) -> dict[str, nn.Linear]:
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {name: module for name, module in linear if parametrize.is_parametrized(module, "weight")}


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """``LAYER.lora_a`` [rank, in] and ``LAYER.lora_b`` [out, rank] of every adapted layer, detached, not copied."""
    return {name: parameter.detach() for name, parameter in _adapters(model).items()}


def load_adapters(model: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Set the adapters of a model to ``arrays``, which are named as :func:`adapters` names them.

    Raises:
        TrainingError: names or shapes differ, each named; the model is as it was.
    """
    wanted = _adapters(model)
    problems = [Problem("this adapter is missing", where=name) for name in wanted if name not in arrays]
    problems += [Problem("the model has no such adapter", where=name) for name in arrays if name not in wanted]
    problems += [
        Problem(
            "this adapter has another shape",
            where=name,
            expected=str(tuple(parameter.shape)),
            found=str(tuple(arrays[name].shape)),
        )
        for name, parameter in wanted.items()
        if name in arrays and tuple(arrays[name].shape) != tuple(parameter.shape)
    ]
    if problems:
        raise TrainingError(
            "the adapters are not of this model", todo="use the lora settings they were trained with", problems=problems
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def merged(model: nn.Module) -> dict[str, Array]:
    """Canonical name → array of every parameter, of a tie the first name only, with the adapters added to the weights
    they belong to: the model without adapters that computes the same."""
    layers, own = _adapted(model), _adapters(model)
    with torch.no_grad():
        sums = {f"{name}.weight": module.weight for name, module in layers.items()}
        return {
            name: sums.get(name, parameter).detach().cpu().numpy().copy()
            for name, parameter in canonical_parameters(model).items()
            if name not in own
        }
