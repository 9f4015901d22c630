"""What was downloaded: once, complete, under its name, and only as long as it is wanted."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from server import Fault, Server

from warmstart.errors import SourceError, StorageError
from warmstart.sources import cache as caching
from warmstart.sources.cache import Cache, Record, default_root, key_of, tree_of
from warmstart.sources.uri import resolve
from warmstart.sources.verbs import bring, cached

SECRETS = ("s3cr3t", "t0k3n", "5ign4ture")


def everything_below(root: Path) -> str:
    """Names and contents of all that the cache wrote, but for the blobs."""
    files = [f for f in root.rglob("*") if f.is_file() and "blobs" not in f.parts]
    return "\n".join([*map(str, root.rglob("*")), *(f.read_bytes().decode("utf-8", "replace") for f in files)])


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WARMSTART_CACHE", "~/mine")
    assert default_root() == tmp_path / "mine"
    monkeypatch.delenv("WARMSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "warmstart"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == tmp_path / ".cache" / "warmstart"


def test_one_content_lies_there_once_under_all_its_names(server: Server, cache: Path) -> None:
    a, b = (resolve(server.put(f"/{n}/file{n}.x", b"the same" * 100)) for n in (1, 2))
    assert (a.name, b.name) == ("file1.x", "file2.x")
    assert a.samefile(b)
    assert not a.is_symlink(), "formats refuse links that lead out of their directory"
    blobs = [f for f in (cache / "blobs").rglob("*") if f.is_file()]
    assert [f.name for f in blobs] == [hashlib.sha256(b"the same" * 100).hexdigest()]
    assert stat.S_IMODE(blobs[0].stat().st_mode) == 0o444
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert Cache().nbytes() == 800


def test_without_hard_links_there_are_copies(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    url = server.put("/a/file.x", b"contents")
    assert resolve(url).read_bytes() == b"contents"
    assert not resolve(url).samefile(Cache().blob(hashlib.sha256(b"contents").hexdigest()))


def test_siblings_lie_side_by_side_and_directories_apart() -> None:
    assert tree_of("https://h.org/a/b/") != tree_of("https://h.org/a/c/")
    assert tree_of("https://h.org/a/b/").startswith("h.org-b-")
    assert "/" not in tree_of("https://h/../%2e%2e/ä ö/")


def test_urls_are_known_by_what_they_name() -> None:
    plain = key_of("https://h/x?versionId=1")
    assert plain == key_of("https://me:pw@h/x?versionId=1&X-Amz-Signature=ab&X-Amz-Date=2026&Expires=9#sha256=00")
    assert plain != key_of("https://h/x?versionId=2")
    assert plain != key_of("https://h:8080/x?versionId=1")
    assert key_of("https://h/get?token=a") != key_of("https://h/get?token=b"), "a token may say which file"


def test_no_secret_is_stored(server: Server, cache: Path) -> None:
    server.put("/a/file.x", os.urandom(50_000))
    server.faults["/a/file.x"] = [Fault(cut=20_000), *[Fault(status=503)] * 20]
    host = server.url.partition("//")[2]
    url = f"http://user:{SECRETS[0]}@{host}/a/file.x?token={SECRETS[1]}&X-Amz-Signature={SECRETS[2]}"
    with pytest.raises(SourceError) as caught:
        resolve(url)
    server.faults["/a/file.x"].clear()
    written = everything_below(cache) + str(caught.value)
    assert "about.json" in written
    resolve(url)
    written += everything_below(cache) + json.dumps(cached())
    assert "token=***" in written
    assert [secret for secret in (*SECRETS, "user:") if secret in written] == []
    assert server.requests[-1].headers["authorization"].startswith("Basic ")


def test_offline_gives_what_is_here_and_names_what_is_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.put("/m/model.npz", b"weights")
    server.put("/m/model.npz.decoder.yml", b"vocabs: [one.spm, two.spm]")
    server.put("/m/one.spm", b"1")
    server.put("/m/two.spm", b"2")
    path = resolve(url)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.npz", "model.npz.decoder.yml", "one.spm", "two.spm"]
    server.requests.clear()
    monkeypatch.setenv("WARMSTART_OFFLINE", "1")
    assert resolve(url) == path
    for name in ("model.npz.decoder.yml", "two.spm"):
        path.with_name(name).unlink()
        Cache().blob(hashlib.sha256(server.files[f"/m/{name}"].data).hexdigest()).unlink()
    with pytest.raises(SourceError, match="not in the cache") as caught:
        resolve(url)
    assert caught.value.expected == "model.npz.decoder.yml, two.spm"
    with pytest.raises(SourceError, match="warmstart fetch"):
        resolve(f"{server.url}/m/other.npz")
    with pytest.raises(SourceError, match="another version"):
        resolve(server.url + "/m/one.spm", sha256="0" * 64)
    assert resolve(server.url + "/m/one.spm").read_bytes() == b"1"
    assert server.requests == []
    monkeypatch.setenv("WARMSTART_OFFLINE", "maybe")
    with pytest.raises(SourceError, match="neither yes nor no"):
        resolve(url)


def test_a_server_that_is_gone_leaves_the_copy_that_was_fetched(server: Server) -> None:
    url = server.put("/a/file.x", b"contents")
    resolve(url)
    server.faults["/a/file.x"] = [Fault(status=503)] * 20
    with pytest.raises(SourceError, match="--offline uses what was fetched before"):
        resolve(url)
    assert resolve(url, offline=True).read_bytes() == b"contents"
    with pytest.raises(SourceError) as caught:
        resolve(url.replace("file", "other").replace("127.0.0.1", "nowhere.invalid"))
    assert "--offline" not in str(caught.value)


def age(cache: Path, days: float) -> None:
    then = time.time() - days * 86400
    for path in [*(cache / "index").iterdir(), *cache.glob("partial/*/*"), *cache.glob("unpacked/*"),
                 *cache.glob("features/*")]:  # fmt: skip
        os.utime(path, (then, then))


def test_pruning_removes_what_nobody_used(server: Server, cache: Path) -> None:
    old = resolve(server.put("/old/a.x", b"old" * 100))
    (cache / "unpacked" / "archive").mkdir(parents=True)
    (cache / "unpacked" / "archive" / "inside").write_bytes(b"u" * 7)
    (cache / "features" / "key").mkdir(parents=True)
    (cache / "features" / "key" / "features.f32").write_bytes(b"f" * 8)
    server.put("/broken.x", b"z" * 500)
    server.faults["/broken.x"] = [Fault(cut=100), *[Fault(status=500)] * 20]
    with pytest.raises(SourceError):
        resolve(server.url + "/broken.x")
    age(cache, 31)
    new = resolve(server.put("/new/a.x", b"new" * 100))
    both = resolve(server.put("/also/b.x", b"old" * 100))
    about = sum(f.stat().st_size for f in cache.glob("partial/*/about.json"))
    assert Cache().prune(30 * 86400) == 100 + about + 7 + 8, "the old content has a new name"
    assert (new.read_bytes(), both.read_bytes()) == (b"new" * 100, b"old" * 100)
    assert not old.parent.exists()
    assert Cache().prune(0) == 600
    assert [f for f in cache.rglob("*") if f.is_file() and f.name != ".lock"] == []
    assert resolve(server.url + "/new/a.x").read_bytes() == b"new" * 100


def test_pruning_finds_a_file_in_each_of_its_trees(tmp_path: Path) -> None:
    """``s3://b/x`` and ``s3://b/x/y`` are two directories, of which both have the file ``s3://b/x/y/z``."""
    cache = Cache(tmp_path / "cache")
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "data").write_bytes(b"weights")
    sum_ = hashlib.sha256(b"weights").hexdigest()
    record = Record("s3://b/x/y/z", "y", "z", None, 7, sum_)
    cache.keep("key", record, tmp_path / "download" / "data")
    cache.note("key", replace(record, tree="x", name="y/z"))
    cache.place(replace(record, tree="x", name="y/z"))
    assert cache.prune(3600) == 0
    assert (cache.tree("y") / "z").samefile(cache.tree("x") / "y" / "z")
    assert cache.prune(0) == 7
    assert [path for path in (cache.root / "trees").rglob("*") if path.is_file()] == []


