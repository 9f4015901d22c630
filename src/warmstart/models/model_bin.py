"""What a CTranslate2 model is to every family: its files, and older or quantized arrays seen as today's floats."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from warmstart.errors import DialectError, FormatError, Problem, VocabularyError
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.ctranslate2 import CTranslate2Checkpoint
from warmstart.formats.views import View
from warmstart.models.family import Dialect
from warmstart.models.model_bin_beside import check_description, check_layers, taken
from warmstart.models.model_bin_shapes import ENGINE_TAKES, check_shapes
from warmstart.spec.templates import match, rename
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

ROUNDED_SINCE = 5  # older versions truncated


class ModelBin(Dialect):
    """Base of every family's ``ctranslate2`` dialect, which says in ``config_of`` what the arrays and numbers mean."""

    name = "ctranslate2"
    layout = "model.bin"
    specifications: tuple[str, ...] = ()
    says_heads = True  # whether the number of heads is a number of the file

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.format == "ctranslate2" and specification_of(checkpoint) in self.specifications

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return Floats(checkpoint)

    def quantizable(self, name: str) -> bool:
        return quantizable(name)

    def read_config(self, checkpoint: Checkpoint) -> Any:
        stored = checkpoint.stored if isinstance(checkpoint, Floats) else Upgraded(checkpoint)
        check_shapes(stored.entries, stored.path)
        check_description(*_said(stored), stored.path)
        _check_scales(stored)
        config = self.config_of(stored)
        check_layers(config, stored.path)
        return config

    def config_of(self, stored: Upgraded) -> Any:
        """The family's configuration from numbers and shapes of arrays and ``config.json``.

        Raises:
            DialectError: what the family cannot express, or is missing; all at once.
        """
        raise DialectError(f"models of {self.name} are written, not read", where=stored.path)

    def remarks(self, checkpoint: Checkpoint) -> Sequence[str]:
        names = checkpoint.entries
        sides = [side for side in ("encoder", "decoder") if any(name.startswith(f"{side}/") for name in names)]
        heads = [n for side in sides if self.says_heads and (n := f"{side}/num_heads") not in names]
        return [*taken(*_said(checkpoint)), *(f"the file does not say {name}: taken is 8" for name in heads)]


def _check_scales(stored: Upgraded) -> None:
    """
    Raises:
        DialectError: scales of another shape than one for each row, or one for all; each is named.
    """
    problems = []
    for name, entry in stored.entries.items():
        scale = stored.entries.get(f"{name}_scale")
        if scale is None or entry.dtype not in ("int8", "int16") or name in stored.ties:
            continue
        if scale.shape not in ((), (1,), entry.shape[:1]) or not scale.dtype.startswith("float"):
            expected = f"float32 {list(entry.shape[:1])} or []"
            problems.append(
                Problem(f"{scale.name} does not fit", expected=expected, found=f"{scale.dtype} {list(scale.shape)}")
            )
    if problems:
        raise DialectError("scales do not fit what they scale", where=stored.path, problems=problems)


def _said(checkpoint: Checkpoint) -> tuple[str, int, Any]:
    """Name of the specification, version of the file, and config.json."""
    metadata = checkpoint.metadata
    return specification_of(checkpoint), metadata["binary_version"], metadata.get("config")


def quantizable(name: str) -> bool:
    """Whether CTranslate2 keeps a scale beside the array: the ``weight`` of linear layers, convolutions, tables."""
    return name.rpartition("/")[2] == "weight"


def specification_of(checkpoint: Checkpoint) -> str:
    """Today's name of the specification."""
    name = str(checkpoint.metadata.get("specification"))
    return "TransformerSpec" if name in ("", "TransformerBase", "TransformerBig") else name


