"""Which files belong together, as data: how a directory is resolved where nobody lists it.

Names as the frameworks write them: Marian's training directory as Firefox Translations publishes it (its lists of files
to continue and to initialise from), OPUS-MT's packages, CTranslate2's and Hugging Face's directories, TensorFlow's
checkpoints as DeepSpeech and Coqui STT ship them, and our own bundles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from warmstart.lean import dataclass

_MAX = 16 * 2**20


@dataclass(frozen=True)
class FileFamily:
    """The files of one framework's directory.

    Attributes:
        weights: groups of names; of each group the first that is there is taken. One of all groups must be there.
        beside: taken where they are there; ``{model}`` stands for each name taken from ``weights``.
        pattern: other names that weights go by (``fnmatch``), for a file that is asked for by itself.
        large: those of ``beside`` that a file that is asked for by itself goes without.
    """

    name: str
    weights: tuple[tuple[str, ...], ...]
    beside: tuple[str, ...] = ()
    pattern: str = ""
    large: tuple[str, ...] = ()


_BEST = ("chrf", "bleu-detok", "ce-mean-words", "perplexity", "cross-entropy", "translation", "bleu")

FAMILIES = (
    FileFamily("bundle", (("warmstart.json",),)),
    FileFamily(
        "marian",
        (("model.npz",), *((f"final.model.npz.best-{m}.npz", f"model.npz.best-{m}.npz") for m in _BEST)),
        (
            *("{model}.decoder.yml", "{model}.yml", "{model}.progress.yml", "{model}.optimizer.npz"),
            *("decoder.yml", "vocab.spm", "vocab.yml"),
        ),
        pattern="*.npz",
        large=("{model}.optimizer.npz",),
    ),
    FileFamily("opus-mt", (("decoder.yml",),), ("source.spm", "target.spm", "source.bpe", "target.bpe", "README.md")),
    FileFamily(
        "ctranslate2",
        (("model.bin",),),
        (
            "config.json",
            *(f"{side}vocabulary.{end}" for side in ("", "shared_", "source_", "target_") for end in ("json", "txt")),
        ),
    ),
    FileFamily(
        "transformers",
        (
            (
                *("model.safetensors", "model.safetensors.index.json"),
                *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"),
            ),
        ),
        (
            *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
            *("special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.txt", "tokenizer.model"),
            *("spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm"),
        ),
    ),
    FileFamily("tensorflow", (("best_dev_checkpoint",), ("checkpoint",)), ("alphabet.txt", "flags.txt")),
)

ANCHORS = tuple(dict.fromkeys(name for family in FAMILIES for group in family.weights for name in group))
"""Every name that a directory of some family may be known by."""


def chosen(present: Iterable[str]) -> tuple[list[str], list[str]]:
    """(names that must be taken, names to be tried) for a directory in which ``present`` of the anchors are there."""
    there = set(present)
    required: dict[str, None] = {}
    optional: dict[str, None] = {}
    for family in FAMILIES:
        models = [name for group in family.weights if (name := next((n for n in group if n in there), None))]
        if models:
            required |= dict.fromkeys(models)
            optional |= dict.fromkeys(_expand(family.beside, models))
    return list(required), [name for name in optional if name not in required]


def companions(name: str, *, large: bool = False) -> list[str]:
    """What may lie beside the file ``name`` (of one directory) and is wanted with it; ``large`` files only if asked."""
    found: dict[str, None] = {}
    for family in FAMILIES:
        if any(name in group for group in family.weights) or (family.pattern and fnmatchcase(name, family.pattern)):
            templates = [template for template in family.beside if large or template not in family.large]
            found |= dict.fromkeys(_expand(templates, [name]))
    return [other for other in found if other != name]


def _expand(templates: Iterable[str], models: Iterable[str]) -> list[str]:
    models = list(models)
    out: list[str] = []
    for template in templates:
        out += [template.replace("{model}", m) for m in models] if "{model}" in template else [template]
    return out


def references(name: str, path: Path) -> tuple[list[str], bool]:
    """Names in the same directory, or below it, that the file ``name``, now at ``path``, says belong to it; and whether
    nothing can be done without them.

    What cannot be read names nothing here; whoever opens it says what is wrong. Absolute paths of the machine where it
    was written count by their last part.
    """
    base = PurePosixPath(name).name
    read, needed = next((row[1:] for row in _READERS if fnmatchcase(base, row[0])), (None, False))
    if read is None:
        return [], False
    try:
        found = read(path.read_text("utf-8")) if path.stat().st_size <= _MAX else []
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found = []
    return list(dict.fromkeys(safe for text in found if (safe := _inside(text)))), needed


def _inside(text: object) -> str | None:
    if not isinstance(text, str) or not text or "\0" in text or len(text) > 1000:
        return None
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        path = PurePosixPath(path.name)
    return None if path.name in ("", "..") else str(path)


def _marian(text: str) -> list[str]:
    import yaml

    try:
        options: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError from error
    listed = [*(options.get("models") or ()), *(options.get("vocabs") or ())]
    names = [name for name in listed if isinstance(name, str)]
    return [*names, *(PurePosixPath(name).name for name in names)]  # as it was written, and beside the model


def _marian_vocabularies(text: str) -> list[str]:
    return [name for name in _marian(text) if not name.endswith(".npz")]


def _shards(text: str) -> list[str]:
    return sorted(set(json.loads(text)["weight_map"].values()))


def _bundle(text: str) -> list[str]:
    return list(json.loads(text)["files"])


def _state(text: str) -> list[str]:
    """Prefixes of TensorFlow's state file; a checkpoint of more than one shard is rare, and needs a listing."""
    prefixes = re.findall(r'^model_checkpoint_path:\s*"([^"\n]+)"', text, re.MULTILINE)
    last = [PurePosixPath(prefix).name for prefix in prefixes]
    return [f"{name}{end}" for name in last for end in (".index", ".data-00000-of-00001")]


_READERS: tuple[tuple[str, Callable[[str], list[str]], bool], ...] = (
    ("decoder.yml", _marian, False),
    ("*.decoder.yml", _marian_vocabularies, False),
    ("*.npz.yml", _marian_vocabularies, False),
    ("*.index.json", _shards, True),
    ("warmstart.json", _bundle, True),
    ("checkpoint", _state, False),
    ("best_dev_checkpoint", _state, False),
)
