"""Dialect to dialect: canonical names in between, one array at a time, the whole output complete or invisible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

from warmstart import __version__
from warmstart.bundle.layout import (
    LINEAGE,
    VOCABULARIES,
    WEIGHTS,
    describe_files,
    files_of,
    write_manifest,
    write_record,
    write_vocabularies,
)
from warmstart.bundle.layout import MANIFEST as BUNDLE
from warmstart.bundle.model import Model
from warmstart.errors import ConfigError, DialectError, SourceError, VocabularyError
from warmstart.export.as_it_is import FORMATS, plan_as_it_is
from warmstart.export.extras import VMAP, Extras
from warmstart.export.plan import Job, Options, plan_conversion
from warmstart.export.quantizations import QUANTIZATIONS
from warmstart.export.requantize import is_direct, plan_requantization
from warmstart.export.run import Outcome, run_conversion
from warmstart.models.family import Dialect, Facts, Family, vocabulary_rows
from warmstart.models.registry import FAMILIES, dialect, find_dialect
from warmstart.sources.uri import shown
from warmstart.spec.mapping import Rule, rule
from warmstart.storage.atomic import new_directory
from warmstart.storage.hashing import Digests

MANIFEST = "conversion.json"
MOST_BEAMS = 2**31 - 1  # what 32 bits of a TensorFlow Lite file hold


def dialects() -> tuple[str, ...]:
    """Names of every dialect that some family can be written in, ``warmstart``, and formats that need no family."""
    return tuple(sorted({d.name for f in FAMILIES for d in f.dialects() if d.writable} | {"warmstart", *FORMATS}))


class BundleDialect(Dialect):
    """Our own bundle: canonical names as they are."""

    name = "warmstart"
    layout = WEIGHTS

    def __init__(self, family: Family) -> None:
        self._family = family

    def rules(self, config: Any) -> list[Rule]:
        return [rule(name, name) for name in dict.fromkeys(p.storage for p in self._family.parameters(config))]

    def header(self, config: Any, facts: Facts) -> Mapping[str, str]:
        return {"format": "warmstart"}

    def files(self, config: Any, vocabularies: Mapping[str, Any], facts: Facts) -> Mapping[str, bytes]:
        return {}


def convert_model(
    model: Model,
    destination: Path,
    to: str,
    *,
    quantize: str | None = None,
    force: bool = False,
    strict: bool = True,
    requantize: bool = False,
    report: bool = False,
    beams: int | None = None,
    copy_files: Sequence[str] = (),
    vmap: str | Path | None = None,
    progress: bool = False,
    digests: Digests | None = None,
    check: Callable[[Path], None] | None = None,
    keep: Sequence[Path] = (),
) -> dict[str, object]:
    """Write ``model`` at ``destination`` in the dialect ``to``; a description of what was written.

    ``digests`` may have begun to hash files of the source. ``check`` is called with the complete output before anybody
    sees it; if it raises, nothing was written. ``keep`` are more files that the destination must not contain.

    Raises:
        ConfigError: unknown dialect, or a quantization that it does not know or that would round twice.
        DialectError: what the dialect cannot express, or the ledger does not explain; all at once.
        StorageError: the destination exists and ``force`` is False, or cannot be written.
        SourceError: the destination would replace the source.
    """
    own = _target(model, to)
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantize!r} is not supported", expected=", ".join(QUANTIZATIONS))
    if to in FORMATS and check is not None:
        raise ConfigError(
            f"--to {to} keeps every array as it is, and makes no model whose answers could be compared",
            todo="leave out --verify; `warmstart diff` compares the arrays",
        )
    if beams is not None and not (own is not None and own.names_beams and 0 < beams <= MOST_BEAMS):
        raise ConfigError(
            "a number of beams goes with TensorFlow Lite only, whose files name one",
            expected=f"1 to {MOST_BEAMS}, with --to tflite",
            found=f"{beams}, with --to {to}",
        )
    options = Options(quantize or "none", strict, requantize, report, beams)
    extras = Extras.of(model.path, copy_files, vmap)
    folder = model.checkpoint.path if model.checkpoint.path.is_dir() else model.checkpoint.path.parent
    sources = [model.path, *(folder / file for file in model.checkpoint.files), *model.beside]
    refuse_replacing(destination, [*sources, *keep, *extras.files.values()])
    job = _planned(model, to, options)
    layout = job.conversion.layout
    files = {name: content for name, content in job.files.items() if vmap is None or name != VMAP}
    extras.refuse({*files, FORMATS.get(layout, layout), MANIFEST, BUNDLE, LINEAGE, VOCABULARIES})
    with (
        Digests() if digests is None else nullcontext(digests) as hashed,
        new_directory(destination, force=force) as temporary,
    ):
        for path in (*(path for _, path in files_of(model.checkpoint)), *model.beside):
            hashed.begin(path)

        def write_the_rest() -> None:
            for name, content in files.items():
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_bytes(content)
            for name, path in extras.files.items():
                shutil.copyfile(path, temporary / name)
            if model.family is not None and model.config is not None and to in ("warmstart", "ctranslate2"):
                write_vocabularies(temporary, model.vocabularies)

        outcome = run_conversion(job.conversion, job.reading, temporary, progress=progress, meanwhile=write_the_rest)
        _write_records(temporary, model, to, options, job, hashed, extras)
        if check is not None:
            check(temporary)
    total = sum(f.stat().st_size for f in destination.rglob("*") if f.is_file())
    facts: dict[str, object] = {
        "destination": str(destination), "dialect": to, "quantization": options.quantization, "bytes": total,
        "arrays": len(job.conversion.rows), "aliases": dict(outcome.aliases),
        "ledger": job.conversion.ledger.summary(),
    }  # fmt: skip
    remarks = [*model.remarks, *_left_behind(model, files, extras)]
    if remarks:
        facts["remarks"] = remarks
    if plugins := _plugins(model, to):
        facts["plugins"] = plugins
    if report:
        facts["losses"] = _losses(outcome)
    return facts


def _left_behind(model: Model, files: Mapping[str, bytes], extras: Extras) -> list[str]:
    """Files of the source that the output lacks and nobody may miss unawares."""
    map_of = (model.stored or model.checkpoint).metadata.get("vocabulary_map")
    if not map_of or VMAP in {*files, *extras.files}:
        return []
    return [f"{map_of['file']}, the vocabulary map of the source, stays behind: --vmap puts it beside the output"]


def _target(model: Model, to: str) -> Dialect | None:
    """The dialect ``to`` of the model's family; None where ``to`` needs no family.

    Raises:
        ConfigError: models like ``model`` are not written in the dialect ``to``; those that they are written in.
    """
    family = model.family
    if to in ("warmstart", *FORMATS):
        return None
    own = find_dialect(family, to) if family is not None else None
    if (own is not None and own.writable) or (family is None and to in dialects()):
        return own
    if family is None or (own is None and to not in dialects()):
        what = f"there is no dialect {to!r} to convert to"
    else:
        what = f"{family.name} models are " + (f"read from {to}, not written" if own else f"not converted to {to}")
    written: Sequence[str] = dialects()
    if family is not None:
        written = [*(d.name for d in family.dialects() if d.writable), "warmstart", *FORMATS]
    raise ConfigError(what, expected=", ".join(written))


def write_in_dialect(model: Model, directory: Path, to: str, *, optimizer: Mapping[str, float] | None = None) -> None:
    """The files of ``model`` in the dialect ``to``, in a directory that is there, without a record of the conversion.
    ``optimizer`` are scalars that the checkpoint does not have.

    Raises ``DialectError``, ``StorageError``.
    """
    job = _planned(model, to, Options(), optimizer)
    run_conversion(job.conversion, job.reading, directory)
    for name, content in job.files.items():
        (directory / name).write_bytes(content)


def _planned(model: Model, to: str, options: Options, optimizer: Mapping[str, float] | None = None) -> Job:
    if to in FORMATS:
        return plan_as_it_is(model, to, options)
    return (
        plan_requantization(model, options)
        if is_direct(model, to)
        else _through_canonical(model, to, options, optimizer)
    )


def _through_canonical(model: Model, to: str, options: Options, optimizer: Mapping[str, float] | None) -> Job:
    family, config, reading = model.require()
    target = BundleDialect(family) if to == "warmstart" else dialect(family, to)
    sides = set(vocabulary_rows(family, config)) - set(model.vocabularies)
    if sides and to != "warmstart" and target.needs_vocabularies:
        raise VocabularyError(
            f"the {' and '.join(sorted(sides))} vocabulary is not known",
            where=model.path,
            found="; ".join(model.remarks) or None,
            todo="give " + " ".join(f"--vocab {side.upper()}_FILE" for side in vocabulary_rows(family, config)),
        )
    origin = model.origin or model.dialect or "warmstart"
    dtype = next((origin.dtype for origin in reading.origins.values()), "float32")
    checkpoint = model.checkpoint
    source = None if model.dialect in (None, "warmstart") else dialect(family, str(model.dialect))
    same = source is not None and (source.framework or source.name) == (target.framework or target.name)
    metadata = checkpoint.metadata if same else {}
    updates = max(model.state.get("optimizer_steps", {}).values(), default=None)
    scalars = {**(optimizer or {}), **checkpoint.optimizer}
    facts = Facts(
        origin, metadata, dtype, checkpoint.step or 0, scalars, bool(checkpoint.slots),
        model.state.get("betas"), updates, model.vocabularies, options.beams,
    )  # fmt: skip
    try:
        with catch_warnings():  # numpy 1 warns of what numpy 2 refuses
            filterwarnings("error", message=".*out-of-bound Python integers", category=DeprecationWarning)
            conversion = plan_conversion(family, config, reading, source, target, options, facts)
        files = target.adapt(facts).files(config, model.vocabularies, facts)
    except DialectError as error:
        raise _placed(error, model) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        what = "a file of the tokenizer that came along with the vocabulary is damaged"
        raise VocabularyError(what, where=model.source, expected="JSON", found=error) from None
    except (OverflowError, DeprecationWarning) as error:
        raise DialectError(f"a number of the model does not fit into {to}", where=model.source, found=error) from None
    return Job(conversion, reading, files)


def _placed(error: DialectError, model: Model) -> DialectError:
    """``error``, which a dialect raised of a configuration, with the model whose it is."""
    if error.where is not None:
        return error
    said = error.problem
    todo = said.todo or "--to warmstart makes a bundle of it, --to safetensors keeps its arrays as they are"
    return DialectError(
        said.what, where=model.source, expected=said.expected, found=said.found, todo=todo, problems=error.problems
    )


def _plugins(model: Model, to: str) -> list[str]:
    return FAMILIES.plugins(model.family.name, model.dialect, to) if model.family is not None else []


def refuse_replacing(destination: Path, sources: Iterable[Path]) -> None:
    """
    Raises:
        SourceError: ``destination`` is one of ``sources`` or contains one, or the link by which it is named.
    """
    there = destination.resolve()
    for source in sources:
        for here in (source.resolve(), source.parent.resolve() / source.name):
            if here == there or here.is_relative_to(there):
                raise SourceError(
                    "the destination would replace its own source",
                    where=destination,
                    found=source,
                    todo="choose another",
                )


def _write_records(
    directory: Path, model: Model, to: str, options: Options, job: Job, hashed: Digests, extras: Extras
) -> None:
    """``conversion.json`` and, where a family knows the model, what makes the output one of our models."""
    files = describe_files(model.checkpoint, hashed, model.beside)
    name = shown(model.source)
    record: dict[str, Any] = {
        "tool": "warmstart",
        "version": __version__,
        "source": {"name": name, "dialect": model.dialect or model.checkpoint.format, "files": files},
        "target": {"dialect": to, "layout": job.conversion.layout},
        "options": {
            "from": model.asked, "quantization": options.quantization, "strict": options.strict,
            "requantize": options.requantize, "files": sorted(extras.files),
        },
        "ledger": job.conversion.ledger.summary(),
    }  # fmt: skip
    if model.lineage:
        record["source"]["lineage"] = model.lineage
    if model.remarks:
        record["remarks"] = model.remarks
    if plugins := _plugins(model, to):
        record["plugins"] = plugins
    write_record(directory / MANIFEST, record)
    family, config = model.family, model.config
    if family is None or config is None:
        return
    lineage = {"converted_from": {"source": name, "files": files}, "ancestor": model.lineage}
    origin = model.origin or model.dialect
    if to == "warmstart":
        write_record(directory / LINEAGE, lineage)
        write_manifest(directory, family, config, origin=origin)
    elif to == "ctranslate2":
        more = {"dialect": to, "origin": origin, "quantization": options.quantization, "lineage": lineage}
        write_manifest(directory, family, config, hashed=False, **more)


def _losses(outcome: Outcome) -> list[dict[str, object]]:
    return [
        {"array": name, "dtype": dtype, "largest": loss.largest, "relative": loss.relative}
        for name, (dtype, loss) in outcome.losses.items()
    ]


__all__ = ["MANIFEST", "BundleDialect", "convert_model", "dialects", "refuse_replacing", "write_in_dialect"]