class Upgraded(View):
    """A ``model.bin`` of any version with the names and the attributes of version 6; arrays as they are stored.

    Scales of int16 that older versions left out (1000) are entries here.
    """

    original: CTranslate2Checkpoint

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.original = cast(CTranslate2Checkpoint, checkpoint)
        meta = checkpoint.metadata
        self.names: dict[str, str] = {}
        self._made: dict[str, Array] = {}
        self.rounded = meta["binary_version"] >= ROUNDED_SINCE
        transformer = specification_of(checkpoint) == "TransformerSpec"
        for name in checkpoint.entries:
            self.names[_today(name, meta["binary_version"], meta["revision"]) if transformer else name] = name
        if transformer and meta["revision"] < 7:
            self._attributes(str(meta["specification"]), meta["revision"])
        entries = {new: replace(checkpoint.entries[old], name=new) for new, old in self.names.items()}
        texts = [n for n in entries if n.rpartition("/")[2] in _MOVED and "/" not in n]
        self.moved = {n: self._text(self.names[n]) for n in texts}  # to config.json since version 6
        for name in texts:
            del entries[name]
        for name, entry in list(entries.items()):
            if entry.dtype == "int16" and entry.shape and f"{name}_scale" not in entries and quantizable(name):
                self._made[f"{name}_scale"] = np.float32(1000) * np.ones((), np.float32)
        entries.update({n: Entry(n, a.shape, a.dtype.name) for n, a in self._made.items()})
        super().__init__(self.original, self.names, entries=entries)

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        made = self._made.get(name)
        return super().seen(name, read) if made is None else made

    def vocabulary(self, name: str) -> list[str]:
        """Tokens of one of the vocabularies beside the file."""
        return self.original.vocabulary(name)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of a scalar, or ``default``."""
        entry = self.entries.get(name)
        return default if entry is None or entry.shape else self.read(name).item()

    def number(self, name: str) -> Any:
        """The value of a scalar, or what the engine takes where the file does not say it."""
        return self.attribute(name, ENGINE_TAKES.get(name.rpartition("/")[2], 0))

    def _text(self, name: str) -> Any:
        array = self.original.read(name)
        return array.tobytes().decode("utf-8", "replace") if array.ndim else bool(array.item())

    def _attributes(self, specification: str, revision: int) -> None:
        """What stood at the top or was left to the specification's name until revision 5."""
        heads = {"TransformerBig": 16}.get(specification, 8)
        defaults: dict[str, Array] = {"num_heads": np.asarray(np.int16(heads))} if revision < 3 else {}
        for attribute in (
            "num_heads",
            "pre_norm",
            "activation",
            "alignment_layer",
            "alignment_heads",
            "embeddings_merge",
        ):
            old = self.names.pop(attribute, None)
            value = defaults.get(attribute) if old is None else self.original.read(old)
            sides = {"alignment_layer": ("decoder",), "alignment_heads": ("decoder",), "embeddings_merge": ("encoder",)}
            for side in sides.get(attribute, ("encoder", "decoder")):
                if value is not None and f"{side}/{attribute}" not in self.names:
                    self._made[f"{side}/{attribute}"] = np.asarray(value)


_MOVED = (
    "unk_token", "bos_token", "eos_token", "decoder_start_token", "with_source_bos", "with_source_eos",
    "with_target_bos", "user_decoder_start_tokens",
)  # fmt: skip


def _today(name: str, version: int, revision: int) -> str:
    if version == 1:
        name = _first_name(name)
    if revision < 4:
        name = rename("encoder/embeddings/**", "encoder/embeddings_0/**", name) or name
    return name


def _first_name(name: str) -> str:
    parts = name.removesuffix(":0").split("/")
    if parts[0] != "transformer":
        return name
    side, *rest = parts[1:]
    simple = {
        ("w_embs",): "embeddings/weight",
        ("dense", "kernel"): "projection/weight",
        ("dense", "bias"): "projection/bias",
        ("LayerNorm", "beta"): "layer_norm/beta",
        ("LayerNorm", "gamma"): "layer_norm/gamma",
    }
    if tuple(rest) in simple:
        return f"{side}/{simple[tuple(rest)]}"
    if len(rest) != 4 or match("layer_{i}", rest[0]) is None:
        return name
    layer, block, part, what = rest
    block = {"masked_multi_head": "self_attention", "ffn": "ffn"}.get(
        block, "attention" if side == "decoder" else "self_attention"
    )
    number = part.removeprefix("conv1d").removeprefix("_") or "0"
    part = "layer_norm" if part == "LayerNorm" else f"linear_{number}"
    return f"{side}/{layer}/{block}/{part}/{ {'kernel': 'weight'}.get(what, what) }"


