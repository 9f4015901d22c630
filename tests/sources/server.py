"""A web server on loopback that misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class File:
    """What is served: ``tag`` strong, weak or none; ``date`` or none; ranges honoured (with or without If-Range)."""

    data: bytes
    tag: str | None = "strong"
    date: str | None = "Wed, 01 Jul 2026 10:00:00 GMT"
    ranges: bool = True
    if_range: bool = True
    kind: str = "application/octet-stream"
    chunked: bool = False
    length: bool = True

    @property
    def etag(self) -> str | None:
        if self.tag is None:
            return None
        value = f'"{hashlib.md5(self.data).hexdigest()}"'
        return value if self.tag == "strong" else f"W/{value}"


@dataclass
class Fault:
    """What happens to one request: a status, the body cut after some bytes, a lie about the length, a pause …"""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    announce: int | None = None
    stall: float = 0.0
    pace: float = 0.0
    before: Callable[[], None] | None = None
    hang_up: bool = False


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


class Server:
    """``files`` by path, ``faults`` by path for one request after the other, ``requests`` as they came."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.redirects: dict[str, str] = {}
        self.answer: Callable[..., Any] | None = None  # asked first; see hub.py
        self.requests: list[Request] = []
        self.refuse_missing = False
        self.lock = threading.Lock()
        self.url = ""

    def of(self, path: str) -> list[Request]:
        return [r for r in self.requests if urlsplit(r.path).path == path]

    def sent(self, path: str) -> int:
        return sum(r.sent for r in self.of(path))

    def put(self, path: str, data: bytes, **options: Any) -> str:
        self.files[path] = File(data, **options)
        return self.url + path


class Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner: Server = self.server.owner
        path = unquote(urlsplit(self.path).path)
        with owner.lock:
            request = Request(self.path, {k.lower(): v for k, v in self.headers.items()})
            owner.requests.append(request)
            fault = owner.faults[path].pop(0) if owner.faults[path] else Fault()
        self.close_connection = True
        if fault.before:
            fault.before()
        time.sleep(fault.stall)
        with suppress(ConnectionError):
            self._answer(owner, path, fault, request)

    def _answer(self, owner: Server, path: str, fault: Fault, request: Request) -> None:
        if fault.hang_up:
            return
        if fault.status is not None:
            return self._send(request, fault.status, fault.headers, b"go away")
        made = owner.answer(self.path, request.headers) if owner.answer else None
        if made is not None and not isinstance(made[2], File):
            return self._send(request, made[0], {"Content-Type": "application/json", **made[1]}, made[2])
        if path in owner.redirects:
            return self._send(request, 302, {"Location": owner.redirects[path]}, b"")
        file = made[2] if made is not None else owner.files.get(path)
        if file is None:
            return self._send(request, 403 if owner.refuse_missing else 404, {}, b"<html>not here</html>")
        status, start, headers = self._conditions(file, request)
        if status == 304:
            return self._send(request, 304, headers, b"")
        if status == 416:
            return self._send(request, 416, {"Content-Range": f"bytes */{len(file.data)}"}, b"")
        headers |= {**(made[1] if made is not None else {}), **fault.headers}
        self._send(request, status, headers, file.data[start:], fault, file)

    def _conditions(self, file: File, request: Request) -> tuple[int, int, dict[str, str]]:
        headers = {"Content-Type": file.kind}
        if file.etag:
            headers["ETag"] = file.etag
        if file.date:
            headers["Last-Modified"] = file.date
        asked = request.headers
        if file.etag and asked.get("if-none-match") == file.etag:
            return 304, 0, headers
        if file.date and asked.get("if-modified-since") == file.date:
            return 304, 0, headers
        given = asked.get("range")
        condition = asked.get("if-range")
        if not given or not file.ranges or (condition and file.if_range and condition not in (file.etag, file.date)):
            return 200, 0, headers
        start = int(given.removeprefix("bytes=").rstrip("-"))
        if start >= len(file.data):
            return 416, 0, {}
        headers["Content-Range"] = f"bytes {start}-{len(file.data) - 1}/{len(file.data)}"
        return 206, start, headers

    def _send(
        self,
        request: Request,
        status: int,
        headers: dict[str, str],
        body: bytes,
        fault: Fault | None = None,
        file: File | None = None,
    ) -> None:
        fault = fault or Fault()
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        chunked = file is not None and file.chunked
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif file is None or file.length:
            self.send_header("Content-Length", str(len(body) if fault.announce is None else fault.announce))
        self.send_header("Connection", "close")
        self.end_headers()
        body = b"" if self.command == "HEAD" else body if fault.cut is None else body[: fault.cut]
        step = 4096 if fault.pace else 65536
        for at in range(0, len(body), step):
            part = body[at : at + step]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            self.wfile.flush()
            request.sent += len(part)
            time.sleep(fault.pace)
        if chunked and fault.cut is None:
            self.wfile.write(b"0\r\n\r\n")


class _Listening(ThreadingHTTPServer):
    request_queue_size = 128  # with 5, as by default, a ninth connection waits a second for its second attempt
    daemon_threads = True


@contextmanager
def serving() -> Iterator[Server]:
    owner = Server()
    httpd = _Listening(("127.0.0.1", 0), Handler)
    httpd.owner = owner  # type: ignore[attr-defined]
    owner.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
