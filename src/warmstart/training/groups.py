"""Parameters that are trained in another way: which group each belongs to, and which are frozen when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from warmstart.errors import ConfigError, Problem, TrainingError
from warmstart.spec.templates import matches
from warmstart.training.config import Group, Release
from warmstart.training.lora import canonical_parameters


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of every parameter → all of its names, the first included."""
    names: dict[int, list[str]] = {}
    for name, parameter in canonical_parameters(model, remove_duplicate=False).items():
        names.setdefault(id(parameter), []).append(name)
    return {first: (first, *others) for first, *others in names.values()}


def assign(model: nn.Module, groups: Sequence[Group], stages: Mapping[str, str]) -> dict[str, int | None]:
    """First name of every parameter → index of the first group that has it, or None.

    Args:
        stages: parameter name → stage; a parameter that it lacks has none.

    Raises:
        ConfigError: a pattern or stage has no parameter, a group has only parameters of earlier groups, or half of a
            tie; every such problem.
    """
    ties = tied_names(model)
    everything = [name for names in ties.values() for name in names]
    group_of = {name: next((k for k, g in enumerate(groups) if _has(g, name, stages)), None) for name in everything}
    problems = [p for k, group in enumerate(groups) for p in _problems(k, group, everything, group_of, stages)]
    for names in ties.values():
        found = {group_of[name] for name in names}
        if len(found) > 1:
            said = (f"{n}: {'no group' if (k := group_of[n]) is None else f'groups.{k}'}" for n in names)
            problems.append(
                Problem(
                    "a group has half of a tie",
                    where=names[0],
                    expected=f"one group for {' and '.join(names)}, which are one array",
                    found=", ".join(said),
                    todo="name them all in one group, before the others",
                )
            )
    if problems:
        raise ConfigError("the parameter groups do not fit the model", where="training.groups", problems=problems)
    return {first: group_of[first] for first in ties}


def in_some_group(model: nn.Module, groups: Sequence[Group], stages: Mapping[str, str]) -> list[str]:
    """Canonical names of the parameters that a group has."""
    return [name for name in canonical_parameters(model) if any(_has(group, name, stages) for group in groups)]


def _has(group: Group, name: str, stages: Mapping[str, str]) -> bool:
    return stages.get(name) in group.stages or any(matches(pattern, name) for pattern in group.parameters)


def _problems(
    index: int,
    group: Group,
    names: Sequence[str],
    group_of: Mapping[str, int | None],
    stages: Mapping[str, str],
) -> Iterator[Problem]:
    known = sorted({stages[name] for name in names if name in stages})
    unknown: list[tuple[str, str, Sequence[str]]] = [
        ("stages", item, known) for item in group.stages if item not in known
    ]
    unknown += [("parameters", p, names) for p in group.parameters if not any(matches(p, name) for name in names)]
    for kind, item, having in unknown:
        near = get_close_matches(item, having, n=1)
        yield Problem(
            f"{item!r} matches no parameter",
            where=f"groups.{index}.{kind}",
            expected=f"stages {', '.join(known) or '(none)'}; parameters such as {', '.join(_some(names))}",
            todo=f"did you mean {near[0]}?" if near else None,
        )
    mine = [name for name in names if _has(group, name, stages)]
    if mine and index not in {group_of[name] for name in mine}:
        earlier = sorted({k for name in mine if (k := group_of[name]) is not None})
        yield Problem(
            "all parameters of this group belong to earlier ones",
            where=f"groups.{index}",
            found=f"they are in {', '.join(f'groups.{k}' for k in earlier)}",
            todo="put it before them, or remove it",
        )


def _some(names: Sequence[str], count: int = 4) -> list[str]:
    """A few names from all over the model."""
    return [names[k * len(names) // count] for k in range(count)] if len(names) > count else list(names)


class Freezing:
    """Holds the frozen groups' parameters at each step. Parameters of no such group are left as they are.

    Raises:
        ConfigError: see :func:`assign`.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], stages: Mapping[str, str]) -> None:
        parameters = canonical_parameters(model)
        members = assign(model, groups, stages)
        self._all = list(parameters.values())
        self._groups = [
            (group.freeze, [parameters[name] for name, k in members.items() if k == index])
            for index, group in enumerate(groups)
            if group.freeze is not False
        ]
        self._frozen: list[bool] | None = None

    def apply(self, step: int, plateaus: int) -> bool:
        """Set ``requires_grad`` as update ``step`` (1-based) wants it after ``plateaus`` plateaus.

        A frozen parameter has no gradient, so the optimizer skips it: it and its moments stay bit-equal, and once
        released it begins with fresh ones. Returns whether anything changed, which is at releases and the first time.

        Raises:
            TrainingError: nothing is left to train.
        """
        frozen = [_is_frozen(freeze, step, plateaus) for freeze, _ in self._groups]
        if frozen == self._frozen:
            return False
        self._frozen = frozen
        for (_, parameters), hold in zip(self._groups, frozen, strict=True):
            for parameter in parameters:
                parameter.requires_grad_(not hold)
                if hold:
                    parameter.grad = None
        if not any(parameter.requires_grad for parameter in self._all):
            raise TrainingError(
                "every parameter is frozen", where=f"training.groups, step {step}", todo="leave something to train"
            )
        return True


def _is_frozen(freeze: bool | Release, step: int, plateaus: int) -> bool:
    if isinstance(freeze, bool):
        return freeze
    return step <= freeze.step if freeze.step is not None else plateaus < (freeze.plateaus or 0)
