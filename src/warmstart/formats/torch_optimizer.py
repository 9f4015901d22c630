"""An optimizer's state in a torch file, by the names of the model's parameters in the same file.

A ``state_dict`` of an optimizer has numbers for parameters (torch/optim/optimizer.py): groups list them, and they were
given in the order in which the program passed the parameters. They are turned into names only where that is certain:
the groups name them (``param_names``, torch 2.6); or there is one group and one model in the file that has exactly as
many parameters, of the same shapes in the same order. An optimizer that was pickled whole holds the tensors
themselves, which are found again by their place in a storage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any

from warmstart.formats.checkpoint import SlotEntry
from warmstart.formats.pickled import Described
from warmstart.formats.torch_names import Leaf, Names
from warmstart.formats.torch_tensors import Tensor, readable
from warmstart.lean import dataclass

SLOTS = {"exp_avg": "m", "exp_avg_sq": "v", "variance": "v"}
# Adafactor's means, of fairseq and transformers, then of torch: the axis that was averaged away
FACTORS = {
    **{"exp_avg_sq_row": ("v_row", -1), "exp_avg_sq_col": ("v_col", -2)},
    **{"row_var": ("v_row", -1), "col_var": ("v_col", -2)},
}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
MODELS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights")
_DEPTH = 3


@dataclass
class Slots:
    """What could be told apart in one optimizer's state."""

    entries: dict[tuple[str, str], SlotEntry] = field(default_factory=dict)
    tensors: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    step: int | None = None


def find(root: Any) -> Iterator[tuple[str, Any, Mapping[Any, Any]]]:
    """The optimizers in ``root``, not deep below it: the name of the place, the object, and its attributes."""
    rest: list[tuple[str, Any, int]] = [("", root, 0)]
    seen: set[int] = set()
    places: set[str] = set()
    while rest:
        path, value, depth = rest.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        inner = value.attributes() if isinstance(value, Described) else value
        if isinstance(inner, dict) and _is_optimizer(inner):
            if path not in places:
                places.add(path)
                yield path, value, inner
        elif depth < _DEPTH and isinstance(inner, dict | list) and len(inner) <= 100:
            pairs = inner.items() if isinstance(inner, dict) else enumerate(inner)
            for key, item in pairs:
                if isinstance(key, str | int) and len(name := str(key)) <= 100:
                    rest.append((f"{path}.{name}" if path else name, item, depth + 1))


def _is_optimizer(value: Mapping[Any, Any]) -> bool:
    state, groups = value.get("state"), value.get("param_groups")
    return isinstance(state, dict) and isinstance(groups, list) and bool(groups) and all(map(_is_group, groups))


def _is_group(group: Any) -> bool:
    return isinstance(group, dict) and isinstance(group.get("params"), list | tuple)


def slots_of(
    optimizer: Mapping[Any, Any], names: Names, where: str, size: int, scalar: Callable[[Tensor], Any]
) -> Slots | None:
    """The optimizer's state by the names of ``names``' arrays; None where that is not certain, or not all of it."""
    if sum(len(group) + len(group["params"]) for group in optimizer["param_groups"]) > 2**20 + size:
        return None
    parameters = [parameter for group in optimizer["param_groups"] for parameter in group["params"]]
    chosen = _names(optimizer, parameters, names.arrays)
    if chosen is None:
        return None
    slots = Slots()
    steps: dict[str, Any] = {}
    of = dict(zip(map(_identity, parameters), chosen, strict=True))
    for key, state in optimizer["state"].items():
        name = of.get(_identity(key))
        if name is None or not isinstance(state, dict):
            return None
        for slot, value in state.items():
            if not isinstance(slot, str):
                return None
            if isinstance(value, Tensor) and slot != "step":
                entry = _slot(name, slot, value, names.arrays[name].shape)
                if entry is None or (name, entry.slot) in slots.entries:
                    return None
                slots.entries[name, entry.slot], slots.tensors[name, entry.slot] = entry, value
            elif slot == "step":
                step = scalar(value) if isinstance(value, Tensor) and math.prod(value.shape) == 1 else value
                if not isinstance(step, int | float) or not abs(step) < 2**53:
                    return None
                steps[name] = int(step) if float(step).is_integer() else step
            elif value is not None:
                slots.facts.setdefault("state", {}).setdefault(name, {})[slot] = value
    groups = [
        group | {"params": [of[_identity(parameter)] for parameter in group["params"]]}
        for group in optimizer["param_groups"]
    ]
    others = {key: value for key, value in optimizer.items() if key not in ("state", "param_groups")}
    said = Names({**others, **slots.facts, "param_groups": groups, "step": steps}, where, size)
    if said.arrays:
        return None
    slots.facts = said.metadata
    if len(set(steps.values())) == 1:
        slots.facts["step"] = step = next(iter(steps.values()))
        slots.step = step if isinstance(step, int) else None
    elif not steps:
        del slots.facts["step"]
    return slots


