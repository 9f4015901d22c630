"""``URL@NAME`` brings the files of one checkpoint, where names tell which those are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hub import Hub
from server import Server

from warmstart.errors import FormatError, SourceError
from warmstart.formats.detect import open_checkpoint
from warmstart.sources.cache import Cache
from warmstart.sources.choice import state_files, wanted
from warmstart.sources.verbs import bring


def npz(value: float) -> bytes:
    file = io.BytesIO()
    np.savez(file, encoder_Wemb=np.full(3, value, "f4"))
    return file.getvalue()


@pytest.fixture
def marian(server: Server) -> str:
    """A training directory as Firefox Translations publishes it."""
    files = {
        "model.npz": npz(1),
        "model.npz.optimizer.npz": b"moments",
        "model.npz.progress.yml": b"batches: 3",
        "model.npz.yml": b"vocabs: [/builds/vocab.spm]",
        "model.npz.best-chrf.npz": npz(2),
        "model.npz.best-chrf.npz.decoder.yml": b"vocabs: [vocab.spm]",
        "model.iter7.npz": npz(3),
        "model.iter7.npz.yml": b"",
        "vocab.spm": b"pieces",
    }
    for name, data in files.items():
        server.put(f"/m/{name}", data)
    return server.url + "/m"


def fetched() -> set[str]:
    """Names of the files that are in the cache."""
    return {record.name for record in Cache().records().values() if record.name}


@pytest.mark.parametrize(
    ("choice", "value", "files"),
    [
        ("best", 2, {"model.npz.best-chrf.npz", "model.npz.best-chrf.npz.decoder.yml"}),
        ("auto", 2, {"model.npz.best-chrf.npz", "model.npz.best-chrf.npz.decoder.yml"}),
        ("last", 1, {"model.npz", "model.npz.optimizer.npz", "model.npz.progress.yml", "model.npz.yml"}),
        ("model.npz", 1, {"model.npz", "model.npz.optimizer.npz", "model.npz.progress.yml", "model.npz.yml"}),
        ("model.iter7.npz", 3, {"model.iter7.npz", "model.iter7.npz.yml"}),
    ],
)
def test_a_training_directory_of_marian(marian: str, choice: str, value: float, files: set[str]) -> None:
    checkpoint = open_checkpoint(f"{marian}@{choice}")
    assert checkpoint.read("encoder_Wemb").tolist() == [value] * 3
    assert fetched() == files | {"vocab.spm"}


def test_without_the_network_the_choice_is_there_and_the_rest_is_missed(marian: str, tmp_path: Path) -> None:
    bring(f"{marian}@best", tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == fetched()
    for choice in ("@best", "/@best"):
        assert bring(f"{marian}{choice}", None, offline=True)
    for other in ("", "@last"):
        with pytest.raises(SourceError, match="not in the cache"):
            bring(f"{marian}{other}", None, offline=True)
    bring(marian, None)
    assert bring(f"{marian}@last", None, offline=True), "a part of what came whole"


def test_a_choice_that_no_name_answers_is_left_to_who_opens(marian: str) -> None:
    with pytest.raises(FormatError, match="no checkpoint here is called 'best-bleu'"):
        open_checkpoint(f"{marian}@best-bleu")
    assert bring(marian, None, offline=True), "what came then is all of it"


def test_state_files_name_prefixes(server: Server) -> None:
    for name, prefix in (("checkpoint", "train-90"), ("best_dev_checkpoint", "best_dev-70")):
        server.put(f"/c/{name}", f'model_checkpoint_path: "/home/me/{prefix}"\n'.encode())
        for end in (".index", ".data-00000-of-00001"):
            server.put(f"/c/{prefix}{end}", b"x")
    server.put("/c/alphabet.txt", b"a")
    small = {"checkpoint", "best_dev_checkpoint", "alphabet.txt"}
    best = {"best_dev-70.index", "best_dev-70.data-00000-of-00001"}
    bring(f"{server.url}/c@best", None)
    assert fetched() == small | best
    Cache().prune(0)
    bring(f"{server.url}/c@best_dev-70", None)
    assert fetched() == small | best
    bring(f"{server.url}/c@last", None)
    assert fetched() == small | best | {"train-90.index", "train-90.data-00000-of-00001"}


def test_a_repository_brings_the_chosen_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    files = {"config.json": b"{}", "model.safetensors": b"1", "pytorch_model.bin": b"2", "tf_model.h5": b"3"}
    Hub(server, "owner/name").commit({**files, **{f"sub/{name}": data for name, data in files.items()}})
    bring("hf:owner/name@main/sub/@pytorch_model.bin", None)
    assert fetched() == {"sub/config.json", "sub/pytorch_model.bin"}


LISTING = [
    *("checkpoint_900/checkpoint", "checkpoint_1000/checkpoint", "checkpoint_1000/target.kernel/0.0"),
    *("checkpoint_2000.tmp-17/checkpoint", "vocabularies/source.json", "config.gin"),
]


@pytest.mark.parametrize(
    ("names", "choice", "expected"),
    [
        (LISTING, "last", [LISTING[1], LISTING[2], *LISTING[4:]]),
        (LISTING, "checkpoint_900", [LISTING[0], *LISTING[4:]]),
        (LISTING, "best", LISTING),
        (["best.pt", "last.pt", "labels.txt"], "best", ["best.pt", "labels.txt"]),
        (["epoch=3-best.ckpt", "last.ckpt"], "last", ["last.ckpt"]),
        (["a.safetensors", "b.safetensors.index.json"], "a.safetensors", ["a.safetensors"]),
        (["m.ckpt-1.index", "m.ckpt-1.meta", "m.ckpt-2.index"], "m.ckpt-1", ["m.ckpt-1.index", "m.ckpt-1.meta"]),
    ],
)
def test_names_that_tell(names: list[str], choice: str, expected: list[str]) -> None:
    assert list(filter(wanted(names, choice), names)) == expected


def test_state_files_are_those_of_a_role() -> None:
    names = ["checkpoint", "best_dev_checkpoint", "sub/checkpoint", "checkpoint.txt"]
    assert state_files(names, "last") == ["checkpoint"]
    assert state_files(names, "best") == ["best_dev_checkpoint"]
    assert state_files(names, "checkpoint") == []
