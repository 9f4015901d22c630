"""From a URL to a path in the cache: which files belong to it, several at once, each once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TypeVar

from warmstart.errors import SourceError
from warmstart.lean import dataclass
from warmstart.redact import redact
from warmstart.sources.cache import Cache, Record, key_of, missing_offline
from warmstart.sources.choice import Wanted
from warmstart.sources.download import Patience, download
from warmstart.sources.transport import Missing, Passing, RemoteFile, Transport, Unchanged
from warmstart.storage.atomic import require_space
from warmstart.storage.progress import Progress

T = TypeVar("T")
PARALLEL = 4
_PROBES = 8
_EVERYTHING = Wanted()


@dataclass
class Home:
    """A remote directory.

    Attributes:
        url: without its files' names; what its record goes by.
        tree: the cache's directory for its files.
        address: the URL of the file of a name.
        listing: its files by name, where the scheme lists.
        frozen: whether a name there means the same contents for ever (a commit).
    """

    url: str
    tree: str
    transport: Transport
    address: Callable[[str], str]
    listing: Mapping[str, RemoteFile] | None = None
    frozen: bool = False

    def file(self, name: str) -> RemoteFile:
        if self.listing is None:
            return RemoteFile(self.address(name), name)
        found = self.listing.get(name)
        if found is None:
            raise Missing("there is no such file", where=self.address(name), todo="`warmstart ls` shows what there is")
        return found

    def key(self, name: str) -> str:
        return key_of(self.address(name))


class _Stopped(Exception):
    """Another file could not be had, or the user wants no more."""


class Report:
    """One progress bar for all files, which appears with the first byte; and the way to stop all of them."""

    def __init__(self, description: str, shown: bool) -> None:
        self._description, self._shown = redact(description), shown
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._size = 0
        self._stop = threading.Event()

    def announce(self, size: int | None) -> None:
        with self._lock:
            self._size += size or 0
            if self._progress is not None:
                self._progress.extend(size or 0)

    def add(self, n: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            if self._progress is None and n and self._shown:
                self._progress = Progress(self._description, self._size or None, "bytes").__enter__()
            if self._progress is not None and n:
                self._progress.update(n)

    def sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _Stopped

    def say(self, who: str) -> None:
        if self._shown:
            import sys

            print(f"{self._description}: waiting for {who}, which is downloading it", file=sys.stderr)

    def stop(self) -> None:
        self._stop.set()

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)


class Fetcher:
    """Takes files of remote directories into ``cache``."""

    def __init__(self, cache: Cache, report: Report) -> None:
        self.cache, self.report = cache, report
        self._patience = Patience(sleep=report.sleep)
        self._began = time.time()
        self._done: dict[str, Path] = {}

    def take(self, home: Home, names: Iterable[str], *, optional: bool = False) -> dict[str, Path]:
        """The files of these names, several at once; with ``optional`` those of them that are there.

        Raises:
            Missing, SourceError, StorageError: the first failure; the others are stopped.
        """
        wanted = list(dict.fromkeys(names))
        out: dict[str, Path] = {}
        for name, path in zip(wanted, self._all(lambda n: self._try(home, n, optional), wanted, PARALLEL), strict=True):
            if path is not None:
                out[name] = path
            else:
                self.cache.drop(home.tree, name)
        return out

    def _try(self, home: Home, name: str, optional: bool) -> Path | None:
        try:
            return self.one(home, name)
        except SourceError as error:
            if optional and _absent(error):
                return None
            raise

    def present(self, home: Home, names: Iterable[str]) -> dict[str, int | None]:
        """Which of the files are there, with their sizes in bytes.

        Raises:
            SourceError: none is, and the server refuses to say so.
        """
        wanted = list(names)
        answers = self._all(lambda name: self._probe(home, name), wanted, _PROBES)
        refusals = [answer for answer in answers if isinstance(answer, SourceError) and not isinstance(answer, Missing)]
        found = {n: a[0] for n, a in zip(wanted, answers, strict=True) if isinstance(a, tuple)}
        if not found and refusals:
            raise refusals[0]
        return found

    def _probe(self, home: Home, name: str) -> tuple[int | None] | SourceError:
        def ask() -> tuple[int | None]:
            with home.transport.open(home.file(name)) as stream:
                return (stream.size,)

        try:
            return self.patiently(ask, home.address(name))
        except SourceError as error:
            if _absent(error):
                return error
            raise

    def patiently(self, ask: Callable[[], T], url: str) -> T:
        """``ask()``, again while what keeps it from succeeding may pass."""
        failures = 0
        while True:
            try:
                return ask()
            except Passing as reason:
                failures += 1
                self._patience.wait(failures, reason, url)

    def _all(self, work: Callable[[str], T], names: list[str], workers: int) -> list[T]:
        if len(names) == 1:
            return [work(names[0])]
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work, name) for name in names]
            try:
                done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
                if not waiting:
                    return [future.result() for future in futures]
                raise next(error for future in done if (error := future.exception()))
            except BaseException:  # also Ctrl-C
                self.report.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def one(self, home: Home, name: str, sha256: str | None = None) -> Path:
        """The file ``name`` of ``home``, from the cache if it is the same there."""
        cache, key = self.cache, home.key(name)
        if key in self._done:
            return self._done[key]
        file = home.file(name)
        if sha256 is not None:
            file = replace(file, sha256=sha256)
        at_hand = self._at_hand(home, file, key)
        if at_hand is None:
            with cache.lock(key, self.report.say):
                at_hand = self._at_hand(home, file, key) or self._download(home, file, key)
        cache.touch(key)
        self._done[key] = cache.place(at_hand)
        return self._done[key]

    def _at_hand(self, home: Home, file: RemoteFile, key: str) -> Record | None:
        """The record of the file if nobody needs to be asked whether it is still the same."""
        record = self.cache.record(key)
        if record is not None and self.cache.holds(record):
            if file.sha256 is not None:
                same = file.sha256 == record.sha256
            else:
                same = home.frozen or (file.version is not None and file.version == record.version)
                same = same or record.fetched >= self._began  # by another process while this one waited
            if same:
                return self._in_tree(home, file.name, key, record)
        if file.sha256 is not None and self.cache.blob(file.sha256).is_file():
            size = self.cache.blob(file.sha256).stat().st_size
            return self._in_tree(home, file.name, key, self._record(home, file, file.version, size, file.sha256))
        return None

    def _in_tree(self, home: Home, name: str, key: str, record: Record) -> Record:
        known = self.cache.record(key)
        record = replace(record, tree=home.tree, name=name)
        if known != record:
            self.cache.note(key, record)
        return record

    def _download(self, home: Home, file: RemoteFile, key: str) -> Record:
        record = self.cache.record(key)
        usable = record is not None and self.cache.holds(record) and file.sha256 in (None, record.sha256)
        try:
            done = download(
                home.transport,
                file,
                self.cache.partial(key),
                known=record.version if record is not None and usable else None,
                report=self.report.add,
                announce=self.report.announce,
                patience=self._patience,
            )
        except Unchanged:
            assert record is not None
            record = replace(record, fetched=time.time())
            self.cache.note(key, record)
            return record
        record = self._record(home, file, done.version, done.size, done.sha256)
        self.cache.keep(key, record, done.path)
        return record

    @staticmethod
    def _record(home: Home, file: RemoteFile, version: str | None, size: int, sha256: str) -> Record:
        url = redact(home.address(file.name))
        return Record(url, home.tree, file.name, version, size, sha256, time.time())

    def together(
        self, home: Home, names: Iterable[str], optional: Iterable[str] = (), wanted: Wanted = _EVERYTHING
    ) -> dict[str, Path]:
        """Those files that are ``wanted`` with what they refer to, and again what that refers to: all that they cannot
        do without, the rest if it is wanted."""
        from warmstart.sources.families import references

        names = list(filter(wanted, names))
        self._require_space(home, names)
        taken = self.take(home, names)
        taken |= self._take_listed(home, filter(wanted, optional))
        done: set[str] = set()
        while new := [name for name in taken if name not in done]:
            done.update(new)
            required: list[str] = []
            tried: list[str] = []
            for name in new:
                below = PurePosixPath(name).parent
                found, needed = references(PurePosixPath(name).name, taken[name])
                more = [str(below / other) for other in found]
                (required if needed else tried).extend(other for other in more if other not in taken)
            try:
                taken |= self.take(home, required)
            except Missing as error:
                raise SourceError(
                    "a part is missing",
                    where=error.where,
                    expected=f"what {', '.join(sorted(new))} names",
                    found=error.found,
                    todo="ask whoever published it",
                ) from None
            taken |= self._take_listed(home, filter(wanted, tried))
        return taken

    def _take_listed(self, home: Home, names: Iterable[str]) -> dict[str, Path]:
        """Those of the files that are there."""
        return self.take(home, (n for n in names if home.listing is None or n in home.listing), optional=True)

    def _require_space(self, home: Home, names: Iterable[str]) -> None:
        if home.listing is None:
            return
        files = [(name, home.file(name)) for name in names]
        needed = sum(file.size or 0 for name, file in files if self._at_hand(home, file, home.key(name)) is None)
        if needed:
            self.cache.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_space(self.cache.root, needed)


def _absent(error: SourceError) -> bool:
    """Buckets that may be read but not listed answer 403 for what is not there."""
    return isinstance(error, Missing) or error.found == "status 403"


def from_cache(cache: Cache, key: str, url: str) -> Path | None:
    """What the URL of ``key`` was when it was last fetched, without asking anybody; None if it never was.

    Raises:
        SourceError: a part of it is not in the cache any more; names every such file.
    """
    record = cache.record(key)
    if record is None:
        return None
    parts = {name: cache.record(part) for name, part in (record.files or {}).items()}
    missing = [name for name, part in parts.items() if part is None or not cache.holds(part)]
    if record.name and not cache.holds(record):
        missing.insert(0, record.name)
    if missing:
        raise missing_offline(url, missing)
    for name, part in (record.files or {}).items():
        found = parts[name]
        assert found is not None
        cache.place(replace(found, tree=record.tree, name=name))
        cache.touch(part)
    cache.touch(key)
    if record.name:
        return cache.place(record)
    return cache.tree(record.tree) / str(record.more.get("path", ""))
