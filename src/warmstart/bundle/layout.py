"""How a bundle lies on disk.

``warmstart.json`` (format version, family and revision, configuration, files with sizes and SHA-256) ·
``model.safetensors`` (one array per storage, canonical names) · ``vocabularies/SIDE.*`` · ``lineage.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from warmstart import __version__
from warmstart.checked import Config
from warmstart.errors import BundleError, Problem, validation_problems
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.safetensors import write_safetensors
from warmstart.models.family import Family
from warmstart.models.registry import FAMILIES
from warmstart.sources.cache import Cache
from warmstart.storage.atomic import new_directory
from warmstart.storage.hashing import sha256
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

FORMAT_VERSION = 1
MANIFEST = "warmstart.json"
WEIGHTS = "model.safetensors"
LINEAGE = "lineage.json"
VOCABULARIES = "vocabularies"


def write_bundle(
    path: Path,
    family: Family,
    config: Config,
    arrays: Iterable[Array],
    vocabularies: Mapping[str, Vocabulary],
    lineage: Mapping[str, Any],
    *,
    force: bool = False,
) -> None:
    """Write a bundle that is complete or invisible.

    ``arrays`` come in the order of the family's storages (see :func:`storages`), float32.

    Raises:
        StorageError: ``path`` exists and ``force`` is False, or it cannot be written.
    """
    with new_directory(path, force=force) as temporary:
        entries = storages(family, config)
        write_safetensors(temporary / WEIGHTS, entries, arrays, {"format": "warmstart"})
        write_vocabularies(temporary, vocabularies)
        write_record(temporary / LINEAGE, lineage)
        write_manifest(temporary, family, config)


def write_vocabularies(directory: Path, vocabularies: Mapping[str, Vocabulary]) -> None:
    """``vocabularies/SIDE.suffix`` for every side."""
    (directory / VOCABULARIES).mkdir()
    different = {id(vocabulary): vocabulary for vocabulary in vocabularies.values()}
    contents = {key: vocabulary.file() for key, vocabulary in different.items()}
    for side, vocabulary in vocabularies.items():
        suffix, content = contents[id(vocabulary)]
        (directory / VOCABULARIES / f"{side}{suffix}").write_bytes(content)


def write_manifest(directory: Path, family: Family, config: Config, *, hashed: bool = True, **more: Any) -> None:
    """``warmstart.json`` for everything that lies in ``directory`` already: sizes and, if ``hashed``, SHA-256."""
    files = {
        str(f.relative_to(directory)): {"bytes": f.stat().st_size, **({"sha256": sha256(f)} if hashed else {})}
        for f in sorted(directory.rglob("*"))
        if f.is_file()
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "warmstart_version": __version__,
        "family": family.name,
        "family_revision": family.revision,
        "config": config.model_dump(mode="json"),
        **more,
        "files": files,
    }
    write_record(directory / MANIFEST, manifest)


def write_record(path: Path, record: object) -> None:
    """JSON; what of a file's name is not UTF-8 becomes an escape, as which it is read again."""
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8", "backslashreplace")


def storages(family: Family, config: Config) -> list[Entry]:
    """Every storage of the family once, in the order of its parameters."""
    found: dict[str, Entry] = {}
    for p in family.parameters(config):
        found.setdefault(p.storage, Entry(p.storage, p.shape, "float32"))
    return list(found.values())


def read_manifest(path: Path) -> tuple[dict[str, Any], Family, Config]:
    """The manifest of the bundle (or exported model) at ``path``, its family and configuration.

    Raises:
        BundleError: damaged, or written by a newer version (both versions are named).
    """
    where = path / MANIFEST
    try:
        manifest = json.loads(where.read_text("utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError("the bundle's manifest cannot be read", where=where, found=error) from None
    version = manifest.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise BundleError("the bundle does not say its format version", where=where, found=repr(version))
    if version > FORMAT_VERSION:
        raise BundleError(
            "the bundle was written by a newer warmstart",
            where=where,
            expected=f"format version {FORMAT_VERSION} or older (this is warmstart {__version__})",
            found=f"format version {version} (warmstart {manifest.get('warmstart_version')})",
            todo="upgrade warmstart",
        )
    found = FAMILIES.named(str(manifest.get("family")))
    if found is None:
        raise BundleError("the bundle's family is unknown", where=where, found=repr(manifest.get("family")))
    revision = manifest.get("family_revision")
    if not isinstance(revision, int) or revision > found.revision:
        raise BundleError(
            f"the bundle is of a newer revision of {found.name}",
            where=where,
            expected=f"revision {found.revision} or older",
            found=f"revision {revision} (warmstart {manifest.get('warmstart_version')})",
            todo="upgrade warmstart",
        )
    try:
        return manifest, found, found.config_type.model_validate(manifest.get("config"))
    except ValueError as error:
        problems = validation_problems(error, "config.")
        raise BundleError("the bundle's configuration is invalid", where=where, problems=problems) from None


def read_vocabularies(path: Path) -> dict[str, Vocabulary]:
    """Vocabularies of the bundle at ``path`` by side."""
    return {f.stem: load_vocabulary(f) for f in sorted((path / VOCABULARIES).glob("*"))}


def verify(path: Path) -> None:
    """Compare every file with the manifest, which knows of exported models sizes only.

    Raises:
        BundleError: files are missing, of another size or have another SHA-256; all are named.
    """
    manifest, _, _ = read_manifest(path)
    problems: list[Problem] = []
    for name, facts in manifest.get("files", {}).items():
        f = path / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            problems.append(Problem(f"{name} leaves the bundle"))
        elif not f.is_file():
            problems.append(Problem(f"{name} is missing"))
        elif f.stat().st_size != facts["bytes"]:
            problems.append(
                Problem(
                    f"{name} has another size", expected=f"{facts['bytes']} bytes", found=f"{f.stat().st_size} bytes"
                )
            )
        elif "sha256" in facts and sha256(f) != facts["sha256"]:
            problems.append(Problem(f"{name} has other content", expected=facts["sha256"]))
    if problems:
        raise BundleError(
            "the bundle is not what was written", where=path, problems=problems, todo="copy it again from where it came"
        )


def files_of(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """Name and path of each file; of a checkpoint that is a directory (T5X, Orbax), of all in it."""
    path = checkpoint.path
    folder = path if path.is_dir() else path.parent
    for name in checkpoint.files:
        if folder == path and name == Path(path.name):
            yield from ((f.relative_to(path).as_posix(), f) for f in sorted(path.rglob("*")) if f.is_file())
        else:
            yield (folder / name).name, folder / name


def describe_files(
    checkpoint: Checkpoint, digest: Callable[[Path], str] = sha256, beside: Iterable[Path] = ()
) -> list[dict[str, Any]]:
    """Names, sizes and SHA-256 of a checkpoint's files for a lineage, and the URLs of those that were fetched (without
    secrets). Names only: no absolute path is stored. ``digest`` gives the SHA-256 of a file; ``beside`` are further
    files that were read."""
    cache, out = Cache(), []
    files = {f.resolve(): (name, f) for name, f in files_of(checkpoint)}
    for f in beside:
        files.setdefault(f.resolve(), (f.name, f))
    for name, f in files.values():
        facts = {"name": name, "bytes": f.stat().st_size, "sha256": digest(f)}
        origin = cache.origin(f)
        out.append(facts if origin is None else {**facts, "url": origin.url})
    return out
