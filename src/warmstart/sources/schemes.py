"""What a URL names in each scheme: a file with what lies beside it, or a directory."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from warmstart.errors import SourceError
from warmstart.lean import dataclass
from warmstart.redact import redact
from warmstart.sources.cache import Record, key_of, tree_of
from warmstart.sources.choice import AUTO, Wanted, state_files, wanted
from warmstart.sources.families import ANCHORS, chosen, companions, references
from warmstart.sources.fetch import Fetcher, Home
from warmstart.sources.http import HttpTransport
from warmstart.sources.hub import HubTransport, Repository
from warmstart.sources.objects import ObjectTransport
from warmstart.sources.transport import Missing, RemoteFile
from warmstart.sources.uri import below


@dataclass(frozen=True)
class Obtained:
    """What was brought: ``path`` is what the URL names, ``files`` all that came with it, below ``base``."""

    path: Path
    base: Path
    files: Sequence[str]


@dataclass(frozen=True)
class Listed:
    """One line of ``ls``: a file with its bytes where they are known, or a directory, whose name ends in ``/``."""

    name: str
    url: str
    size: int | None


class Scheme:
    """What all schemes do alike."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher, self._cache = fetcher, fetcher.cache

    def _file(self, home: Home, name: str, sha256: str | None, url: str | None = None) -> Obtained:
        """One file and what small files belong to it; remembered under ``url`` too if that is not its address."""
        path = self._fetcher.one(home, name, sha256)
        folder = PurePosixPath(name).parent
        beside = [str(folder / other) for other in companions(PurePosixPath(name).name)]
        taken = self._fetcher.together(home, [name], beside)
        self._remember(home, url or home.address(name), name, taken)
        return Obtained(path, self._cache.tree(home.tree), list(taken))

    def _prefix(self, home: Home, name: str) -> Obtained:
        """The files of a TensorFlow checkpoint, whose own name no file has."""
        index = f"{name}.index"
        taken = self._fetcher.together(home, [index], [f"{name}.data-00000-of-00001"])
        self._remember(home, home.address(index), index, taken)
        return Obtained(self._cache.tree(home.tree) / name, self._cache.tree(home.tree), list(taken))

    def _wanted(self, home: Home, below: str, names: Iterable[str], choice: str | None) -> Wanted:
        """What of the files ``names`` in ``below`` is a part of the ``choice``, for which state files may be looked at;
        everything if they do not tell, or nothing is chosen."""
        names = list(names)
        for role in () if choice is None else ("best", "last") if choice == AUTO else (choice,):
            states = self._fetcher.take(home, [below + name for name in state_files(names, role)], optional=True)
            referred = [other for name, path in states.items() for other in references(name, path)[0]]
            found = wanted(names, role, referred)
            if found.checkpoints is not None:
                return replace(found, below=below)
        return Wanted()

    def _directory(
        self, home: Home, url: str, below: str, taken: dict[str, Path], choice: str | None, only: Wanted
    ) -> Obtained:
        """The directory ``below`` of ``home`` with the files ``taken``, which are all of it or ``only`` those of the
        ``choice``; files that were there before are dropped."""
        whole = choice is None or only.checkpoints is None
        self._remember(home, url if whole else with_choice(url, str(choice)), "", taken, {"path": below})
        return Obtained(self._cache.tree(home.tree) / below, self._cache.tree(home.tree), list(taken))

    def _remember(
        self, home: Home, url: str, name: str, taken: dict[str, Path], more: dict[str, Any] | None = None
    ) -> None:
        key = key_of(url)
        before = self._cache.record(key)
        for gone in set((before and before.files) or {}) - set(taken):
            self._cache.drop(home.tree, gone)
        files = {other: home.key(other) for other in taken if other != name}
        own = self._cache.record(home.key(name)) if name else None
        if own is not None:
            self._cache.note(key, Record(**{**own.__dict__, "files": files}))
        else:
            self._cache.note(key, Record(redact(url), home.tree, files=files, more=more or {}))


