"""A dialect's rules, expanded for one model: foreign names ↔ canonical names, with what happens between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from itertools import product
from math import prod

import numpy as np

from warmstart.errors import DialectError, Problem
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.lean import dataclass
from warmstart.spec.op import Op, Shape, ShapeMismatch, SlotLost
from warmstart.spec.ops import Chain, Identity
from warmstart.spec.templates import fill, variables

_MOST = 10**6  # repetitions of one rule: layers, or layers and experts


@dataclass(frozen=True)
class Rule:
    """One line of a dialect's table.

    ``each`` repeats the rule for every value of its variables; ``gather`` expands, inside one rule, the
    side whose template mentions its variable (layers stacked in one array). ``optional`` rules may find
    no foreign array.

    A canonical array has one rule of its own. An ``alternative`` rule is another spelling of it, read where the
    first is not there and never written. A ``copy`` is written beside the first, and compared with it when read. What
    is both is never written, and compared where both are there.
    """

    foreign: tuple[str, ...]
    canonical: tuple[str, ...]
    op: Op = field(default_factory=Identity)
    each: Mapping[str, int] = field(default_factory=dict)
    gather: Mapping[str, int] = field(default_factory=dict)
    optional: bool = False
    alternative: bool = False
    copy: bool = False


@dataclass(frozen=True)
class Link:
    """One expanded rule: these foreign arrays are these canonical arrays."""

    foreign: tuple[str, ...]
    canonical: tuple[str, ...]
    op: Op
    optional: bool = False
    alternative: bool = False
    copy: bool = False

    @property
    def own(self) -> bool:
        """Whether it is the canonical arrays' own spelling."""
        return not (self.alternative or self.copy)


def rule(
    foreign: str | Sequence[str],
    canonical: str | Sequence[str],
    op: Op | None = None,
    *,
    each: Mapping[str, int] | None = None,
    gather: Mapping[str, int] | None = None,
    optional: bool = False,
    alternative: bool = False,
    copy: bool = False,
) -> Rule:
    """A :class:`Rule`; single names may be given as strings."""

    def names(value: str | Sequence[str]) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value)

    sides = names(foreign), names(canonical)
    return Rule(*sides, op or Identity(), each or {}, gather or {}, optional, alternative, copy)


def expand(rules: Iterable[Rule]) -> list[Link]:
    """Every rule for every value of its variables.

    Raises:
        DialectError: two rules write one name, which is a mistake in the table; or more layers than any model has.
    """
    links: list[Link] = []
    for r in rules:
        if prod((*r.each.values(), *r.gather.values())) > _MOST:
            found = ", ".join(f"{number:,}" for number in (*r.each.values(), *r.gather.values()))
            raise DialectError(f"no model has so many of {r.foreign[0] if r.foreign else r.canonical[0]}", found=found)
        for values in product(*(range(n) for n in r.each.values())):
            fixed = dict(zip(r.each, values, strict=True))
            foreign, canonical = (_names(side, fixed, r.gather) for side in (r.foreign, r.canonical))
            links.append(Link(foreign, canonical, r.op, r.optional, r.alternative, r.copy))
    for side in ("foreign", "canonical"):
        seen: set[str] = set()
        for link in links:
            for name in getattr(link, side) if side == "foreign" or link.own else ():
                if name in seen:
                    raise DialectError(f"two rules of one table write {name}", todo="correct the dialect's rules")
                seen.add(name)
    return links


def _names(templates: Sequence[str], fixed: Mapping[str, int], gather: Mapping[str, int]) -> tuple[str, ...]:
    if not gather:
        return tuple(fill(template, fixed) for template in templates)
    names: list[str] = []
    for template in templates:
        inner = [v for v in gather if v in variables(template)]
        for values in product(*(range(gather[v]) for v in inner)):
            names.append(fill(template, {**fixed, **dict(zip(inner, values, strict=True))}))
    return tuple(names)