def test_pruning_leaves_what_is_being_downloaded(server: Server, cache: Path) -> None:
    url = server.put("/slow/a.x", b"s" * 40_000)
    server.faults["/slow/a.x"] = [Fault(pace=0.03)]
    thread = threading.Thread(target=resolve, args=(url,))
    thread.start()
    while not list(cache.glob("partial/*/data")):
        time.sleep(0.01)
    Cache().prune(0)
    thread.join()
    assert server.sent("/slow/a.x") == 40_000
    assert resolve(url).read_bytes() == b"s" * 40_000


def test_damage_is_found_removed_and_fetched_again(server: Server) -> None:
    url = server.put("/a/file.x", b"right" * 10)
    path = resolve(url)
    assert Cache().damaged() == []
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"wrong")
    assert Cache().damaged() == [url]
    assert not path.exists()
    assert resolve(url).read_bytes() == b"right" * 10
    assert server.requests[-1].status == 200


def test_a_blob_of_another_length_is_not_used(server: Server) -> None:
    url = server.put("/a/file.x", b"right" * 10)
    path = resolve(url)
    path.chmod(0o644)
    with path.open("ab") as file:
        file.write(b"more")
    assert resolve(url).read_bytes() == b"right" * 10


def test_damaged_records_count_as_none(server: Server, cache: Path) -> None:
    url = server.put("/a/file.x", b"right")
    resolve(url)
    for record in (cache / "index").iterdir():
        record.write_text('{"url": 3, "unknown": []}')
    assert Cache().records() == {}
    assert resolve(url).read_bytes() == b"right"
    server.put("/b/file.x", b"x" * 99)
    server.faults["/b/file.x"] = [Fault(cut=50), *[Fault(status=500)] * 20]
    with pytest.raises(SourceError):
        resolve(server.url + "/b/file.x")
    for about in cache.glob("partial/*/about.json"):
        about.write_text("[]")
    server.faults["/b/file.x"].clear()
    assert resolve(server.url + "/b/file.x").read_bytes() == b"x" * 99


