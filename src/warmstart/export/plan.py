"""A conversion as data: what is written from what, and that nothing of the source is forgotten. No weights are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import cache
from typing import Any

import numpy as np

from warmstart.checked import Config
from warmstart.errors import ConfigError, DialectError, Problem
from warmstart.export.quantizations import QUANTIZATIONS
from warmstart.export.quantize import FLOATS, Storage, already_quantized, storage_of
from warmstart.export.slots import SlotRow, plan_slots
from warmstart.formats.checkpoint import PLACEHOLDERS, Array, dtype_of, name_of
from warmstart.lean import dataclass
from warmstart.models.family import PACKED, Dialect, Facts, Family
from warmstart.spec.generated import Generated
from warmstart.spec.mapping import Link, Reading, expand
from warmstart.spec.op import Op, Shape, ShapeMismatch
from warmstart.spec.ops import Chain
from warmstart.spec.templates import matches


@dataclass(frozen=True)
class Options:
    """What a person may ask of a conversion.

    Attributes:
        quantization: one of ``quantize.QUANTIZATIONS``; ``none`` keeps every dtype.
        strict: arrays and options that nothing explains are refused rather than listed.
        requantize: what is rounded already may be rounded again.
        report: measure how far every stored array is from its source.
        beams: that an exported speech model names to its client; None: as many as its framework's own exporter does.
    """

    quantization: str = "none"
    strict: bool = True
    requantize: bool = False
    report: bool = False
    beams: int | None = None


@dataclass(frozen=True)
class Row:
    """One array of the target: output ``index`` of ``op`` backwards over the canonical arrays ``sources``.

    ``dtype`` is the one it is computed in, ``storage`` how it is stored.
    """

    name: str
    shape: Shape
    dtype: str
    sources: tuple[str, ...]
    op: Op
    index: int
    storage: Storage

    @property
    def nbytes(self) -> int:
        """Bytes as stored, without the scale."""
        return math.prod(self.shape) * dtype_of(self.storage.dtype).itemsize

    def compute(self, read: Callable[[str], Array]) -> Array:
        """The array in ``dtype``, of canonical arrays as ``read`` gives them; a view of these where it can be."""
        return self._typed(self.op.backward([read(name) for name in self.sources])[self.index])

    def pieces(self, read: Callable[[str], Array]) -> list[Array]:
        """As :meth:`compute`, in pieces that follow each other along the first axis: views where views can be."""
        return [self._typed(piece) for piece in self.op.pieces([read(name) for name in self.sources], self.index)]

    def _typed(self, array: Array) -> Array:
        return np.asarray(array) if name_of(array.dtype) == self.dtype else np.asarray(array, dtype_of(self.dtype))

    @property
    def generated(self) -> bool:
        return not self.sources


@dataclass(frozen=True)
class Ledger:
    """Where every array of the source went.

    Attributes:
        used: source array → canonical names that it gives.
        checked: source arrays that repeat or follow from others, and are compared with them.
        left: source array → why it stays behind.
        generated: arrays of the target that come from the configuration alone.
        lossy: what of the source cannot return → why.
        slots: optimizer state that stays behind → why; None where the source has none.
    """

    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checked: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    generated: tuple[str, ...] = ()
    lossy: Mapping[str, str] = field(default_factory=dict)
    slots: Mapping[str, str] | None = None

    def summary(self) -> dict[str, Any]:
        """Counts, and by name what did not simply move."""
        return {
            "used": len(self.used),
            "checked": list(self.checked),
            "left_behind": dict(self.left),
            "generated": list(self.generated),
            "lossy": dict(self.lossy),
            **({} if self.slots is None else {"optimizer_left_behind": dict(self.slots)}),
        }


@dataclass(frozen=True)
class Conversion:
    """What is to be done: ``rows`` sorted by name, the optimizer's state and ``scalars``, and the ledger."""

    rows: tuple[Row, ...]
    ledger: Ledger
    options: Options
    layout: str
    specification: tuple[str, int] | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    slots: tuple[SlotRow, ...] = ()
    scalars: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A planned conversion, what it reads, and the small files beside the arrays."""

    conversion: Conversion
    reading: Reading
    files: Mapping[str, bytes]


def plan_conversion(
    family: Family,
    config: Config,
    reading: Reading,
    source: Dialect | None,
    target: Dialect,
    options: Options,
    facts: Facts | None = None,
) -> Conversion:
    """Every array of ``target`` from the canonical arrays of ``reading``, which ``source`` has read.

    Raises:
        DialectError: arrays are missing, have another shape than the family's algebra asks for, or would be left
            behind unexplained; all at once.
        ConfigError: a quantization that the target does not have, or that would round twice.
    """
    facts = facts or Facts()
    target = target.adapt(facts)
    known = QUANTIZATIONS if target.layout == "model.bin" else ("none", *target.quantizations)
    if options.quantization not in known:
        others = f"leave it out, or use {', '.join(target.quantizations)}" if target.quantizations else ""
        raise ConfigError(
            f"--quantize {options.quantization} does not go with --to {target.name}",
            todo=others or "leave it out, or use --to ctranslate2",
        )
    problems = _algebra(family, config, reading, source)
    unexplained: list[str] = []
    links = [link for link in expand(target.rules(config)) if not link.alternative]
    storages = {p.name: p.storage for p in family.parameters(config)}
    rows: list[Row] = []
    spelt: set[str] = set()
    for link in links:
        sources = tuple(storages.get(name, name) for name in link.canonical)
        spelt.update(sources)
        absent = [name for name in sources if name not in reading.origins]
        if absent:
            if not link.optional and all(name in storages.values() for name in absent):
                continue  # _algebra has said it
            if not link.optional:
                what = f"{', '.join(absent)} is needed for {', '.join(link.foreign)}"
                problems.append(Problem(what, todo="correct the dialect's rules"))
            continue
        try:
            rows += _rows(link, sources, reading, target, options)
        except ShapeMismatch as error:
            problems.append(Problem(f"{', '.join(link.foreign)} cannot be written", found=str(error)))
    ledger = _ledger(config, reading, source, rows, spelt, target.approximations(config), options)
    if options.strict:
        unexplained = [n for n, why in ledger.left.items() if why == _NOBODY or n in reading.origins]
        problems += [Problem(f"{n} would be left behind", found=ledger.left[n]) for n in unexplained]
    if problems:
        raise DialectError(
            f"this model cannot be converted to {target.name}",
            where=reading.checkpoint.path,
            problems=problems,
            todo="--no-strict leaves behind what is listed so" if unexplained else None,
        )
    _refuse_packed(rows, target, options)
    _refuse_rounding_twice(getattr(reading.checkpoint, "dequantized", {}), ledger, options)
    ordered = tuple(sorted(rows, key=lambda row: row.name))
    states, ledger = _slots(links, storages, reading, target, ledger)
    scalars = target.scalars(config, facts)
    ledger = _scalars_left(reading, scalars, source.left_behind(config) if source is not None else {}, ledger)
    header = target.header(config, facts)
    return Conversion(ordered, ledger, options, target.layout, target.specification(config), header, states, scalars)


def check_source(family: Family, config: Config, reading: Reading, source: Dialect | None, strict: bool) -> None:
    """That every array of a source is there, in its shape, and, if ``strict``, is known or explained.

    ``source`` is None where the names are the family's own.

    Raises:
        DialectError: all that is not so.
    """
    problems = _algebra(family, config, reading, source)
    explained = source.left_behind(config) if source is not None else {}
    unknown = [n for n in reading.unknown if not any(matches(pattern, n) for pattern in explained)]
    problems += [Problem(f"{name} would be passed on", found=_NOBODY) for name in unknown if strict]
    if problems:
        raise DialectError(
            "this model is not whole, or not only what its family is",
            where=reading.checkpoint.path,
            problems=problems,
            todo="--no-strict passes on arrays that no rule speaks of" if strict and unknown else None,
        )


def _slots(
    links: Sequence[Link], storages: Mapping[str, str], reading: Reading, target: Dialect, ledger: Ledger
) -> tuple[tuple[SlotRow, ...], Ledger]:
    if not reading.checkpoint.slots:
        return (), ledger
    if not target.keeps_slots:
        return (), replace(ledger, slots={"all": f"{target.name} keeps no optimizer state"})
    states, lost = plan_slots(links, storages, reading)
    return states, replace(ledger, slots=lost)


def _scalars_left(
    reading: Reading, written: Mapping[str, Array], explained: Mapping[str, str], ledger: Ledger
) -> Ledger:
    """``ledger`` with what the target does not keep of the optimizer's scalars, where it keeps any state."""
    if ledger.slots is None or "all" in ledger.slots:
        return ledger
    left = {
        name: next(
            (why for pattern, why in explained.items() if matches(pattern, name)), "the target has no place for it"
        )
        for name in reading.checkpoint.optimizer
        if name not in written and name != PLACEHOLDERS
    }
    return replace(ledger, slots={**ledger.slots, **left})


