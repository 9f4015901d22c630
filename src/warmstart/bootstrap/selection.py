"""What of a source is offered to the model, and what of the model is dropped: ``select`` to ``drop_last``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from warmstart.bootstrap.plan import Leftover, Row, SlotRow
from warmstart.bootstrap.start import StartConfig
from warmstart.errors import Problem
from warmstart.lean import dataclass
from warmstart.models.family import Parameter
from warmstart.spec.templates import matches, problem_with_rename, rename


@dataclass
class Draft:
    """What a plan is made of, while it is made."""

    rows: dict[str, Row] = field(default_factory=dict)
    slots: list[SlotRow] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, what: str, **more: str) -> None:
        self.problems.append(Problem(what, **more))


def offered_names(draft: Draft, config: StartConfig, names: Sequence[str], prefix: str) -> dict[str, str]:
    """Source canonical name → name in the target, after select, exclude, rename and into."""
    for key, patterns in (("select", config.select), ("exclude", config.exclude)):
        for pattern in patterns:
            if not any(matches(pattern, n) for n in names):
                draft.problem(
                    f"`{key}: {pattern}` matches nothing",
                    where=config.source,
                    found=f"names such as {', '.join(names[:3])}",
                )
    kept = [n for n in names if not config.select or any(matches(p, n) for p in config.select)]
    kept = [n for n in kept if not any(matches(p, n) for p in config.exclude)]
    out = {n: n for n in kept}
    for pattern, replacement in config.rename.items():
        wrong = problem_with_rename(pattern, replacement)
        if wrong:
            draft.problem(f"`rename: {pattern}: {replacement}` cannot be done", found=wrong)
            continue
        hits = {n: new for n in kept if (new := rename(pattern, replacement, n)) is not None}
        if not hits:
            draft.problem(f"`rename: {pattern}` matches nothing", where=config.source)
        out.update(hits)
    seen: dict[str, str] = {}
    for name, new in out.items():
        if new in seen:
            draft.problem(f"{seen[new]} and {name} are both renamed to {new}", where=config.source)
        seen[new] = name
    return {name: prefix + new for name, new in out.items()}


def dropped_storages(
    draft: Draft,
    config: StartConfig,
    stages: Sequence[str],
    order: Sequence[str] | None,
    mine: Sequence[Parameter],
    prefix: str,
) -> dict[str, str]:
    """Storage → stage, where the stage is dropped. Half of a tie is a problem."""
    named = {prefix + s for s in config.drop}
    known = [s for s in stages if s.startswith(prefix)]
    for stage in sorted(named - set(known)):
        draft.problem(f"`drop: {stage}` is no stage of the model", expected=", ".join(known))
    last = config.drop_last
    if last is not None:
        if order is None:
            draft.problem(
                "`drop_last` needs stages with an order, which this family does not have",
                todo=f"name them: `drop: [...]` of {', '.join(known)}",
            )
        elif not 0 < last < len(order):
            draft.problem(f"`drop_last: {last}` is out of range", expected=f"1 to {len(order) - 1}")
        else:
            named |= set(order[-last:])
    found: dict[str, str] = {}
    for storage in dict.fromkeys(p.storage for p in mine):
        members = [p for p in mine if p.storage == storage]
        out = [p for p in members if p.stage in named]
        if out and len(out) < len(members):
            rest = [p for p in members if p not in out]
            draft.problem(
                f"dropping {out[0].stage} would drop half of a tie",
                found=f"{out[0].name} is the same array as {', '.join(p.name for p in rest)}",
                todo=f"drop {', '.join(sorted({p.stage for p in rest}))} as well, or untie them in the model",
            )
        elif out:
            found[storage] = out[0].stage
    return found
