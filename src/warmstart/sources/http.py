"""``http:`` and ``https:``, by the standard library: why not by fsspec is in docs/decisions/0009."""

from __future__ import annotations

import base64
import email.utils
import http.client
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from functools import cache
from time import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from warmstart import __version__
from warmstart.errors import SourceError
from warmstart.redact import redact
from warmstart.sources.transport import Exhausted, Missing, Passing, RemoteFile, Stream, Unchanged, Unreachable

TIMEOUT = 30.0  # seconds in which a server must connect, and then send something
CHUNK = 2**18
_PASSING = {408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 529, 598, 599}
_MISSING = {404, 410}
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@cache
def _context() -> ssl.SSLContext:
    """The system's trust, read once and not for every request."""
    return ssl.create_default_context()


class Redirections(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, never from https to http, and gives credentials to nobody but their host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        there, here = urlsplit(newurl), urlsplit(req.full_url)
        if there.scheme not in ("http", "https") or (here.scheme == "https" and there.scheme != "https"):
            raise SourceError("the server redirects to where nobody should follow", where=here.geturl(), found=newurl)
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and (there.scheme, there.netloc) != (here.scheme, here.netloc):
            new.remove_header("Authorization")
        return new


class HttpTransport:
    """Files of web servers. ``headers`` go to the host of each URL, not where it redirects."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self._headers = dict(headers or {})

    def files(self, url: str) -> list[RemoteFile] | None:
        return None

    @contextmanager
    def open(
        self, file: RemoteFile, start: int = 0, version: str | None = None, known: str | None = None
    ) -> Iterator[Stream]:
        headers = {}
        if start and version is not None:
            headers = {"Range": f"bytes={start}-", "If-Range": version.partition(":")[2]}
        elif start:  # nothing tells the versions apart; the caller checks the contents
            headers = {"Range": f"bytes={start}-"}
        elif known is not None:
            kind, _, value = known.partition(":")
            headers = {"If-Modified-Since" if kind == "date" else "If-None-Match": value}
        answer = self.request(file.url, headers)
        try:
            if urlsplit(answer.geturl()).path == urlsplit(file.url).path + "/":
                raise Missing("this is a directory", where=file.url, expected="a file")
            yield _stream(answer, file.url, start)
        finally:
            answer.close()

    def request(self, url: str, headers: Mapping[str, str]) -> Any:
        """The answer to GET; ``url`` may hold ``user:password@``.

        Raises:
            Unchanged, Missing, Passing, SourceError: see :class:`Transport`.
        """
        try:
            clean, credentials = _ascii(url)
            request = urllib.request.Request(
                clean,
                headers={
                    "User-Agent": f"warmstart/{__version__}",
                    "Accept-Encoding": "identity",
                    **self._headers,
                    **credentials,
                    **headers,
                },
            )
            secure = [urllib.request.HTTPSHandler(context=_context())] if clean.startswith("https:") else []
            return urllib.request.build_opener(Redirections, *secure).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            _raise_status(error.code, error.headers, url, headers)
        except urllib.error.URLError as error:
            _raise_reason(error.reason, url)
        except (http.client.InvalidURL, ValueError) as error:
            raise SourceError("not a URL that can be asked for", where=url, found=error) from None
        except (http.client.HTTPException, OSError) as error:
            _raise_reason(error, url)
        raise AssertionError("unreachable")


def _ascii(url: str) -> tuple[str, dict[str, str]]:
    """``url`` without credentials and with every character quoted that needs it; the header for the credentials."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("it names no host")
    user, _, host = parts.netloc.rpartition("@")
    headers = {}
    if user:
        pair = ":".join(unquote(part) for part in user.split(":", 1)) + ("" if ":" in user else ":")
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return urlunsplit((parts.scheme, host.encode("idna").decode(), path, query, "")), headers


def _raise_status(code: int, headers: Message, url: str, asked: Mapping[str, str]) -> None:
    if code == 304 and ("If-None-Match" in asked or "If-Modified-Since" in asked):
        raise Unchanged
    if code == 416 and "Range" in asked:
        raise Exhausted("the server has fewer bytes than it announced")
    if code in _PASSING:
        raise Passing(f"status {code}", _retry_after(headers))
    facts: dict[str, Any] = {"where": url, "found": f"status {code}"}
    if code in _MISSING:
        raise Missing("there is nothing at this URL", todo="check the URL; `warmstart ls` shows what there is", **facts)
    if code == 401:
        raise SourceError("the server wants to know who asks", todo="give a URL with credentials or a token", **facts)
    if code == 403:
        raise SourceError(
            "the server refuses", todo="check the URL and the rights; a signed URL may be too old", **facts
        )
    raise SourceError("the server does not give this file", todo="check the URL", **facts)


def _retry_after(headers: Message) -> float | None:
    """Seconds, of a header that has seconds or a date (RFC 9110, 10.2.3)."""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        parsed = email.utils.parsedate_tz(text)
        return None if parsed is None else max(0.0, email.utils.mktime_tz(parsed) - time())
    except (ValueError, OverflowError):
        return None


def _raise_reason(reason: object, url: str) -> None:
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise SourceError("the server's certificate is not trusted", where=url, found=reason.verify_message) from None
    if isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN:
        raise Unreachable("there is no such host", where=url, found=reason, todo="check the URL and the network")
    if isinstance(reason, str):
        raise SourceError("the server cannot be asked", where=url, found=reason)
    raise Passing(redact(reason) or type(reason).__name__)


def _stream(answer: Any, url: str, asked: int) -> Stream:
    headers: Message = answer.headers
    final = answer.geturl()
    _refuse_encoding(headers, url)
    length = _number(headers.get("Content-Length"))
    version, steady = _version(headers)
    start, size = 0, length
    if answer.status == 206:
        match = _RANGE.fullmatch((headers.get("Content-Range") or "").strip())
        if match is None or int(match[1]) != asked:
            raise SourceError(
                "the server sends another part than it was asked for",
                where=url,
                expected=f"bytes from {asked}",
                found=headers.get("Content-Range"),
            )
        start = asked
        size = None if match[3] == "*" else int(match[3])
        length = int(match[2]) - asked + 1
    elif answer.status != 200:
        raise SourceError("the server does not give this file", where=url, found=f"status {answer.status}")
    chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
    kind = headers.get_content_type() if headers.get("Content-Type") else ""
    framed = length is not None or chunked
    return Stream(start, size, version, steady, framed, _chunks(answer, length), final, kind)


def _refuse_encoding(headers: Message, url: str) -> None:
    """Bytes that are compressed on the way have another length and other ranges than the file's."""
    encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
    compressed_file = urlsplit(url).path.endswith((".gz", ".tgz", ".zst", ".bz2", ".xz"))
    if encoding not in ("identity", "") and not compressed_file:
        raise SourceError(
            "the server compresses on the way although it was asked not to",
            where=url,
            expected="Content-Encoding: identity",
            found=encoding,
            todo="download it with another program and give the path",
        )


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _version(headers: Message) -> tuple[str | None, bool]:
    """A strong ETag, else a date; and whether ranges of one version fit together (RFC 9110, 13.1.5)."""
    tag, date = (headers.get("ETag") or "").strip(), (headers.get("Last-Modified") or "").strip()
    if tag and not tag.startswith("W/"):
        return f"etag:{tag}", True
    if date:
        return f"date:{date}", True
    return (f"weak:{tag}", False) if tag else (None, False)


def _chunks(answer: Any, length: int | None) -> Iterator[bytes]:
    """The body. A connection that ends before ``length`` bytes is :class:`Passing`."""
    done = 0
    while length is None or done < length:
        try:
            data = answer.read1(CHUNK if length is None else min(CHUNK, length - done))
        except (http.client.HTTPException, OSError) as error:
            raise Passing(redact(error) or type(error).__name__) from None
        if not data:
            break
        done += len(data)
        yield data
    if length is not None and done < length:
        raise Passing(f"the connection ended after {done:,} of {length:,} bytes")
