"""Families and dialects that are imported when it is their turn: to have them in a list costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from importlib import import_module
from typing import Any, TypeVar, cast, overload

from warmstart.lean import dataclass

T = TypeVar("T")


@dataclass(frozen=True)
class Later:
    """The object called ``name`` that ``kind`` of ``module`` makes of ``arguments``.

    ``formats`` are those of the checkpoints that a dialect can recognise; empty where any may be.
    """

    name: str
    module: str
    kind: str
    formats: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        return getattr(import_module(self.module), self.kind)(**self.arguments)


class Lazily(Sequence[T]):
    """A sequence of what is here and what is made when it is first asked for; each has a name."""

    def __init__(self, *items: T | Later) -> None:
        self._items: list[Any] = list(items)
        self._formats = [item.formats if isinstance(item, Later) else () for item in items]

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if isinstance(self._items[index], Later):
            self._items[index] = self._items[index].make()
        return cast(T, self._items[index])

    def __iter__(self) -> Iterator[T]:
        return (self[k] for k in range(len(self)))

    def named(self, name: str) -> T | None:
        """The one called ``name``; nothing else is made."""
        return next((self[k] for k, item in enumerate(self._items) if item.name == name), None)

    def of_format(self, name: str) -> Iterator[T]:
        """Those that can recognise a checkpoint of the format ``name``; nothing else is made."""
        return (self[k] for k, formats in enumerate(self._formats) if not formats or name in formats)

    def joined(self, more: Sequence[T]) -> Lazily[T]:
        """These, then ``more``."""
        both: Lazily[T] = Lazily(*self._items, *more)
        both._formats[: len(self)] = self._formats
        return both