class Floats(View):
    """A ``model.bin`` whose integers are read as the float32 that they stand for: q / scale."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.stored = Upgraded(checkpoint)
        self._rounded: dict[str, str] = {}  # name → the scales'
        entries: dict[str, Entry] = {}
        for name, entry in self.stored.entries.items():
            weight = name.removesuffix("_scale")
            if weight != name and weight in self.stored.entries and self._scaled(weight):
                continue
            entries[name] = entry
            if self._scaled(name):
                self._rounded[name] = f"{self.stored.ties.get(name, name)}_scale"
                entries[name] = replace(entry, dtype="float32")
        super().__init__(self.stored, entries=entries)

    @cached_property
    def dequantized(self) -> dict[str, str]:
        """Array → how far its original value may have been: a value was rounded to the nearest multiple of 1/scale, or
        cut off to the next one towards zero.

        Raises:
            FormatError: scales that are not positive, as CTranslate2 writes them for rows that are not finite.
        """
        steps, far = (0.5, "half a step") if self.stored.rounded else (1, "one step")
        bounds: dict[str, float] = {}
        problems: list[Problem] = []
        for scales in sorted(set(self._rounded.values())):
            smallest = float(np.min(self.stored.read(scales), initial=np.inf))  # NaN where there is one
            bounds[scales] = steps / smallest if smallest > 0 else np.inf
            if not smallest > 0:
                problems.append(Problem(f"{scales} is not positive", found=f"{smallest:g}"))
        if problems:
            what = "integers without a scale stand for no numbers"
            todo = "convert the model in float again: some of its rows were not finite"
            raise FormatError(what, where=self.path, problems=problems, todo=todo)
        return {
            name: f"dequantized from {self.stored.entries[name].dtype}: at most {far} of 1/scale from the original, "
            f"{bounds[scales]:.2g} where the scale is smallest"
            for name, scales in self._rounded.items()
        }

    def vocabulary(self, name: str) -> list[str]:
        """Tokens of one of the vocabularies beside the file."""
        return self.stored.vocabulary(name)

    def _scaled(self, name: str) -> bool:
        entry = self.stored.entries[name]
        target = self.stored.ties.get(name, name)
        return entry.dtype in ("int8", "int16") and f"{target}_scale" in self.stored.entries

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        array = super().seen(name, read)
        if name not in self._rounded:
            return array
        scale = self.stored.read(self._rounded[name])
        return np.asarray(array, np.float32) / scale.reshape(scale.shape + (1,) * (array.ndim - scale.ndim))


def json_file(value: object) -> bytes:
    """JSON as CTranslate2 writes ``config.json``."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")


def vocabulary_files(vocabularies: Mapping[str, Sequence[str]]) -> dict[str, bytes]:
    """``SIDE_vocabulary.json`` for every side, or ``shared_vocabulary.json`` where all are one."""
    tables = {side: list(tokens) for side, tokens in vocabularies.items()}
    first = next(iter(tables.values()))
    if all(table == first for table in tables.values()):
        tables = {"shared": first}
    return {f"{side}_vocabulary.json": _json_list(table) for side, table in tables.items()}


def _json_list(tokens: list[str]) -> bytes:
    """``json.dumps(tokens, indent=2)``, which Python spells in C only without an indent."""
    if not tokens:
        return b"[]"
    lines = json.dumps(tokens, separators=(",\n  ", ":"))
    return f"[\n  {lines[1:-1]}\n]".encode("ascii")


def read_vocabularies(checkpoint: Checkpoint, files: Sequence[str], sizes: Mapping[str, int]) -> dict[str, Vocabulary]:
    """Vocabularies by side (``sizes``: side → rows of its table) from ``files`` or from beside the ``model.bin``.

    The engine appends ``<unk>`` where it is missing, and so does this.

    Raises:
        VocabularyError: another number of files.
    """
    if files:
        paths = [Path(f) for f in files]
        paths = paths * len(sizes) if len(paths) == 1 else paths
        if len(paths) != len(sizes):
            raise VocabularyError("another number of vocabularies", expected=len(sizes), found=len(paths))
        return {side: load_vocabulary(path) for side, path in zip(sizes, paths, strict=True)}
    kept = Path(checkpoint.path).parent / "vocabularies"
    if kept.is_dir():  # of our own conversions: they know how text becomes tokens
        found = {f.stem: load_vocabulary(f) for f in sorted(kept.glob("*"))}
        if set(found) == set(sizes):
            return found
    there = checkpoint.metadata.get("vocabularies", {})
    special = {"unk_token": "<unk>", "eos_token": "</s>", **(checkpoint.metadata.get("config") or {})}
    tables: dict[str, Vocabulary] = {}
    for side, rows in sizes.items():
        names = (side, f"{side}_1", "shared", "vocabulary")  # numbered, where a source has features
        key = next((k for k in names if k in there), None)
        if key is None:
            continue
        tokens = cast(CTranslate2Checkpoint, checkpoint).vocabulary(key)
        unk = special["unk_token"]
        if unk not in tokens and len(tokens) == rows - 1:
            tokens = [*tokens, unk]
        tables[side] = TokenVocabulary(tokens, special["eos_token"], unk, bos=special.get("bos_token", "<s>"))
    return tables
