"""Downloads from a server that does what real ones do on bad days."""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server import Fault, File, Server

from warmstart.errors import SourceError, WarmstartError
from warmstart.sources import fetch, http
from warmstart.sources.cache import Cache
from warmstart.sources.download import RESTARTS, Patience
from warmstart.sources.uri import resolve

PATH = "/models/model.bin2"  # a name of no family: nothing is looked for beside it


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_file_comes_once_and_is_asked_about_afterwards(server: Server, cache: Path) -> None:
    data = noise(300_000)
    url = server.put(PATH, data)
    path = resolve(url)
    assert (path.name, path.read_bytes()) == ("model.bin2", data)
    assert path.is_relative_to(cache)
    assert resolve(url) == path
    assert [r.status for r in server.of(PATH)] == [200, 304]
    server.put(PATH, noise(1000, 1))
    assert resolve(url).read_bytes() == noise(1000, 1)


def test_names_in_urls_are_unquoted_and_sent_quoted(server: Server) -> None:
    server.put("/модель 1/имя файла.x", b"contents")
    path = resolve(f"{server.url}/модель 1/имя%20файла.x")
    assert (path.name, path.read_bytes()) == ("имя файла.x", b"contents")


@pytest.mark.parametrize("options", [{}, {"tag": None}, {"tag": "weak"}, {"chunked": True}], ids=str)
def test_connections_that_drop_at_random_bytes_cost_no_byte_twice(server: Server, options: dict[str, object]) -> None:
    data, draw = noise(400_000), random.Random(5)
    url = server.put(PATH, data, **options)
    cuts = [draw.randrange(60_000) for _ in range(12)]
    server.faults[PATH] = [Fault(cut=cut) for cut in cuts]
    assert resolve(url).read_bytes() == data
    assert all(int(r.headers["range"][6:-1]) > 0 for r in server.of(PATH) if "range" in r.headers)
    if not options.get("chunked"):  # what was in flight when a chunked answer was cut is given up
        assert server.sent(PATH) == len(data)


