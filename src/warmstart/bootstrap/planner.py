"""Making the plan: each source is compared with the model to be trained, and every problem is found at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from warmstart.bootstrap.plan import Action, Leftover, Plan, Row, SlotRow
from warmstart.bootstrap.rows import rows_by_token
from warmstart.bootstrap.selection import Draft, dropped_storages, offered_names
from warmstart.bootstrap.start import Answers, StartConfig, answers
from warmstart.bundle.model import Model
from warmstart.checked import Config
from warmstart.errors import PlanError
from warmstart.lean import dataclass
from warmstart.models.family import Parameter
from warmstart.redact import redact
from warmstart.spec.templates import matches
from warmstart.vocabularies.load import difference
from warmstart.vocabularies.vocabulary import Vocabulary

_Take = Callable[..., Row]


@dataclass
class Target:
    """The model to be trained: its storages, stages, behaviour, vocabularies, and its configuration if it has one."""

    parameters: Sequence[Parameter]
    stages: Sequence[str]
    order: Sequence[str] | None
    behaviour: Mapping[str, object]
    vocabularies: Mapping[str, Vocabulary]
    config: Config | None = None


def make_plan(starts: Sequence[tuple[StartConfig, Model]], target: Target, *, require_coverage: float = 0.0) -> Plan:
    """Plan a start from one or several sources.

    Raises:
        PlanError: every reason why the start is impossible as configured.
    """
    draft = Draft()
    all_answers: list[Answers] = []
    step = 0
    for number, (config, model) in enumerate(starts):
        answer, problems = answers(config)
        all_answers.append(answer)
        draft.problems += problems
        source = _Source(draft, number, config, answer, model, target)
        source.plan()
        step = max(step, source.step())
    storages = {p.storage: p for p in reversed(target.parameters)}
    for storage, p in reversed(storages.items()):
        if storage not in draft.rows:
            draft.rows[storage] = _initialise(p, "no source has it")
    order = {s: k for k, s in enumerate(dict.fromkeys(p.storage for p in target.parameters))}
    plan = Plan(
        tuple(redact(c.source) for c, _ in starts),
        tuple(c.mode for c, _ in starts),
        tuple(all_answers),
        tuple(sorted(draft.rows.values(), key=lambda r: order[r.target])),
        tuple(draft.slots),
        tuple(draft.leftovers),
        tuple(dict.fromkeys(draft.notes)),
        step,
    )
    if not draft.problems and plan.coverage < require_coverage:
        draft.problem(
            "too little of the model comes from the sources",
            expected=f"{require_coverage:.1%} or more",
            found=f"{plan.coverage:.1%}",
            todo="look at the plan's initialised rows",
        )
    if draft.problems:
        raise PlanError("this start is impossible as configured", problems=draft.problems)
    return plan


def _initialise(p: Parameter, reason: str) -> Row:
    return Row(p.storage, p.shape, p.stage, "initialise", reason, initialiser=p.initialiser)


class _Source:
    """One source against the model: it writes rows, slots, leftovers, notes and problems into the draft."""

    def __init__(
        self, draft: Draft, number: int, config: StartConfig, answer: Answers, model: Model, target: Target
    ) -> None:
        self.draft, self.number, self.config, self.answer, self.model = draft, number, config, answer, model
        self.target = target
        self.family, self.source_config, self.reading = model.require()
        self.prefix = f"{config.into}." if config.into else ""
        self.mine = [p for p in target.parameters if p.name.startswith(self.prefix)]
        self.partial = bool(config.select or config.exclude)
        self.relaxed = answer.weights == "matching"
        self.misshapen = False
        draft.notes += model.remarks

    def plan(self) -> None:
        behaviour = self.family.behaviour(self.source_config)
        if not self.mine or any(self.prefix + key not in self.target.behaviour for key in behaviour):
            self.draft.problem(f"`into: {self.config.into}` is no part of the model")
            return
        ties = {p.name: p.storage for p in self.family.parameters(self.source_config)}
        there = [name for name, storage in ties.items() if storage in self.reading.origins]
        offered = offered_names(self.draft, self.config, there, self.prefix)
        by_target = {new: name for name, new in reversed(offered.items())}
        stages, order = self.target.stages, self.target.order
        dropped = dropped_storages(self.draft, self.config, stages, order, self.mine, self.prefix)
        self._compare_behaviour()
        taken: set[str] = set()
        for storage in dict.fromkeys(p.storage for p in self.mine):
            members = [p for p in self.mine if p.storage == storage]
            if storage in dropped:
                self.draft.rows.setdefault(storage, _initialise(members[0], f"stage {members[0].stage} is dropped"))
                continue
            found = list(dict.fromkeys(ties[by_target[p.name]] for p in members if p.name in by_target))
            if len(found) > 1:
                self.draft.problem(
                    f"{' and '.join(p.name for p in members)} are tied in the model, but not in the source",
                    where=self.config.source,
                    found=" and ".join(found),
                    todo=f"choose one: `exclude: [{found[1]}]`, or untie them in the model",
                )
            elif not found:
                self._missing(storage, members[0])
            elif (row := self._load(members[0], found[0])) is not None:
                self._take(row)
                if row.action != "initialise":
                    taken.add(found[0])
                    self._plan_slots(row)
        if self.misshapen:
            self._explain_shapes()
        self._account(taken, offered, dropped)

    def _take(self, row: Row) -> None:
        other = self.draft.rows.get(row.target)
        if other is not None and other.source is not None:
            self.draft.problem(
                f"two sources write {row.target}",
                found=f"{other.source} and {self.number}",
                todo="narrow one with `select` or `exclude`",
            )
        self.draft.rows[row.target] = row

    def _missing(self, storage: str, p: Parameter) -> None:
        if self.partial:  # another source may have it
            return
        if not self.relaxed:
            self.draft.problem(
                f"{storage} is missing in the source",
                where=self.config.source,
                todo="say `strict: false` to initialise it",
            )
        self.draft.rows.setdefault(storage, _initialise(p, "the source has no such parameter"))

    def _compare_behaviour(self) -> None:
        for key, value in self.family.behaviour(self.source_config).items():
            mine = self.target.behaviour[self.prefix + key]
            if mine == value:
                continue
            what = f"{key} is {mine} in the model and {value} in the source: equal shapes would mean something else"
            if self.relaxed or self.partial:
                self.draft.notes.append(what)
            else:
                self.draft.problem(what, todo=f"set `model.{key}: {value}`, or say `strict: false`")

    def _load(self, p: Parameter, name: str) -> Row | None:
        """The row of a parameter that the source has as ``name``; None after a problem."""
        origin = self.reading.origins[name]

        def take(action: Action, reason: str, rows: Sequence[int] | None = None) -> Row:
            picked = None if rows is None else tuple(rows)
            where = (self.number, name, origin.link.foreign)
            return Row(p.storage, p.shape, p.stage, action, reason, *where, picked, p.initialiser)

        resizable = p.vocabulary in self.target.vocabularies or (p.axes[0] == "positions" and self.relaxed)
        if origin.shape != p.shape and not (resizable and origin.shape[1:] == p.shape[1:]):
            if self.relaxed:
                return _initialise(p, f"the source's shape is {list(origin.shape)}")
            self.misshapen = True
            self.draft.problem(
                f"{p.storage} has another shape",
                where=f"{self.config.source}: {', '.join(origin.link.foreign)}",
                expected=str(list(p.shape)),
                found=str(list(origin.shape)),
                todo="change `model`, or say `strict: false` to initialise it",
            )
            return None
        if p.vocabulary is not None:
            return self._load_by_vocabulary(p, p.vocabulary, take)
        if origin.shape == p.shape:
            return take("load", "same name and shape")
        had, wanted = origin.shape[0], p.shape[0]
        rows = [k if k < had else -1 for k in range(wanted)]
        return take("resize", f"{min(had, wanted)} positions of {had}", rows)

    def _explain_shapes(self) -> None:
        """Keys of the model that make shapes other than the source's, and the mode that would do."""
        mine = self.target.config
        if not isinstance(mine, type(self.source_config)):
            return
        sizes = set(self.family.vocabulary_sizes.values())
        shapes = [p.shape for p in self.family.parameters(mine)]
        for key, value in self.source_config.model_dump().items():
            if key in sizes or getattr(mine, key) == value:
                continue
            like_source = self.family.parameters(mine.model_copy(update={key: value}))
            if [p.shape for p in like_source] != shapes:
                self.draft.problem(
                    f"`model.{key}: {getattr(mine, key)}` makes arrays of other shapes than the source's",
                    where=self.config.source,
                    expected=f"{key} {value}, as the source has it",
                    todo=f"remove `model.{key}`; what another {key} does not touch is loaded with `mode: init` and "
                    "`strict: false`, the rest begins anew",
                )

    def _load_by_vocabulary(self, p: Parameter, side: str, take: _Take) -> Row | None:
        new = self.target.vocabularies.get(side)
        old = self.model.vocabularies.get(side.removeprefix(self.prefix))
        if new is None and old is None:
            return take("load", "same name and shape")
        if new is None or old is None:
            self.draft.problem(
                f"{'the source' if old is None else 'the model'} has no {side} vocabulary, "
                f"so rows of {p.storage} have no meaning",
                where=self.config.source,
                todo="name the files: `start.files: [source vocabulary, target vocabulary]`",
            )
            return None
        if new.fingerprint == old.fingerprint:
            return take("load", f"same {side} vocabulary")
        if self.answer.vocabulary == "new":
            return _initialise(p, f"new {side} vocabulary")
        if self.answer.vocabulary == "rows":
            rows = rows_by_token(new, old)
            count = sum(r >= 0 for r in rows)
            return take("load rows", f"{count} of {len(rows)} rows by token, {len(rows) - count} new", rows)
        what = f"the {side} vocabulary is not the source's"
        if not any(problem.what == what for problem in self.draft.problems):
            todo = (
                "`continue` keeps the vocabulary; use `mode: init` with `vocabulary: rows`, or `mode: transfer`"
                if self.config.mode == "continue"
                else "say `vocabulary: rows` to load rows by token, or use `mode: transfer`"
            )
            self.draft.problem(what, where=self.config.source, found=difference(new, old), todo=todo)
        return None

    def _plan_slots(self, row: Row) -> None:
        if self.answer.optimizer != "carry" or row.canonical is None:
            return
        draft = self.draft
        carried = self.reading.slot_axes(row.canonical)
        for (slot, axis), (theirs, _) in carried.items():
            where = "" if axis is None else f" (mean over axis {axis})"
            draft.slots.append(SlotRow(row.target, slot, "load", f"{theirs} of the source{where}", self.number, axis))
        for slot, reason in self.reading.lost_slots(row.canonical).items():
            draft.slots.append(SlotRow(row.target, slot, "fresh", reason, self.number))
            draft.problem(
                f"optimizer state {slot} of {row.target} cannot follow", found=reason, todo="say `optimizer: fresh`"
            )
        if not carried and not any("optimizer state" in p.what for p in draft.problems):
            draft.problem(
                "the source has no optimizer state to carry",
                where=str(self.model.source),
                todo="say `optimizer: fresh`, or give the file that holds it",
            )

    def step(self) -> int:
        """The step to count on from."""
        config, answer = self.config, self.answer
        if answer.data == "carry" and not self.model.state and config.mode != "use":
            self.draft.problem(
                "the source's position in its data cannot be carried: its shuffle is another framework's",
                where=config.source,
                todo="say `data: start`",
            )
        if answer.step != "carry":
            return 0
        if self.model.checkpoint.step is None:
            self.draft.problem("the source does not say its step", where=config.source, todo="say `step: fresh`")
            return 0
        return self.model.checkpoint.step

    def _account(self, taken: set[str], offered: Mapping[str, str], dropped: Mapping[str, str]) -> None:
        """Every array of the source goes somewhere or is left behind for a reason."""
        targets = {p.storage for p in self.mine} | {p.name for p in self.mine}
        leftovers = self.draft.leftovers
        unspoken: list[str] = []
        for name, origin in self.reading.origins.items():
            if name in taken:
                continue
            target = offered.get(name)
            if target is None:
                reason = "excluded" if any(matches(p, name) for p in self.config.exclude) else "not selected"
            elif target in dropped:
                reason = f"stage {dropped[target]} is dropped"
            elif target not in targets:
                reason = "the model has no such parameter"
                unspoken.append(name)
            else:
                row = self.draft.rows.get(target)
                reason = row.reason if row else "not used"
            leftovers += [Leftover(self.number, array, reason) for array in origin.link.foreign]
        for array in self.reading.unknown:
            why = self.model.why_left(array)
            leftovers.append(Leftover(self.number, array, why or "no rule of the dialect speaks of it"))
            unspoken += [] if why else [array]
        for scalar in self.reading.checkpoint.optimizer:
            if why := self.model.why_left(scalar):
                leftovers.append(Leftover(self.number, scalar, why))
        if unspoken and not self.relaxed and not self.partial:
            self.draft.problem(
                f"{len(unspoken)} arrays of the source would be left behind",
                where=self.config.source,
                found=", ".join(unspoken[:4]) + (" …" if len(unspoken) > 4 else ""),
                todo="change `model` to have them, or say `strict: false`",
            )
