"""State files: small texts that name the last or the best of the checkpoints in their directory.

They are a CheckpointState in protocol buffers' text format (TensorFlow, python/training/checkpoint_state.proto).
Trainers store absolute paths, which are wrong as soon as a directory is moved: only the last part of such a path
counts here, and no path leads out of the directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from warmstart.errors import CorruptCheckpoint, FormatError
from warmstart.formats.mapped import head
from warmstart.storage.atomic import write_text

_KEY = "model_checkpoint_path"
_LINE = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\\n]|\\.)*)"', re.MULTILINE)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)")
_MAX = 2**20
_PLAIN = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}


def is_state(path: Path) -> bool:
    """Whether ``path`` is a text that begins with the name of a checkpoint."""
    return path.is_file() and bool(_LINE.match(head(path, 4096)))


def named(path: Path) -> Path:
    """The prefix of the checkpoint that the state file ``path`` names, in its own directory or below.

    Raises:
        CorruptCheckpoint: it names none.
    """
    match = _LINE.search(head(path, _MAX))
    text = _ESCAPE.sub(_unescape, match[1]).decode("utf-8", "surrogateescape") if match else ""
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".")]
    if not parts or ".." in parts[-1:] or "\0" in text:
        raise CorruptCheckpoint(
            "a state file that names no checkpoint", where=f"{path}, {_KEY}", expected="a path", found=repr(text)
        )
    if ".." not in parts and not text.startswith(("/", "\\")):
        below = path.parent.joinpath(*parts)
        inside = Path(os.path.realpath(below.parent)).is_relative_to(os.path.realpath(path.parent))
        if inside and below.with_name(below.name + ".index").is_file():
            return below
    return path.parent / parts[-1]


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1].isdigit():
        return bytes([int(code, 8) & 255])
    return bytes([int(code[1:], 16)]) if code[:1] == b"x" and len(code) > 1 else _PLAIN.get(code, code)


def roles(directory: Path) -> dict[str, tuple[str, ...]]:
    """Name of a prefix in ``directory`` → what state files call it: ``last`` (``checkpoint``), ``best`` (``best…``)."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(directory.glob("*checkpoint")):
        role = "last" if path.name == "checkpoint" else "best" if path.name.startswith("best") else None
        if role and is_state(path):
            prefix = named(path)
            if prefix.parent == directory and role not in found.get(prefix.name, ()):
                found[prefix.name] = (*found.get(prefix.name, ()), role)
    return found


def write_state(path: Path, last: str, others: Sequence[str] = ()) -> None:
    """Writes a state file at ``path`` that names ``last``, a prefix in the same directory, and before it ``others``.

    The names are relative, so that the directory can be moved; the text is what TensorFlow writes for such names.

    Raises:
        FormatError: a name is a path.
        StorageError: the file cannot be written.
    """
    lines = [f'{_KEY}: "{_escaped(path, last)}"']
    lines += [f'all_model_checkpoint_paths: "{_escaped(path, name)}"' for name in (*others, last)]
    write_text(path, "\n".join(lines) + "\n")


def _escaped(path: Path, name: str) -> str:
    if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
        raise FormatError("not the name of a checkpoint", where=path, expected="a name without a directory", found=name)
    return "".join(map(_escape, name.encode("utf-8", "surrogateescape")))


def _escape(byte: int) -> str:
    character = chr(byte)
    if character in "\"'":
        return f"\\{character}"
    return character if 32 <= byte < 127 else f"\\{byte:03o}"
