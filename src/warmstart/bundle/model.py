"""A pretrained model from wherever it is: a bundle, a run, a Marian directory or npz, a safetensors file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

from warmstart.bundle.layout import LINEAGE, MANIFEST, WEIGHTS, read_manifest, read_vocabularies, storages
from warmstart.checked import Config
from warmstart.errors import BundleError, ConfigError, DialectError, VocabularyError, WarmstartError
from warmstart.formats.checkpoint import Array, Checkpoint, SlotEntry
from warmstart.formats.detect import arrive, open_checkpoint
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Family, vocabulary_rows
from warmstart.models.model_bin_beside import manifest_of
from warmstart.models.registry import FAMILIES, possible
from warmstart.models.registry import dialect as dialect_called
from warmstart.redact import redact
from warmstart.sources.uri import resolve
from warmstart.spec.mapping import Link, Reading, expand, read_through
from warmstart.spec.ops import Identity
from warmstart.spec.templates import matches
from warmstart.vocabularies.vocabulary import Vocabulary


@dataclass
class Model:
    """An opened pretrained model in canonical names. ``reading`` is None where no dialect recognises it.

    ``origin`` is the dialect in which it was first found, where a bundle says so; ``dialect`` the one it is in now.
    ``remarks`` say how files were understood that left a choice.
    ``stored`` is the checkpoint as it lies there, where ``checkpoint`` is how its dialect sees it.
    ``asked`` is what a person said of the dialect, ``inputs`` are files that changed its arrays.
    """

    source: str
    path: Path
    checkpoint: Checkpoint
    family: Family | None = None
    dialect: str | None = None
    config: Config | None = None
    vocabularies: dict[str, Vocabulary] = field(default_factory=dict)
    reading: Reading | None = None
    lineage: dict[str, Any] = field(default_factory=dict)
    origin: str | None = None
    state: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    stored: Checkpoint | None = None
    asked: str | None = None
    inputs: list[Path] = field(default_factory=list)

    @property
    def beside(self) -> list[Path]:
        """Files it was read from, but for the checkpoint's own."""
        vocabularies = self.vocabularies.values()
        return [
            *(v.path for v in vocabularies if v.path is not None),
            *(path for v in vocabularies for path in v.beside),
            *self.inputs,
        ]

    def require(self) -> tuple[Family, Config, Reading]:
        """Family, configuration and canonical reading.

        Raises:
            DialectError: nothing recognises the checkpoint.
        """
        if self.family is None or self.config is None or self.reading is None:
            reasons = self.why_not()
            arrays = ", ".join(list(self.checkpoint.entries)[:3])
            raise DialectError(
                "no family recognises this checkpoint",
                where=self.path,
                expected=None
                if reasons
                else ", ".join(dict.fromkeys(d.name for f in FAMILIES for d in f.dialects() if d.readable)),
                found="; ".join(f"a model of {name}: {reason}" for name, reason in reasons.items())
                or f"{self.checkpoint.format} with arrays such as {arrays}",
                todo="its arrays as they are can be converted: --to safetensors, npz or torch",
            )
        return self.family, self.config, self.reading

    def why_not(self) -> dict[str, str]:
        """Of a checkpoint that nothing recognised: dialect → why it is none of its models, where it nearly is."""
        asked = ((d.name, d.why_not(self.checkpoint)) for f in FAMILIES for d in possible(f, self.checkpoint))
        return {name: reason for name, reason in asked if reason}

    def why_left(self, name: str) -> str | None:
        """Why nothing is lost with the source's array or scalar ``name``, of which no rule speaks; None if something
        may be."""
        family, config, _ = self.require()
        if self.dialect in (None, "warmstart"):
            return None
        explained = dialect_called(family, str(self.dialect)).left_behind(config)
        return next((why for pattern, why in explained.items() if matches(pattern, name)), None)

    def read(self, parameter: str) -> Array:
        """The canonical parameter ``parameter`` (ties resolved)."""
        family, config, reading = self.require()
        storage = next(p.storage for p in family.parameters(config) if p.name == parameter)
        return reading.read(storage)


