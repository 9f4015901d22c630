"""From one ``model.bin`` to another, whatever its family: older versions to the newest, one quantization to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.bundle.model import Model
from warmstart.errors import ConfigError, VocabularyError
from warmstart.export.plan import Conversion, Job, Ledger, Options, Row, check_source
from warmstart.export.quantize import Storage, storage_of
from warmstart.models.family import vocabulary_rows
from warmstart.models.model_bin import Floats, Upgraded, json_file, quantizable, specification_of, vocabulary_files
from warmstart.models.model_bin_beside import SINCE
from warmstart.models.registry import dialect
from warmstart.spec.mapping import Link, read_through
from warmstart.spec.ops import Identity

_DEFAULTS: dict[str, Any] = {
    "add_source_bos": False, "add_source_eos": False, "bos_token": "<s>", "decoder_start_token": "<s>",
    "eos_token": "</s>", "layer_norm_epsilon": None, "multi_query_attention": False, "unk_token": "<unk>",
}  # fmt: skip
_MOVED = {"with_source_bos": "add_source_bos", "with_source_eos": "add_source_eos"}


def is_direct(model: Model, to: str) -> bool:
    """Whether ``model`` is a ``model.bin`` that stays one."""
    return to == "ctranslate2" and model.checkpoint.format == "ctranslate2"


def plan_requantization(model: Model, options: Options) -> Job:
    """With ``none`` stored integers stay as they are; else they are read as floats and rounded again.

    Raises:
        ConfigError: the model is quantized, and nobody asked to round again.
        DialectError: its family is known, and arrays are missing, of another shape or unexplained: the engine would
            load such a file all the same.
        VocabularyError: a vocabulary beside it has another number of tokens.
    """
    checkpoint = model.checkpoint
    floats = checkpoint if isinstance(checkpoint, Floats) else Floats(checkpoint)
    if model.family is not None and model.config is not None and model.reading is not None:
        spoken = dialect(model.family, str(model.dialect))
        check_source(model.family, model.config, model.reading, spoken, options.strict)
        _check_tables(floats.stored, vocabulary_rows(model.family, model.config))
    rounded = floats.dequantized
    if rounded and options.quantization != "none" and not options.requantize:
        raise ConfigError(
            "the source is quantized already, and would be rounded a second time",
            where=next(iter(rounded)),
            found=next(iter(rounded.values())),
            todo="--requantize does it knowingly; the model in float32 would give a better one",
        )
    keep = options.quantization == "none"
    view = floats.stored if keep else floats
    links = [Link((name,), (name,), Identity()) for name in view.entries if name not in view.ties]
    reading = read_through(view, links)
    rows = []
    for link in links:
        entry = view.entries[link.foreign[0]]
        weight = quantizable(entry.name) and len(entry.shape) > 1
        storage = storage_of(entry.dtype, len(entry.shape), weight, options.quantization)
        if keep:
            storage = Storage(entry.dtype)
        rows.append(Row(entry.name, entry.shape, entry.dtype, (entry.name,), Identity(), 0, storage))
    for alias, target in view.ties.items():
        if alias in view.entries:
            entry = view.entries[alias]
            twin = next(row for row in rows if row.name == target)
            rows.append(Row(alias, entry.shape, entry.dtype, (target,), Identity(), 0, twin.storage))
    ledger = Ledger({name: (name,) for name in view.entries}, lossy={} if keep else dict(rounded))
    ordered = tuple(sorted(rows, key=lambda row: row.name))
    revision = int(checkpoint.metadata["revision"])
    name = specification_of(checkpoint)
    specification = (name, max(revision, 7) if name == "TransformerSpec" else revision)
    conversion = Conversion(ordered, ledger, options, "model.bin", specification)
    return Job(conversion, reading, _files(floats.stored))


def _check_tables(stored: Upgraded, sizes: Mapping[str, int]) -> None:
    """That the engine's tables of tokens have as many as the model has rows (``sizes``), or lack ``<unk>`` alone."""
    there = stored.original.metadata.get("vocabularies", {})
    for side, rows in sizes.items():
        name = next((key for key in (side, f"{side}_1", "shared", "vocabulary") if key in there), None)
        found = rows if name is None else len(stored.vocabulary(name))
        if found not in (rows - 1, rows):
            raise VocabularyError(
                f"the {side} vocabulary does not fit the model",
                where=stored.path,
                expected=f"{rows} tokens, one for each row",
                found=f"{found} tokens",
            )


def _files(stored: Upgraded) -> dict[str, bytes]:
    original = stored.original
    config = original.metadata.get("config")
    if config is None and original.metadata["binary_version"] < SINCE:
        config = dict(_DEFAULTS)
        for name, value in stored.moved.items():
            config[_MOVED.get(name, name)] = value
        if config.pop("user_decoder_start_tokens", False):
            config["decoder_start_token"] = None
        config.pop("with_target_bos", None)
    files = {} if config is None else {"config.json": json_file(config)}
    there = original.metadata.get("vocabularies", {})
    tables = {name: original.vocabulary(name) for name in there}
    if set(tables) == {"vocabulary"}:
        files["vocabulary.json"] = next(iter(vocabulary_files({"x": tables["vocabulary"]}).values()))
    elif set(tables) == {"shared"}:
        files.update(vocabulary_files(tables))
    else:
        files.update(vocabulary_files(tables) if tables else {})
    vmap = original.metadata.get("vocabulary_map")
    if vmap:
        files["vmap.txt"] = original.path.with_name(vmap["file"]).read_bytes()
    return files
