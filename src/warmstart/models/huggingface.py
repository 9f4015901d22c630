"""What a directory of ``transformers`` holds beside its arrays: config.json and a tokenizer.

Shared by every family's ``transformers`` dialect. Nothing of ``transformers`` is imported or run; a directory whose
tokenizer or model is code of its own (``auto_map``) is read by its data, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.errors import DialectError, FormatError, Problem
from warmstart.formats.checkpoint import Array, Checkpoint, Entry, dtype_of, name_of
from warmstart.formats.views import View
from warmstart.models.family import Dialect, Facts

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "target_vocab.json", "source.spm", "target.spm", "sentencepiece.bpe.model"),
    *("spiece.model", "sentencepiece.model", "tokenizer.model", "chat_template.jinja", "normalizer.json"),
)
TABLES = ("tokenizer.json", "vocab.json", "vocab.txt")
FLOATS = ("float32", "float16", "bfloat16", "float64")

# Keys of config.json (shell patterns) that say nothing of what the arrays mean, and why.
IGNORED = {
    "architectures": "which head was saved; the arrays tell",
    "model_type": "what the dialect was recognised by",
    "torch_dtype": "read with the arrays",
    "dtype": "read with the arrays",
    "*_version": "which library wrote it",
    "_name_or_path": "where it was",
    "_num_labels": "of classifiers",
    "num_labels": "of classifiers",
    "id2label": "of classifiers",
    "label2id": "of classifiers",
    "problem_type": "of classifiers",
    "classif*": "of classifiers",
    "finetuning_task": "history",
    "task_specific_params": "settings of generation",
    "prefix": "a setting of generation",
    "*init*": "initialisation",
    "gradient_checkpointing": "training",
    "*_layerdrop": "training",
    "use_cache": "a setting of generation",
    "output_*": "what is returned beside the answers",
    "return_dict*": "what is returned beside the answers",
    "tokenizer_class": "read with the tokenizer",
    "force_bos_token_to_be_generated": "a setting of generation",
    "forced_*_token_id": "a setting of generation",
    "suppress_tokens": "a setting of generation",
    "begin_suppress_tokens": "a setting of generation",
    "bad_words_ids": "a setting of generation",
    "num_beam*": "a setting of generation",
    "max_length": "a setting of generation",
    "min_length": "a setting of generation",
    "max_new_tokens": "a setting of generation",
    "do_sample": "a setting of generation",
    "early_stopping": "a setting of generation",
    "length_penalty": "a setting of generation",
    "repetition_penalty": "a setting of generation",
    "encoder_no_repeat_ngram_size": "a setting of generation",
    "no_repeat_ngram_size": "a setting of generation",
    "diversity_penalty": "a setting of generation",
    "num_return_sequences": "a setting of generation",
    "exponential_decay_length_penalty": "a setting of generation",
    "remove_invalid_values": "a setting of generation",
    "temperature": "a setting of generation",
    "top_[kp]": "a setting of generation",
    "typical_p": "a setting of generation",
    "chunk_size_feed_forward": "how it is computed",
    "torchscript": "how it is computed",
    "_attn_implementation*": "how it is computed",
    "attn_implementation": "how it is computed",
    "tf_legacy_loss": "training",
    "use_bfloat16": "training",
    "xla_device": "where it was trained",
    "replacing_rate": "how it was distilled",
    "save_step": "history",
    "student_*_layers": "how it was distilled",
    "is_encoder_decoder": "model_type says it",
    "auto_map": "code of its own, which is not run: model_type says what the arrays are",
    "custom_pipelines": "code of its own, which is not run",
    "transformers.js_config": "of another library",
    "unsloth_*": "of another library",
    **dict.fromkeys(("unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id"), "read with the tokenizer"),
}
# Keys that every configuration has, written where somebody asked for all of them, and the values that change nothing.
SWITCHED_OFF: dict[str, tuple[object, ...]] = {
    "pruned_heads": ({}, None),
    "cross_attention_hidden_size": (None,),
    "add_cross_attention": (False, None),
    "is_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "quantization_config": (None,),
    **dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), (False, None)),
}
_NOTHING = object()

# transformers' name → what it computes; the first name of a function is the one that is written.
ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu_erf", "gelu_python": "gelu_erf", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "gelu", "swish": "swish", "silu": "swish",
}  # fmt: skip


def folder_of(checkpoint: Checkpoint) -> Path:
    """The directory that the arrays lie in."""
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        DialectError: there is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DialectError("this file cannot be read", where=path, expected="JSON", found=error) from None
    if not isinstance(content, dict):
        raise DialectError("this file does not hold a JSON object", where=path, found=type(content).__name__)
    return content


class HuggingfaceDialect(Dialect):
    """A directory of ``save_pretrained``: arrays in safetensors, config.json, a tokenizer's files.

    Attributes:
        types: the values of ``model_type`` in config.json that are this family's.
    """

    name = "transformers"
    layout = "model.safetensors"
    types: Sequence[str] = ()

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return self._type(checkpoint)[0] in self.types

    def why_not(self, checkpoint: Checkpoint) -> str | None:
        kind, reason = self._type(checkpoint)
        return reason if kind is None else f"no family has the model_type {kind} of its {CONFIG}"

    @staticmethod
    def _type(checkpoint: Checkpoint) -> tuple[str | None, str | None]:
        """``model_type`` of the config.json beside the arrays; without one, what is wrong, if it should be there."""
        path = folder_of(checkpoint) / CONFIG
        if checkpoint.format in ("ctranslate2", "marian"):
            return None, None
        if not path.is_file():
            expected = checkpoint.format == "safetensors" or checkpoint.path.name.startswith("pytorch_model")
            return None, f"there is no {CONFIG} beside it, which says what the arrays are" if expected else None
        try:
            kind = read_json(path).get("model_type")
        except DialectError as error:
            return None, f"{CONFIG}: {error.what}: {error.found}"
        return (None, f"its {CONFIG} has no model_type") if kind is None else (str(kind), None)

    def header(self, config: Any, facts: Facts) -> Mapping[str, str]:
        return {"format": "pt"}


class Options:
    """The keys of a config.json, each of which is read, ignored for a reason, or refused. Problems are collected.

    Args:
        values: the parsed file.
        where: it, for errors.
    """

    def __init__(self, values: Mapping[str, Any], where: object) -> None:
        self.values, self.where = values, where
        self.problems: list[Problem] = []
        self._read: set[str] = set()

    def get(self, key: str, default: Any = _NOTHING) -> Any:
        """The value of ``key``, or what the library takes where it is missing. Without a default it must be there."""
        self._read.add(key)
        if key not in self.values and default is _NOTHING:
            self.problem(f"{key} is missing")
            return None
        return self.values.get(key, default)

    def whole(self, key: str, default: Any = _NOTHING) -> int:
        """A positive whole number; 1 stands in for one that is reported."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            if key in self.values:
                self.problem(f"{key} is not a positive whole number", found=repr(value))
            return 1
        return value

    def expect(self, key: str, *allowed: object) -> None:
        """``key`` has one of ``allowed``, of which the first is the library's default."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            self.problem(f"{key}: {value!r} is not supported", expected=" or ".join(map(repr, allowed)))

    def problem(self, what: str, *, expected: str | None = None, found: str | None = None) -> None:
        self.problems.append(Problem(what, expected=expected, found=found))

    def finish(self, what: str) -> None:
        """
        Raises:
            DialectError: everything that was found, and every key that nothing has read.
        """
        left = self.unknown({key: value for key, value in self.values.items() if key not in self._read})
        self.problems += left
        if self.problems:
            todo = (
                f"a key that changes nothing of what the model computes may be taken out of {CONFIG}" if left else None
            )
            raise DialectError(f"this {what} is not supported", where=self.where, problems=self.problems, todo=todo)

    @staticmethod
    def unknown(values: Mapping[str, Any], prefix: str = "") -> list[Problem]:
        """Those of ``values`` that change what is computed, for all that is known here."""
        problems = []
        for key, value in values.items():
            off = SWITCHED_OFF.get(key)
            if off is not None and value not in off:
                expected = " or ".join(map(repr, off))
                problems.append(Problem(f"{prefix}{key}: {value!r} is not supported", expected=expected))
            elif off is None and not any(fnmatchcase(key, pattern) for pattern in IGNORED):
                problems.append(Problem(f"{prefix}{key}: {value!r} is not an option that is known here"))
        return problems


class Loaded(View):
    """Arrays as ``from_pretrained`` gives them: floats in the dtype that config.json says. Of packed models (AWQ) they
    are float16, the one dtype in which engines compute with packed weights.

    ``metadata`` holds the parsed ``config``, ``generation`` and the bytes of the tokenizer's files (``tokenizer``).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        folder = folder_of(checkpoint)
        config = read_json(folder / CONFIG)
        packed = (config.get("quantization_config") or {}).get("quant_method") == "awq"
        wanted = "float16" if packed else config.get("dtype") or config.get("torch_dtype")
        self.dtype = wanted if wanted in FLOATS else next(
            (e.dtype for e in checkpoint.entries.values() if e.dtype in FLOATS), "float32"
        )  # fmt: skip
        there = {
            name: Entry(name, e.shape, self.dtype) if e.dtype in FLOATS else e for name, e in checkpoint.entries.items()
        }
        beside = [name for name in (CONFIG, GENERATION, *TOKENIZER_FILES) if (folder / name).is_file()]
        generation = folder / GENERATION
        metadata = {
            "config": config,
            "generation": read_json(generation) if generation.is_file() else {},
            "tokenizer": {name: (folder / name).read_bytes() for name in beside if name in TOKENIZER_FILES},
        }
        files = [*checkpoint.files, *(Path(name) for name in beside)]
        super().__init__(checkpoint, entries=there, metadata=metadata, files=files)
        self._why = "as weights are packed" if packed else f"which {CONFIG} says"

    @property
    def lossy(self) -> Mapping[str, str]:
        stored = self.original.entries
        cast = (name for name, e in stored.items() if e.dtype in FLOATS and e.dtype != self.dtype)
        return {name: f"{stored[name].dtype} becomes {self.dtype}, {self._why}" for name in cast}

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        array = super().seen(name, read)
        if name_of(array.dtype) == self.entries[name].dtype:
            return array
        with np.errstate(over="ignore"):
            cast = np.asarray(array, dtype_of(self.dtype))
        if not np.isfinite(cast).all() and np.isfinite(array).all():
            raise FormatError(
                f"values do not fit into {self.dtype}",
                where=f"{self.path}, array {name!r}",
                found=f"{np.abs(array).max():g}",
                todo=f'say "dtype": "{array.dtype.name}" in {CONFIG}',
            )
        return cast


def tokenizer_at(files: Sequence[str]) -> list[Path]:
    """The files of a tokenizer whose table is the one of ``files``; none if that is no table of ``transformers``."""
    if len(files) != 1 or Path(files[0]).name not in TABLES:
        return []
    table = Path(files[0])
    beside = (table.with_name(name) for name in TOKENIZER_FILES if name not in TABLES)
    return [table, *(path for path in beside if path.is_file())]


def activation_of(options: Options, key: str, default: str) -> str:
    """What ``key`` of a config.json calls an activation, by the name of what it computes (``ACTIVATIONS``)."""
    name = str(options.get(key, default))
    if name not in ACTIVATIONS:
        options.problem(f"{key}: {name!r} is not supported", expected=", ".join(ACTIVATIONS))
    return ACTIVATIONS.get(name, "relu")


def json_file(value: object) -> bytes:
    """JSON as ``save_pretrained`` writes a configuration."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii")