@dataclass(frozen=True)
class Origin:
    """Where a canonical array comes from: output ``index`` of a link."""

    link: Link
    index: int
    shape: Shape
    dtype: str


@dataclass
class Reading:
    """A checkpoint seen through a dialect: canonical names, shapes, and what of the file is not spoken for.

    ``checks`` are links that say nothing new: computed arrays, copies, and further names of a tied array. What they
    say is compared with the rest when a model is converted.
    """

    checkpoint: Checkpoint
    origins: dict[str, Origin]
    unknown: list[str]
    checks: list[Link] = field(default_factory=list)
    _aside: Callable[[Array], Array] | None = None
    _kept: dict[str, Array] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tie(self, storages: Mapping[str, str]) -> None:
        """Makes names of one storage (``storages``: name → storage) one array under the storage's name."""
        for name, storage in storages.items():
            origin = self.origins.get(name)
            if name == storage or origin is None:
                continue
            if len(origin.link.canonical) == 1:
                del self.origins[name]
            if storage in self.origins:
                canonical = tuple(storages.get(c, c) for c in origin.link.canonical)
                self.checks.append(replace(origin.link, canonical=canonical))
            else:
                self.origins[storage] = origin

    def read(self, name: str) -> Array:
        """The canonical array ``name``, read and laid out. Other outputs of its link are not kept."""
        origin = self.origins[name]
        arrays = [self.checkpoint.read_checked(f) for f in origin.link.foreign]
        return origin.link.op.forward(arrays)[origin.index]

    def raw(self, name: str, used: list[Array] | None = None) -> Array:
        """As :meth:`read`, of arrays as :meth:`Checkpoint.raw` gives them, which are added to ``used``."""
        origin = self.origins[name]
        foreign = self._foreign(origin, self.checkpoint.raw)
        if used is not None:
            used += foreign
        return origin.link.op.output(foreign, origin.index)

    def peek(self, name: str) -> Array:
        """As :meth:`raw`, of arrays as :meth:`Checkpoint.peek` gives them."""
        origin = self.origins[name]
        return origin.link.op.output(self._foreign(origin, self.checkpoint.peek), origin.index)

    @contextmanager
    def putting_aside(self, keep: Callable[[Array], Array]) -> Iterator[None]:
        """Meanwhile :meth:`raw` and :meth:`peek` read an array of which several canonical arrays are made (stacked
        layers) once; ``keep`` gives what is held of it."""
        self._aside = keep
        try:
            yield
        finally:
            self._aside = None
            self._kept.clear()

    def _foreign(self, origin: Origin, read: Callable[[str], Array]) -> list[Array]:
        if self._aside is None or len(origin.link.canonical) == 1:
            return [read(name) for name in origin.link.foreign]
        with self._lock:
            for name in origin.link.foreign:
                if name not in self._kept:
                    self._kept[name] = self._aside(self.checkpoint.raw(name))
            return [self._kept[name] for name in origin.link.foreign]

    def slot_axes(self, name: str) -> dict[tuple[str, int | None], tuple[str, int | None]]:
        """Slots that can follow: (slot, canonical averaged axis) → (source's slot name, its averaged axis)."""
        origin = self.origins[name]
        out: dict[tuple[str, int | None], tuple[str, int | None]] = {}
        for slot in self._slot_names(origin):
            axis = self.checkpoint.slots[origin.link.foreign[0], slot].axis
            try:
                if axis is None:
                    self._probe(origin)
                    out[slot, None] = (slot, None)
                else:
                    out["v", self._axis(origin, axis)] = (slot, axis)
            except SlotLost:
                continue
        return out

    def lost_slots(self, name: str) -> dict[str, str]:
        """Slots of ``name`` that cannot follow, with the reason."""
        origin = self.origins[name]
        lost: dict[str, str] = {}
        for slot in self._slot_names(origin):
            axis = self.checkpoint.slots[origin.link.foreign[0], slot].axis
            try:
                if axis is None:
                    self._probe(origin)
                else:
                    self._axis(origin, axis)
            except SlotLost as reason:
                lost[slot] = str(reason)
        return lost

    def read_slot(self, name: str, slot: str) -> Array:
        """Slot ``slot`` (the source's name) of canonical ``name``, in the canonical layout."""
        origin = self.origins[name]
        axis = self.checkpoint.slots[origin.link.foreign[0], slot].axis
        arrays = [self.checkpoint.read_slot(f, slot) for f in origin.link.foreign]
        shapes = [self.checkpoint.entries[f].shape for f in origin.link.foreign]
        return origin.link.op.forward_slot(arrays, axis, shapes)[origin.index]

    def _slot_names(self, origin: Origin) -> list[str]:
        slots = [{s for p, s in self.checkpoint.slots if p == f} for f in origin.link.foreign]
        return sorted(set.intersection(*slots)) if slots else []

    def _axis(self, origin: Origin, axis: int) -> int:
        return origin.link.op.forward_axis(axis, [self.checkpoint.entries[f].shape for f in origin.link.foreign])

    @staticmethod
    def _probe(origin: Origin) -> None:
        """Raises SlotLost where the op cannot carry a slot of the parameter's own shape."""
        ops = origin.link.op.ops if isinstance(origin.link.op, Chain) else (origin.link.op,)
        for op in ops:
            if op.kind == "lossy":
                op.forward_slot([], None, [])