def test_a_server_without_ranges_is_asked_for_all_again(server: Server) -> None:
    data = noise(200_000)
    url = server.put(PATH, data, ranges=False)
    server.faults[PATH] = [Fault(cut=50_000), Fault(hang_up=True), Fault(cut=120_000)]
    assert resolve(url).read_bytes() == data


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"date": None},
        {"tag": None},
        {"tag": None, "date": None},
        {"if_range": False},
        {"tag": "weak", "date": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("longer", [0, 5000])
def test_a_file_that_changes_between_attempts_is_never_mixed(
    server: Server, options: dict[str, object], longer: int
) -> None:
    old, new = noise(200_000), noise(200_000 + longer, 1)
    url = server.put(PATH, old, **options)
    later = "Thu, 02 Jul 2026 10:00:00 GMT" if options.get("date", True) else None

    def change() -> None:
        server.put(PATH, new, **{**options, "date": later})

    server.faults[PATH] = [Fault(cut=90_000), Fault(before=change, cut=70_000)]
    assert resolve(url).read_bytes() == new


def test_a_file_that_always_changes_is_given_up(server: Server) -> None:
    url = server.put(PATH, noise(100_000))
    seeds = iter(range(1, 100))

    def change() -> None:
        server.put(PATH, noise(100_000, next(seeds)))

    server.faults[PATH] = [Fault(cut=50_000), *(Fault(before=change, cut=50_000) for _ in range(20))]
    with pytest.raises(SourceError, match="changes while it is downloaded"):
        resolve(url)
    assert len(server.of(PATH)) <= 2 * RESTARTS + 3


def test_lies_about_the_length(server: Server) -> None:
    data = noise(100_000)
    url = server.put(PATH, data)
    server.faults[PATH] = [Fault(announce=200_000) for _ in range(50)]
    with pytest.raises(SourceError, match="does not succeed"):
        resolve(url)
    server.faults[PATH] = [Fault(), *[Fault(announce=60_000)] * 3]  # the first meets what is left of the lie above
    assert resolve(url).read_bytes() == data[:60_000], "nobody can know, without a sum"
    sum_ = hashlib.sha256(data).hexdigest()
    with pytest.raises(SourceError, match="not the expected one"):
        resolve(f"{url}#sha256={sum_}")
    server.faults[PATH] = [Fault(announce=60_000)]
    assert resolve(f"{url}#sha256={sum_}").read_bytes() == data


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_will_not_pass_stops_at_once(server: Server, status: int) -> None:
    url = server.put("/a/b", b"x") + f"#sha256={'0' * 64}"
    server.faults["/a/b"] = [Fault(status=status)] * 9
    with pytest.raises(SourceError) as caught:
        resolve(url)
    assert f"status {status}" in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    url = server.put(PATH, noise(1000))
    server.faults[PATH] = [Fault(status=status)] * 3
    assert resolve(url).read_bytes() == noise(1000)
    assert len(server.of(PATH)) == 4


def test_what_does_not_pass_is_given_up_and_gone_on_with_later(server: Server) -> None:
    data = noise(100_000)
    url = server.put(PATH, data)
    server.faults[PATH] = [Fault(cut=40_000), *[Fault(status=503)] * 30]
    with pytest.raises(SourceError, match="status 503"):
        resolve(url)
    server.faults[PATH].clear()
    assert resolve(url).read_bytes() == data
    assert server.sent(PATH) - len(b"go away") * 6 == len(data)


def test_a_server_may_ask_for_a_pause(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(fetch.Report, "sleep", lambda self, seconds: slept.append(seconds))
    url = server.put(PATH, b"x" * 100)
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 50))
    server.faults[PATH] = [Fault(status=429, headers={"Retry-After": after}) for after in ("7", soon, "later")]
    assert resolve(url).read_bytes() == b"x" * 100
    assert slept[0] == 7.0
    assert 45 < slept[1] <= 50
    assert slept[2] < 1
    server.put(PATH, b"y")
    server.faults[PATH] = [Fault(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(SourceError, match="a pause of 86400 seconds"):
        resolve(url)


def test_silence_ends_a_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.2)
    url = server.put(PATH, noise(1000))
    server.faults[PATH] = [Fault(stall=0.5)]
    assert resolve(url).read_bytes() == noise(1000)
    assert len(server.of(PATH)) == 2


def test_a_slow_server_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT", 0.3)
    url = server.put(PATH, noise(40_000))
    server.faults[PATH] = [Fault(pace=0.05)]
    assert resolve(url).read_bytes() == noise(40_000)
    assert len(server.of(PATH)) == 1


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="does not succeed"):
        resolve("http://127.0.0.1:9/x")
    with pytest.raises(SourceError, match="no such host"):
        resolve("http://nowhere.invalid/x")


def test_redirections_are_followed_but_take_no_credentials_elsewhere(server: Server) -> None:
    data = noise(5000)
    server.put("/real/file.x", data)
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.redirects = {"/here/file.x": "/there/file.x", "/there/file.x": f"{elsewhere}/real/file.x"}
    path = resolve(f"{server.url.replace('://', '://me:secret@')}/here/file.x")
    assert (path.name, path.read_bytes()) == ("file.x", data)
    assert [bool(r.headers.get("authorization")) for r in server.requests] == [True, True, False]


@pytest.mark.parametrize("target", ["/loop/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://h/x"])
def test_redirections_that_lead_nowhere_good(server: Server, target: str) -> None:
    server.redirects["/loop/x"] = target
    with pytest.raises(SourceError):
        resolve(f"{server.url}/loop/x?q=1")


def test_sums(server: Server) -> None:
    data = noise(5000)
    url, sum_ = server.put(PATH, data), hashlib.sha256(data).hexdigest()
    with pytest.raises(SourceError, match="not the expected one") as caught:
        resolve(f"{url}#sha256={'0' * 64}")
    assert sum_ in str(caught.value.found)
    path = resolve(f"{url}#sha256={sum_.upper()}")
    asked = len(server.requests)
    assert resolve(url, sha256=sum_) == path
    other = server.put("/elsewhere/copy.x", b"never asked for")
    assert resolve(other, sha256=sum_).read_bytes() == data
    assert len(server.requests) == asked, "what is here by its contents needs no network"
    with pytest.raises(SourceError, match="not a SHA-256"):
        resolve(f"{url}#sha256=12")