_NO_FLOAT64 = ("model.bin", "onnx", "tflite")
_NOBODY = "no rule of the dialect speaks of it"


def _algebra(family: Family, config: Config, reading: Reading, source: Dialect | None) -> list[Problem]:
    """Every storage is there, in the shape that the configuration says."""
    problems: list[Problem] = []

    @cache
    def theirs() -> dict[str, str]:
        links = expand(source.rules(config)) if source is not None else ()
        return {name: ", ".join(link.foreign) for link in reversed(links) for name in link.canonical}

    seen: set[str] = set()
    for p in family.parameters(config):
        if p.storage in seen:
            continue
        seen.add(p.storage)
        origin = reading.origins.get(p.storage)
        if origin is None:
            name = theirs().get(p.storage, p.storage)
            problems.append(Problem(f"{name} is missing", expected=f"{p.storage} of shape {list(p.shape)}"))
        elif packed := [f for f in origin.link.foreign if not reading.checkpoint.entries[f].readable]:
            kind = reading.checkpoint.entries[packed[0]].dtype
            problems.append(Problem(f"{packed[0]} is packed as {kind}, whose values cannot be converted"))
        elif origin.dtype not in FLOATS and p.axes != PACKED:
            what = f"{', '.join(origin.link.foreign)} holds {origin.dtype}, which is no weight without a scale"
            problems.append(Problem(what, expected=", ".join(FLOATS)))
        elif origin.shape != p.shape:
            problems.append(
                Problem(
                    f"{', '.join(origin.link.foreign)} has another shape than the configuration says",
                    expected=f"{list(p.shape)} ({', '.join(p.axes)}) for {p.storage}",
                    found=str(list(origin.shape)),
                )
            )
    extra = [name for name in reading.origins if name not in seen]
    problems += [
        Problem(f"{', '.join(reading.origins[n].link.foreign)} has no place in the family", found=n) for n in extra
    ]
    return problems


