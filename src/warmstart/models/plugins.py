"""Families and dialects of other packages, found by the entry point ``warmstart.families``.

An entry is a family, a class or function that makes one, or :class:`AddedDialect`: a dialect of a family that is here.
Nothing of a plug-in is imported before somebody asks for the families.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

from warmstart.errors import ConfigError
from warmstart.lean import dataclass
from warmstart.models.family import Dialect, Family
from warmstart.models.lazily import Later, Lazily

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "warmstart.families"


@dataclass(frozen=True)
class AddedDialect:
    """A dialect for the family called ``family``."""

    family: str
    dialect: Dialect


class Extended:
    """A family with further dialects. Everything else is the family's own."""

    def __init__(self, family: Family, added: Sequence[Dialect]) -> None:
        self._family, self._added = family, tuple(added)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def dialects(self) -> Sequence[Dialect]:
        own = self._family.dialects()
        return own.joined(self._added) if isinstance(own, Lazily) else (*own, *self._added)


class Families(Sequence[Family]):
    """The families that are built in, then those of plug-ins, which are loaded when first asked for."""

    def __init__(
        self, built_in: Sequence[Family | Later], find: Callable[[], Sequence[EntryPoint]] | None = None
    ) -> None:
        self._built_in, self._find = tuple(built_in), find or _installed
        self._all: Lazily[Family] | None = None
        self._origins: dict[tuple[str, str | None], str] = {}

    @overload
    def __getitem__(self, index: int) -> Family: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Family]: ...

    def __getitem__(self, index: int | slice) -> Family | Sequence[Family]:
        return self._loaded()[index]

    def __len__(self) -> int:
        return len(self._loaded())

    def __iter__(self) -> Iterator[Family]:
        return iter(self._loaded())

    def named(self, name: str) -> Family | None:
        """The family called ``name``, if there is one; no other is imported."""
        return self._loaded().named(name)

    def plugins(self, family: str, *dialects: str | None) -> list[str]:
        """Which plug-ins (``name (package 1.0)``) the family and these of its dialects come from."""
        self._loaded()
        keys = [(family, None), *((family, dialect) for dialect in dialects)]
        return list(dict.fromkeys(self._origins[key] for key in keys if key in self._origins))

    def ran(self) -> list[str]:
        """Every plug-in whose code was run so far; none before somebody asked for the families."""
        return list(dict.fromkeys(self._origins.values()))

    def _loaded(self) -> Lazily[Family]:
        if self._all is None:
            families: dict[str, Family | Later] = {f.name: f for f in self._built_in}
            added: dict[str, list[Dialect]] = {}
            for point in sorted(self._find(), key=lambda point: point.name):
                origin = f"{point.name} ({point.dist.name} {point.dist.version})" if point.dist else point.name
                self._add(_load(point, origin), origin, families, added)
            for name, dialects in added.items():
                families[name] = cast(Family, Extended(_made(families[name]), dialects))
            self._all = Lazily(*families.values())
        return self._all

    def _add(
        self, found: Any, origin: str, families: dict[str, Family | Later], added: dict[str, list[Dialect]]
    ) -> None:
        if isinstance(found, AddedDialect):
            if found.family not in families:
                raise _wrong(origin, f"a dialect of {found.family!r}", ", ".join(families))
            taken = [d.name for d in (*_made(families[found.family]).dialects(), *added.get(found.family, ()))]
            if found.dialect.name in taken:
                raise _wrong(origin, f"{found.family} has a dialect {found.dialect.name!r} already", "another name")
            added.setdefault(found.family, []).append(found.dialect)
            self._origins[found.family, found.dialect.name] = origin
        elif found.name in families:
            raise _wrong(origin, f"there is a family {found.name!r} already", "another name")
        else:
            families[found.name] = found
            self._origins[found.name, None] = origin


def _installed() -> Sequence[EntryPoint]:
    """The entry points of installed packages. To import what reads them takes as long as to open a model, and there are
    seldom any, so it is first seen whether a package names the group at all."""
    if not _named():
        return ()
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def _named() -> bool:
    """Whether a package in the directories of ``sys.path`` may have entry points of the group; yes, where packages can
    come from elsewhere (archives, importers of others)."""
    if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder):
        return True
    for folder in dict.fromkeys(sys.path):
        try:
            with os.scandir(folder or ".") as entries:
                packages = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:
            return True
        except OSError:
            continue
        for package in packages:
            try:
                if GROUP.encode() in Path(package, "entry_points.txt").read_bytes():
                    return True
            except OSError:
                continue
    return False


def _made(family: Family | Later) -> Family:
    return cast(Family, family.make()) if isinstance(family, Later) else family


def _load(point: EntryPoint, origin: str) -> Any:
    try:
        found = point.load()
        found = found() if isinstance(found, type) or (not hasattr(found, "name") and callable(found)) else found
    except Exception as error:  # a plug-in may fail in any way
        raise _wrong(origin, f"{type(error).__name__}: {error}", "a plug-in that can be imported") from error
    if isinstance(found, AddedDialect) or (hasattr(found, "parameters") and hasattr(found, "dialects")):
        return found
    raise _wrong(origin, type(found).__name__, "a family, or warmstart.models.plugins.AddedDialect")


def _wrong(origin: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        "a plug-in for families cannot be used",
        where=f"entry point {GROUP}: {origin}",
        expected=expected,
        found=found,
        todo="mend or uninstall the package",
    )