def read_through(checkpoint: Checkpoint, links: Sequence[Link]) -> Reading:
    """``checkpoint`` in canonical names. Headers only.

    Raises:
        DialectError: an array that a rule needs is missing, or has a shape that the rule cannot take.
    """
    origins: dict[str, Origin] = {}
    used: set[str] = set()
    problems: list[Problem] = []
    checks: list[Link] = []
    for link in sorted(links, key=lambda link: not link.own):
        absent = [f for f in link.foreign if f not in checkpoint.entries]
        if absent:
            if len(absent) < len(link.foreign):
                problems.append(
                    Problem(f"{', '.join(absent)} is missing", expected=f"beside {', '.join(link.foreign)}")
                )
            continue
        if link.alternative and not link.copy and any(name in origins for name in link.canonical):
            continue
        used.update(link.foreign)
        entries = [checkpoint.entries[f] for f in link.foreign]
        try:
            shapes = link.op.forward_shapes([e.shape for e in entries])
        except ShapeMismatch as error:
            problems.append(Problem(f"{', '.join(link.foreign)} has a shape that does not fit", found=str(error)))
            continue
        if link.copy or not link.canonical:
            checks.append(link)
        if link.copy and all(name in origins for name in link.canonical):
            continue
        for index, (name, shape) in enumerate(zip(link.canonical, shapes, strict=True)):
            origins[name] = Origin(link, index, shape, entries[0].dtype)
    if problems:
        raise DialectError("the checkpoint does not fit its dialect", where=checkpoint.path, problems=problems)
    return Reading(checkpoint, origins, [n for n in checkpoint.entries if n not in used], checks)


def write_through(
    links: Sequence[Link], read: Callable[[str], Array], known: Container[str]
) -> Iterator[tuple[str, Callable[[], Array]]]:
    """(foreign name, how to compute it) for every link whose canonical arrays are ``known``.

    Arrays are read and laid out when the value is asked for, one link at a time, so that memory is bounded by the
    largest link.
    """
    for link in links:
        if link.alternative:
            continue
        if not all(name in known for name in link.canonical):
            if not link.optional:
                absent = [n for n in link.canonical if n not in known]
                raise DialectError(f"{', '.join(absent)} is needed to write {', '.join(link.foreign)}")
            continue
        for index, name in enumerate(link.foreign):

            def compute(link: Link = link, index: int = index) -> Array:
                return np.asarray(link.op.backward([read(n) for n in link.canonical])[index], order="C")

            yield name, compute
