"""Paths and URLs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server import Server

from warmstart.errors import MissingExtra, SourceError
from warmstart.formats.detect import split_choice
from warmstart.sources.policy import redirected, using
from warmstart.sources.uri import is_remote, resolve, shown


def test_local_paths_and_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "имя with space"
    file.write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(file) == resolve(str(file)) == resolve(file.as_uri()) == resolve(f"~/{file.name}") == file


def test_sums_of_local_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    sum_ = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert resolve(f"{tmp_path}/x#sha256={sum_}") == tmp_path / "x"
    with pytest.raises(SourceError, match="not the expected one"):
        resolve(f"file://{tmp_path}/x#sha256={'1' * 64}")
    with pytest.raises(SourceError, match="two sums"):
        resolve(f"{tmp_path}/x#sha256={sum_}", sha256="1" * 64)
    with pytest.raises(SourceError, match="no SHA-256"):
        resolve(tmp_path, sha256=sum_)


@pytest.mark.parametrize(
    "source", ["ftp://h/x", "gopher://h/x", "https:/h/x", "gs:b/x", "https://h/x#part", "http://h:99999999/x"]
)
def test_what_cannot_be_read_from(source: str) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(source)
    assert caught.value.where == source


@pytest.mark.parametrize(
    "source", ["http:///x", "http://", "https://h/a\0b", "http://[::1/x", "http://h../x", "s3:///x", "gs://"]
)
def test_broken_urls(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((SourceError, MissingExtra)):
        resolve(source)


@pytest.mark.parametrize("source", ["https://h/{lang}/model.npz", "gs://b/{lang}/{pair}/x", "hf:o/n@{rev}/x"])
def test_a_placeholder_that_is_left_is_named(source: str) -> None:
    with pytest.raises(SourceError, match="placeholder") as caught:
        resolve(source)
    assert "{" in str(caught.value.found)


def test_clouds_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "gcsfs.core", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"warmstart\[gs\]"):
        resolve("gs://b/x")
    with pytest.raises(MissingExtra, match=r"warmstart\[s3\]"):
        resolve("s3://b/x")


def test_missing_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(SourceError) as caught:
        resolve(tmp_path / "modles" / "model.npz")
    assert str(tmp_path / "models") in str(caught.value.todo)


@pytest.mark.parametrize(
    "source", ["", "a\0b", "~nobody-of-this-name/x", "file://elsewhere/x", "file:", "x" * 5000, "file://[x"]
)
def test_unusable_paths(source: str) -> None:
    with pytest.raises(SourceError):
        resolve(source)


def test_mirrors_redirect_prefixes(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m" / "deep").mkdir(parents=True)
    (tmp_path / "m" / "deep" / "x").write_text("")
    with using(mirrors={"gs://t5-data": str(tmp_path / "m"), "hf:owner": "/nowhere", "s3://b/p/": server.url + "/q"}):
        assert resolve("gs://t5-data/deep/x") == tmp_path / "m" / "deep" / "x"
        server.put("/q/file.x", b"1")
        assert resolve("s3://b/p/file.x").read_bytes() == b"1"
        with pytest.raises(SourceError, match="the mirror of gs://t5-data/deep/y"):
            resolve("gs://t5-data/deep/y")
        assert redirected("gs://t5-data-more/x") == "gs://t5-data-more/x"
        assert redirected("hf:owner/name@main/x") == "/nowhere/name@main/x"
        with using(mirrors={"gs://t5-data/deep": "/deeper"}):
            assert redirected("gs://t5-data/deep/x") == "/deeper/x"
    assert redirected("gs://t5-data/deep/x") == "gs://t5-data/deep/x"
    monkeypatch.setenv("WARMSTART_MIRRORS", f"gs://t5-data={tmp_path}/m, https://h.org/=file:///x/")
    assert resolve("gs://t5-data/deep/x") == tmp_path / "m" / "deep" / "x"
    assert redirected("https://h.org/a") == "file:///x/a"
    monkeypatch.setenv("WARMSTART_MIRRORS", "/a=/b")
    with pytest.raises(SourceError, match="WARMSTART_MIRRORS cannot be read"):
        resolve("gs://t5-data/deep/x")


def test_what_stands_for_a_source() -> None:
    assert shown("/a/b/model.npz") == "model.npz"
    assert shown("https://u:p@h/a/model.npz?sig=1") == "https://***@h/a/model.npz?sig=***"
    assert not is_remote("file:///x")
    assert not is_remote("C:/x")


def test_choices_in_urls() -> None:
    assert split_choice("https://h/dir@best") == ("https://h/dir", "best")
    assert split_choice("https://me:pw@h/dir/@best") == ("https://me:pw@h/dir", "best")
    for whole in ("https://me:pw@h", "https://h/x?sig=a@b", "hf:o/n@rev", "https://me@h/x"):
        assert split_choice(whole) == (whole, None)


def test_a_stored_url_asks_for_its_secrets() -> None:
    with pytest.raises(SourceError, match="stored without its secrets"):
        resolve("https://***@h/x?token=***")


@pytest.mark.parametrize("code", ["import warmstart.cli", "from warmstart.sources.uri import resolve; resolve('/')"])
def test_local_work_loads_no_network(code: str) -> None:
    program = (
        f"{code}\nimport sys\nprint(*[m for m in ('fsspec', 'aiohttp', 'ssl', 'urllib.request') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to("gone")
    with pytest.raises(SourceError, match="a link leads nowhere") as caught:
        resolve(str(tmp_path / "model"))
    assert caught.value.found == "gone"
