"""One file from elsewhere to the disk, however often the connection breaks."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from warmstart.errors import SourceError
from warmstart.lean import dataclass
from warmstart.redact import redact
from warmstart.sources.transport import Exhausted, Passing, RemoteFile, Stream, Transport, Unreachable
from warmstart.storage.atomic import require_space, storage_error

RESTARTS = 3  # how often a file may change while it is downloaded
ATTEMPTS = 1000  # in all, for a server that gives a few bytes each time


class _Changed(Exception):
    """The rest that came is of another version than what is here."""


@dataclass
class Patience:
    """How often in a row an attempt may bring nothing, and how long to wait before the next one.

    Waiting grows from ``pause`` seconds by a factor of two to ``longest``, and is shortened at random by up to a half
    so that many clients do not come back together. A server that wants to be left alone for longer than ``obeyed``
    seconds is not waited for.
    """

    tries: int = 6
    pause: float = 0.5
    longest: float = 30.0
    obeyed: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, reason: Passing, url: str) -> None:
        """Raises SourceError if it is not worth waiting."""
        if failures >= self.tries or (reason.after or 0.0) > self.obeyed:
            wanted = f"; the server wants a pause of {reason.after:.0f} seconds" if reason.after else ""
            raise Unreachable(
                "the download does not succeed",
                where=url,
                found=f"{reason}{wanted} (attempts without a new byte: {failures})",
                todo="try again later; what has come so far is kept and gone on with",
            ) from None
        import random

        pause: float = min(self.longest, self.pause * 2.0 ** max(0, failures - 1)) * random.uniform(0.5, 1.0)
        self.sleep(max(pause, reason.after) if reason.after else pause)


@dataclass(frozen=True)
class Downloaded:
    """``path`` holds ``size`` bytes with this ``sha256``; ``url`` is where redirections led."""

    path: Path
    size: int
    sha256: str
    version: str | None


def write_note(path: Path, text: str) -> None:
    """Writes a small file that is the old one or the new one, but unlike those of ``storage.atomic`` may be lost if the
    machine stops: whoever finds none asks again. A directory of many files would wait for the disk too often.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


class Partial:
    """What of a file has come so far: ``data``, and beside it of which version it is (``about.json``)."""

    def __init__(self, directory: Path) -> None:
        self.data, self._about = directory / "data", directory / "about.json"
        directory.mkdir(parents=True, exist_ok=True)
        self.version: str | None = None
        self.steady = False
        self.size: int | None = None
        self._sha256 = hashlib.sha256()
        self.length = 0
        self._recall()

    def _recall(self) -> None:
        try:
            about: Any = json.loads(self._about.read_text("utf-8"))
            self.version, self.steady, self.size = about["version"], about["steady"], about["size"]
            with self.data.open("rb") as stream:
                while block := stream.read(2**20):
                    self._sha256.update(block)
                    self.length += len(block)
        except (OSError, ValueError, TypeError, KeyError):
            self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with suppress(FileNotFoundError):
            self.data.unlink()
        with suppress(FileNotFoundError):
            self._about.unlink()
        self.version, self.steady, self.size, self.length = None, False, None, 0
        self._sha256 = hashlib.sha256()

    def begin(self, stream: Stream, url: str) -> None:
        """Before the first byte is written: what this is a part of."""
        self.clear()
        self.version, self.steady, self.size = stream.version, stream.steady, stream.size
        about = {"url": redact(url), "version": self.version, "steady": self.steady, "size": self.size}
        write_note(self._about, json.dumps(about))

    def append(self, stream: Stream, report: Callable[[int], None]) -> None:
        with self.data.open("ab") as file:
            for block in stream.chunks:
                file.write(block)
                self._sha256.update(block)
                self.length += len(block)
                report(len(block))
                if self.size is not None and self.length > self.size:
                    raise Passing(f"more came than the {self.size:,} bytes that were announced")

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def download(
    transport: Transport,
    file: RemoteFile,
    directory: Path,
    *,
    known: str | None = None,
    report: Callable[[int], None] = lambda n: None,
    announce: Callable[[int | None], None] = lambda size: None,
    patience: Patience | None = None,
) -> Downloaded:
    """Brings ``file`` into ``directory``, going on with what an earlier attempt or process left there.

    Only bytes of one version are put together: the server must say that the file has not changed meanwhile, by a strong
    ETag, a date, a generation; or its SHA-256 must be known beforehand. Otherwise every attempt begins anew.

    Args:
        known: the version that is at hand already.
        report: called with numbers of new bytes; negative where they are thrown away.
        announce: called once with the size of the whole file.

    Raises:
        Unchanged: it is of the version ``known``.
        Missing, SourceError: it is not there, may not be read, changes all the time or is not what was expected.
        StorageError: it cannot be written.
    """
    partial = Partial(directory)
    patience = patience or Patience()
    failures = restarts = 0
    announced = False
    report(partial.length)
    best = partial.length
    for _ in range(ATTEMPTS):
        try:
            _discard_what_cannot_go_on(partial, file, report)
            if partial.size is None or partial.length < partial.size or not partial.length:
                with transport.open(file, partial.length, partial.version, known) as stream:
                    restarts += _fit(partial, stream, file, report)
                    if not announced:
                        announce(partial.size)
                        announced = True
                    _require_space(directory, partial)
                    partial.append(stream, report)
                    _check_end(partial, stream, file)
            if file.sha256 in (None, partial.sha256):
                return Downloaded(partial.data, partial.length, partial.sha256, partial.version)
            restarts += 1
            _refuse_content(partial, file, restarts, report)
        except Exhausted as reason:
            failures += 1
            report(-partial.length)
            partial.clear()
            patience.wait(failures, reason, file.url)
        except Passing as reason:
            failures = 0 if partial.length > best else failures + 1
            best = max(best, partial.length)
            patience.wait(failures, reason, file.url)
        except _Changed:
            restarts += 1
            best = 0
        except OSError as error:
            raise storage_error(error, partial.data) from error
        if restarts > RESTARTS:
            raise SourceError(
                "the file changes while it is downloaded",
                where=file.url,
                found=f"another version in {restarts} of the attempts",
                todo="try again when whoever writes it has finished",
            )
    raise SourceError(
        "the connection breaks all the time", where=file.url, found=f"{partial.length:,} bytes in {ATTEMPTS} attempts",
        todo="the same command goes on from here",
    )  # fmt: skip


