"""``hf:owner/name@revision/path``: repositories of the Hugging Face Hub, over its HTTP interface.

Endpoints as its own client uses them (huggingface_hub, ``HfApi.list_repo_tree``, ``hf_hub_url``): ``api/models/REPO/
revision/REV`` names the commit, ``api/models/REPO/tree/COMMIT`` lists files with sizes and, for large ones, their
SHA-256, ``REPO/resolve/COMMIT/PATH`` redirects to the bytes.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from warmstart.errors import SourceError
from warmstart.lean import dataclass
from warmstart.sources.http import HttpTransport
from warmstart.sources.transport import Passing, RemoteFile, Stream, Unreachable

_SPELLING = re.compile(r"hf:(?://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<path>.*))?", re.DOTALL)
_MAX_JSON = 64 * 2**20
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Repository:
    """What an ``hf:`` URL names; ``path`` is empty for the whole repository."""

    repo: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """The repository at this revision, without the path."""
        return f"hf://{self.repo}@{quote(self.revision, safe='')}"


def parse(url: str) -> Repository:
    """Raises SourceError: it is not ``hf:owner/name@revision/path``."""
    match = _SPELLING.fullmatch(url)
    if match is None:
        raise SourceError(
            "not a repository of the Hugging Face Hub", where=url, expected="hf:owner/name@revision/path",
        )  # fmt: skip
    return Repository(match["repo"], unquote(match["revision"] or "main"), (match["path"] or "").strip("/"))


class HubTransport:
    """One hub: ``HF_ENDPOINT``, with the token of ``HF_TOKEN`` or of ``hf auth login`` if there is one."""

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        host = urlsplit(self.endpoint)
        token = _token() if host.scheme == "https" or host.hostname in _LOOPBACK else None
        self._http = HttpTransport({"Authorization": f"Bearer {token}"} if token else None)

    def open(
        self, file: RemoteFile, start: int = 0, version: str | None = None, known: str | None = None
    ) -> AbstractContextManager[Stream]:
        return self._http.open(file, start, version, known)

    def files(self, url: str) -> list[RemoteFile] | None:
        return self.files_at(parse(url))

    def commit(self, repository: Repository) -> str:
        """The commit that its revision names now."""
        if re.fullmatch(r"[0-9a-f]{40}", repository.revision):
            return repository.revision
        path = f"api/models/{repository.repo}/revision/{quote(repository.revision, safe='')}"
        found, _ = self._json(f"{self.endpoint}/{path}", repository)
        commit = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise SourceError("the hub does not name a commit", where=repository.url, found=repr(commit))
        return commit

    def files_at(self, repository: Repository, commit: str | None = None) -> list[RemoteFile]:
        """Every file of the repository at ``commit``, whatever ``path`` is."""
        commit = commit or self.commit(repository)
        page: str | None = f"{self.endpoint}/api/models/{repository.repo}/tree/{commit}?recursive=true"
        files = []
        for _ in range(1000):
            if page is None:
                break
            rows, page = self._json(page, repository)
            for row in rows if isinstance(rows, list) else ():
                if row.get("type") == "file":
                    files.append(self._file(repository.repo, commit, row))
        return sorted(files, key=lambda file: file.name)

    def _file(self, repo: str, commit: str, row: Any) -> RemoteFile:
        large = row.get("lfs") or {}
        sum_ = large.get("oid")
        name, size = str(row["path"]), large.get("size", row.get("size"))
        return RemoteFile(
            f"{self.endpoint}/{repo}/resolve/{commit}/{quote(name)}",
            name,
            size if isinstance(size, int) else None,
            sum_ if isinstance(sum_, str) and re.fullmatch(r"[0-9a-f]{64}", sum_) else None,
        )

    def _json(self, url: str, repository: Repository) -> tuple[Any, str | None]:
        """The parsed answer and the URL of the next page."""
        try:
            answer = self._http.request(url, {"Accept": "application/json"})
        except Unreachable:
            raise
        except SourceError as error:
            raise type(error)(
                "there is no such model repository, or it is not for everybody",
                where=repository.url,
                found=error.found,
                todo="check the name and revision; for a private or gated one set HF_TOKEN, and accept its conditions "
                "on its page",
            ) from None
        try:
            value = json.loads(answer.read(_MAX_JSON + 1))
        except ValueError as error:
            raise SourceError("the hub's answer cannot be read", where=repository.url, found=error) from None
        except OSError as error:
            raise Passing(str(error)) from None
        finally:
            answer.close()
        follow = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("Link") or "")
        following = urljoin(url, follow[1]) if follow else None
        if following is not None and urlsplit(following).netloc != urlsplit(url).netloc:
            raise SourceError("the hub continues its listing elsewhere", where=repository.url, found=following)
        return value, following


def _token() -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return os.environ[name].strip()
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    try:
        return path.read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