class Web(Scheme):
    """http and https: nobody lists a directory, so the names that the families use are tried."""

    def _home(self, directory: str) -> Home:
        return Home(directory, tree_of(directory), HttpTransport(), lambda name: below(directory, name))

    def obtain(
        self, url: str, sha256: str | None, everything: bool = False, choice: str | None = None, alone: bool = False
    ) -> Obtained:
        directory, name = _split(url)
        if not name:
            return self._family(url, sha256, everything, choice)
        try:
            return self._file(self._home(directory), _check_name(name, url), sha256)
        except Missing as error:
            if alone or sha256 is not None:  # of a file, and a file it must be
                raise
            with contextlib.suppress(Missing):
                return self._prefix(self._home(directory), name)
            with contextlib.suppress(Missing):
                return self._family(with_slash(url), None, everything, choice)
            raise error

    def _family(self, url: str, sha256: str | None, everything: bool, choice: str | None) -> Obtained:
        _refuse_sum(url, sha256)
        if everything:
            raise SourceError(
                "over http nobody lists a directory, so that not all of it can be had",
                where=url,
                todo="go without --all for the files of known names, or give the URLs of files",
            )
        home = self._home(url)
        required, optional = chosen(self._fetcher.present(home, ANCHORS))
        only = self._wanted(home, "", required, choice)
        if choice is not None and only.checkpoints is None:  # the name of a file that no table has, maybe
            required += self._fetcher.present(home, [_check_name(choice, url), f"{choice}.index"])
            optional += [*companions(choice, large=True), f"{choice}.data-00000-of-00001"]
            only = self._wanted(home, "", required, choice)
        if not required:
            raise _no_family(url)
        return self._directory(home, url, "", self._fetcher.together(home, required, optional, only), choice, only)

    def entries(self, url: str) -> list[Listed]:
        directory, name = _split(url)
        if name:
            found = self._fetcher.present(self._home(directory), [_check_name(name, url)])
            if found:
                return [Listed(name, url, found[name])]
        home = self._home(with_slash(url))
        present = self._fetcher.present(home, ANCHORS)
        required, optional = chosen(present)
        if not required:
            raise _no_family(url)
        present |= self._fetcher.present(home, optional)
        return [Listed(name, home.address(name), size) for name, size in sorted(present.items())]


class Bucket(Scheme):
    """gs and s3: a directory is all that is listed below it."""

    def __init__(self, fetcher: Fetcher, scheme: str) -> None:
        super().__init__(fetcher)
        self._transport = ObjectTransport(scheme)

    def _home(self, directory: str, listing: dict[str, RemoteFile] | None = None) -> Home:
        base = directory.rstrip("/") + "/"
        return Home(base, tree_of(base), self._transport, lambda name: base + name, listing)

    def obtain(self, url: str, sha256: str | None, choice: str | None = None, alone: bool = False) -> Obtained:
        directory, _, name = url.rpartition("/")
        if name and not directory.endswith("/"):  # more than a bucket
            try:
                return self._file(self._home(directory), _check_name(name, url), sha256)
            except Missing:
                if alone:
                    raise
        _refuse_sum(url, sha256)
        listing = self._fetcher.patiently(lambda: self._transport.files(url), url)
        assert listing is not None
        files = _inside(listing, url)
        home = self._home(url, files)
        only = self._wanted(home, "", files, choice)
        taken = self._fetcher.together(home, files, wanted=only)
        return self._directory(home, url.rstrip("/") + "/", "", taken, choice, only)

    def entries(self, url: str) -> list[Listed]:
        rows = self._fetcher.patiently(lambda: self._transport.entries(url), url)
        if len(rows) == 1 and url.endswith("/" + rows[0][0]):
            return [Listed(rows[0][0], url, rows[0][1])]
        return [Listed(name, f"{url.rstrip('/')}/{name}", size) for name, size in rows]


