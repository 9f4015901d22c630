"""From what a person wrote to an opened checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from warmstart.errors import FormatError, UnknownFormat
from warmstart.formats import archives
from warmstart.formats.checkpoint import Candidate, Checkpoint
from warmstart.formats.mapped import head
from warmstart.formats.zipped import directories_once
from warmstart.sources.choice import AUTO
from warmstart.sources.uri import is_remote, resolve, split_choice


class Format(Protocol):
    """What a format's module offers."""

    FORMAT: str

    def recognise(self, path: Path) -> bool:
        """Whether ``path`` holds this format, by its content: a file, a directory, or the prefix of several files."""

    def open(self, path: Path) -> Checkpoint: ...

    def candidates(self, directory: Path) -> list[Candidate]:
        """The checkpoints of this format in ``directory``, not below it, in the order of their names."""


FORMATS = (
    *("safetensors", "safetensors_index", "marian", "npz", "npy", "torch_file", "ctranslate2", "tensorflow"),
    *("orbax", "t5x", "flax", "keras_hdf5"),
)  # modules of this package, in the order in which they are asked
DIRECTORIES = {
    "torch_file": ("storages",),
    "tensorflow": ("saved_model.pb", "saved_model.pbtxt"),
    "orbax": (),
    "t5x": (),
}  # of these, those that a directory can be, and of which one of these names must be in it, if any
PLAIN = (".safetensors", ".npz", ".json", ".yml", ".yaml", ".txt", ".spm", ".md")  # names of what usually ships …
OF_PLAIN = ("safetensors", "safetensors_index", "marian")  # … and the formats whose checkpoints are called so
PREFIXES = ("tensorflow",)  # those whose path may be what the names of several files begin with
BEGINNINGS = {
    b"PK\x03\x04": ("marian", "npz", "torch_file", "keras_hdf5"),
    b"\x93NUMPY": ("npy",),
    b"\x89HDF\r\n\x1a\n": ("keras_hdf5",),
}  # a file's first bytes → those that can begin so

__all__ = ["FORMATS", "Format", "arrive", "find_candidates", "formats", "locate", "open_checkpoint", "split_choice"]


def formats(names: Sequence[str] = FORMATS) -> Iterator[Format]:
    """The formats, one after another, each imported when it is its turn."""
    for name in names:
        yield cast(Format, import_module(f"warmstart.formats.{name}"))


def recognised(path: Path) -> Format | None:
    """The format that ``path`` holds, by its content."""
    with directories_once():
        return next((module for module in formats(possible(path)) if module.recognise(path)), None)


def possible(path: Path) -> Sequence[str]:
    """The formats worth asking, in their order: all but those that what is there, or how it begins, rules out."""
    if path.is_dir():
        if _plain(path):
            return ()
        return [name for name, of in DIRECTORIES.items() if not of or any((path / part).exists() for part in of)]
    if not path.is_file():
        return PREFIXES
    start = head(path, 8)
    return next((names for beginning, names in BEGINNINGS.items() if start.startswith(beginning)), FORMATS)


def _plain(directory: Path) -> bool:
    """Whether nothing but files of ``PLAIN`` names is in ``directory``: then it is no checkpoint itself, and what is in
    it is told by few formats."""
    with contextlib.suppress(OSError):
        paths = list(directory.iterdir())
        usual = all(path.name.endswith(PLAIN) and not path.name.endswith(".bin.index.json") for path in paths)
        return usual and all(path.is_file() for path in paths)
    return False


def open_checkpoint(source: str | Path, arrived: tuple[Path, str | None] | None = None) -> Checkpoint:
    """Open a file, a directory or an archive that holds one checkpoint, or the chosen one of several
    (``DIRECTORY@NAME``, ``@best``, ``@last``, ``@final``; ``@auto`` is the best, or the last where none is the best).

    Formats are told apart by content. Only headers are read; an archive is unpacked into the cache first.

    Args:
        arrived: what :func:`arrive` gave for ``source``, where that is known already.

    Raises:
        SourceError: nothing is there.
        UnknownFormat: no format recognises it; says what it looks like and what to do.
        CorruptCheckpoint: it is damaged.
        FormatError: a directory holds several checkpoints, or an array cannot be represented.
    """
    with directories_once():
        path = locate(source, arrived)
        module = recognised(path)
        if module is None:
            raise _unknown(path, source)
        return module.open(path)


