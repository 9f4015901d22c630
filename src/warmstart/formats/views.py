"""A checkpoint seen in another way: under other names, with more metadata, or with other values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from warmstart.formats.checkpoint import Array, Checkpoint


class View(Checkpoint):
    """The arrays of ``original``, with what is said of them but for optimizer state.

    A subclass that changes values does so in :meth:`seen`; one that has optimizer state gives ``slots``, ``step`` and
    ``optimizer``, whose slots are the original's.

    Args:
        names: name here → name in the original; None for the same names.
        changed: attributes of :class:`Checkpoint` that are not the original's, by name.
    """

    original: Checkpoint

    def __init__(self, original: Checkpoint, names: Mapping[str, str] | None = None, **changed: Any) -> None:
        self.original = original
        self.names = {name: name for name in original.entries} if names is None else dict(names)
        here = {old: new for new, old in self.names.items()}
        same = {
            "path": original.path,
            "format": original.format,
            "metadata": original.metadata,
            "files": original.files,
            "entries": {new: replace(original.entries[old], name=new) for new, old in self.names.items()},
            "ties": {here[a]: here[b] for a, b in original.ties.items() if a in here and b in here},
        }
        super().__init__(**{**same, **changed})

    @property
    def lossy(self) -> Mapping[str, str]:
        """Arrays that are not seen as they are stored, and so cannot return → how."""
        before: Mapping[str, str] = getattr(self.original, "lossy", {})
        return {new: before[old] for new, old in self.names.items() if old in before}

    @property
    def mapped(self) -> bool:
        return self.original.mapped

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        """The array ``name``, of which ``read`` gives the arrays of the original."""
        return read(self.names[name])

    def read(self, name: str) -> Array:
        return self.seen(name, self.original.read)

    def raw(self, name: str) -> Array:
        return self.seen(name, self.original.raw)

    def peek(self, name: str) -> Array:
        return self.seen(name, self.original.peek)

    def read_checked(self, name: str) -> Array:
        return self.seen(name, self.original.read_checked)

    def verify(self, name: str) -> None:
        if name in self.names:
            self.original.verify(self.names[name])
        elif name not in self.entries:  # what the view made itself has no checksum
            raise KeyError(name)

    def read_slot(self, parameter: str, slot: str) -> Array:
        if (parameter, slot) not in self.slots:
            raise KeyError((parameter, slot))
        return self.original.read_slot(parameter, slot)
