"""Buckets through the clients that users have, against emulators of their services; and the Hub's own client.

S3 is moto's server, read by the real s3fs; Google storage is gcp-storage-emulator, read by the real gcsfs. The server
that stands for the Hugging Face Hub in the ordinary tests is read by huggingface_hub: both agree on what a hub is.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "sources"))

from hub import Hub
from server import serving

from warmstart.data.speech.read import read_examples
from warmstart.errors import DataError, SourceError
from warmstart.sources import objects
from warmstart.sources.cache import Cache
from warmstart.sources.uri import resolve
from warmstart.sources.verbs import bring, listing

REQUIRES = [
    "s3fs==2026.9.0",
    "gcsfs==2026.10.1",
    "huggingface_hub==2.4.0",
    "moto[server]==5.2.5",
    "gcp-storage-emulator==2026.7.19",
]

FILES = {
    "t5/checkpoint_1000/checkpoint": b"state",
    "t5/checkpoint_1000/target.encoder.kernel/.zarray": b"{}",
    "t5/checkpoint_1000/target.encoder.kernel/0.0": random.Random(0).randbytes(3_000_000),
    "m/model.npz": b"weights",
    "m/model.npz.decoder.yml": b"vocabs: [/builds/vocab.spm]",
    "m/vocab.spm": b"pieces",
    "m/train.log": b"lines",
}


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket with FILES, public; calling it puts an object there."""
    yield from (amazon if request.param == "s3" else google)(monkeypatch)


def amazon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client(
        "s3", region_name="us-east-1", endpoint_url=f"http://{host}:{port}", aws_access_key_id="k",
        aws_secret_access_key="s",
    )  # fmt: skip
    client.create_bucket(Bucket="models", ACL="public-read")

    def put(name: str, data: bytes) -> None:
        client.put_object(Bucket="models", Key=name, Body=data, ACL="public-read")

    for name, data in FILES.items():
        put(name, data)
    put.url = "s3://models"  # type: ignore[attr-defined]
    yield put
    server.stop()


