"""Marian's own trainings, conversions and translations."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from warmstart.errors import FormatError
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.marian import MarianCheckpoint, write_marian

REQUIRES = ["pymarian==1.12.42"]
KINDS = ("float32", "packed16", "packed8avx2", "packed8avx512", "intgemm8", "intgemm8ssse3", "intgemm8avx2",
         "intgemm8avx512", "intgemm16", "intgemm16sse2", "intgemm16avx2", "intgemm16avx512")  # fmt: skip
MARIAN = "import sys, _pymarian; sys.exit(_pymarian.main(sys.argv[1:]))"


def marian(directory: Path, *arguments: str, text: str | None = None) -> str:
    command = [sys.executable, "-c", MARIAN, *arguments]
    done = subprocess.run(command, cwd=directory, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def opened(source: Path | str) -> MarianCheckpoint:
    checkpoint = open_checkpoint(source)
    assert isinstance(checkpoint, MarianCheckpoint)
    return checkpoint


@pytest.fixture
def names(fixtures: Path, tmp_path: Path) -> Path:
    """A writable copy of a finished training."""
    shutil.copytree(fixtures / "fixtures/marian-en-ru-names", tmp_path / "names", copy_function=shutil.copyfile)
    for path in [tmp_path / "names", *(tmp_path / "names").rglob("*")]:
        path.chmod(0o755)
    return tmp_path / "names"


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_of_a_trained_model(names: Path, kind: str) -> None:
    marian(names, "convert", "-f", "model.npz", "-t", "model.bin", "-g", kind)
    checkpoint, truth = opened(f"{names}@model.bin"), opened(f"{names}@model.npz")
    assert set(checkpoint.entries) == set(truth.entries)
    assert checkpoint.metadata["config"] == truth.metadata["config"]
    described = 0
    for name, entry in checkpoint.entries.items():
        assert entry.shape == truth.entries[name].shape
        if entry.readable:
            np.testing.assert_array_equal(checkpoint.read(name), truth.read(name))
            continue
        described += 1
        assert entry.dtype == kind
        if kind in ("intgemm8", "intgemm16") and any(length % 16 for length in entry.shape):
            with pytest.raises(FormatError, match="damaged"):
                checkpoint.quantized(name)
        elif kind in ("intgemm8", "intgemm16"):
            values, factor = checkpoint.quantized(name)
            clipped = np.clip(truth.read(name), -32767 / factor, 32767 / factor)
            assert np.abs(values / factor - clipped).max() <= 0.501 / factor
    assert described == (0 if kind == "float32" else 33)


def test_marian_translates_with_what_is_written(names: Path) -> None:
    source = opened(f"{names}@last")
    options = yaml.safe_dump(source.metadata["config"])
    write_marian(names / "ours.npz", options, ((name, source.read(name)) for name in source.entries))
    lines = "\n".join((names / "test.en").read_text("utf-8").splitlines()[:50]) + "\n"
    arguments = ("-v", "vocab.en.yml", "vocab.ru.yml", "-b", "4", "--cpu-threads", "1", "--quiet")
    out = [marian(names, "decode", "-m", model, *arguments, text=lines) for model in ("model.npz", "ours.npz")]
    assert out[0] == out[1]
    assert len(out[0].splitlines()) == 50


def test_a_training_on_three_devices(names: Path) -> None:
    """Its shards, one after the other, are the arrays of one device; every model that it leaves has its role."""
    for side in ("en", "ru"):
        with gzip.open(names / f"data/train.{side}.gz", "rt", encoding="utf-8") as file:
            (names / f"train.{side}").write_text("".join(line for line, _ in zip(file, range(600), strict=False)))
    run = names / "run"
    run.mkdir()
    marian(
        names, "train", "--type", "transformer", "-m", "run/model.npz", "-t", "train.en", "train.ru",
        "-v", "vocab.en.yml", "vocab.ru.yml", "--dim-emb", "32", "--transformer-dim-ffn", "32",
        "--transformer-heads", "2", "--enc-depth", "1", "--dec-depth", "1", "--cpu-threads", "3", "--sync-sgd",
        "--mini-batch", "30", "--after-batches", "6", "--save-freq", "2u", "--valid-freq", "2u", "--keep-best",
        "--valid-metrics", "ce-mean-words", "--valid-sets", "data/valid.en", "data/valid.ru", "--quiet",
        "--exponential-smoothing", "0.1", "-w", "200",
    )  # fmt: skip
    assert [str(candidate) for candidate in find_candidates(run)] == [
        "model.iter2.npz",
        "model.iter4.npz",
        "model.iter6.npz",
        "model.npz (last, final)",
        "model.npz.best-ce-mean-words.npz (best)",
    ]
    last = opened(f"{run}@final")
    assert last.step == 6
    assert set(last.optimizer["other_arrays"]) == {"master_parameters", "exp_smoothing"}
    for name in last.entries:
        np.testing.assert_array_equal(last.read_flat("exp_smoothing", name), last.read(name))
        assert last.read_slot(name, "v").min() >= 0
    with np.load(run / "model.npz.optimizer.npz") as truth:
        total = sum(float(np.abs(last.read_slot(name, "m")).sum(dtype="f8")) for name in last.entries)
        assert total == pytest.approx(float(np.abs(truth["adam_mt"]).sum(dtype="f8")), rel=1e-9)
    for name in ("best", "model.iter2.npz"):
        assert opened(f"{run}@{name}").slots == {}
