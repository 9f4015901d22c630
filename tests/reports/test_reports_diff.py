"""What `diff` prints is kept in tests/golden/reports (see test_reports_inspect.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import sample_models
from test_reports_inspect import check

from warmstart import api
from warmstart.reports.diff import diff_text
from warmstart.reports.text import columns


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_two() -> None:
    """A model, and one of which every kind of thing is different."""
    arrays = sample_models.write(Path("a"), sample_models.huggingface())
    for name in list(arrays):
        if "decoder.layers" in name and "fc" in name:
            arrays[name] = arrays[name] + np.float32(1 / 64)
        elif "encoder.layers.11." in name:
            del arrays[name]
    arrays["model.shared.weight"] = np.concatenate([arrays["model.shared.weight"], np.zeros((2, 8), np.float32)])
    arrays["lm_head.weight"] = arrays["lm_head.weight"].astype(np.float16)
    arrays["model.decoder.layers.3.encoder_attn.q_proj.weight"][0, :3] = np.nan
    arrays["adapter.weight"] = np.ones((3, 4))
    sample_models.save(Path("b"), arrays)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_two_models_of_twelve_layers(width: int) -> None:
    write_two()
    text = diff_text(api.diff("a", "b"), width=width)
    assert all(columns(line) <= width for line in text.splitlines())
    check(f"diff-{width}.txt", text)


def test_what_is_the_same_is_one_line() -> None:
    sample_models.write(Path("a"), sample_models.huggingface())
    sample_models.write(Path("b"), sample_models.huggingface())
    assert diff_text(api.diff("a", "b")).splitlines() == [
        "A  a: safetensors",
        "B  b: safetensors",
        "",
        "the same       all 508 arrays",
    ]
    text = diff_text(api.diff("a", "b", names=["*.self_attn.q_proj.bias"]))
    assert text.splitlines()[-1] == "the same       all 24 arrays that match"


def test_slots_and_steps(fixtures: Path) -> None:
    for name in ("model.npz", "model.npz.optimizer.npz", "model.npz.progress.yml"):
        shutil.copyfile(fixtures / "fixtures" / "marian-en-ru-names" / name, name)
    with np.load("model.npz.optimizer.npz") as file:
        arrays = dict(file)
    source = fixtures / "fixtures" / "marian-en-ru-names" / "model.npz"
    lines = diff_text(api.diff(source, "model.npz"), width=200).splitlines()
    assert lines[-2:] == [
        "the same       all 88 arrays, 176 optimizer slots",
        "not compared   vocabularies, which only A has",
    ]
    arrays["adam_mt"][0, 5] += 1
    np.savez("model.npz.optimizer.npz", **arrays)
    progress = Path("model.npz.progress.yml").read_text().replace("batches: 2500", "batches: 2600")
    Path("model.npz.progress.yml").write_text(progress)
    lines = diff_text(api.diff(source, "model.npz"), width=200).splitlines()
    assert lines[4:8] == [
        "equal          all 88 arrays",
        "optimizer      m: 87 of 88 arrays equal, 1 differ by up to 1",
        "               v: 88 of 88 arrays equal",
        "step           2,500 in A, 2,600 in B",
    ]


def test_canonical_names_and_configurations() -> None:
    sample_models.write_marian_model(Path("a.npz"), layers=3)
    sample_models.write_marian_model(Path("b.npz"), layers=3, seed=1, activation="gelu")
    text = diff_text(api.diff("a.npz", "b.npz"))
    assert "compared in the canonical names of transformer" in text
    assert "configuration  activation: relu in A, gelu in B" in text
    assert "layers.0-2" in text
    assert "other values: 129 arrays" in text