def test_a_resumed_file_with_a_wrong_sum_is_fetched_whole_once_more(server: Server) -> None:
    """Without ETag and date a sum is what allows to go on, and a change shows in the end."""
    old, new = noise(100_000), noise(100_000, 1)
    url = server.put(PATH, old, tag=None, date=None)
    server.faults[PATH] = [Fault(cut=50_000), Fault(before=lambda: server.files.update({PATH: File(new)}))]
    assert resolve(url, sha256=hashlib.sha256(new).hexdigest()).read_bytes() == new


def test_a_file_of_unknown_length_needs_a_sum(server: Server) -> None:
    data = noise(5000)
    url = server.put(PATH, data, length=False)
    with pytest.raises(SourceError, match="does not say how long it is"):
        resolve(url)
    assert resolve(url, sha256=hashlib.sha256(data).hexdigest()).read_bytes() == data


def test_compression_on_the_way_is_refused_and_files_that_are_compressed_are_not(server: Server) -> None:
    data = gzip.compress(b"text" * 1000)
    url = server.put(PATH, data)
    server.faults[PATH] = [Fault(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(SourceError, match="compresses on the way"):
        resolve(url)
    url = server.put("/models/x.tar.gz", data)
    server.faults["/models/x.tar.gz"] = [Fault(headers={"Content-Encoding": "gzip"})]
    assert resolve(url).read_bytes() == data


@pytest.mark.parametrize("answer", ["bytes 0-99/100000", "bytes */100000", "nonsense", ""])
def test_another_part_than_was_asked_for(server: Server, answer: str) -> None:
    url = server.put(PATH, noise(100_000))
    server.faults[PATH] = [Fault(cut=30_000), Fault(headers={"Content-Range": answer})]
    with pytest.raises(SourceError, match="another part"):
        resolve(url)


def test_any_mixture_of_faults_ends_in_the_right_bytes_or_a_clear_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "Patience", functools.partial(Patience, pause=0.0, tries=4))
    monkeypatch.setattr(http, "TIMEOUT", 0.5)
    right = 0
    for seed in range(60):
        draw = random.Random(seed)
        path = f"/random/{seed}.x"
        versions = [noise(draw.choice([0, 1, 5_000, 70_000]), n) for n in range(3)]
        options = {"tag": draw.choice(["strong", "weak", None]), "ranges": draw.random() < 0.7}
        options |= {"if_range": draw.random() < 0.8, "chunked": draw.random() < 0.2}
        url = server.put(path, versions[0], **options)
        for _ in range(draw.randrange(12)):
            kind = draw.randrange(6)
            new = draw.choice(versions)
            date = f"Wed, {draw.randrange(10, 28)} Jul 2026 10:00:00 GMT"
            change = functools.partial(server.put, path, new, **{**options, "date": date})
            server.faults[path].append(
                [
                    Fault(cut=draw.randrange(70_000)),
                    Fault(status=draw.choice([500, 503, 429])),
                    Fault(hang_up=True),
                    Fault(before=change if draw.random() < 0.5 else None, cut=draw.randrange(9_000)),  # type: ignore[arg-type]
                    Fault(cut=0),
                    Fault(),
                ][kind]
            )
        try:
            found = resolve(url).read_bytes()
        except SourceError:
            continue
        assert found in versions, seed
        right += 1
    assert right > 30


def test_whatever_a_server_says_is_an_error_or_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers with bits flipped, bytes repeated and lines cut, on a plain socket."""
    import socket
    import threading

    monkeypatch.setattr(fetch, "Patience", functools.partial(Patience, pause=0.0, tries=2))
    monkeypatch.setattr(http, "TIMEOUT", 0.3)
    body = b"the contents"
    right = (
        b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nETag: "abc"\r\nRetry-After: Mon, 01 Jan 2026 00:00:00 GMT\r\n'
        b"Content-Range: bytes 0-11/12\r\nLocation: /x\r\nContent-Type: text/plain\r\n\r\n" + body
    )
    answers: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answers[-1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    good = 0
    for seed in range(150):
        draw = random.Random(seed)
        answer = bytearray(right)
        if seed % 3 == 0:
            answer[9:12] = str(draw.choice([206, 301, 302, 304, 307, 416, 429, 500, 100, 204, 999])).encode()
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(answer) - len(body))
            match draw.randrange(4):
                case 0:
                    answer[at] ^= 1 << draw.randrange(8)
                case 1:
                    answer[at:at] = answer[at : at + draw.randrange(40)] * draw.randrange(4)
                case 2:
                    del answer[at : at + draw.randrange(20)]
                case 3:
                    answer[at:at] = draw.choice([b"99999999999999999999", b"-1", b"\0", b"\xff\xfe", b"\r\n", b"W/"])
        answers.append(bytes(answer))
        try:
            found = resolve(f"http://127.0.0.1:{listener.getsockname()[1]}/{seed}.x?q=1").read_bytes()
        except WarmstartError:
            continue
        assert found in answers[-1], (seed, found)
        good += found == body
    listener.close()
    assert good > 20


FETCH = (
    "import sys, hashlib\nfrom warmstart.sources.uri import resolve\n"
    "print(hashlib.sha256(resolve(sys.argv[1]).read_bytes()).hexdigest())\n"
)


KILL = """
import os, signal, sys
from pathlib import Path
from warmstart.sources.uri import resolve

url, root = sys.argv[1:]

def guard(name, count, limit):
    function = getattr(os, name)
    def call(*arguments, **options):
        count[0] += 1
        if count[0] == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(os, name, call)

for limit in range(1, 1000):
    pid = os.fork()
    if not pid:
        os.environ["WARMSTART_CACHE"] = f"{root}/{limit}"
        count = [0]
        for name in ("fsync", "replace", "rename", "link", "unlink", "utime"):
            guard(name, count, limit)
        resolve(url)
        os._exit(0)
    if os.WIFEXITED(os.waitpid(pid, 0)[1]):
        break
print(limit)
"""


def test_a_kill_at_any_operation_of_the_disk_leaves_a_cache_that_works(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, at night also its companion, fetched by processes that die at their first, second … operation."""
    name = "model.npz" if os.environ.get("WARMSTART_NIGHTLY") else "model.x"
    url = server.put(f"/k/{name}", noise(50_000))
    server.put("/k/model.npz.yml", b"vocabs: []")
    done = subprocess.run(
        [sys.executable, "-c", KILL, url, str(tmp_path / "c")], capture_output=True, text=True, check=True, timeout=60
    )
    operations = int(done.stdout)
    assert operations > 8
    again = 0
    for limit in range(1, operations + 1):
        monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "c" / str(limit)))
        cache = Cache()
        assert cache.damaged() == []
        visible = {f.name: f.read_bytes() for f in cache.root.glob("trees/*/[!.]*")}
        assert visible.items() <= {name: noise(50_000), "model.npz.yml": b"vocabs: []"}.items()
        had_all = any(
            f.stat().st_size == 50_000 for f in [*cache.root.glob("partial/*/data"), *cache.root.glob("blobs/*/*")]
        )
        before = server.sent(f"/k/{name}")
        assert resolve(url).read_bytes() == noise(50_000)
        again += had_all and server.sent(f"/k/{name}") > before
    assert again == 0, "what had come completely was fetched again"


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, url], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_want_one_url_download_it_once(server: Server) -> None:
    data = noise(300_000)
    url = server.put(PATH, data)
    server.faults[PATH] = [Fault(pace=0.01)]
    both = [start(url), start(url)]
    sums = [process.communicate(timeout=30)[0].strip() for process in both]
    assert sums == [hashlib.sha256(data).hexdigest()] * 2
    assert server.sent(PATH) == len(data)


def test_what_came_before_a_kill_is_not_fetched_again(server: Server, cache: Path) -> None:
    data = noise(400_000)
    url = server.put(PATH, data)
    for wanted in (50_000, 200_000):
        server.faults[PATH] = [Fault(pace=0.02)]
        process = start(url)
        deadline = time.monotonic() + 20
        while sum(f.stat().st_size for f in cache.glob("partial/*/data")) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    kept = sum(f.stat().st_size for f in cache.glob("partial/*/data"))
    assert kept >= 200_000
    assert not list(cache.glob("trees/*/*")), "nothing is visible that is not complete"
    assert resolve(url).read_bytes() == data
    last = server.of(PATH)[-1]
    assert last.headers["range"] == f"bytes={kept}-"
    assert last.sent == len(data) - kept