def test_the_cache_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="cannot be written"):
        resolve(server.put("/a/file.x", b"x"))


def test_no_space(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    url = server.put("/a/file.x", b"x" * 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match="not enough free space"):
        resolve(url)


class Usage:
    free = 2**20 + 4999


def test_who_downloads_is_said_to_whoever_waits(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_POLL", 0.01)
    url = server.put("/a/file.x", b"x" * 30_000)
    server.faults["/a/file.x"] = [Fault(pace=0.03)]
    thread = threading.Thread(target=resolve, args=(url,))
    thread.start()
    while not server.of("/a/file.x"):
        time.sleep(0.005)
    resolve(url)
    thread.join()
    assert f"waiting for process {os.getpid()} on " in capsys.readouterr().err
    assert server.sent("/a/file.x") == 30_000


def test_fetching_into_a_directory(server: Server, tmp_path: Path) -> None:
    url = server.put("/a/file.x", b"one")
    there = tmp_path / "there"
    assert bring(url, there) == [there / "file.x"]
    assert (there / "file.x").read_bytes() == b"one"
    assert os.access(there / "file.x", os.W_OK), "a copy of one's own, not a link into the cache"
    assert bring(url, there) == [there / "file.x"]
    server.put("/a/file.x", b"two")
    with pytest.raises(StorageError, match="other files are there already"):
        bring(url, there)
    bring(url, there, force=True)
    assert (there / "file.x").read_bytes() == b"two"
    assert bring(str(there), tmp_path / "copy") == [tmp_path / "copy" / "file.x"]
