"""Repositories of the Hugging Face Hub, from a server that answers as the Hub does.

Paths, headers and JSON as huggingface_hub 2.4 asks for and reads them; `tests/interop/test_interop_sources.py` has its
own client read from the same server.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hub import Hub
from server import Server

from warmstart.errors import SourceError
from warmstart.sources.hub import parse
from warmstart.sources.uri import resolve
from warmstart.sources.verbs import bring, listing

FILES = {
    "README.md": b"# a model",
    "config.json": b"{}",
    "model.safetensors": b"weights" * 5000,
    "pytorch_model.bin": b"the same again",
    "onnx/model.onnx": b"and again",
    "tokenizer.json": b"{}",
    "sub/model.bin": b"ct2",
    "sub/config.json": b"{}",
}


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    made = Hub(server, "owner/name")
    made.commit(FILES)
    return made


def test_a_file_among_many_is_brought_alone(hub: Hub, cache: Path) -> None:
    assert resolve("hf:owner/name/onnx/model.onnx", alone=True).read_bytes() == FILES["onnx/model.onnx"]
    assert not list(cache.rglob("README.md"))
    for name in ("onnx", "none.wav"):
        with pytest.raises(SourceError, match="there is no such file"):
            resolve(f"hf:owner/name/{name}", alone=True)


def test_spellings() -> None:
    assert parse("hf:owner/name").revision == "main"
    assert parse("hf://owner/name@refs%2Fpr%2F1/a/b").path == "a/b"
    assert parse("hf://owner/name@refs%2Fpr%2F1/a/b").revision == "refs/pr/1"
    assert parse("hf:owner/name@v1.0/").path == ""
    for wrong in ("hf:", "hf:name", "hf:/a/b", "hf:a b/c", "hf:owner/name@"):
        with pytest.raises(SourceError, match="not a repository"):
            parse(wrong)


def test_a_repository_brings_what_its_family_needs(hub: Hub) -> None:
    path = resolve("hf:owner/name")
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert resolve("hf:owner/name/model.safetensors") == path / "model.safetensors"
    assert sorted(p.name for p in resolve("hf:owner/name/sub").iterdir()) == ["config.json", "model.bin"]


def test_a_commit_is_asked_for_once(hub: Hub) -> None:
    resolve("hf:owner/name")
    resolves = [r for r in hub.server.requests if "/resolve/" in r.path]
    resolve("hf:owner/name@main")
    assert [r for r in hub.server.requests if "/resolve/" in r.path] == resolves


def test_a_revision_that_moves_gives_the_new_files_beside_the_old_ones(hub: Hub) -> None:
    old_commit, old = hub.head, resolve("hf:owner/name")
    hub.commit({**FILES, "model.safetensors": b"new"})
    new = resolve("hf:owner/name")
    assert (new / "model.safetensors").read_bytes() == b"new"
    assert (old / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert resolve(f"hf:owner/name@{old_commit}") == old
    assert (new / "config.json").samefile(old / "config.json"), "what did not change lies there once"


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve("hf://owner/name")
    file = resolve("hf:owner/name@main/sub/model.bin")
    hub.server.requests.clear()
    monkeypatch.setenv("WARMSTART_OFFLINE", "1")
    assert (resolve("hf:owner/name@main"), resolve("hf:owner/name/sub/model.bin")) == (path, file)
    with pytest.raises(SourceError, match="not in the cache"):
        resolve("hf:owner/name@v2")
    assert hub.server.requests == []


def test_sums_of_the_listing_are_checked(hub: Hub) -> None:
    hub.blobs["model.safetensors"] = b"WEIGHTS" * 5000
    with pytest.raises(SourceError, match="not the expected one") as caught:
        resolve("hf:owner/name/model.safetensors")
    assert hashlib.sha256(FILES["model.safetensors"]).hexdigest() in str(caught.value.expected)


def test_sizes_of_the_listing_are_checked(hub: Hub) -> None:
    hub.blobs["config.json"] = b"{      }"
    with pytest.raises(SourceError, match="another size"):
        resolve("hf:owner/name/config.json")


def test_the_token_goes_to_the_hub_and_not_to_its_store(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private = "hf_s3cr3ts3cr3ts3cr3t"
    with pytest.raises(SourceError, match="not for everybody") as caught:
        resolve("hf:owner/name")
    assert "HF_TOKEN" in str(caught.value.todo)
    monkeypatch.setenv("HF_TOKEN", hub.private)
    path = resolve("hf:owner/name")
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    stores = [r for r in hub.server.requests if r.path.startswith("/store/")]
    assert stores
    assert not any("authorization" in r.headers for r in stores)
    written = [f for f in cache.rglob("*") if f.is_file() and b"s3cr3t" in f.read_bytes()]
    assert written == []
    Path(cache.parent / "hf").mkdir()
    (cache.parent / "hf" / "token").write_text(hub.private + "\n")
    monkeypatch.delenv("HF_TOKEN")
    assert resolve("hf:owner/name") == path


def test_listing_and_fetching(hub: Hub, tmp_path: Path) -> None:
    assert {e.name: e.size for e in listing("hf:owner/name")}["onnx/"] is None
    assert {e.name: e.size for e in listing("hf:owner/name")}["model.safetensors"] == 35_000
    assert [e.url for e in listing("hf:owner/name/sub")][1] == "hf://owner/name@main/sub/model.bin"
    bring("hf:owner/name", tmp_path / "some")
    assert sorted(p.name for p in (tmp_path / "some").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    bring("hf:owner/name", tmp_path / "all", everything=True)
    assert sorted(str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").rglob("*.*")) == sorted(FILES)
    bring("hf:owner/name/sub", tmp_path / "sub")
    assert (tmp_path / "sub" / "model.bin").read_bytes() == b"ct2"


def test_long_listings_come_in_pages(hub: Hub) -> None:
    hub.page = 3
    assert (resolve("hf:owner/name") / "tokenizer.json").is_file()


def test_what_is_not_there(hub: Hub) -> None:
    for wrong in ("hf:owner/nobody", "hf:owner/name@v9", "hf:owner/name/none.bin"):
        with pytest.raises(SourceError) as caught:
            resolve(wrong)
        assert caught.value.where, wrong


def test_a_hub_that_cannot_be_reached_is_not_blamed_on_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    with pytest.raises(SourceError, match="no such host"):
        resolve("hf:owner/name")


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b", "a//b", "./a"])
def test_a_listing_may_not_lead_outside(hub: Hub, name: str) -> None:
    hub.commit({name: b"x"})
    with pytest.raises(SourceError, match="outside its directory"):
        resolve("hf:owner/name")


@pytest.mark.parametrize("answer", ["nonsense", "[]", '{"sha": "main"}', "{}"])
def test_a_hub_that_talks_nonsense(hub: Hub, answer: str) -> None:
    hub.server.put("/api/models/owner/name/revision/main", answer.encode())
    with pytest.raises(SourceError):
        resolve("hf:owner/name")
    json.dumps(answer)
