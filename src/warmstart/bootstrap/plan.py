"""The plan: for every parameter of the model to be trained where its first value comes from, and for every array
of every source where it goes. Pure data from headers; nothing is loaded that the plan does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from warmstart.bootstrap.rows import rows_by_token
from warmstart.bootstrap.start import Answers, StartConfig, answers
from warmstart.bundle.model import Model
from warmstart.errors import PlanError, Problem
from warmstart.models.family import Parameter
from warmstart.spec.templates import matches, problem_with_rename, rename
from warmstart.vocabularies.load import difference
from warmstart.vocabularies.vocabulary import Vocabulary

Action = Literal["load", "load rows", "resize", "initialise"]


@dataclass(frozen=True)
class Row:
    """The start of one storage. ``rows[k]`` is the source row of target row k, -1 for an initialised one; None where
    the whole array is taken. ``arrays`` are the names in the source's file."""

    target: str
    shape: tuple[int, ...]
    stage: str
    action: Action
    reason: str
    source: int | None = None
    canonical: str | None = None
    arrays: tuple[str, ...] = ()
    rows: tuple[int, ...] | None = None
    initialiser: str = ""

    @property
    def size(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def loaded(self) -> int:
        """Number of elements that come from a source."""
        if self.action == "initialise":
            return 0
        if self.rows is None:
            return self.size
        return sum(r >= 0 for r in self.rows) * (self.size // max(1, self.shape[0]))


@dataclass(frozen=True)
class SlotRow:
    """Optimizer state of one storage: carried from ``slot`` of the source (``axis``: averaged axis), or not."""

    target: str
    slot: str
    action: Literal["load", "fresh"]
    reason: str
    source: int | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Leftover:
    """An array of a source that goes nowhere, and why."""

    source: int
    array: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """See the module. ``answers`` and ``sources`` have one item for each start."""

    sources: tuple[str, ...]
    modes: tuple[str, ...]
    answers: tuple[Answers, ...]
    rows: tuple[Row, ...]
    slots: tuple[SlotRow, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    notes: tuple[str, ...] = ()
    step: int = 0

    @property
    def coverage(self) -> float:
        """Share of the model's elements that come from a source, 0 to 1."""
        total = sum(r.size for r in self.rows)
        return sum(r.loaded for r in self.rows) / total if total else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "coverage": self.coverage}


@dataclass
class Target:
    """The model to be trained: its storages, stages, behaviour and vocabularies."""

    parameters: Sequence[Parameter]
    stages: Sequence[str]
    order: Sequence[str] | None
    behaviour: Mapping[str, object]
    vocabularies: Mapping[str, Vocabulary]


@dataclass
class _Draft:
    rows: dict[str, Row] = field(default_factory=dict)
    slots: list[SlotRow] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def make_plan(starts: Sequence[tuple[StartConfig, Model]], target: Target, *, require_coverage: float = 0.0) -> Plan:
    """Plan a start from one or several sources.

    Raises:
        PlanError: every reason why the start is impossible as configured.
    """
    draft = _Draft()
    all_answers: list[Answers] = []
    step = 0
    for number, (config, model) in enumerate(starts):
        answer, problems = answers(config)
        all_answers.append(answer)
        draft.problems += problems
        _one_source(draft, number, config, answer, model, target)
        step = max(step, _step(draft, config, answer, model))
    storages = {p.storage: p for p in reversed(target.parameters)}
    for storage, p in reversed(storages.items()):
        if storage not in draft.rows:
            draft.rows[storage] = Row(
                storage, p.shape, p.stage, "initialise", "no source has it", initialiser=p.initialiser
            )
    order = {s: k for k, s in enumerate(dict.fromkeys(p.storage for p in target.parameters))}
    plan = Plan(
        tuple(c.source for c, _ in starts),
        tuple(c.mode for c, _ in starts),
        tuple(all_answers),
        tuple(sorted(draft.rows.values(), key=lambda r: order[r.target])),
        tuple(draft.slots),
        tuple(draft.leftovers),
        tuple(dict.fromkeys(draft.notes)),
        step,
    )
    if not draft.problems and plan.coverage < require_coverage:
        draft.problems.append(
            Problem(
                "too little of the model comes from the sources",
                expected=f"{require_coverage:.1%} or more",
                found=f"{plan.coverage:.1%}",
                todo="look at the plan's initialised rows",
            )
        )
    if draft.problems:
        raise PlanError("this start is impossible as configured", problems=draft.problems)
    return plan


def _one_source(draft: _Draft, number: int, config: StartConfig, answer: Answers, model: Model, target: Target) -> None:
    family, source_config, reading = model.require()
    prefix = f"{config.into}." if config.into else ""
    if prefix and not any(p.name.startswith(prefix) for p in target.parameters):
        draft.problems.append(Problem(f"`into: {config.into}` is no part of the model"))
        return
    mine = [p for p in target.parameters if p.name.startswith(prefix)]
    source_ties = {p.name: p.storage for p in family.parameters(source_config)}
    names = [name for name, storage in source_ties.items() if storage in reading.origins]
    offered = _offered(draft, config, names, prefix)
    dropped = _dropped(draft, config, mine, target, prefix)
    partial = bool(config.select or config.exclude)
    relaxed = answer.weights == "matching"
    _compare_behaviour(draft, family.behaviour(source_config), target.behaviour, prefix, relaxed or partial)
    taken: set[str] = set()
    for storage in dict.fromkeys(p.storage for p in mine):
        members = [p for p in mine if p.storage == storage]
        if storage in dropped:
            draft.rows.setdefault(storage, _initialise(members[0], f"stage {members[0].stage} is dropped"))
            continue
        wanted = [_source_name(p.name, offered) for p in members]
        found = list(dict.fromkeys(source_ties[w] for w in wanted if w))
        if len(found) > 1:
            draft.problems.append(
                Problem(
                    f"{' and '.join(p.name for p in members)} are tied in the model, but not in the source",
                    where=config.source,
                    found=" and ".join(found),
                    todo=f"choose one: `exclude: [{found[1]}]`, or untie them in the model",
                )
            )
            continue
        if not found:
            reason = "not selected" if partial else "the source has no such parameter"
            if not relaxed and not partial:
                draft.problems.append(
                    Problem(
                        f"{storage} is missing in the source",
                        where=config.source,
                        todo="say `strict: false` to initialise it",
                    )
                )
            if not partial:
                draft.rows.setdefault(storage, _initialise(members[0], reason))
            continue
        row = _load(draft, number, config, answer, model, members[0], found[0], target, prefix)
        if row is None:
            continue
        if storage in draft.rows and draft.rows[storage].source is not None:
            draft.problems.append(
                Problem(
                    f"two sources write {storage}",
                    found=f"{draft.rows[storage].source} and {number}",
                    todo="narrow one with `select` or `exclude`",
                )
            )
        draft.rows[storage] = row
        if row.action != "initialise":
            taken.add(found[0])
            _plan_slots(draft, number, answer, model, row)
    _account(draft, number, config, answer, model, taken, offered, dropped, mine)


def _offered(draft: _Draft, config: StartConfig, names: list[str], prefix: str) -> dict[str, str]:
    """Source canonical name → name in the target, after select, exclude, rename and into."""
    for key, patterns in (("select", config.select), ("exclude", config.exclude)):
        for pattern in patterns:
            if not any(matches(pattern, n) for n in names):
                draft.problems.append(
                    Problem(
                        f"`{key}: {pattern}` matches nothing",
                        where=config.source,
                        found=f"names such as {', '.join(names[:3])}",
                    )
                )
    kept = [n for n in names if not config.select or any(matches(p, n) for p in config.select)]
    kept = [n for n in kept if not any(matches(p, n) for p in config.exclude)]
    out = {n: n for n in kept}
    for pattern, replacement in config.rename.items():
        wrong = problem_with_rename(pattern, replacement)
        if wrong:
            draft.problems.append(Problem(f"`rename: {pattern}: {replacement}` cannot be done", found=wrong))
            continue
        hits = {n: new for n in kept if (new := rename(pattern, replacement, n)) is not None}
        if not hits:
            draft.problems.append(Problem(f"`rename: {pattern}` matches nothing", where=config.source))
        out.update(hits)
    seen: dict[str, str] = {}
    for name, new in out.items():
        if new in seen:
            draft.problems.append(Problem(f"{seen[new]} and {name} are both renamed to {new}", where=config.source))
        seen[new] = name
    return {name: prefix + new for name, new in out.items()}


def _source_name(target: str, offered: Mapping[str, str]) -> str | None:
    return next((name for name, new in offered.items() if new == target), None)


def _dropped(
    draft: _Draft, config: StartConfig, mine: Sequence[Parameter], target: Target, prefix: str
) -> dict[str, str]:
    """Storages whose stages are dropped. Half of a tie is a problem."""
    stages = {prefix + s for s in config.drop}
    known = [s for s in target.stages if s.startswith(prefix)]
    for stage in sorted(stages - set(known)):
        draft.problems.append(Problem(f"`drop: {stage}` is no stage of the model", expected=", ".join(known)))
    if config.drop_last is not None:
        if target.order is None:
            draft.problems.append(
                Problem(
                    "`drop_last` needs stages with an order, which this family does not have",
                    todo=f"name them: `drop: [...]` of {', '.join(known)}",
                )
            )
        elif not 0 < config.drop_last < len(target.order):
            draft.problems.append(
                Problem(f"`drop_last: {config.drop_last}` is out of range", expected=f"1 to {len(target.order) - 1}")
            )
        else:
            stages |= set(target.order[-config.drop_last :])
    dropped: dict[str, str] = {}
    for storage in dict.fromkeys(p.storage for p in mine):
        members = [p for p in mine if p.storage == storage]
        out = [p for p in members if p.stage in stages]
        if out and len(out) < len(members):
            rest = [p for p in members if p not in out]
            draft.problems.append(
                Problem(
                    f"dropping {out[0].stage} would drop half of a tie",
                    found=f"{out[0].name} is the same array as {', '.join(p.name for p in rest)}",
                    todo=f"drop {', '.join(sorted({p.stage for p in rest}))} as well, or untie them in the model",
                )
            )
        elif out:
            dropped[storage] = out[0].stage
    return dropped


def _compare_behaviour(
    draft: _Draft, theirs: Mapping[str, object], ours: Mapping[str, object], prefix: str, relaxed: bool
) -> None:
    for key, value in theirs.items():
        mine = ours.get(prefix + key)
        if mine == value:
            continue
        what = f"{key} is {mine} in the model and {value} in the source: equal shapes would mean something else"
        if relaxed:
            draft.notes.append(what)
        else:
            draft.problems.append(Problem(what, todo=f"set `model.{key}: {value}`, or say `strict: false`"))


def _initialise(p: Parameter, reason: str) -> Row:
    return Row(p.storage, p.shape, p.stage, "initialise", reason, initialiser=p.initialiser)


def _load(
    draft: _Draft,
    number: int,
    config: StartConfig,
    answer: Answers,
    model: Model,
    p: Parameter,
    name: str,
    target: Target,
    prefix: str,
) -> Row | None:
    assert model.reading is not None
    origin = model.reading.origins[name]
    arrays = origin.link.foreign
    base = {"source": number, "canonical": name, "arrays": arrays, "initialiser": p.initialiser}
    if p.vocabulary:
        row = _load_vocabulary_rows(draft, config, answer, model, p, origin.shape, target, prefix, base)
        if row is not None:
            return row if row.action != "load" or origin.shape == p.shape else None
        return None
    if origin.shape == p.shape:
        return Row(p.storage, p.shape, p.stage, "load", "same name and shape", **base)  # type: ignore[arg-type]
    if p.axes[0] == "positions" and origin.shape[1:] == p.shape[1:] and answer.weights == "matching":
        rows = tuple(k if k < origin.shape[0] else -1 for k in range(p.shape[0]))
        reason = f"{min(origin.shape[0], p.shape[0])} positions of {origin.shape[0]}"
        return Row(p.storage, p.shape, p.stage, "resize", reason, rows=rows, **base)  # type: ignore[arg-type]
    if answer.weights == "matching":
        return _initialise(p, f"the source's shape is {list(origin.shape)}")
    draft.problems.append(
        Problem(
            f"{p.storage} has another shape",
            where=f"{config.source}: {', '.join(arrays)}",
            expected=str(list(p.shape)),
            found=str(list(origin.shape)),
            todo="change `model`, or say `strict: false` to initialise it",
        )
    )
    return None


def _load_vocabulary_rows(
    draft: _Draft,
    config: StartConfig,
    answer: Answers,
    model: Model,
    p: Parameter,
    shape: tuple[int, ...],
    target: Target,
    prefix: str,
    base: Mapping[str, Any],
) -> Row | None:
    side = str(p.vocabulary)
    new, old = target.vocabularies.get(side), model.vocabularies.get(side.removeprefix(prefix))
    if new is None or old is None:
        if shape == p.shape and (new is None or answer.vocabulary == "match") and old is None and new is None:
            return Row(p.storage, p.shape, p.stage, "load", "same name and shape", **base)
        missing = "the source" if old is None else "the model"
        draft.problems.append(
            Problem(
                f"{missing} has no {side} vocabulary, so rows of {p.storage} have no meaning",
                where=config.source,
                todo="name the files: `start.files: [source vocabulary, target vocabulary]`",
            )
        )
        return None
    if shape[1:] != p.shape[1:]:
        if answer.weights == "matching":
            return _initialise(p, f"the source's shape is {list(shape)}")
        draft.problems.append(
            Problem(
                f"{p.storage} has another shape",
                where=config.source,
                expected=str(list(p.shape)),
                found=str(list(shape)),
            )
        )
        return None
    if new.fingerprint == old.fingerprint:
        return Row(p.storage, p.shape, p.stage, "load", f"same {side} vocabulary", **base)
    if answer.vocabulary == "match":
        todo = (
            "`continue` keeps the vocabulary; use `mode: init` with `vocabulary: rows`, or `mode: transfer`"
            if config.mode == "continue"
            else "say `vocabulary: rows` to load rows by token, or use `mode: transfer`"
        )
        text = f"the {side} vocabulary is not the source's"
        if not any(problem.what == text for problem in draft.problems):
            draft.problems.append(Problem(text, where=config.source, found=difference(new, old), todo=todo))
        return None
    if answer.vocabulary == "new":
        return _initialise(p, f"new {side} vocabulary")
    rows = rows_by_token(new, old)
    count = sum(r >= 0 for r in rows)
    reason = f"{count} of {len(rows)} rows by token, {len(rows) - count} new"
    return Row(p.storage, p.shape, p.stage, "load rows", reason, rows=rows, **base)


def _plan_slots(draft: _Draft, number: int, answer: Answers, model: Model, row: Row) -> None:
    if answer.optimizer != "carry" or row.canonical is None or model.reading is None:
        return
    carried = model.reading.slot_axes(row.canonical)
    for (slot, axis), (theirs, _) in carried.items():
        where = "" if axis is None else f" (mean over axis {axis})"
        draft.slots.append(SlotRow(row.target, slot, "load", f"{theirs} of the source{where}", number, axis))
    for slot, reason in model.reading.lost_slots(row.canonical).items():
        draft.slots.append(SlotRow(row.target, slot, "fresh", reason, number))
        draft.problems.append(
            Problem(
                f"optimizer state {slot} of {row.target} cannot follow", found=reason, todo="say `optimizer: fresh`"
            )
        )
    if not carried and not any("optimizer state" in p.what for p in draft.problems):
        draft.problems.append(
            Problem(
                "the source has no optimizer state to carry",
                where=str(model.source),
                todo="say `optimizer: fresh`, or give the file that holds it",
            )
        )


def _step(draft: _Draft, config: StartConfig, answer: Answers, model: Model) -> int:
    if answer.data == "carry" and not model.state and config.mode != "use":
        draft.problems.append(
            Problem(
                "the source's position in its data cannot be carried: its shuffle is another framework's",
                where=config.source,
                todo="say `data: start`",
            )
        )
    if answer.step != "carry":
        return 0
    if model.checkpoint.step is None:
        draft.problems.append(
            Problem("the source does not say its step", where=config.source, todo="say `step: fresh`")
        )
        return 0
    return model.checkpoint.step


def _account(
    draft: _Draft,
    number: int,
    config: StartConfig,
    answer: Answers,
    model: Model,
    taken: set[str],
    offered: Mapping[str, str],
    dropped: Mapping[str, str],
    mine: Sequence[Parameter],
) -> None:
    """Every array of the source goes somewhere or is left behind for a reason."""
    assert model.reading is not None
    targets = {p.storage for p in mine} | {p.name for p in mine}
    unspoken: list[str] = []
    for name, origin in model.reading.origins.items():
        if name in taken:
            continue
        target = offered.get(name)
        if target is None:
            reason = "excluded" if any(matches(p, name) for p in config.exclude) else "not selected"
        elif target in dropped:
            reason = f"stage {dropped[target]} is dropped"
        elif target not in targets:
            reason = "the model has no such parameter"
            unspoken.append(name)
        else:
            row = draft.rows.get(target)
            reason = row.reason if row else "not used"
        draft.leftovers += [Leftover(number, array, reason) for array in origin.link.foreign]
    for array in model.reading.unknown:
        draft.leftovers.append(Leftover(number, array, "no rule of the dialect speaks of it"))
        unspoken.append(array)
    if unspoken and answer.weights == "all" and not (config.select or config.exclude):
        draft.problems.append(
            Problem(
                f"{len(unspoken)} arrays of the source would be left behind",
                where=config.source,
                found=", ".join(unspoken[:4]) + (" …" if len(unspoken) > 4 else ""),
                todo="change `model` to have them, or say `strict: false`",
            )
        )
