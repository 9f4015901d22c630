"""Which arrays a person means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from warmstart.errors import ConfigError, Problem


def matching(names: Iterable[str], patterns: Sequence[str], where: object) -> list[str]:
    """Those of ``names`` that one of ``patterns`` matches, in their order; all of them if there is no pattern.

    A pattern is a whole name, or one with ``*`` (any characters, separators too), ``?`` and ``[...]``.

    Raises:
        ConfigError: a pattern matches nothing; similar names are given.
    """
    names = list(names)
    if not patterns:
        return names
    known, found, problems = set(names), set[str](), []
    for pattern in patterns:
        matched = {pattern} if pattern in known else {name for name in names if fnmatchcase(name, pattern)}
        found |= matched
        if not matched:
            near = difflib.get_close_matches(pattern, names[:10_000], n=3, cutoff=0.4)
            problems.append(
                Problem(f"{pattern!r} matches nothing", todo=f"similar: {', '.join(near)}" if near else None)
            )
    if problems:
        raise ConfigError(
            "no array has such a name",
            where=where,
            expected=f"names of some of its {len(names):,} arrays" + (f", such as {names[0]}" if names else ""),
            problems=problems,
            todo="`*` stands for any characters, as in '*.weight'; quote it for the shell",
        )
    return [name for name in names if name in found]
