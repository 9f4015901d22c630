"""A CTranslate2 model: ``model.bin`` with its ``config.json`` and vocabularies.

Every variable is an entry, the scalars of the specification too, so that a file can be written again as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import CorruptCheckpoint
from warmstart.formats.checkpoint import Array, Candidate, Checkpoint, Entry, dtype_of
from warmstart.formats.mapped import head, map_file, view
from warmstart.formats.model_bin import Header, read_header, version_of

FORMAT = "ctranslate2"
MODEL = "model.bin"
MAX_TEXT = 64 * 2**20  # bytes of a vocabulary or configuration
GLOBAL_SCALE = 1000.0  # of int16 without a scale of its own (CTranslate2, src/models/model.cc)
_AGAIN = "download or copy it again"


def recognise(path: Path) -> bool:
    """Whether ``path`` starts as a ``model.bin`` of any version and byte order."""
    return version_of(head(path, 4096)) is not None


def candidates(directory: Path) -> list[Candidate]:
    """The ``model.bin`` of ``directory``, to which what lies beside it belongs."""
    return [Candidate(directory / MODEL, MODEL)] if recognise(directory / MODEL) else []


def open(path: Path) -> CTranslate2Checkpoint:
    """Reads the headers of a ``model.bin`` and the small files beside it.

    Raises:
        FormatError: a version above the newest that is known, or a file of a big-endian machine.
        CorruptCheckpoint: one of the files is damaged.
    """
    return CTranslate2Checkpoint(path)


class CTranslate2Checkpoint(Checkpoint):
    """An opened ``model.bin``; arrays are views into a memory map.

    ``entries`` are the file's variables, then its aliases, which have the header of what they are another name of
    and are in ``ties``. ``metadata``:

    * ``binary_version`` (1 to 6), ``specification`` (such as ``TransformerSpec``) and ``revision``
    * ``attributes``: the scalars but scales, and the texts that were variables before version 6, as Python values
    * ``config``: the dict of ``config.json``, where there is one
    * ``vocabularies``: ``source``, ``target``, ``shared``, ``source_1`` …, or ``vocabulary`` where a model has one only
      → ``file`` and ``size`` in tokens; :meth:`vocabulary` gives the tokens
    * ``vocabulary_map``: ``file`` and ``size`` in lines of ``vmap.txt``, where there is one
    """

    @property
    def mapped(self) -> bool:
        return True

    def __init__(self, path: Path) -> None:
        self._header: Header = read_header(path)
        self._map = map_file(path)
        entries = {name: variable.entry for name, variable in self._header.variables.items()}
        for name, target in self._header.aliases.items():
            entries[name] = Entry(name, entries[target].shape, entries[target].dtype)
        super().__init__(
            path=path, format=FORMAT, entries=entries, files=[Path(path.name)], ties=dict(self._header.aliases)
        )
        self.metadata = {
            "binary_version": self._header.version,
            "specification": self._header.specification,
            "revision": self._header.revision,
            "attributes": self._attributes(),
        }
        if path.name == MODEL:
            self.metadata = {**self.metadata, **self._beside()}

    def read(self, name: str) -> Array:
        variable = self._header.variables[self._header.aliases.get(name, name)]
        return view(self._map, dtype_of(variable.entry.dtype), variable.entry.shape, variable.offset)

    def raw(self, name: str) -> Array:
        variable = self._header.variables[self._header.aliases.get(name, name)]
        return view(self._map, dtype_of(variable.entry.dtype), variable.entry.shape, variable.offset, copy=False)

    def peek(self, name: str) -> Array:
        return self.raw(name)

    def scale(self, name: str) -> Array | None:
        """What the integers of ``name`` were multiplied by: float32, one for each row or one for all.

        None where the array is not quantized. An alias shares the scale of its variable. int16 without a scale
        (before version 2) has 1000.

        Raises:
            KeyError: no such array.
        """
        target = self._header.aliases.get(name, name)
        entry = self.entries[target]
        if f"{target}_scale" in self.entries:
            return self.read(f"{target}_scale")
        if entry.dtype == "int16" and entry.shape:
            return np.array(GLOBAL_SCALE, np.float32)
        return None

    def vocabulary(self, name: str) -> list[str]:
        """The tokens of one of ``metadata["vocabularies"]``, by row.

        Raises:
            KeyError: no such vocabulary.
            CorruptCheckpoint: the file is damaged.
        """
        return read_vocabulary(self.path.with_name(self.metadata["vocabularies"][name]["file"]))

    def _attributes(self) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        for name, entry in self.entries.items():
            of = name.removesuffix("_scale")
            if entry.shape == () and (of == name or of not in self.entries):
                attributes[name] = self.read(name).item()
            elif name.endswith("_token") and entry.dtype == "int8" and len(entry.shape) == 1:
                attributes[name] = self.read(name).tobytes().decode("utf-8", "replace")
        return attributes

    def _beside(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        directory, files = self.path.parent, list(self.files)
        config = directory / "config.json"
        if config.is_file():
            found["config"] = _read_config(config)
            files.append(Path(config.name))
        vocabularies = {name: _describe(file) for name, file in vocabulary_files(directory).items()}
        if vocabularies:
            found["vocabularies"] = vocabularies
        vmap = directory / "vmap.txt"
        if vmap.is_file():
            found["vocabulary_map"] = {"file": vmap.name, "size": len(_lines(vmap))}
            files.append(Path(vmap.name))
        self.files = [*files, *(Path(description["file"]) for description in vocabularies.values())]
        return found


def vocabulary_files(directory: Path) -> Mapping[str, Path]:
    """The vocabularies of ``directory`` by name: of two spellings of one, JSON is what CTranslate2 reads."""
    found: dict[str, Path] = {}
    for suffix in (".txt", ".json"):
        for file in sorted(directory.glob(f"*vocabulary{suffix}")):
            name = file.stem.removesuffix("vocabulary").removesuffix("_") or "vocabulary"
            if file.is_file() and (name == "vocabulary" or file.stem.endswith("_vocabulary")):
                found[name] = file
    return dict(sorted(found.items()))


def read_vocabulary(file: Path) -> list[str]:
    """The tokens of ``file`` by row: a JSON list, or text with one token in each line.

    Raises:
        CorruptCheckpoint: it is not that.
    """
    if file.suffix != ".json":
        return _lines(file)
    tokens = _json(file)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise _unreadable(file, "a list of tokens", type(tokens).__name__)
    return tokens


def _describe(file: Path) -> dict[str, Any]:
    return {"file": file.name, "size": len(read_vocabulary(file))}


def _read_config(file: Path) -> dict[str, Any]:
    config = _json(file)
    if not isinstance(config, dict):
        raise _unreadable(file, "an object", type(config).__name__)
    return config


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, "JSON", error) from error


def _lines(file: Path) -> list[str]:
    """Lines; a carriage return is part of a token unless every line ends in one (as CTranslate2 reads them)."""
    lines = _text(file).split("\n")
    if lines[-1] == "":
        lines.pop()
    if lines and all(line.endswith("\r") for line in lines):
        return [line[:-1] for line in lines]
    return lines


def _text(file: Path) -> str:
    data = head(file, MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise _unreadable(file, f"at most {MAX_TEXT} bytes", "more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(file, "UTF-8 text", error) from error


def _unreadable(file: Path, expected: str, found: object) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        "damaged file of a CTranslate2 model", where=file, expected=expected, found=found, todo=_AGAIN
    )