def locate(source: str | Path, arrived: tuple[Path, str | None] | None = None) -> Path:
    """The path of the one checkpoint that ``source`` means, which a format's ``open`` takes.

    Raises:
        SourceError, UnknownFormat, FormatError: as :func:`open_checkpoint`.
    """
    path, choice = arrived or arrive(source)
    if not path.is_dir():
        if choice is not None:
            raise FormatError("this is not a directory to choose from", where=path, found=f"@{choice}")
        return path
    if choice is None and recognised(path):
        return path
    return _choose(path, choice, split_choice(source)[0])


def arrive(source: str | Path) -> tuple[Path, str | None]:
    """The path that ``source`` names, what an archive holds unpacked, and what is to be chosen there.

    Raises:
        SourceError, FormatError: as :func:`open_checkpoint`.
    """
    place, choice = split_choice(source)
    path = _resolve(place, choice)
    if archives.recognise(path):
        from warmstart.formats.unpacking import unpack

        path = unpack(path, shown=str(place) if is_remote(str(place)) else None)
    if choice in (AUTO, "best") and path.is_dir() and not find_candidates(path):
        choice = None  # a bundle or a run, whose model is its best: there is nothing to choose
    return path, choice


def find_candidates(directory: Path) -> list[Candidate]:
    """Every checkpoint in ``directory``, of all formats; plain npz files, which are data as often, where there is no
    other."""
    found = _candidates(directory, OF_PLAIN) if _plain(directory) else []
    if not found:
        found = _candidates(directory, [name for name in FORMATS if name != "npz"])
    return found or _candidates(directory, ["npz"])


def _candidates(directory: Path, names: Sequence[str]) -> list[Candidate]:
    found: dict[Path, Candidate] = {}
    for module in formats(names):
        for candidate in module.candidates(directory):
            found.setdefault(candidate.path, candidate)
    return list(found.values())


def _resolve(place: str | Path, choice: str | None) -> Path:
    """A path that exists, or the prefix of files that do (``model.ckpt-100`` for ``model.ckpt-100.index``)."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no path at all, which resolve says better
        path = Path(place).expanduser()
        if not (is_remote(str(place)) or path.exists()) and recognised(path):
            return path
    return resolve(place, choice=choice)


def _choose(directory: Path, choice: str | None, shown: str | Path) -> Path:
    found = find_candidates(directory)
    if not found:
        raise _unknown(directory, shown)
    chosen = [c for c in found if choice is None or choice == c.name]
    if choice is not None and not chosen:
        chosen = [c for c in found if choice in (*c.roles, c.path.name)]
    if choice == AUTO and not chosen:
        by_role = ([c for c in found if role in c.roles] for role in ("best", "last"))
        chosen = next((some for some in by_role if some), found)
    if len(chosen) == 1:
        return chosen[0].path
    if choice is not None and not chosen:
        raise FormatError(
            f"no checkpoint here is called {choice!r}",
            where=shown,
            expected=", ".join(map(str, found)),
            todo=f"choose one, as in {shown}@{found[0].name}",
        )
    raise FormatError(
        "several checkpoints in one directory",
        where=shown,
        expected="one",
        found=", ".join(map(str, chosen)),
        todo=f"choose one: {' or '.join(f'{shown}@{name}' for name in _names(chosen))}" + _automatic(chosen, shown),
    )


def _names(several: list[Candidate]) -> list[str]:
    """How each can be asked for: by the role that it alone has, or by its name."""
    roles = [role for candidate in several for role in candidate.roles]
    return [next((r for r in c.roles if roles.count(r) == 1), c.name) for c in several[:4]]


def _automatic(several: list[Candidate], shown: str | Path) -> str:
    one_is_best = sum("best" in candidate.roles for candidate in several) == 1
    return f"; {shown}@{AUTO} is the best" if one_is_best else ""


def _unknown(path: Path, shown: str | Path) -> UnknownFormat:
    from warmstart.formats.looks import describe

    found, todo = describe(path)
    if path.is_dir() and (below := _below(path)):
        todo = f"give the path of one of the checkpoints below it: {', '.join(below)}"
    tried = ", ".join(module.FORMAT for module in formats())
    return UnknownFormat("not a checkpoint of a known format", where=shown, expected=tried, found=found, todo=todo)


def _below(directory: Path) -> list[str]:
    """The directories in ``directory`` that hold checkpoints, as far as a few show it."""
    found = []
    for path in sorted(directory.iterdir())[:50]:
        if path.is_dir() and (recognised(path) or find_candidates(path)):
            found.append(f"{path.name}/")
    return found
