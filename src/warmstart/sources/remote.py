"""What a remote URL names is brought into the cache, listed, or found there without the network."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from warmstart.errors import SourceError
from warmstart.redact import redact
from warmstart.sources.cache import Cache, key_of, missing_offline
from warmstart.sources.fetch import Fetcher, Report, from_cache
from warmstart.sources.hub import parse
from warmstart.sources.schemes import Bucket, Hub, Listed, Obtained, Web, with_choice, with_slash
from warmstart.sources.transport import Unreachable


def obtain(
    url: str,
    *,
    sha256: str | None = None,
    offline: bool = False,
    everything: bool = False,
    progress: bool = True,
    choice: str | None = None,
    alone: bool = False,
) -> Obtained:
    """Brings what ``url`` (http, https, gs, s3 or hf) names into the cache, unless it is there and still the same.

    Args:
        sha256: of the file, which is then not a directory.
        offline: ask nobody.
        everything: of a directory that is listed, also what no family of files asks for.
        choice: of a directory with several checkpoints, bring this one only (where the files' names tell which it is).
        alone: it is one file; nothing else is looked for where that is not there.

    Raises:
        SourceError, StorageError, MissingExtra.
    """
    cache = Cache()
    if offline:
        return _offline(cache, url, sha256, choice)
    try:
        with Report(f"fetching {label(url)}", progress) as report:
            fetcher = Fetcher(cache, report)
            scheme = urlsplit(url).scheme.lower()
            if scheme == "hf":
                return Hub(fetcher).obtain(parse(url), sha256, everything, choice, alone)
            if scheme in ("gs", "s3"):
                return Bucket(fetcher, scheme).obtain(url, sha256, choice, alone)
            return Web(fetcher).obtain(url, sha256, everything, choice, alone)
    except Unreachable as error:
        _offline_would_do(cache, url, sha256, choice, error)
        raise


def entries(url: str) -> list[Listed]:
    """What there is at ``url``, one level deep.

    Raises:
        SourceError, MissingExtra; for http also if no file of a known name is there, since nothing lists it.
    """
    with Report("", False) as report:
        fetcher = Fetcher(Cache(), report)
        scheme = urlsplit(url).scheme.lower()
        if scheme == "hf":
            return Hub(fetcher).entries(parse(url))
        if scheme in ("gs", "s3"):
            return Bucket(fetcher, scheme).entries(url)
        return Web(fetcher).entries(url)


def label(url: str) -> str:
    """A short name without secrets, for a progress bar: the last part of the path."""
    parts = urlsplit(redact(url))
    last = unquote(parts.path.rstrip("/").rpartition("/")[2])
    return last or parts.netloc


def _offline(cache: Cache, url: str, sha256: str | None, choice: str | None) -> Obtained:
    places = [_canonical(url)] if url.endswith("/") else [_canonical(url), with_slash(_canonical(url))]
    chosen = [] if choice is None else [with_choice(place, choice) for place in places]
    for key in map(key_of, [*chosen, *places]):
        record = cache.record(key)
        path = from_cache(cache, key, url)
        if path is not None and record is not None:
            if sha256 is not None and record.sha256 != sha256:
                raise SourceError(
                    "the cache has another version, and the network is off",
                    where=url, expected=f"SHA-256 {sha256}", found=f"SHA-256 {record.sha256 or 'of no file'}",
                )  # fmt: skip
            own = [record.name] if record.name else []
            return Obtained(path, cache.tree(record.tree), [*own, *(record.files or {})])
    raise missing_offline(url if choice is None else with_choice(url, choice), [])


def _offline_would_do(cache: Cache, url: str, sha256: str | None, choice: str | None, error: SourceError) -> None:
    """Says so, where what was fetched before is there. To use it unasked would hide that it may be old."""
    try:
        _offline(cache, url, sha256, choice)
    except SourceError:
        return
    raise Unreachable(
        error.what,
        where=error.where,
        found=error.found,
        todo="--offline uses what was fetched before; or try again later",
    ) from None


def _canonical(url: str) -> str:
    """One spelling for what several mean."""
    if url.lower().startswith("hf:"):
        repository = parse(url)
        return f"{repository.url}/{repository.path}".rstrip("/")
    return url
