"""What was downloaded, by its contents.

::

    blobs/ab/abcd…             contents by SHA-256, read-only
    index/KEY.json             URL without secrets, version, size, SHA-256, name, tree; its time: when it was last used
    trees/HOST-NAME-KEY/NAME   the files of one remote directory side by side, under their own names: links to blobs
    unpacked/KEY               what archives hold (formats/unpacking.py)
    features/KEY               features of recordings (data/speech/cache.py)
    partial/KEY                what of a file has come so far
    locks/KEY                  held while something is downloaded

Several processes may use it at once: what is visible is complete, and one URL is downloaded by one process at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from warmstart.errors import SourceError, StorageError
from warmstart.lean import dataclass
from warmstart.redact import redact
from warmstart.sources.download import write_note
from warmstart.storage.atomic import storage_error
from warmstart.storage.locks import directory_lock, holder

_SIGNATURES = re.compile(
    r"(x-(amz|goog)-.*|signature|sig|expires|se|sp|sv|sr|st|awsaccesskeyid|googleaccessid|policy|key-pair-id)",
    re.IGNORECASE,
)
_POLL = 0.1  # seconds between looks at a lock that another process holds


@dataclass(frozen=True)
class Record:
    """What the cache knows of a URL.

    A file has ``size``, ``sha256``, and ``tree`` and ``name`` where it lies; a directory has ``files``, the URLs' keys
    by name. ``url`` is without secrets. ``version`` is the server's, ``fetched`` in seconds since 1970.
    """

    url: str
    tree: str
    name: str = ""
    version: str | None = None
    size: int = 0
    sha256: str = ""
    fetched: float = 0.0
    files: dict[str, str] | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Where a file in the cache came from; ``url`` without secrets."""

    url: str
    size: int
    sha256: str


def default_root() -> Path:
    """``WARMSTART_CACHE``, else ``warmstart`` in ``XDG_CACHE_HOME``, else ``~/.cache/warmstart``."""
    chosen = os.environ.get("WARMSTART_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "warmstart"


def key_of(url: str) -> str:
    """What ``url`` is known by: without credentials, fragment, and the signatures that are new each time."""
    parts = urlsplit(url)
    query = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNATURES.fullmatch(pair[0])]
    host = parts.netloc.rpartition("@")[2] if parts.scheme in ("http", "https") else parts.netloc
    clean = urlunsplit((parts.scheme, host, parts.path, urlencode(query), ""))
    return hashlib.sha256(clean.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def tree_of(url: str) -> str:
    """The name of the tree for the remote directory ``url``: readable, and its own."""
    parts = urlsplit(url)
    words = [parts.netloc.rpartition("@")[2].partition(":")[0], *parts.path.strip("/").split("/")[-1:]]
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(filter(None, words)))[:60].strip("._") or parts.scheme
    return f"{label}-{key_of(url)[:16]}"