class RunCheckpoint(Checkpoint):
    """A training checkpoint of ours: model.safetensors with optimizer.safetensors beside it."""

    def __init__(self, model: Checkpoint, optimizer: Checkpoint | None, step: int | None) -> None:
        slots: dict[tuple[str, str], SlotEntry] = {}
        for name, e in (optimizer.entries if optimizer else {}).items():
            slot, _, parameter = name.partition(".")
            slots[parameter, slot] = SlotEntry(parameter, slot, e.shape, e.dtype)
        super().__init__(
            model.path,
            model.format,
            model.entries,
            model.metadata,
            slots,
            step,
            files=[*model.files, *(optimizer.files if optimizer else ())],
        )
        self._model, self._optimizer = model, optimizer

    @property
    def mapped(self) -> bool:
        return self._model.mapped

    def read(self, name: str) -> Array:
        return self._model.read(name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        if self._optimizer is None:
            raise KeyError((parameter, slot))
        return self._optimizer.read(f"{slot}.{parameter}")


def open_model(
    source: str | Path, *, vocabularies: Sequence[str] = (), with_state: bool = False, dialect: str | None = None
) -> Model:
    """Open ``source``, headers only.

    Args:
        source: a path or URL.
        vocabularies: files to use instead of those the framework names.
        dialect: the one it must be in; by default whichever recognises it. ``NAME:WHAT`` says of the model what its
            files do not (``opennmt-tf:TransformerBase``).
        with_state: for a run, its last checkpoint with the optimizer instead of the finished bundle.

    Raises:
        SourceError, FormatError, DialectError, BundleError, VocabularyError.
    """
    return _open(source, vocabularies, with_state, None, dialect)


def open_anyway(source: str | Path, *, with_state: bool = False) -> tuple[Model, list[str]]:
    """As :func:`open_model`, but what its family, dialect or vocabularies cannot take is a note; arrays are listed.

    Raises:
        SourceError, FormatError, BundleError: not even its arrays can be listed.
    """
    notes: list[str] = []
    try:
        return _open(source, (), with_state, notes), notes
    except BundleError as error:
        try:
            arrived = arrive(source)
            return Model(redact(source), arrived[0], open_checkpoint(source, arrived)), [*notes, str(error)]
        except WarmstartError:
            raise error from None


def _open(
    source: str | Path,
    vocabularies: Sequence[str],
    with_state: bool,
    notes: list[str] | None,
    only: str | None = None,
) -> Model:
    path, choice = arrive(source)
    vocabularies = [str(resolve(file)) for file in vocabularies]
    finished = path / "model" if choice is None and (path / "model" / MANIFEST).is_file() else path
    if choice is not None or only not in (None, "warmstart"):
        return _open_foreign(source, (finished, choice), vocabularies, notes, only)
    if (path / "checkpoints").is_dir() and with_state:
        return open_run_state(redact(source), path)
    path = finished
    if (path / MANIFEST).is_file() and not (path / "model.bin").is_file():
        if vocabularies:
            raise ConfigError(
                "a bundle or run brings its own vocabularies",
                where=path,
                found=", ".join(vocabularies),
                todo="leave these out",
            )
        return _open_bundle(redact(source), path)
    if (path / "config.yaml").is_file() and not any(path.glob("*.npz")):
        raise BundleError(
            "this run has no finished model yet",
            where=path,
            expected=f"model/{MANIFEST}",
            todo="go on with the `warmstart train` command that began it",
        )
    if only == "warmstart":
        raise DialectError("this is no model of warmstart", where=path, expected=f"a bundle or run, with {MANIFEST}")
    return _open_foreign(source, (path, choice), vocabularies, notes)


def _open_foreign(
    source: str | Path,
    arrived: tuple[Path, str | None],
    files: Sequence[str],
    notes: list[str] | None,
    only: str | None = None,
) -> Model:
    path, checkpoint = arrived[0], open_checkpoint(source, arrived)
    name, _, what = (only or "").partition(":")
    for family in FAMILIES:
        for dialect in possible(family, checkpoint):
            if dialect.readable and name in ("", dialect.name) and dialect.recognise(checkpoint):
                chosen = dialect.told(what) if what else dialect
                view = chosen.view(checkpoint)
                model = Model(redact(source), path, view, family, chosen.name, origin=chosen.name, stored=checkpoint)
                kept = _manifest_of_export(path)
                model.asked, model.lineage, model.origin = (
                    only,
                    kept.get("lineage", {}),
                    kept.get("origin", chosen.name),
                )
                return _through(model, chosen, files, notes)
    if only is not None:
        raise _not_of(name, path, checkpoint)
    return Model(redact(source), path, checkpoint)


def _manifest_of_export(path: Path) -> dict[str, Any]:
    """What a ``model.bin`` of ours says of where it came from; nothing where it says nothing."""
    file = (path if path.is_dir() else path.parent) / "model.bin"
    kept = manifest_of(file) if file.is_file() else {}
    return {key: kept[key] for key, kind in (("lineage", dict), ("origin", str)) if isinstance(kept.get(key), kind)}


def _not_of(name: str, path: Path, checkpoint: Checkpoint) -> WarmstartError:
    """That nothing called ``name`` recognises the checkpoint, and what does."""
    readable = [(f, d) for f in FAMILIES for d in f.dialects() if d.readable]
    if name not in {d.name for _, d in readable}:
        known = ", ".join(sorted({d.name for _, d in readable}))
        return ConfigError(f"there is no dialect {name!r} to read", where=path, expected=known)
    reasons = [why for _, d in readable if d.name == name and (why := d.why_not(checkpoint))]
    others = [f"a model of {d.name} ({f.name})" for f, d in readable if d.recognise(checkpoint)]
    found = "; ".join(dict.fromkeys(reasons or others)) or checkpoint.format
    return DialectError(f"this is no model of {name}", where=path, found=found)


def read_as(model: Model, family: Family, config: Config, dialect: Dialect) -> None:
    """Read ``model`` through a dialect with a configuration that the checkpoint itself does not hold."""
    model.family, model.dialect, model.config = family, dialect.name, config
    model.reading = read_through(model.checkpoint, expand(dialect.rules(config)))
    model.reading.tie({p.name: p.storage for p in family.parameters(config)})


@contextmanager
def _placed(model: Model) -> Iterator[None]:
    """Errors of a dialect that do not say where they were found are the model's."""
    try:
        yield
    except (VocabularyError, DialectError) as error:
        if error.where is not None:
            raise
        said = error.problem
        raise type(error)(
            said.what, where=model.path, expected=said.expected, found=said.found, todo=said.todo,
            problems=error.problems,
        ) from None  # fmt: skip


def _through(model: Model, dialect: Dialect, files: Sequence[str], notes: list[str] | None) -> Model:
    """Vocabularies, configuration and reading of ``model``, whose dialect was recognised."""
    if notes is not None and model.family is not None:
        notes += [f"by the plug-in {name}" for name in FAMILIES.plugins(model.family.name, dialect.name)]
    with _noting(notes), _placed(model):
        model.vocabularies = dialect.read_vocabularies(model.checkpoint, files)
    if not dialect.says_config(model.checkpoint) or model.family is None:
        return model
    with _noting(notes), _placed(model):
        model.remarks += dialect.remarks(model.checkpoint)
        read_as(model, model.family, dialect.read_config(model.checkpoint), dialect)
        check_vocabulary_sizes(model)
    model.remarks += _repeated(model.vocabularies)
    if notes is not None:
        notes += model.remarks
    return model


def _repeated(vocabularies: Mapping[str, Vocabulary]) -> Iterator[str]:
    """Which vocabularies have tokens on several rows; where they may, the first row counts."""
    different: dict[int, int] = {}
    for side, vocabulary in vocabularies.items():
        tokens = getattr(vocabulary, "tokens", ())
        if id(tokens) not in different:  # of two sides it may be one table
            different[id(tokens)] = len(vars(vocabulary).get("index") or {*tokens})
        if (repeats := len(tokens) - different[id(tokens)]) > 0:
            again = next(token for token, count in Counter(tokens).items() if count > 1)
            yield f"tokens of the {side} vocabulary occur again ({repeats}, such as {again!r}): the first row counts"


@contextmanager
def _noting(notes: list[str] | None) -> Iterator[None]:
    """Errors become ``notes`` where there are notes."""
    try:
        yield
    except (DialectError, VocabularyError, BundleError) as error:
        if notes is None:
            raise
        notes.append(str(error))


def check_vocabulary_sizes(model: Model) -> None:
    """Every vocabulary must have as many tokens as its embedding has rows.

    Raises:
        BundleError: sizes differ.
    """
    family, config, _ = model.require()
    sizes = vocabulary_rows(family, config)
    unknown = [side for side in model.vocabularies if side not in sizes]
    if unknown:
        raise BundleError(f"the model has no place for the {' and '.join(unknown)} vocabulary", where=model.path)
    for side, vocabulary in model.vocabularies.items():
        rows = sizes[side]
        if len(vocabulary) != rows:
            raise BundleError(
                f"the {side} vocabulary does not fit the model",
                where=model.path,
                expected=f"{rows} tokens, one for each row",
                found=f"{len(vocabulary)} tokens",
                todo="give the vocabulary that the model was trained with",
            )


def _identity_links(family: Family, config: Config) -> list[Link]:
    return [Link((e.name,), (e.name,), Identity()) for e in storages(family, config)]


def _open_bundle(source: str, path: Path) -> Model:
    manifest, family, config = read_manifest(path)
    if not (path / WEIGHTS).is_file():
        raise BundleError(
            "this model directory holds no weights to start from",
            where=path,
            expected=WEIGHTS,
            todo="give the bundle it was converted from",
        )
    checkpoint = open_checkpoint(path / WEIGHTS)
    files = manifest.get("files")
    entry = files.get(WEIGHTS) if isinstance(files, Mapping) else None
    size = entry.get("bytes") if isinstance(entry, Mapping) else None
    if size is not None and (path / WEIGHTS).stat().st_size != size:
        raise BundleError(
            "the bundle's weights are not complete",
            where=path / WEIGHTS,
            expected=f"{size} bytes",
            found=f"{(path / WEIGHTS).stat().st_size} bytes",
        )
    model = Model(source, path, checkpoint, family, "warmstart", config, read_vocabularies(path))
    model.reading = read_through(checkpoint, _identity_links(family, config))
    lineage = path / LINEAGE
    model.lineage = _object(lineage) if lineage.is_file() else {}
    model.origin = manifest.get("origin")
    check_vocabulary_sizes(model)
    return model


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in one of our own files.

    Raises:
        BundleError: there is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError("this file cannot be read", where=path, expected="a JSON object", found=error) from None
    return content


def open_run_state(source: str, run: Path) -> Model:
    """The last checkpoint of a finished run, with its optimizer."""
    finished = _open_bundle(source, run / "model")
    states = sorted(run.glob("checkpoints/step-*/state.json"))
    if not states:
        return finished
    family, config, _ = finished.require()
    model = open_run_checkpoint(states[-1].parent, family, config, finished.vocabularies)
    model.source, model.lineage = source, finished.lineage
    return model


def open_run_checkpoint(folder: Path, family: Family, config: Config, vocabularies: Mapping[str, Vocabulary]) -> Model:
    """The checkpoint ``RUN/checkpoints/STEP`` of a run, finished or not, with its optimizer; ``path`` is the run's."""
    run, optimizer = folder.parent.parent, folder / "optimizer.safetensors"
    state = _object(folder / "state.json")
    checkpoint = RunCheckpoint(
        open_checkpoint(folder / WEIGHTS),
        open_checkpoint(optimizer) if optimizer.is_file() else None,
        state.get("step"),
    )
    model = Model(str(run), run, checkpoint, family, "warmstart", config, dict(vocabularies), state=state)
    model.reading = read_through(checkpoint, _identity_links(family, config))
    return model
