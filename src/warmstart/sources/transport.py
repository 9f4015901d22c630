"""What a scheme offers to whoever downloads: a stream of a file from some byte on, and listings where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from warmstart.errors import SourceError
from warmstart.lean import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """A file that lies elsewhere.

    Attributes:
        url: what to ask for, with whatever secrets it has.
        name: its name below the directory that is its home, with ``/`` between parts.
        size: bytes, where that is known beforehand.
        sha256: of its contents, where that is known beforehand (hex).
        version: what changes with the contents (an ETag, a generation, a commit), where a listing says it.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    version: str | None = None


@dataclass
class Stream:
    """An answer that is being read.

    Attributes:
        start: the number of the first byte in ``chunks``; 0 if the server sends everything although less was asked for.
        size: of the whole file, if the server says it.
        version: what changes with the contents; None if the server does not say.
        steady: whether two answers of one ``version`` have the same bytes, so that one may go on where the other ended.
        framed: whether an end of ``chunks`` without an exception is known to be the end of the file.
        url: where the answer came from, after redirections.
    """

    start: int
    size: int | None
    version: str | None
    steady: bool
    framed: bool
    chunks: Iterator[bytes]
    url: str = ""
    kind: str = ""


class Unchanged(Exception):
    """The version that was asked about is still the one."""


class Passing(Exception):
    """A failure that may pass. ``after`` is how many seconds the server wants to be left alone."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Exhausted(Passing):
    """The server has fewer bytes than it announced, or than are here already."""


class Unreachable(SourceError):
    """The server cannot be reached, or does not get itself to answer."""


class Missing(SourceError):
    """There is no such file, or none that may be seen."""


class Transport(Protocol):
    """A scheme."""

    def open(
        self, file: RemoteFile, start: int = 0, version: str | None = None, known: str | None = None
    ) -> AbstractContextManager[Stream]:
        """The bytes of ``file`` from ``start`` on if it is still of ``version``, else from its first byte.

        Raises:
            Unchanged: it is of the version ``known``.
            Missing: it is not there.
            Passing: another attempt may succeed.
            SourceError: none will.
        """
        ...

    def files(self, url: str) -> list[RemoteFile] | None:
        """All files below the directory ``url``, in order; None if this scheme cannot tell.

        Raises:
            Missing: there is no such directory.
            Passing, SourceError.
        """
        ...
