"""What the ``transformers`` dialects of models without a decoder of text, and of speech models, have in common.

A directory keeps everything that lies beside its arrays in its vocabulary's ``files``: what the family does not need
returns as it was.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from warmstart.checked import Config, Invalid
from warmstart.errors import DialectError, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.formats.views import View
from warmstart.models.family import Facts
from warmstart.models.huggingface import (
    CONFIG,
    GENERATION,
    HuggingfaceDialect,
    Loaded,
    Options,
    folder_of,
    json_file,
    tokenizer_at,
)
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

PREPROCESSOR = "preprocessor_config.json"
BESIDE = (CONFIG, GENERATION, PREPROCESSOR, "processor_config.json")
SIDE = "text"
Kind = TypeVar("Kind", bound=Config)


class Renamed(View):
    """Arrays as ``from_pretrained`` gives them, under the names that ``rename`` makes of those in the file."""

    def __init__(self, checkpoint: Checkpoint, rename: Callable[[str], str]) -> None:
        loaded = checkpoint if isinstance(checkpoint, Loaded) else Loaded(checkpoint)
        names: dict[str, str] = {}
        for name in loaded.entries:
            new = rename(name)
            if new in names:
                raise DialectError(
                    "two arrays have one name in today's version of the library",
                    where=loaded.path,
                    expected=new,
                    found=f"{names[new]} and {name}",
                )
            names[new] = name
        super().__init__(loaded, names)


class PretrainedDialect(HuggingfaceDialect):
    """One whose model has one vocabulary and a bare model inside."""

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint if isinstance(checkpoint, Renamed) else Renamed(checkpoint, self.today)

    def today(self, name: str) -> str:
        """What today's version of the library calls the array ``name`` in the bare model."""
        return name

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        loaded = self.view(checkpoint)
        given = tokenizer_at(files)
        if given:
            tokenizer = {path.name: path.read_bytes() for path in given}
            loaded = View(loaded, metadata={**loaded.metadata, "tokenizer": tokenizer})
        elif files:
            if len(files) != 1:
                raise VocabularyError("this model has one vocabulary", found=len(files))
            return {SIDE: load_vocabulary(Path(files[0]))}
        vocabulary = self.vocabulary(loaded)
        vocabulary.beside = given
        return {SIDE: vocabulary}

    @abstractmethod
    def vocabulary(self, loaded: Checkpoint) -> SubwordVocabulary:
        """The table that the model's arrays are indexed by."""


def kept_files(loaded: Checkpoint) -> dict[str, bytes]:
    """Everything beside the arrays, by name."""
    folder = folder_of(loaded)
    kept = {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}
    return kept | dict(loaded.metadata["tokenizer"])


def options_of(loaded: Checkpoint) -> Options:
    """The keys of config.json."""
    return Options(loaded.metadata["config"], folder_of(loaded) / CONFIG)


def rows_of(loaded: Checkpoint, name: str) -> int:
    """How many rows the table ``name`` has; none where it is missing."""
    entry = loaded.entries.get(name)
    return entry.shape[0] if entry is not None and entry.shape else 0


def ignore(options: Options, keys: Mapping[str, str]) -> None:
    """Keys (shell patterns → why) that say nothing of what the arrays mean."""
    for key in options.values:
        if any(fnmatchcase(key, pattern) for pattern in keys):
            options.get(key)


def validated(kind: type[Kind], values: Mapping[str, Any], options: Options, what: str) -> Kind:
    """The family's configuration, or everything that is wrong with the file's.

    Raises:
        DialectError: options that are not known or not supported, all of them.
    """
    options.finish(what)
    try:
        return kind.model_validate(values)
    except Invalid as error:
        problems = validation_problems(error)
        raise DialectError("the model's options are wrong", where=options.where, problems=problems) from None


def object_of(vocabulary: Vocabulary | None, name: str) -> dict[str, Any]:
    """The JSON object in one of the files that came along; empty where it did not."""
    data = getattr(vocabulary, "files", {}).get(name)
    return json.loads(data) if data else {}


def updated(vocabulary: Vocabulary | None, name: str, values: Mapping[str, Any]) -> bytes:
    """The file ``name`` that came along with ``values`` in it: as it was where it says them already."""
    data, kept = getattr(vocabulary, "files", {}).get(name), object_of(vocabulary, name)
    merged = {**kept, **values}
    return data if data is not None and merged == kept else json_file(merged)


def dtype_key(kept: Mapping[str, Any], facts: Facts) -> dict[str, str]:
    """How config.json says the arrays' dtype; nothing where it need not."""
    if not kept or "dtype" in kept or ("torch_dtype" not in kept and facts.dtype != "float32"):
        return {"dtype": facts.dtype}
    return {"torch_dtype": facts.dtype} if "torch_dtype" in kept else {}


def beside(vocabulary: Vocabulary | None, but: Iterable[str] = ()) -> dict[str, bytes]:
    """The files that came along, without those called ``but``."""
    return {name: data for name, data in getattr(vocabulary, "files", {}).items() if name not in but}


def both(theirs: str, ours: str, each: Mapping[str, int] | None = None) -> list[Rule]:
    """Weight and bias of one module under both names."""
    return [rule(f"{theirs}.{what}", f"{ours}.{what}", each=each) for what in ("weight", "bias")]
