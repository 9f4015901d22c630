"""The Hub's HTTP interface, as far as its clients need it to list and fetch models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from server import File, Server


class Hub:
    """One repository on ``server``: commits, a listing in pages, and files that are redirected to another host name.

    ``blobs`` are what is really sent; ``private`` is a token that is asked for.
    """

    def __init__(self, server: Server, repo: str) -> None:
        self.server, self.repo = server, repo
        self.head, self.private, self.page = "", "", 1000
        self.commits: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.small = 100  # bytes from which on a file is kept apart, by its SHA-256
        server.answer = self.answer

    def commit(self, files: Mapping[str, bytes]) -> str:
        self.head = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[self.head] = dict(files)
        self.blobs = dict(files)
        return self.head

    def answer(
        self, path: str, headers: Mapping[str, str], head: bool = False
    ) -> tuple[int, dict[str, str], Any] | None:
        """(status, headers, body or a File) for a request, or None if it is not for the hub."""
        if path.startswith("/store/"):
            name = unquote(urlsplit(path).path.removeprefix("/store/"))
            return 200, {}, File(self.blobs[name])
        clean = unquote(urlsplit(path).path)
        if clean in self.server.files or not clean.startswith(("/api/models/", f"/{self.repo}/")):
            return None
        if self.private and headers.get("authorization") != f"Bearer {self.private}":
            return 401, {"X-Error-Code": "RepoNotFound"}, b"Invalid username or password."
        revision_at, tree_at = f"/api/models/{self.repo}/revision/", f"/api/models/{self.repo}/tree/"
        if clean.startswith(revision_at):
            commit = self._commit(clean.removeprefix(revision_at))
            return (200, {}, self._about(commit)) if commit else (404, {"X-Error-Code": "RevisionNotFound"}, b"")
        if clean == f"/api/models/{self.repo}":
            return 200, {}, self._about(self.head)
        if clean.startswith(tree_at):
            return self._tree(path, clean.removeprefix(tree_at).rstrip("/"))
        if clean.startswith(f"/{self.repo}/resolve/"):
            revision, _, name = clean.removeprefix(f"/{self.repo}/resolve/").partition("/")
            return self._resolve(self._commit(revision), name)
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def _commit(self, revision: str) -> str | None:
        return self.head if revision == "main" else revision if revision in self.commits else None

    def _about(self, commit: str) -> bytes:
        siblings = [{"rfilename": name} for name in sorted(self.commits[commit])]
        return json.dumps(
            {
                "id": self.repo,
                "sha": commit,
                "siblings": siblings,
                "private": False,
                "downloads": 0,
                "tags": [],
                "likes": 0,
            }
        ).encode()

    def _tree(self, path: str, revision: str) -> tuple[int, dict[str, str], Any]:
        commit = self._commit(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        rows = []
        for name, data in sorted(self.commits[commit].items()):
            row: dict[str, Any] = {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
            }
            if len(data) >= self.small:
                row["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            rows.append(row)
        query = urlsplit(path).query
        at = int(query.rpartition("cursor=")[2]) if "cursor=" in query else 0
        headers = {}
        if at + self.page < len(rows):
            headers["Link"] = (
                f'<{self.server.url}/api/models/{self.repo}/tree/{commit}?cursor={at + self.page}>; rel="next"'
            )
        return 200, headers, json.dumps(rows[at : at + self.page]).encode()

    def _resolve(self, commit: str | None, name: str) -> tuple[int, dict[str, str], Any]:
        data = self.commits.get(commit or "", {}).get(name)
        if data is None or commit is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        headers = {"X-Repo-Commit": commit}
        if len(data) < self.small:
            return 200, {**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, File(self.blobs[name], tag=None)
        store = self.server.url.replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        return 302, {**headers, "Location": f"{store}/store/{quote(name)}?X-Amz-Signature=5ign4ture"}, b""
