"""What gin files beside a checkpoint say: the last plain value of each binding, macros followed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_BINDING = re.compile(r"([\w./]+) *= *(.*)")
_LIMIT = 2**20
_MACROS = 16


def read_gin(path: Path, *, scopes: bool = False) -> dict[str, Any]:
    """Bindings by name without scope (``T5Config.emb_dim``), with ``scopes`` also with it
    (``encoder/make_layer_stack.num_layers``); macros by their own.

    Values are Python literals; of others the text is given, and references to functions (``@``) are left out. Nothing
    is executed.
    """
    try:
        text = path.read_bytes()[:_LIMIT].decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    raw: dict[str, str] = {}
    for statement in _statements(text):
        found = _BINDING.fullmatch(statement)
        if found:
            scope, slash, name = found[1].rpartition("/")
            raw[name] = found[2].strip()
            if scopes and slash:
                raw[f"{scope}/{'.'.join(name.split('.')[-2:])}"] = raw[name]
    values: dict[str, Any] = {}
    for name in raw:
        value = _followed(raw, name)
        if value.startswith("@"):
            continue
        try:
            values[".".join(name.split(".")[-2:])] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            values[".".join(name.split(".")[-2:])] = value
    return values


def _statements(text: str) -> Iterator[str]:
    """Lines, joined where one ends in a backslash or within brackets."""
    statement, depth = "", 0
    for line in text.splitlines():
        statement += line.removesuffix("\\")
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        if depth <= 0 and not line.endswith("\\"):
            yield statement.strip()
            statement, depth = "", 0
    yield statement.strip()


def _followed(raw: Mapping[str, str], name: str) -> str:
    """The text behind ``name``, or behind the macro that it refers to."""
    text = raw[name]
    for _ in range(_MACROS):
        if not text.startswith("%"):
            break
        text = raw.get(text[1:], "@")
    return text


def gin_beside(path: Path, names: tuple[str, ...], *, scopes: bool = False) -> tuple[Path | None, Mapping[str, Any]]:
    """The first of ``names`` in the checkpoint's directory or the one above it, and what it says."""
    for folder in (path, path.parent) if path.is_dir() else (path.parent,):
        for name in names:
            if (folder / name).is_file():
                return folder / name, read_gin(folder / name, scopes=scopes)
    return None, {}


def gin_text(bindings: Mapping[str, Any], imports: tuple[str, ...] = ()) -> bytes:
    """A gin file of these bindings."""
    lines = [*imports, *([""] if imports else ()), *(f"{name} = {value!r}" for name, value in bindings.items())]
    return ("\n".join(lines) + "\n").encode("ascii")
