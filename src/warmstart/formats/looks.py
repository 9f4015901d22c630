"""What a file that no format recognises looks like."""

from __future__ import annotations

from pathlib import Path

from warmstart.formats import pickle_looks
from warmstart.formats.mapped import POINTER, head
from warmstart.formats.steps import unfinished
from warmstart.formats.zipped import NotZip, directory

_TORCH = "a PyTorch file"
_CONVERT = "load it with the library that wrote it and save its arrays as safetensors"
_AGAIN = "download or copy it again"


def describe(path: Path) -> tuple[str, str]:
    """What is at ``path``, in a few words for an error message, and what to do with it."""
    if not path.exists():
        return "a missing file", "check the path"
    if path.is_dir():
        return _directory(path)
    if not path.is_file():
        return "neither a file nor a directory", "give the path of a checkpoint"
    start = head(path, 4096)
    if not start:
        return "an empty file", _AGAIN
    return (
        _by_magic(path, start) or _by_text(start) or ("binary data of an unknown kind", "check that it is a checkpoint")
    )


def _directory(path: Path) -> tuple[str, str]:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    if not names:
        return "an empty directory", "give the path of a checkpoint"
    if tmp := [name for name in names if unfinished(path / name.rstrip("/"))]:
        return f"unfinished checkpoints, {', '.join(tmp[:8])}", "give a directory in which a training has saved one"
    listing = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    todo = "give the path of the checkpoint itself"
    if "model.bin" in names and any("vocabulary" in name for name in names):
        found, todo = describe(path / "model.bin")
        return f"a CTranslate2 model directory whose model.bin is {found}", todo
    if any(name.endswith(".index") for name in names):
        return f"a directory with what may be a damaged TensorFlow checkpoint: {listing}", _AGAIN
    return f"a directory with {listing}", todo


def _by_magic(path: Path, start: bytes) -> tuple[str, str] | None:
    if start.startswith(POINTER):
        return "a git-lfs pointer, not the file itself", "run git lfs pull, or download the file itself"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path)
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive", "unpack it first"
    if start.startswith((b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf")) or start[257:262] == b"ustar":
        return "an archive or a compressed file", "unpack it first"
    if start.startswith(b"GGUF"):
        return "a GGUF file", _CONVERT
    if start.lstrip().startswith((b"mmap lm http://kheafield.com/", b"\\data\\")):
        return "a language model (KenLM or ARPA)", "give it to `warmstart transcribe --scorer`, with an acoustic model"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model", "give the checkpoint that it was converted from"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return pickle_looks.describe(path)
    if ".data-0" in path.name:
        return "a data file of a TensorFlow checkpoint without its index", "put the .index file beside it"
    if path.name.endswith(".index"):
        return "an index, but not of a TensorFlow checkpoint, or a damaged one", _AGAIN
    if start[:1] == b"\x08" and (b"onnx" in start or b"pytorch" in start or b"graph" in start):
        return "an ONNX model", "give the checkpoint that it was exported from"
    return None


def _zip(path: Path) -> tuple[str, str]:
    try:
        names = [info.filename for info in directory(path)]
    except NotZip:
        return "a damaged or truncated zip archive", _AGAIN
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return f"{_TORCH} (a zip archive with data.pkl)", _CONVERT
    if not names:
        return "an empty zip archive", _AGAIN
    return f"a zip archive without arrays: {', '.join(names[:4])}", "unpack it first"


def _by_text(start: bytes) -> tuple[str, str] | None:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return None
        text = start[: error.start].decode("utf-8")
    stripped = text.lstrip("\ufeff \t\r\n").lower()
    if stripped.startswith(("<!doctype html", "<html", "<head")) or "<html" in stripped[:1000]:
        return (
            "an HTML page (a download that went wrong?)",
            "open the address in a browser and download the file itself",
        )
    if any(ord(character) < 32 and character not in "\t\r\n\f" for character in text):
        return None
    if stripped.startswith(("{", "[")):
        return "JSON text", "give the file that holds the arrays"
    return "text", "give the file that holds the arrays"
