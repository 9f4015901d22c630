"""What lies beside a ``model.bin`` and speaks of it: ``config.json``, and ``warmstart.json`` of our conversions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from warmstart.checked import Config
from warmstart.errors import DialectError, Problem

Kind = TypeVar("Kind", bound=Config)

MANIFEST = "warmstart.json"
SINCE = 6  # the version of the file that has config.json
_TOKENS = {"bos_token": str, "eos_token": str, "unk_token": str}
# By specification, what CTranslate2's engine (4.8.5) does not open a model without, and what it takes for the rest.
_NEEDED: Mapping[str, Mapping[str, type]] = {
    "TransformerSpec": {**_TOKENS, "add_source_bos": bool, "add_source_eos": bool},
    "TransformerDecoderSpec": _TOKENS,
    "TransformerEncoderSpec": _TOKENS,
}
# What may be left out, or null, and else is this.
_MAY: Mapping[str, tuple[type, ...]] = {"decoder_start_token": (str,), "layer_norm_epsilon": (float, int)}
_NORM = {"layer_norm_epsilon": "1e-5, or 1e-6 for norms without a bias"}
_TAKEN: Mapping[str, Mapping[str, str]] = {
    "TransformerSpec": {"decoder_start_token": "none, which the user of the engine gives with every input", **_NORM},
    "TransformerDecoderSpec": _NORM,
    "TransformerEncoderSpec": _NORM,
    "WhisperSpec": {
        "suppress_ids": "none", "suppress_ids_begin": "none", "lang_ids": "none", "alignment_heads": "none",
    },
}  # fmt: skip
_JSON = {str: "a text", bool: "true or false", float: "a number"}


def check_description(specification: str, version: int, said: Mapping[str, object] | None, path: Path) -> None:
    """
    Raises:
        DialectError: ``said``, which is ``config.json``, lacks what the engine needs; all that is missing.
    """
    needed = _NEEDED.get(specification, {})
    if version < SINCE or not needed:
        return
    file = path.with_name("config.json")
    if said is None:
        raise DialectError(
            "a model.bin of version 6 needs its config.json, without which CTranslate2 does not open it either",
            where=file,
            expected=", ".join(needed),
            found="no such file",
            todo="put the model's config.json beside the model.bin",
        )
    problems = [
        Problem(f"{key} is not said" if key not in said else f"{key} is {json.dumps(said[key])}", expected=_JSON[kind])
        for key, kind in needed.items()
        if not isinstance(said.get(key), kind)
    ]
    problems += [
        Problem(f"{key} is {json.dumps(said[key])}", expected=f"{_JSON[kinds[0]]}, or null")
        for key, kinds in _MAY.items()
        if said.get(key) is not None and type(said[key]) not in kinds
    ]
    if problems:
        what = "config.json lacks what CTranslate2 needs to open the model"
        raise DialectError(what, where=file, problems=problems, todo="put the model's own config.json there")


def taken(specification: str, version: int, said: Mapping[str, object] | None) -> list[str]:
    """What ``config.json`` leaves out though models of ``specification`` have it, and what is taken for it."""
    keys = {} if version < SINCE else _TAKEN.get(specification, {})
    return [f"config.json does not say {key}: taken is {what}" for key, what in keys.items() if key not in (said or {})]


def manifest_of(path: Path) -> dict[str, Any]:
    """``warmstart.json`` beside the file, which our own conversion left; nothing where there is none."""
    try:
        manifest = json.loads(path.with_name(MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def manifest_config(path: Path, family: str, kind: type[Kind]) -> Kind | None:
    """The configuration of a model of ``family`` that our own conversion left beside the file; None where it did
    not."""
    manifest = manifest_of(path)
    try:
        return kind.model_validate(manifest["config"]) if manifest.get("family") == family else None
    except (ValueError, KeyError):
        return None


def check_layers(config: Config, path: Path) -> None:
    """That the file has as many layers as ``warmstart.json`` says, where our own conversion left one.

    Raises:
        DialectError: it has another number; nothing in the file itself tells that its last layers are gone.
    """
    kept = manifest_of(path).get("config")
    if not isinstance(kept, dict):
        return
    said = {key: kept[key] for key in type(config).model_fields if key.endswith("_layers") and key in kept}
    problems = [
        Problem(f"the file's {key} are others", expected=str(value), found=str(getattr(config, key)))
        for key, value in said.items()
        if isinstance(value, int) and value != getattr(config, key)
    ]
    if problems:
        what = f"this model.bin has another number of layers than {MANIFEST} beside it says"
        todo = f"convert it again; or remove {MANIFEST}, if it belongs to another model"
        raise DialectError(what, where=path, problems=problems, todo=todo)
