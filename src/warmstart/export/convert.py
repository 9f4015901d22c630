"""Dialect to dialect: canonical names in between, one array at a time, the whole output complete or invisible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from warmstart.bundle.layout import describe_files, storages, write_bundle, write_manifest, write_vocabularies
from warmstart.bundle.model import Model
from warmstart.errors import ConfigError, SourceError, VocabularyError
from warmstart.export.ctranslate2 import write_model
from warmstart.formats.checkpoint import Array
from warmstart.formats.marian import write_marian
from warmstart.models.registry import dialect
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.dialects import CTranslate2Dialect, MarianDialect
from warmstart.sources.uri import shown
from warmstart.spec.mapping import expand, write_through
from warmstart.storage.atomic import new_directory
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

DIALECTS = ("ctranslate2", "marian", "warmstart")


def convert_model(
    model: Model, destination: Path, to: str, *, quantize: str | None = None, force: bool = False
) -> dict[str, object]:
    """Write ``model`` at ``destination`` in the dialect ``to``; a description of what was written.

    Raises:
        ConfigError: unknown dialect, or a quantization that it does not know.
        StorageError: the destination exists and ``force`` is False.
        SourceError: the destination would replace the source.
    """
    family, config, reading = model.require()
    if to not in DIALECTS:
        raise ConfigError(f"there is no dialect {to!r} to convert to", expected=", ".join(DIALECTS))
    if quantize is not None and to != "ctranslate2":
        raise ConfigError(f"--quantize does not go with --to {to}", todo="leave it out, or use --to ctranslate2")
    here, there = model.path.resolve(), destination.resolve()
    if here == there or here.is_relative_to(there):
        raise SourceError("the destination would replace its own source", where=destination, todo="choose another")
    sides = set(family.vocabulary_sizes) - set(model.vocabularies)
    if sides and to != "warmstart":
        raise VocabularyError(
            f"the {' and '.join(sorted(sides))} vocabulary is not known",
            where=model.path,
            todo="give the files with --vocab SOURCE --vocab TARGET",
        )
    lineage = {
        "converted_from": {"source": shown(model.source), "files": describe_files(model.checkpoint)},
        "ancestor": model.lineage,
    }
    assert isinstance(config, TransformerConfig)
    if to == "warmstart":
        arrays = (reading.read(e.name) for e in storages(family, config))
        write_bundle(destination, family, config, arrays, model.vocabularies, lineage, force=force)
    elif to == "marian":
        with new_directory(destination, force=force) as temporary:
            _write_marian(temporary, model, config)
    else:
        spelt = dialect(family, to)
        assert isinstance(spelt, CTranslate2Dialect)
        variables = _lazily(model, spelt, config)
        with new_directory(destination, force=force) as temporary:
            write_model(temporary, config, variables, spelt.aliases(config), model.vocabularies, quantize or "float32")
            write_vocabularies(temporary, model.vocabularies)
            write_manifest(temporary, family, config, dialect=to, quantization=quantize or "float32", lineage=lineage)
    total = sum(f.stat().st_size for f in destination.rglob("*") if f.is_file())
    return {"destination": str(destination), "dialect": to, "quantization": quantize, "bytes": total}


def _lazily(
    model: Model, spelt: CTranslate2Dialect | MarianDialect, config: TransformerConfig
) -> dict[str, Callable[[], Array]]:
    _, _, reading = model.require()
    return dict(write_through(expand(spelt.rules(config)), reading.read, reading.origins))


def _write_marian(directory: Path, model: Model, config: TransformerConfig) -> None:
    import yaml

    spelt = MarianDialect()
    variables = _lazily(model, spelt, config)
    original = model.checkpoint.metadata.get("config") if model.dialect == "marian" else None
    options = original or spelt.options(config)
    text = yaml.safe_dump(dict(sorted(options.items())), allow_unicode=True)
    write_marian(directory / "model.npz", text, ((n, variables[n]()) for n in sorted(variables)))
    names = []
    for side, vocabulary in model.vocabularies.items():
        suffix, content = _marian_vocabulary(vocabulary)
        names.append(f"vocab.{side}{suffix}")
        (directory / names[-1]).write_bytes(content)
        load_vocabulary(directory / names[-1])
    decoder = {"relative-paths": True, "models": ["model.npz"], "vocabs": names, "beam-size": 4, "normalize": 0.6}
    (directory / "model.npz.decoder.yml").write_text(yaml.safe_dump(decoder, sort_keys=False), "utf-8")


def _marian_vocabulary(vocabulary: Vocabulary) -> tuple[str, bytes]:
    """Marian reads SentencePiece models and YAML tables; characters become a table over spaced-out text."""
    if vocabulary.kind != "characters":
        suffix, content = vocabulary.file()
        return (".spm" if vocabulary.kind == "sentencepiece" else suffix), content
    from warmstart.vocabularies.marian_yaml import MarianVocabulary

    return MarianVocabulary(vocabulary.tokens).file()