def _identity(parameter: Any) -> Any:
    return parameter.place if isinstance(parameter, Tensor) else parameter


def _slot(name: str, slot: str, tensor: Tensor, shape: tuple[int, ...]) -> SlotEntry | None:
    """The header of one state; None if its shape has no meaning known here."""
    if not readable(tensor.dtype) or tensor.storage is None:
        return None
    if slot in FACTORS and len(shape) >= 2:
        short, axis = FACTORS[slot]
        axis += len(shape)
        without = shape[:axis] + shape[axis + 1 :]
        if tensor.shape in (without, (*shape[:axis], 1, *shape[axis + 1 :])):
            return SlotEntry(name, short, without, tensor.dtype, axis)
        return None
    if [n for n in tensor.shape if n != 1] != [n for n in shape if n != 1]:  # (400,) for (1, 400) in old files
        return None
    return SlotEntry(name, SLOTS.get(slot, slot), shape, tensor.dtype)


def _names(optimizer: Mapping[Any, Any], parameters: list[Any], arrays: Mapping[str, Leaf]) -> list[str] | None:
    """The name of each of ``parameters``, if it is certain."""
    if not all(isinstance(parameter, int | Tensor) for parameter in parameters):
        return None
    if len(set(map(_identity, parameters))) != len(parameters):
        return None
    if any(isinstance(parameter, Tensor) for parameter in parameters):
        places = {tensor.place: name for name, tensor in reversed(list(arrays.items())) if isinstance(tensor, Tensor)}
        found = [places.get(_identity(parameter)) for parameter in parameters]
        return None if None in found else [name for name in found if name is not None]
    groups = optimizer["param_groups"]
    models = _models(arrays)
    if all(isinstance(group.get("param_names"), list) for group in groups):
        given = [name for group in groups for name in group["param_names"]]
        return _given(given, len(parameters), models)
    if len(groups) != 1:
        return None
    states = [optimizer["state"].get(parameter) for parameter in parameters]
    fitting = {prefix: names for prefix, names in models.items() if _fits(names, states, arrays)}
    known = [prefix for prefix in fitting if prefix in MODELS]
    if len(fitting) == 1 or len(known) == 1:
        return fitting[known[0]] if len(known) == 1 else next(iter(fitting.values()))
    every = [name for names in models.values() for name in names]
    return every if not fitting and len(models) > 1 and _fits(every, states, arrays) else None


def _given(given: list[Any], count: int, models: Mapping[str, list[str]]) -> list[str] | None:
    if len(given) != count or not all(isinstance(name, str) for name in given):
        return None
    full = {prefix: [f"{prefix}.{name}" if prefix else name for name in given] for prefix in models}
    fitting = [names for prefix, names in full.items() if set(names) <= set(models[prefix])]
    return fitting[0] if len(fitting) == 1 else None


def _models(arrays: Mapping[str, Leaf]) -> dict[str, list[str]]:
    """What may be a model's parameters: the arrays below one key of the file, tied ones once, without buffers."""
    models: dict[str, list[str]] = {}
    places: dict[str, set[object]] = {}
    for name, leaf in arrays.items():
        prefix, dot, _ = name.partition(".")
        prefix = prefix if dot else ""
        if not isinstance(leaf, Tensor) or name.rpartition(".")[2] in BUFFERS or not _is_float(leaf.dtype):
            continue
        seen = places.setdefault(prefix, set())
        if leaf.place not in seen:
            seen.add(leaf.place)
            models.setdefault(prefix, []).append(name)
    return models


def _is_float(dtype: str) -> bool:
    return "float" in dtype or "complex" in dtype


def _fits(names: list[str], states: list[Any], arrays: Mapping[str, Leaf]) -> bool:
    """Whether each state has a tensor of its parameter's shape (or, of a factored one, a mean over an axis of it)."""
    if len(names) != len(states) or not any(isinstance(state, dict) and state for state in states):
        return False
    for name, state in zip(names, states, strict=True):
        tensors = {slot: value for slot, value in (state or {}).items() if isinstance(value, Tensor) and slot != "step"}
        if any(_slot(name, slot, tensor, arrays[name].shape) is None for slot, tensor in tensors.items()):
            return False
    return True