def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import http.server
    import urllib.request
    from urllib.parse import quote

    from gcp_storage_emulator.server import create_server

    # The emulator serves one connection after the other, while clients open several.
    monkeypatch.setattr(http.server, "HTTPServer", http.server.ThreadingHTTPServer)
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="models")
    server.start()
    url = f"http://127.0.0.1:{server._api._httpd.server_address[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)

    def put(name: str, data: bytes) -> None:
        place = f"{url}/upload/storage/v1/b/models/o?uploadType=media&name={quote(name, safe='')}"
        request = urllib.request.Request(place, data, {"Content-Type": "application/octet-stream"}, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    for name, data in FILES.items():
        put(name, data)
    put.url = "gs://models"  # type: ignore[attr-defined]
    yield put
    server.stop()


def below(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_directory_comes_whole(bucket: Any, tmp_path: Path) -> None:
    path = resolve(f"{bucket.url}/t5/checkpoint_1000")
    wanted = {n.removeprefix("t5/checkpoint_1000/"): d for n, d in FILES.items() if n.startswith("t5/")}
    assert below(path) == wanted
    assert resolve(f"{bucket.url}/t5/checkpoint_1000/") == path
    assert resolve(f"{bucket.url}/t5/checkpoint_1000", offline=True) == path
    bring(f"{bucket.url}/t5/checkpoint_1000", tmp_path / "copy")
    assert below(tmp_path / "copy") == wanted


def test_of_a_directory_the_chosen_step(bucket: Any) -> None:
    bucket("t5/checkpoint_900/checkpoint", b"earlier")
    bring(f"{bucket.url}/t5@last", None)
    assert {record.name for record in Cache().records().values()} == {
        "",
        *(name.removeprefix("t5/") for name in FILES if name.startswith("t5/")),
    }


def test_a_file_comes_with_its_companions(bucket: Any) -> None:
    path = resolve(f"{bucket.url}/m/model.npz")
    assert sorted(below(path.parent)) == ["model.npz", "model.npz.decoder.yml", "vocab.spm"]
    assert path.read_bytes() == b"weights"


def test_listing_is_one_level_deep(bucket: Any) -> None:
    assert [(e.name, e.size) for e in listing(bucket.url)] == [("m/", None), ("t5/", None)]
    assert {e.name: e.size for e in listing(f"{bucket.url}/m/")}["model.npz"] == 7
    assert [(e.url, e.size) for e in listing(f"{bucket.url}/m/model.npz")] == [(f"{bucket.url}/m/model.npz", 7)]


def test_a_changed_object_is_fetched_again_and_an_unchanged_one_is_not(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, read = f"{bucket.url}/m/train.log", []
    chunks = objects.ObjectTransport._chunks
    monkeypatch.setattr(objects.ObjectTransport, "_chunks", lambda *a: read.append(a[1]) or chunks(*a))
    assert resolve(url).read_bytes() == resolve(url).read_bytes() == b"lines"
    assert read == [url]
    bucket("m/train.log", b"more lines")
    assert resolve(url).read_bytes() == b"more lines"
    assert read == [url] * 2


def test_interrupted_and_changed_downloads(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 1,000,000 bytes; the second one fails, then the object is another one when its last chunk comes."""
    name = "t5/checkpoint_1000/target.encoder.kernel/0.0"
    url, new = f"{bucket.url}/{name}", random.Random(1).randbytes(3_000_000)
    monkeypatch.setattr(objects, "CHUNK", 1_000_000)
    asked: list[int] = []
    attempt = objects._attempt

    def unreliable(url: str, function: Any, *arguments: Any, **options: Any) -> Any:
        if "start" in options:
            asked.append(options["start"])
            if len(asked) == 2:
                raise objects.Passing("the connection broke")
        return attempt(url, function, *arguments, **options)

    monkeypatch.setattr(objects, "_attempt", unreliable)
    path = resolve(url)
    assert path.read_bytes() == FILES[name]
    assert asked == [0, 1_000_000, 1_000_000, 2_000_000]
    Cache().prune(0)
    asked.clear()

    def change_late(url: str, function: Any, *arguments: Any, **options: Any) -> Any:
        if "start" in options:
            asked.append(options["start"])
            if len(asked) == 3:
                bucket(name, new)
        return attempt(url, function, *arguments, **options)

    monkeypatch.setattr(objects, "_attempt", change_late)
    assert hashlib.sha256(resolve(url).read_bytes()).digest() == hashlib.sha256(new).digest()


def test_what_is_not_there(bucket: Any) -> None:
    for missing in ("none/model.npz", "none/", "m/model"):
        with pytest.raises(SourceError, match="nothing at this URL"):
            resolve(f"{bucket.url}/{missing}")
    with pytest.raises(SourceError):
        resolve(bucket.url.replace("models", "no-such-bucket-here") + "/x")
    with pytest.raises(SourceError, match="credentials do not go into"):
        resolve(bucket.url.replace("://", "://key:s3cr3t@") + "/x")


def test_what_may_not_be_read_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "2")
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s").create_bucket(
            Bucket="private"
        )
        with pytest.raises(SourceError):
            resolve("s3://private/x")
    finally:
        server.stop()


def test_several_threads_read_one_bucket(bucket: Any) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(resolve(f"{bucket.url}/{name}").read_bytes()))  # type: ignore[misc]
        for name in FILES
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(FILES.values())


def test_recordings_lie_beside_their_list(bucket: Any) -> None:
    bucket("digits/list.csv", b"wav_filename,transcript\nwav/a 1.wav,one\nwav/none.wav,none\nwav,no file\n")
    bucket("digits/wav/a 1.wav", b"RIFF")
    found, *others = read_examples(f"{bucket.url}/digits/list.csv")
    assert (found.where, found.transcript) == (f"{bucket.url}/digits/wav/a 1.wav", "one")
    assert found.audio.read() == b"RIFF"
    for example in others:
        with pytest.raises(DataError, match="the audio cannot be fetched"):
            example.audio.read()


def test_the_hubs_own_client_reads_the_server_that_stands_for_it(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "sub/vocab.txt": b"a"}
    with serving() as server:
        hub = Hub(server, "owner/name")
        commit = hub.commit(files)
        os.environ["HF_ENDPOINT"] = server.url
        try:
            import huggingface_hub

            place = Path(
                huggingface_hub.snapshot_download(
                    "owner/name", endpoint=server.url, cache_dir=tmp_path / "theirs", token=False
                )
            )
            assert place.name == commit
            ours = bring("hf:owner/name", tmp_path / "ours", everything=True)
            assert {str(p.relative_to(tmp_path / "ours")) for p in ours} == set(files)
            for name, data in files.items():
                assert (place / name).read_bytes() == (tmp_path / "ours" / name).read_bytes() == data
        finally:
            del os.environ["HF_ENDPOINT"]
