"""``gs:`` and ``s3:``, through fsspec's file systems; without credentials anonymously."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from warmstart.errors import MissingExtra, SourceError
from warmstart.redact import redact
from warmstart.sources.transport import Missing, Passing, RemoteFile, Stream, Unchanged

T = TypeVar("T")
CHUNK = 2**24
_STOP_CODES = {400, 401, 403, 405, 409, 412}


class ObjectTransport:
    """Buckets of one scheme. Clients are made when they are first needed."""

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._system: Any = None

    @property
    def system(self) -> Any:
        """The fsspec file system.

        Raises:
            MissingExtra: its library is not installed.
        """
        if self._system is None:
            self._system = _google() if self._scheme == "gs" else _amazon()
        return self._system

    @contextmanager
    def open(
        self, file: RemoteFile, start: int = 0, version: str | None = None, known: str | None = None
    ) -> Iterator[Stream]:
        facts = self._facts(file.url)
        if facts["type"] != "file":
            raise Missing("this is a directory", where=file.url, expected="a file")
        found, size = _version(facts), int(facts["size"])
        if found is not None and found == known:
            raise Unchanged
        if found != version or found is None:
            start = 0
        yield Stream(start, size, found, found is not None, True, self._chunks(file.url, start, size, found), file.url)

    def _chunks(self, url: str, start: int, size: int, version: str | None) -> Iterator[bytes]:
        while start < size:
            end = min(size, start + CHUNK)
            data = _attempt(url, self.system.cat_file, _path(url), start=start, end=end)
            if len(data) != end - start:
                raise Passing(f"{len(data):,} bytes came where {end - start:,} were asked for")
            if end == size and _version(self._facts(url)) != version:
                raise Passing("the object has changed meanwhile")
            yield data
            start = end

    def _facts(self, url: str) -> Mapping[str, Any]:
        facts: Mapping[str, Any] = _attempt(url, self.system.info, _path(url))
        return facts

    def files(self, url: str) -> list[RemoteFile] | None:
        root = _path(url)
        found: Mapping[str, Mapping[str, Any]] = _attempt(url, self.system.find, root, detail=True)
        files = []
        for path, facts in sorted(found.items()):
            name = path.removeprefix(root).lstrip("/")
            if facts["type"] == "file" and name and not path.endswith("/"):
                files.append(RemoteFile(f"{self._scheme}://{path}", name, int(facts["size"]), None, _version(facts)))
        if not files:
            raise Missing("there is nothing at this URL", where=url, todo="check the URL; `warmstart ls` shows what is")
        return files

    def entries(self, url: str) -> list[tuple[str, int | None]]:
        """(name, bytes) of what lies directly below ``url``; directories end in ``/`` and have no size."""
        root = _path(url)
        found: list[Mapping[str, Any]] = _attempt(url, self.system.ls, root, detail=True)
        rows: list[tuple[str, int | None]] = []
        for facts in found:
            name = facts["name"].removeprefix(root).strip("/") or root.rsplit("/", 1)[-1]
            if facts["type"] == "directory":
                rows.append((f"{name}/", None))
            elif not facts["name"].endswith("/"):
                rows.append((name, int(facts["size"])))
        return sorted(rows)


def _path(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise SourceError(
            "credentials do not go into a URL of a bucket",
            where=url,
            todo="set them up as the cloud's own tools expect them (environment or configuration file)",
        )
    if not parts.netloc:
        raise SourceError("the URL names no bucket", where=url, expected="gs://BUCKET/PATH or s3://BUCKET/PATH")
    return url.partition("://")[2].rstrip("/")


def _version(facts: Mapping[str, Any]) -> str | None:
    for kind, key in (("generation", "generation"), ("etag", "ETag"), ("etag", "etag")):
        if facts.get(key):
            return f"{kind}:{facts[key]}"
    return None


def _google() -> Any:
    try:
        # What the package itself offers asks each bucket over gRPC of which type it is, and waits a minute where only
        # http passes; plain buckets need none of it.
        from gcsfs.core import GCSFileSystem
    except ImportError:
        raise MissingExtra("gcsfs, which reads gs:", "gs") from None
    token = "anon"
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or _google_default().is_file():
        token = "google_default"
    elif os.environ.get("GCE_METADATA_HOST") or _on_google():
        token = "cloud"
    return GCSFileSystem(token=token, access="read_only", use_listings_cache=False, skip_instance_cache=True)


def _google_default() -> Path:
    base = Path(os.environ.get("CLOUDSDK_CONFIG") or Path("~/.config/gcloud").expanduser())
    return base / "application_default_credentials.json"


def _on_google() -> bool:
    try:
        return "Google" in Path("/sys/class/dmi/id/product_name").read_text()
    except OSError:
        return False


def _amazon() -> Any:
    try:
        import botocore.session
        import s3fs
    except ImportError:
        raise MissingExtra("s3fs, which reads s3:", "s3") from None
    anonymous = botocore.session.Session().get_credentials() is None
    return s3fs.S3FileSystem(anon=anonymous, use_listings_cache=False, skip_instance_cache=True)


def _attempt(url: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Calls a client; its many kinds of errors become ours."""
    try:
        return function(*arguments, **options)
    except FileNotFoundError:
        raise Missing(
            "there is nothing at this URL", where=url, todo="check the URL; `warmstart ls` shows what there is"
        ) from None
    except PermissionError as error:
        _refused(url, error)
    except Exception as error:  # clients raise OSError, aiohttp's, botocore's, google-auth's and their own
        code = getattr(error, "code", None) or getattr(error, "status", None)
        known_refusal = str(error).startswith("Forbidden") or type(error).__name__ in (
            "NoCredentialsError",
            "DefaultCredentialsError",
            "RefreshError",
        )
        if code in _STOP_CODES or known_refusal:
            _refused(url, error)
        if code == 404 or "NoSuchBucket" in str(error):
            raise Missing("there is no such bucket or file", where=url, todo="check the URL") from None
        raise Passing(redact(error) or type(error).__name__) from None
    raise AssertionError("unreachable")


def _refused(url: str, error: Exception) -> None:
    first = (str(error) or type(error).__name__).splitlines()[0]
    raise SourceError(
        "the bucket may not be read",
        where=url,
        found=first[:200],
        todo="check the URL; for what is not public, set up credentials as the cloud's own tools expect them",
    ) from None
