"""What gin files beside a checkpoint say: the last plain value of each binding, macros followed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BINDING = re.compile(r"^([\w./]+) *= *(.*(?:\\\n.*)*)$", re.MULTILINE)
_LIMIT = 2**20
_MACROS = 16


def read_gin(path: Path) -> dict[str, Any]:
    """Bindings by name without scope (``T5Config.emb_dim``) whose values are Python literals; macros by their own.

    What refers to functions (``@``) or to macros that are not here is left out. Nothing is executed.
    """
    try:
        text = path.read_bytes()[:_LIMIT].decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    raw = {name.rpartition("/")[2]: value.replace("\\\n", " ").strip() for name, value in _BINDING.findall(text)}
    found: dict[str, Any] = {}
    for name in raw:
        try:
            found[".".join(name.split(".")[-2:])] = ast.literal_eval(_followed(raw, name))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return found


def _followed(raw: Mapping[str, str], name: str) -> str:
    """The text behind ``name``, or behind the macro that it refers to."""
    text = raw[name]
    for _ in range(_MACROS):
        if not text.startswith("%"):
            break
        text = raw.get(text[1:], "@")
    return text


def gin_beside(path: Path, names: tuple[str, ...]) -> tuple[Path | None, Mapping[str, Any]]:
    """The first of ``names`` in the checkpoint's directory or the one above it, and what it says."""
    for folder in (path, path.parent, path.parent.parent) if path.is_dir() else (path.parent,):
        for name in names:
            if (folder / name).is_file():
                return folder / name, read_gin(folder / name)
    return None, {}


def gin_text(bindings: Mapping[str, Any], imports: tuple[str, ...] = ()) -> bytes:
    """A gin file of these bindings."""
    lines = [*imports, *([""] if imports else ()), *(f"{name} = {value!r}" for name, value in bindings.items())]
    return ("\n".join(lines) + "\n").encode("ascii")
