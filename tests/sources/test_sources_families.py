"""Directories that nobody lists: the names that each framework uses are found, with what they refer to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from server import Server

from warmstart.errors import SourceError
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.npz import write_npz
from warmstart.sources.families import chosen, companions, references
from warmstart.sources.uri import resolve
from warmstart.sources.verbs import bring, listing


def names(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def serve(server: Server, folder: str, files: dict[str, str | bytes]) -> str:
    for name, data in files.items():
        server.put(f"{folder}/{name}", data.encode() if isinstance(data, str) else data)
    return server.url + folder


FIREFOX: dict[str, str | bytes] = {
    "final.model.npz.best-chrf.npz": b"best",
    "final.model.npz.best-chrf.npz.decoder.yml": "vocabs: [/builds/vocab.en.spm, vocab.ru.spm]",
    "model.npz.best-chrf.npz": b"best",
    "model.npz": b"last",
    "model.npz.yml": "vocabs: [/builds/vocab.en.spm, /builds/vocab.ru.spm]",
    "model.npz.progress.yml": "batches: 3",
    "model.npz.optimizer.npz": b"moments",
    "vocab.en.spm": b"en",
    "vocab.ru.spm": b"ru",
    "train.log": b"not wanted",
}


def test_firefox_translations(server: Server) -> None:
    """Names as its pipeline downloads them to continue; the vocabularies are those that the decoder's file names by the
    paths of the machine that trained it."""
    path = resolve(serve(server, "/ru-en/backwards", FIREFOX))
    assert names(path) == sorted(set(FIREFOX) - {"train.log", "model.npz.best-chrf.npz"})
    asked = {r.path for r in server.requests}
    assert not any("builds" in a for a in asked), "paths of other machines are not asked for"
    single = resolve(server.url + "/ru-en/backwards/model.npz")
    assert single == path / "model.npz"


def test_a_model_of_opus_mt_brings_what_its_decoder_names(server: Server) -> None:
    decoder = "models: [model.npz]\nvocabs: [opus.yml, opus.yml]\n"
    url = serve(server, "/opus", {"model.npz": b"model", "decoder.yml": decoder, "opus.yml": "a: 0"})
    assert names(resolve(f"{url}/model.npz").parent) == ["decoder.yml", "model.npz", "opus.yml"]


def test_a_single_file_brings_its_small_companions(server: Server) -> None:
    url = serve(server, "/m", FIREFOX)
    path = resolve(f"{url}/model.npz")
    wanted = ["model.npz", "model.npz.progress.yml", "model.npz.yml", "vocab.en.spm", "vocab.ru.spm"]
    assert names(path.parent) == wanted, "without the optimizer, which is twice as large"


def test_a_companion_that_is_gone_does_not_stay(server: Server) -> None:
    url = serve(server, "/m", FIREFOX)
    path = resolve(url)
    for gone in ("model.npz.optimizer.npz", "model.npz.progress.yml"):
        del server.files[f"/m/{gone}"]
    assert resolve(url) == path
    assert {"model.npz.optimizer.npz", "model.npz.progress.yml"}.isdisjoint(names(path))
    assert "model.npz" in names(path)


def test_buckets_that_refuse_instead_of_saying_that_nothing_is_there(server: Server) -> None:
    server.refuse_missing = True
    url = serve(server, "/m", {"model.npz": b"x", "model.npz.yml": "vocabs: []"})
    assert names(resolve(url + "/")) == ["model.npz", "model.npz.yml"]
    with pytest.raises(SourceError, match="refuses"):
        resolve(server.url + "/other/")


def test_opus_mt(server: Server) -> None:
    files: dict[str, str | bytes] = {
        "decoder.yml": "models: [opus.spm32k.model1.npz.best-perplexity.npz]\nvocabs: [opus.vocab.yml]",
        "opus.spm32k.model1.npz.best-perplexity.npz": b"w",
        "opus.vocab.yml": "a: 0",
        "source.spm": b"s",
        "target.spm": b"t",
    }
    assert names(resolve(serve(server, "/opus/en-de", files))) == sorted(files)


def test_hugging_face_shards_are_required(server: Server) -> None:
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    files: dict[str, str | bytes] = {
        "model.safetensors.index.json": json.dumps({"weight_map": weights}),
        "model-00001-of-00002.safetensors": b"1",
        "model-00002-of-00002.safetensors": b"2",
        "config.json": "{}",
        "pytorch_model.bin": b"not wanted beside safetensors",
    }
    url = serve(server, "/hf", files)
    assert names(resolve(url)) == sorted(set(files) - {"pytorch_model.bin"})
    assert names(resolve(f"{url}/model.safetensors.index.json").parent) == names(resolve(url))
    del server.files["/hf/model-00002-of-00002.safetensors"]
    with pytest.raises(SourceError, match="a part is missing") as caught:
        resolve(url)
    assert "model-00002-of-00002" in str(caught.value.where)


def test_ctranslate2_bundle_and_tensorflow(server: Server) -> None:
    ct2: dict[str, str | bytes] = {"model.bin": b"m", "config.json": "{}", "shared_vocabulary.json": "[]"}
    assert names(resolve(serve(server, "/ct2", ct2))) == sorted(ct2)
    bundle: dict[str, str | bytes] = {
        "warmstart.json": json.dumps({"files": {"model.safetensors": {}, "vocabularies/source.json": {}}}),
        "model.safetensors": b"w",
        "vocabularies/source.json": "{}",
    }
    assert names(resolve(serve(server, "/run/model", bundle))) == sorted(bundle)
    coqui: dict[str, str | bytes] = {
        "best_dev_checkpoint": 'model_checkpoint_path: "/home/me/ckpt/best_dev-7"\n',
        "best_dev-7.index": b"i",
        "best_dev-7.data-00000-of-00001": b"d",
        "alphabet.txt": "a",
    }
    assert names(resolve(serve(server, "/coqui", coqui))) == sorted(coqui)
    prefix = resolve(server.url + "/coqui/best_dev-7")
    assert prefix.name == "best_dev-7"
    assert prefix.with_name("best_dev-7.index").read_bytes() == b"i"


def test_a_server_that_redirects_directories_to_a_slash(server: Server) -> None:
    url = serve(server, "/m", {"model.npz": b"x"})
    server.redirects["/m"] = "/m/"
    server.put("/m/", b"<html>a listing for people</html>")
    assert names(resolve(url)) == ["model.npz"]


def test_nothing_that_is_known(server: Server, tmp_path: Path) -> None:
    server.put("/m/weights.xyz", b"")
    with pytest.raises(SourceError, match="nothing at this URL"):
        resolve(server.url + "/m")
    with pytest.raises(SourceError, match="no file of a known name") as caught:
        resolve(server.url + "/m/")
    assert "model.npz" in str(caught.value.expected)
    serve(server, "/k", {"model.npz": b"x"})
    with pytest.raises(SourceError, match="nobody lists a directory"):
        bring(server.url + "/k", tmp_path, everything=True)
    with pytest.raises(SourceError, match="has no SHA-256"):
        resolve(server.url + "/m/", sha256="0" * 64)


def test_listing_over_http_shows_what_names_find(server: Server) -> None:
    url = serve(server, "/m", FIREFOX)
    found = {entry.name: entry.size for entry in listing(url)}
    assert found["model.npz.optimizer.npz"] == len(b"moments")
    assert "train.log" not in found
    assert [(e.name, e.size) for e in listing(f"{url}/train.log")] == [("train.log", 10)]


def test_references_stay_inside(tmp_path: Path) -> None:
    file = tmp_path / "decoder.yml"
    file.write_text("models: [../../etc/passwd, sub/m.npz, '', '..', 7]\nvocabs: ['/a/b/v.spm', 'C:\\x\\w.spm']")
    found, _ = references("decoder.yml", file)
    assert not [name for name in found if name.startswith("/") or ".." in name]
    assert {"passwd", "sub/m.npz", "m.npz", "v.spm"} <= set(found)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "models: 7", "{", "a: &a [*a]", "\0", "weight_map", '{"files": 3}', "[" * 9999]
)
@pytest.mark.parametrize(
    "name", ["x.decoder.yml", "decoder.yml", "model.safetensors.index.json", "warmstart.json", "checkpoint"]
)
def test_what_cannot_be_read_refers_to_nothing(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert references(name, tmp_path / name)[0] == []


def test_the_table_itself() -> None:
    required, optional = chosen(["model.npz", "final.model.npz.best-chrf.npz", "model.npz.best-chrf.npz", "README.md"])
    assert required == ["model.npz", "final.model.npz.best-chrf.npz"]
    assert "final.model.npz.best-chrf.npz.decoder.yml" in optional
    assert chosen([]) == ([], [])
    assert "x.npz.decoder.yml" in companions("x.npz")
    assert "x.npz.optimizer.npz" not in companions("x.npz")
    assert companions("x.unknown") == []


def test_a_remote_checkpoint_is_read_like_a_local_one(server: Server, tmp_path: Path) -> None:
    arrays = {f"a{i}": np.arange(i + 1, dtype=np.float32) for i in range(5)}
    write_npz(tmp_path / "x.npz", arrays.items())
    url = server.put("/n/x.npz", (tmp_path / "x.npz").read_bytes())
    opened = open_checkpoint(url)
    assert opened.format == "npz"
    assert all(np.array_equal(opened.read(name), array) for name, array in arrays.items())
    server.put("/n/last.npz", (tmp_path / "x.npz").read_bytes())