def _rows(link: Link, sources: tuple[str, ...], reading: Reading, target: Dialect, options: Options) -> list[Row]:
    origins = [reading.origins[name] for name in sources]
    shapes = link.op.backward_shapes([origin.shape for origin in origins])
    dtype = promoted([origin.dtype for origin in origins]) if origins else _generated_dtype(link.op)
    rows = []
    for index, (name, shape) in enumerate(zip(link.foreign, shapes, strict=True)):
        quantizable = target.quantizable(name)
        storage = storage_of(dtype, len(shape), quantizable, options.quantization)
        storage = replace(storage, dtype=_held(target.layout, storage.dtype))
        rows.append(Row(name, tuple(shape), dtype, sources, link.op, index, storage))
    return rows


def _held(layout: str, dtype: str) -> str:
    """``dtype`` as ``layout`` holds it: Marian's files are float32, the engines know no float64."""
    narrow = FLOATS if layout == "model.npz" else ("float64",) if layout in _NO_FLOAT64 else ()
    return "float32" if dtype in narrow else dtype


def _cast(rows: Sequence[Row], reading: Reading, options: Options) -> dict[str, str]:
    """Canonical name → how its dtype changes though nobody asked for it."""
    if options.quantization not in ("none", "int8"):
        return {}
    found: dict[str, str] = {}
    for row in rows:
        for name in row.sources if row.storage.scale == "none" else ():
            dtype = reading.origins[name].dtype
            if dtype != row.storage.dtype:
                exact = dtype != "float64"
                found[name] = f"{dtype} becomes {row.storage.dtype}{', which is exact' if exact else ': rounded'}"
    return found


def promoted(dtypes: Sequence[str]) -> str:
    """The dtype of several arrays joined."""
    found = sorted(set(dtypes))
    return found[0] if len(found) == 1 else np.result_type(*map(dtype_of, found)).name


def _generated_dtype(op: Op) -> str:
    last = op.ops[-1] if isinstance(op, Chain) else op
    return last.dtype if isinstance(last, Generated) else "float32"


def _ledger(
    config: Config,
    reading: Reading,
    source: Dialect | None,
    rows: Sequence[Row],
    spelt: set[str],
    approximations: Mapping[str, str],
    options: Options,
) -> Ledger:
    used: dict[str, tuple[str, ...]] = {}
    lossy: dict[str, str] = dict(approximations)
    left: dict[str, str] = {}
    for name, origin in reading.origins.items():
        for foreign in origin.link.foreign:
            used[foreign] = (*used.get(foreign, ()), name)
        if lost := origin.link.op.lost:
            lossy[name] = lost
        if name not in spelt:
            left[name] = "the target has no place for it"
    explained = source.left_behind(config) if source is not None else {}
    for array in reading.unknown:
        left[array] = next((why for pattern, why in explained.items() if matches(pattern, array)), _NOBODY)
    lossy.update(_cast(rows, reading, options))
    lossy.update(getattr(reading.checkpoint, "dequantized", {}))
    lossy.update(getattr(reading.checkpoint, "lossy", {}))
    checked = tuple(f for link in reading.checks for f in link.foreign)
    return Ledger(used, checked, left, tuple(row.name for row in rows if row.generated), lossy)


def _refuse_packed(rows: Sequence[Row], target: Dialect, options: Options) -> None:
    packed = (r for r in rows if already_quantized(r.dtype, target.quantizable(r.name), options.quantization))
    if row := next(packed, None):
        raise ConfigError(
            "this weight is quantized already",
            where=row.name,
            found=row.dtype,
            todo="leave --quantize out to pass it on as it is",
        )


def _refuse_rounding_twice(rounded: Mapping[str, str], ledger: Ledger, options: Options) -> None:
    dequantized = [name for name in rounded if name in ledger.used]
    if options.requantize or options.quantization == "none" or not dequantized:
        return
    raise ConfigError(
        "the source is quantized already, and would be rounded a second time",
        where=dequantized[0],
        found=rounded[dequantized[0]],
        todo="--requantize does it knowingly; the model in float32 would give a better one",
    )