class Cache:
    """The cache in ``root``, which is made when something is put into it, for its owner alone."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    def tree(self, name: str) -> Path:
        return self.root / "trees" / name

    def partial(self, key: str) -> Path:
        return self.root / "partial" / key

    def _lock(self, key: str) -> Path:
        """Lock files cannot be removed safely, so that many URLs share one."""
        return self.root / "locks" / hashlib.sha256(key.encode()).hexdigest()[:3]

    def _index(self, key: str) -> Path:
        return self.root / "index" / f"{key}.json"

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[str], None] = lambda who: None) -> Iterator[None]:
        """Holds the URL of ``key``; waits while another process does, and tells ``waiting`` once who that is."""
        self._make()
        failures, told = 0, False
        while True:
            held = directory_lock(self._lock(key))
            try:
                held.__enter__()
                break
            except StorageError:
                who = holder(self._lock(key))
                failures = 0 if who else failures + 1
                if failures > 20:  # nobody holds it and still it cannot be had
                    raise
                if who and not told:
                    waiting(who)
                    told = True
                time.sleep(_POLL)
        try:
            yield
        finally:
            held.__exit__(None, None, None)

    def _make(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.root) from error

    def record(self, key: str) -> Record | None:
        """What is known of the URL of ``key``; None also if it cannot be read."""
        try:
            return Record(**json.loads(self._index(key).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def records(self) -> dict[str, Record]:
        """All that is known, by key."""
        keys = sorted(path.stem for path in (self.root / "index").glob("*.json"))
        return {key: record for key in keys if (record := self.record(key)) is not None}

    def holds(self, record: Record | None) -> bool:
        """Whether the contents of this file are here."""
        if record is None or not record.sha256:
            return False
        try:
            return self.blob(record.sha256).stat().st_size == record.size
        except OSError:
            return False

    def note(self, key: str, record: Record) -> None:
        """Remember ``record``."""
        self._make()
        path = self._index(key)
        try:
            path.parent.mkdir(exist_ok=True)
            write_note(path, json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise storage_error(error, path) from error

    def touch(self, key: str) -> None:
        """It was used now."""
        with contextlib.suppress(OSError):
            os.utime(self._index(key))

    def keep(self, key: str, record: Record, data: Path) -> None:
        """Takes the finished download ``data`` in as the contents of ``record``, and gives it its name in its tree.

        The record comes first: one whose contents are missing counts as nothing, and contents without a record would
        be pruned.
        """
        self.note(key, record)
        blob = self.blob(record.sha256)
        try:
            if not self.holds(record):
                blob.parent.mkdir(parents=True, exist_ok=True)
                with data.open("rb") as stream:
                    os.fsync(stream.fileno())
                data.chmod(0o444)
                data.replace(blob)
        except OSError as error:
            raise storage_error(error, blob) from error
        shutil.rmtree(data.parent, ignore_errors=True)
        self.place(record)

    def place(self, record: Record) -> Path:
        """The file under its own name beside its siblings."""
        path, blob = self.tree(record.tree) / record.name, self.blob(record.sha256)
        try:
            if path.exists() and path.samefile(blob):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{os.getpid()}-{time.monotonic_ns()}.tmp")
            try:
                _link(blob, temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)  # two links to one file: replace() does nothing (POSIX rename)
        except OSError as error:
            raise storage_error(error, path) from error
        return path

    def drop(self, tree: str, name: str) -> None:
        """The remote directory no longer has this file."""
        with contextlib.suppress(OSError):
            (self.tree(tree) / name).unlink()

    def origin(self, path: Path) -> Origin | None:
        """Where the file at ``path`` came from; None for what is not in the cache."""
        try:
            parts = path.absolute().relative_to(self.root / "trees").parts
        except ValueError:
            return None
        record = self._by_place.get((parts[0], "/".join(parts[1:])))
        return Origin(record.url, record.size, record.sha256) if record is not None and self.holds(record) else None

    @cached_property
    def _by_place(self) -> dict[tuple[str, str], Record]:
        """Files by tree and name, as they were when this object was first asked."""
        return {(record.tree, record.name): record for record in self.records().values() if record.name}

    def damaged(self) -> list[str]:
        """Removes every blob whose contents are not what its name says; returns the URLs that they were of."""
        found = []
        for blob in sorted((self.root / "blobs").glob("??/*")):
            with blob.open("rb") as stream:
                right = hashlib.file_digest(stream, "sha256").hexdigest() == blob.name
            if not right:
                of = [record for record in self.records().values() if record.sha256 == blob.name]
                for record in of:
                    self.drop(record.tree, record.name)
                blob.unlink()
                found += [record.url for record in of] or [f"SHA-256 {blob.name}"]
        return found

    def used(self, key: str) -> float:
        """When it was last used, in seconds since 1970."""
        return self._index(key).stat().st_mtime

    def prune(self, seconds: float) -> int:
        """Removes what was not used for ``seconds``; returns the number of bytes. What is being downloaded stays."""
        before, limit = self.nbytes(), time.time() - seconds
        for key, record in self.records().items():
            if self._index(key).stat().st_mtime <= limit and holder(self._lock(key)) is None:
                if record.name:
                    self.drop(record.tree, record.name)
                self._index(key).unlink(missing_ok=True)
        kept = self.records().values()
        used = {record.sha256 for record in kept}
        for blob in (self.root / "blobs").glob("??/*"):
            if blob.name not in used:
                blob.unlink(missing_ok=True)
        places = {self.tree(record.tree) / name for record in kept for name in (record.name, *(record.files or ()))}
        for path in (self.root / "trees").rglob("*"):  # of a file in two trees, its record knows one
            if path not in places and path.suffix != ".tmp" and path.is_file() and path.stat().st_nlink == 1:
                path.unlink(missing_ok=True)
        for data in (self.root / "partial").glob("*/data"):
            if data.stat().st_mtime <= limit and holder(self._lock(data.parent.name)) is None:
                shutil.rmtree(data.parent, ignore_errors=True)
        for left in [*self.root.glob("index/.*.tmp-*"), *self.root.glob("trees/**/.*.tmp")]:  # of killed processes
            if left.stat().st_mtime <= limit:
                left.unlink(missing_ok=True)
        for directory in [*self.root.glob("unpacked/*"), *self.root.glob("features/*")]:
            if directory.stat().st_mtime <= limit:
                shutil.rmtree(directory, ignore_errors=True)
        for folder, _, _ in os.walk(self.root / "trees", topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        return before - self.nbytes()

    def nbytes(self) -> int:
        """Bytes of everything, each content once."""
        total = 0
        for part in ("blobs", "partial", "unpacked", "features"):
            for path in (self.root / part).rglob("*"):
                with contextlib.suppress(OSError):
                    total += path.stat().st_size if path.is_file() else 0
        return total


def _link(blob: Path, path: Path) -> None:
    """A hard link: formats refuse symbolic links that lead out of a directory. A copy where there are none."""
    try:
        os.link(blob, path)
    except OSError:
        shutil.copyfile(blob, path)


def missing_offline(url: str, names: list[str]) -> SourceError:
    """The error for what is not in the cache while the network may not be used."""
    return SourceError(
        "not in the cache, and the network is off",
        where=redact(url),
        expected=", ".join(names) if names else None,
        todo="run `warmstart fetch URL` where there is a network, or go without --offline (WARMSTART_OFFLINE)",
    )
