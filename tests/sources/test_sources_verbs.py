"""ls, fetch, cache, inspect and --offline, as they are typed; and what a run remembers of a URL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from server import Server

from warmstart import api
from warmstart.bundle.layout import describe_files
from warmstart.config import changes, load_config
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.npz import write_npz
from warmstart.sources.policy import using

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(server: Server, tmp_path: Path) -> str:
    write_npz(tmp_path / "made.npz", {"weight": np.eye(3, dtype=np.float32)}.items())
    server.put("/m/weights.npz", (tmp_path / "made.npz").read_bytes())
    return server.url.replace("://", "://me:s3cr3t@") + "/m/weights.npz"


def test_inspect_just_works(call: Call, url: str) -> None:
    status, out, err = call("inspect", url, "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert [e["name"] for e in facts["entries"]] == ["weight"]
    assert facts["source"].startswith("http://***@127.0.0.1")
    assert "s3cr3t" not in out + err


def test_offline_holds_for_one_call(call: Call, url: str, server: Server) -> None:
    status, _, err = call("inspect", url, "--offline")
    assert status == 1
    assert "not in the cache, and the network is off" in err
    assert "s3cr3t" not in err
    assert server.requests == []
    assert call("inspect", url)[0] == 0
    asked = len(server.requests)
    assert call("inspect", "--offline", url)[0] == 0
    assert len(server.requests) == asked


def test_every_verb_that_opens_sources_takes_offline(call: Call) -> None:
    for verb in ("inspect", "plan", "train", "evaluate", "convert", "translate", "fetch"):
        assert "--offline" in call(verb, "--help")[1], verb


def test_ls_and_fetch(call: Call, url: str, tmp_path: Path) -> None:
    status, out, _ = call("ls", url)
    assert (status, out.split()[1]) == (0, f"http://***@{url.partition('@')[2]}")
    there = tmp_path / "there"
    assert call("fetch", url, there)[:2] == (0, f"{there}/weights.npz\n")
    assert json.loads(call("ls", there, "--json")[1])[0]["name"] == "weights.npz"
    (there / "weights.npz").write_bytes(b"mine")
    status, _, err = call("fetch", url, there)
    assert (status, "other files are there already" in err) == (1, True)
    assert call("fetch", url, there, "--force")[0] == 0
    assert call("ls", tmp_path / "nowhere")[0] == 1


def test_cache_verbs(call: Call, url: str, cache: Path) -> None:
    assert call("cache", "list") == (0, "nothing was fetched yet\n", "")
    path = Path(call("fetch", url, "--json")[1].split('"')[1])
    listed = call("cache", "list")[1].split()
    assert listed[0] == f"{path.stat().st_size:,}"
    assert listed[-1].startswith("http://***@")
    rows = json.loads(call("cache", "list", "--json")[1])
    assert (rows[0]["path"], rows[0]["complete"]) == (str(path), True)
    assert call("cache", "verify")[:2] == (0, "every file is what it was\n")
    path.chmod(0o644)
    path.write_bytes(b"?" * path.stat().st_size)
    status, _, err = call("cache", "verify")
    assert (status, err.startswith("damaged, removed: http://***@")) == (1, True)
    assert call("cache", "list")[1].endswith("(incomplete)\n")
    assert call("fetch", url)[0] == 0
    assert call("cache", "prune")[1] == "0 bytes freed\n"
    assert call("cache", "prune", "--days", 0)[1] == f"{rows[0]['bytes']:,} bytes freed\n"
    assert not path.exists()


def test_lineage_says_where_a_file_came_from(url: str, tmp_path: Path) -> None:
    fetched = describe_files(open_checkpoint(url))[0]
    local = describe_files(open_checkpoint(tmp_path / "made.npz"))[0]
    assert fetched["url"] == f"http://***@{url.partition('@')[2]}"
    assert (fetched["bytes"], fetched["sha256"]) == (local["bytes"], local["sha256"])
    assert "url" not in local


def test_a_configuration_is_stored_without_secrets_and_still_the_same_run(tmp_path: Path) -> None:
    text = (
        "run: r\nsources: {{mirrors: {{gs://t5-data: /mnt}}}}\n"
        "start: {{source: 'https://me:{}@h/x', mode: init, files: ['https://h/v?sig={}']}}\n"
    )
    for name, secret in (("a", "s3cr3t"), ("b", "other"), ("c", "***")):
        (tmp_path / name).write_text(text.format(secret, secret))
    a, b, c = (load_config(tmp_path / name) for name in "abc")
    assert "s3cr3t" not in json.dumps(a.model_dump(mode="json"))
    assert a.start[0].source == "https://me:s3cr3t@h/x"
    assert changes(a, b) == changes(a, c) == []
    moved = load_config(tmp_path / "a", ["start.source=https://h/y"])
    assert [change.key for change in changes(a, moved)] == ["start"]
    assert "s3cr3t" not in repr(changes(a, moved)[0].old)


def test_a_run_from_a_url_remembers_it_without_secrets(server: Server, tmp_path: Path) -> None:
    """The bundle of version 0.1.0 passed on: the manifest brings its files, the lineage says where they were."""
    golden = Path(__file__).parent.parent / "golden" / "bundle-0.1.0" / "model"
    for file in golden.rglob("*"):
        if file.is_file():
            server.put(f"/old/{file.relative_to(golden)}", file.read_bytes())
    source = server.url.replace("://", "://me:s3cr3t@") + "/old?token=5ign"
    config = tmp_path / "use.yaml"
    config.write_text(f"run: {tmp_path}/run\nstart: {{source: '{source}', mode: use}}\n")
    api.train(config, progress=False)
    lineage = json.loads((tmp_path / "run/model/lineage.json").read_text())["starts"][0]
    shown = f"http://***@{server.url.removeprefix('http://')}/old"
    assert lineage["source"] == f"{shown}?token=***"
    assert lineage["files"][0]["url"] == f"{shown}/model.safetensors?token=***"
    assert lineage["files"][0]["sha256"] == hashlib.sha256((golden / "model.safetensors").read_bytes()).hexdigest()
    kept = [
        f
        for f in (tmp_path / "run").rglob("*")
        if f.is_file() and (b"s3cr3t" in f.read_bytes() or b"5ign" in f.read_bytes())
    ]
    assert kept == []
    assert all("token=5ign" in r.path for r in server.requests)


@pytest.mark.parametrize("mirrors", ["{/a: /b}", "{gs://x: ''}", "[1]"])
def test_mirrors_of_a_configuration_are_checked(tmp_path: Path, mirrors: str) -> None:
    from warmstart.errors import ConfigError

    (tmp_path / "c").write_text(f"run: r\nsources: {{mirrors: {mirrors}}}\n")
    with pytest.raises(ConfigError, match=r"sources\.mirrors"):
        load_config(tmp_path / "c")


def test_the_api_takes_urls_too(url: str, tmp_path: Path) -> None:
    assert api.fetch(url, progress=False)[0].name == "weights.npz"
    assert api.cache_list()[0]["complete"]
    with using(offline=True):
        assert api.inspect(url)["format"] == "npz"
    assert api.cache_verify() == []
    assert api.cache_prune(0) > 0
    assert api.ls(tmp_path)[0]["url"].startswith(str(tmp_path))
