"""Which ending of a file's name means which writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from warmstart.errors import ConfigError, FormatError, Problem
from warmstart.formats import npz, safetensors, torch_write
from warmstart.formats.checkpoint import Array, Entry
from warmstart.lean import dataclass


@dataclass(frozen=True)
class Writer:
    """How named arrays become a file of one format.

    Attributes:
        format: its name.
        refuses: why it cannot hold an array of such a name and dtype; None if it can.
        write: writes arrays, one for each entry in their order, holding one at a time; the file is complete or not
            there.
    """

    format: str
    refuses: Callable[[Entry], str | None]
    write: Callable[[Path, Sequence[Entry], Iterable[Array]], None]


NUMPYS_OWN = {
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128"),
}


def _npz_refuses(entry: Entry) -> str | None:
    if entry.dtype not in NUMPYS_OWN:
        return f"npz has no dtype {entry.dtype}"
    if "\0" in entry.name or not _utf8(entry.name) or len(entry.name.encode()) > 65_000:
        return "a zip archive cannot hold this name"
    return None


def _safetensors_refuses(entry: Entry) -> str | None:
    if entry.dtype not in safetensors.DTYPES.values():
        return f"safetensors has no dtype {entry.dtype}"
    if entry.name == "__metadata__" or not _utf8(entry.name):
        return "safetensors cannot hold this name"
    return None


def _torch_refuses(entry: Entry) -> str | None:
    if entry.dtype not in torch_write.DTYPES:
        return f"torch has no dtype {entry.dtype}"
    return None if _utf8(entry.name) else "a torch file cannot hold this name"


def _utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _write_npz(path: Path, entries: Sequence[Entry], arrays: Iterable[Array]) -> None:
    npz.write_npz(path, zip((entry.name for entry in entries), arrays, strict=True))


_TORCH = Writer(torch_write.FORMAT, _torch_refuses, torch_write.write_torch)
WRITERS = {
    ".npz": Writer(npz.FORMAT, _npz_refuses, _write_npz),
    ".safetensors": Writer(safetensors.FORMAT, _safetensors_refuses, safetensors.write_safetensors),
    ".pt": _TORCH,
    ".pth": _TORCH,
}


def writer_for(path: Path) -> Writer:
    """The writer that the ending of ``path`` names.

    Raises:
        ConfigError: there is none.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ConfigError(
            "the ending names no format that can be written",
            where=path,
            expected=" or ".join(WRITERS),
            found=path.suffix or "no ending",
        )
    return writer


def check_entries(path: Path, writer: Writer, entries: Sequence[Entry]) -> None:
    """Whether ``writer`` can write arrays of these names and dtypes; nothing is written.

    Raises:
        FormatError: it cannot hold some of them, or a name occurs twice; each is named.
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    for entry in entries:
        if not entry.readable:
            reason: str | None = f"its values, of dtype {entry.dtype}, can only be described"
        else:
            reason = "the name occurs twice" if entry.name in seen else writer.refuses(entry)
        seen.add(entry.name)
        if reason is not None:
            problems.append(Problem(f"{entry.name}: {reason}"))
    if problems:
        raise FormatError(
            f"{writer.format} cannot hold {len(problems):,} of these {len(entries):,} arrays",
            where=path,
            problems=problems[:20],
            todo="write another format, or choose arrays by --names",
        )
