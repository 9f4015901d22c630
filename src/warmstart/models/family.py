"""What a family says about itself, as data: parameters, stages, dialects and, where there is one, a torch module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Protocol

from warmstart.checked import Config
from warmstart.errors import ConfigError, DialectError
from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.lean import dataclass
from warmstart.spec.mapping import Rule
from warmstart.vocabularies.vocabulary import Vocabulary

PACKED = ("packed", "packed")  # axes of a matrix of bits, whose integers are no values


@dataclass(frozen=True)
class Parameter:
    """One canonical parameter.

    ``axes`` names every axis; an axis ``vocabulary:source`` is indexed by the rows of that vocabulary, and
    ``positions`` by positions; all parameters but those of the axes ``PACKED`` are of floating point. Parameters with
    one ``storage`` are one array. ``initialiser`` is one of ``glorot`` (uniform ±√(6/(fan_in+fan_out)), Glorot & Bengio
    2010), ``embedding`` (uniform ±√(3/width)), ``zeros`` and ``ones``.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stage: str
    initialiser: str
    storage: str = ""

    def __post_init__(self) -> None:
        if not self.storage:
            object.__setattr__(self, "storage", self.name)

    @property
    def vocabulary(self) -> str | None:
        """The vocabulary that indexes the first axis, if one does."""
        first = self.axes[0] if self.axes else ""
        return first.removeprefix("vocabulary:") if first.startswith("vocabulary:") else None

    @property
    def size(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Facts:
    """What a writing dialect may know beyond the family's configuration.

    Attributes:
        dialect: in which the model was first found (``warmstart`` where nobody knows): the details in which a
            framework's own converters differ follow it.
        metadata: of the source's checkpoint, when it is of the framework that is written: options that the family
            does not need return as they were.
        optimizer: scalars of the source's optimizer.
        slots: whether the source has the optimizer's state of its parameters.
        betas: the decays of Adam's moments, where the source is a run with them.
        updates: how many updates these hold, if that is known; else ``step`` says it.
        vocabularies: of the model, by side.
        beams: that the model shall name to its client, where a person said how many.
    """

    dialect: str = "warmstart"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    step: int = 0
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    slots: bool = False
    betas: Sequence[float] | None = None
    updates: int | None = None
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    beams: int | None = None


class Dialect(ABC):
    """How one framework spells one family: names, layouts, configuration, vocabularies. Data, read both ways.

    A dialect that is read has ``recognise``, ``read_config`` and ``read_vocabularies``; one that is written has
    ``layout`` and ``files``; the table of ``rules`` serves both. None of them reads weights.

    Attributes:
        framework: whose dialect it is, where one framework has several; "" where it has this one.
        layout: how the arrays lie on disk when written, a key of ``export.layouts.LAYOUTS``; "" where nothing is.
        readable: whether models of this dialect can be opened.
        needs_vocabularies: whether models of this dialect are nothing without their vocabularies; where they are not,
            a source may lack them.
        keeps_slots: whether its layout has a place for optimizer state.
        quantizations: what ``--quantize`` may ask of a layout other than ``model.bin``.
        names_beams: whether what is written says how many beams a search shall have.
    """

    name: str
    framework: str = ""
    layout: str = ""
    readable: bool = True
    needs_vocabularies: bool = True
    keeps_slots: bool = False
    quantizations: tuple[str, ...] = ()
    names_beams: bool = False

    @property
    def writable(self) -> bool:
        return bool(self.layout)

    @abstractmethod
    def rules(self, config: Any) -> list[Rule]:
        """The table of names and layouts for this configuration.

        Canonical names are those of the family's parameters, tied or not: that several share a storage is the
        family's knowledge, and what a tied parameter is called is this table's.

        Raises:
            DialectError: the dialect cannot express the configuration.
        """

    def recognise(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is written in this dialect (headers and metadata only)."""
        return False

    def why_not(self, checkpoint: Checkpoint) -> str | None:
        """Why a checkpoint of this framework is not one of this dialect's; None where it is, or is another's."""
        return None

    def told(self, what: str) -> Dialect:
        """This dialect knowing ``what`` a person says of the model, as in ``--from NAME:WHAT``.

        Raises:
            ConfigError: there is nothing to be said.
        """
        raise ConfigError(f"nothing is to be said of models of {self.name}", found=what, expected=f"--from {self.name}")

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as the rules speak of it: older names renamed, quantized arrays dequantized when read."""
        return checkpoint

    def says_config(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint holds its configuration; else a person must give it (``model:`` of a training)."""
        return True

    def read_config(self, checkpoint: Checkpoint) -> Any:
        """The family's configuration. Every option of the source is understood here, or refused.

        Raises:
            DialectError: options that the family cannot express, all of them at once.
        """
        raise DialectError(f"models of {self.name} are written, not read", where=checkpoint.path)

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        """Vocabularies by side; from ``files`` when given, else from where the framework keeps them."""
        raise DialectError(f"models of {self.name} are written, not read", where=checkpoint.path)

    def remarks(self, checkpoint: Checkpoint) -> Sequence[str]:
        """What a person should know of how the files were understood, though nothing is wrong."""
        return ()

    def left_behind(self, config: Any) -> Mapping[str, str]:
        """Patterns (``spec.templates.matches``) of the source's arrays that no rule speaks of, and of its optimizer's
        scalars → the reason why nothing is lost with them."""
        return {}

    def approximations(self, config: Any) -> Mapping[str, str]:
        """What of the configuration this dialect, when written, computes a little otherwise → how. It is listed."""
        return {}

    def smoothed(self, config: Any) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Where SmoothQuant applies: name of the activation's scales → (arrays of a norm, weights that read it)."""
        return {}

    def adapt(self, facts: Facts) -> Dialect:
        """This dialect as the framework's own converter from ``facts.dialect`` writes it."""
        return self

    def specification(self, config: Any) -> tuple[str, int] | None:
        """Of a ``model.bin``: the specification's name and revision."""
        return None

    def header(self, config: Any, facts: Facts) -> Mapping[str, str]:
        """What the file of the arrays says besides them: metadata of safetensors, texts inside an npz."""
        return {}

    def scalars(self, config: Any, facts: Facts) -> Mapping[str, Array]:
        """Numbers that the file of the arrays holds beside them: the step, the optimizer's."""
        return {}

    def files(self, config: Any, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        """Every file beside the arrays by name, byte by byte as the framework writes it.

        Raises:
            DialectError, VocabularyError: the framework cannot express them.
        """
        raise DialectError(f"models of {self.name} are read, not written")

    def quantizable(self, name: str) -> bool:
        """Whether the written array ``name`` is a weight that a quantization makes integers of."""
        return False


class Family(Protocol):
    """An architecture. ``order`` lists stages from input to output only where the family has such an order."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> int: ...

    @property
    def config_type(self) -> type[Config]: ...

    @property
    def stages(self) -> tuple[str, ...]: ...

    @property
    def order(self) -> tuple[str, ...] | None: ...

    @property
    def vocabulary_sizes(self) -> Mapping[str, str]:
        """Side → key of the configuration that holds the size of its vocabulary."""

    def parameters(self, config: Any) -> tuple[Parameter, ...]: ...

    def behaviour(self, config: Any) -> dict[str, object]:
        """Settings that change what equally shaped weights mean."""

    def dialects(self) -> Sequence[Dialect]: ...

    def build(self, config: Any) -> Any:
        """The torch module, uninitialised where built on the ``meta`` device.

        Where parameters share a storage, its ``tie()`` makes them one again.
        """


def vocabulary_rows(family: Family, config: Any) -> dict[str, int]:
    """Side → tokens of its vocabulary: those that every model of the family has, and those of further tables."""
    rows = {side: int(getattr(config, key)) for side, key in family.vocabulary_sizes.items()}
    tables = [p for p in family.parameters(config) if p.vocabulary is not None]
    return rows | {str(p.vocabulary): p.shape[0] for p in tables if p.vocabulary not in rows}


@dataclass(frozen=True)
class Composite:
    """Child families mounted under prefixes, with their parameters, axes and stages.

    Stages, vocabularies and storages of a child get its prefix, so that ``drop: [left.encoder]`` means one child's.
    There is no order of stages from input to output, and no dialect of its own.
    """

    children: Mapping[str, tuple[Family, Config]]
    name: str = "composite"
    revision: int = 1

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(f"{prefix}.{s}" for prefix, (family, _) in self.children.items() for s in family.stages)

    order: tuple[str, ...] | None = None

    @property
    def vocabulary_sizes(self) -> dict[str, str]:
        return {
            f"{prefix}.{side}": f"{prefix}.{key}"
            for prefix, (family, _) in self.children.items()
            for side, key in family.vocabulary_sizes.items()
        }

    def parameters(self, config: object = None) -> tuple[Parameter, ...]:
        return tuple(
            replace(
                p,
                name=f"{prefix}.{p.name}",
                stage=f"{prefix}.{p.stage}",
                storage=f"{prefix}.{p.storage}",
                axes=tuple(
                    f"vocabulary:{prefix}.{a.removeprefix('vocabulary:')}" if a.startswith("vocabulary:") else a
                    for a in p.axes
                ),
            )
            for prefix, (family, child) in self.children.items()
            for p in family.parameters(child)
        )

    def behaviour(self, config: object = None) -> dict[str, object]:
        return {
            f"{prefix}.{key}": value
            for prefix, (family, child) in self.children.items()
            for key, value in family.behaviour(child).items()
        }