class Hub(Scheme):
    """Repositories of the Hugging Face Hub: listed, and a commit is for ever."""

    def __init__(self, fetcher: Fetcher) -> None:
        super().__init__(fetcher)
        self._transport = HubTransport()

    def _home(self, repository: Repository) -> Home:
        commit = self._fetcher.patiently(lambda: self._transport.commit(repository), repository.url)
        files = self._fetcher.patiently(lambda: self._transport.files_at(repository, commit), repository.url)
        fixed = Repository(repository.repo, commit, "").url
        return Home(
            fixed, tree_of(fixed), self._transport, lambda name: f"{fixed}/{name}", _inside(files, fixed), frozen=True
        )

    def obtain(
        self,
        repository: Repository,
        sha256: str | None,
        everything: bool,
        choice: str | None = None,
        alone: bool = False,
    ) -> Obtained:
        home, path = self._home(repository), repository.path
        url = f"{repository.url}/{path}".rstrip("/")
        assert home.listing is not None
        if path in home.listing:
            return self._file(home, path, sha256, url)
        _refuse_sum(url, sha256)
        prefix = f"{path}/" if path else ""
        below = [name.removeprefix(prefix) for name in home.listing if name.startswith(prefix)]
        if alone or not below:
            home.file(path)
        required, optional = ([], []) if everything else chosen(below)
        only = self._wanted(home, prefix, below, choice)
        required = list(dict.fromkeys([*(required or below), *(name for name in below if only.chosen(prefix + name))]))
        taken = self._fetcher.together(
            home, [prefix + name for name in required], [prefix + name for name in optional], only
        )
        return self._directory(home, url, path, taken, choice, only)

    def entries(self, repository: Repository) -> list[Listed]:
        home, path = self._home(repository), repository.path
        assert home.listing is not None
        if path in home.listing:
            return [Listed(PurePosixPath(path).name, f"{repository.url}/{path}", home.listing[path].size)]
        prefix = f"{path}/" if path else ""
        rows: dict[str, int | None] = {}
        for name, file in home.listing.items():
            if name.startswith(prefix):
                first, slash, _ = name.removeprefix(prefix).partition("/")
                rows[first + slash] = None if slash else file.size
        if not rows:
            home.file(path)
        return [Listed(name, f"{repository.url}/{prefix}{name}", size) for name, size in sorted(rows.items())]


def with_choice(url: str, choice: str) -> str:
    """What the directory ``url`` is remembered by when only the checkpoint ``choice`` of it was asked for."""
    return f"{url}@{choice}"


def _split(url: str) -> tuple[str, str]:
    """(URL of the directory, with ``/`` at its end; the name of the file in it)."""
    parts = urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    return urlunsplit((parts.scheme, parts.netloc, folder + "/", parts.query, "")), unquote(name)


def with_slash(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + "/", parts.query, ""))


def _check_name(name: str, url: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode("utf-8", "replace")) > 200:
        raise SourceError("the last part of the URL is no name of a file", where=url, found=repr(name))
    return name


def _inside(listing: Sequence[RemoteFile], url: str) -> dict[str, RemoteFile]:
    """A listing by name; nothing in it may lead out of its directory."""
    for file in listing:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts or "\0" in file.name or posixpath.normpath(file.name) != file.name:
            raise SourceError("the listing names a file outside its directory", where=url, found=repr(file.name))
    return {file.name: file for file in listing}


def _refuse_sum(url: str, sha256: str | None) -> None:
    if sha256 is not None:
        raise SourceError("a directory has no SHA-256", where=url, todo="give it for a file")


def _no_family(url: str) -> Missing:
    return Missing(
        "no file of a known name is in this directory, and over http nobody lists it",
        where=url,
        expected=f"one of {', '.join(ANCHORS[:6])} and so on",
        todo="give the URL of the file",
    )