def _discard_what_cannot_go_on(partial: Partial, file: RemoteFile, report: Callable[[int], None]) -> None:
    """What is here of a version that cannot be told from others, or of another one than is wanted, is of no use."""
    other = file.version is not None and partial.version != file.version
    too_long = partial.size is not None and partial.length > partial.size
    if partial.length and (too_long or other or (not partial.steady and file.sha256 is None)):
        report(-partial.length)
        partial.clear()


def _fit(partial: Partial, stream: Stream, file: RemoteFile, report: Callable[[int], None]) -> int:
    """Makes ``partial`` ready for ``stream``; returns 1 if what came before was of another version."""
    if file.size is not None and stream.size is not None and stream.size != file.size:
        raise SourceError(
            "the file has another size than its listing says",
            where=file.url,
            expected=f"{file.size:,} bytes",
            found=f"{stream.size:,} bytes",
        )
    if not partial.length:
        if stream.start:
            raise Passing("the server sends a part where the whole was asked for")
        partial.begin(stream, file.url)
        return 0
    same_version = stream.version == partial.version or (stream.start and stream.version is None)
    same_size = None in (stream.size, partial.size) or stream.size == partial.size
    if stream.start == partial.length and same_version and same_size:
        return 0
    changed = not (same_version and same_size)
    report(-partial.length)
    if stream.start:
        partial.clear()
        raise _Changed
    partial.begin(stream, file.url)
    return int(changed)


def _check_end(partial: Partial, stream: Stream, file: RemoteFile) -> None:
    expected = partial.size if partial.size is not None else file.size
    if expected is not None and partial.length != expected:
        raise Passing(f"the file ended after {partial.length:,} of {expected:,} bytes")
    if expected is None and not stream.framed and file.sha256 is None:
        raise SourceError(
            "nobody can tell whether the file is complete: the server does not say how long it is",
            where=file.url,
            found=f"{partial.length:,} bytes",
            todo="give its SHA-256: URL#sha256=…",
        )


def _require_space(directory: Path, partial: Partial) -> None:
    if partial.size is not None:
        require_space(directory, partial.size - partial.length)


def _refuse_content(partial: Partial, file: RemoteFile, attempts: int, report: Callable[[int], None]) -> None:
    """After content with another SHA-256: once more from the first byte, then an error."""
    found = partial.sha256
    report(-partial.length)
    partial.clear()
    if attempts > 1:
        raise SourceError(
            "the file is not the expected one",
            where=file.url,
            expected=f"SHA-256 {file.sha256}",
            found=f"SHA-256 {found}",
            todo="check the sum, or look for the version that it belongs to",
        )
