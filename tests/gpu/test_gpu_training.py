"""What a pretended GPU cannot show. Skipped without a real one: ``python -m pytest tests/gpu``."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from warmstart import api
from warmstart.formats.detect import open_checkpoint
from warmstart.training.metrics import read_metrics
from warmstart.training.state import latest, read_state

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def words(count: int) -> list[str]:
    source = random.Random(1)
    return ["".join(source.choices("abcdefgh", k=source.randint(2, 12))) for _ in range(count)]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training of reversing words, in the working directory."""
    monkeypatch.chdir(tmp_path)
    made = words(2000)
    for split, own in (("train", made), ("valid", made[:50])):
        Path(f"{split}.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in own), "utf-8")
    config = {
        "run": "run",
        "model": {"d_model": 64, "num_heads": 4, "d_ff": 128, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.1},
        "vocabularies": {"shared": {"type": "characters"}},
        "data": {
            "tasks": {"t": {"splits": {"train": {"tsv": "train.tsv"}, "validation": {"tsv": "valid.tsv"}}}},
            "batch_tokens": 500,
        },
        "training": {
            "steps": 60, "learning_rate": 0.002, "schedule": {"type": "constant", "warmup": 20}, "evaluate_every": 20,
            "checkpoint_every": 10, "log_every": 5, "device": "cuda", "average": {"decay": 0.9}, "keep_last": 9,
        },
    }  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def arrays(run: str) -> dict[str, np.ndarray]:
    newest = latest(Path(run))
    assert newest is not None
    opened = {path.stem: open_checkpoint(path) for path in sorted(newest.glob("*.safetensors"))}
    return {f"{file}/{name}": found.read(name) for file, found in opened.items() for name in found.entries}


def timeless(run: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "time"} for record in read_metrics(Path(run))]


def train(run: str, *overrides: str) -> None:
    api.train("c.yaml", [f"run={run}", *overrides], progress=False)


def test_it_ends_close_to_a_cpu(configured: Path) -> None:
    exact = ("training.precision=float32", "model.dropout=0.0", "training.optimizer.epsilon=1e-6", "training.steps=20")
    train("cpu", "training.device=cpu", *exact)
    train("gpu", *exact)
    for cpu, gpu in zip(timeless("cpu"), timeless("gpu"), strict=True):
        assert gpu["step"] == cpu["step"]
        for key in ("train/loss", "validation/loss"):
            assert gpu.get(key) == pytest.approx(cpu.get(key), rel=1e-3)
    assert read_state(latest(Path("gpu"))).environment["device"] == "cuda"  # type: ignore[arg-type]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_repeated_training_is_bit_equal(configured: Path, precision: str, compiled: bool) -> None:
    options = (f"training.precision={precision}", f"training.compile={str(compiled).lower()}", "training.steps=30")
    train("one", *options)
    train("two", *options)
    one, two = arrays("one"), arrays("two")
    assert [name for name in one if one[name].tobytes() != two[name].tobytes()] == []
    assert timeless("one") == timeless("two")


@pytest.mark.parametrize("moment", [1.0, 4.0, 8.0])
def test_a_killed_training_goes_on_bit_for_bit(configured: Path, moment: float) -> None:
    train("whole")
    command = [sys.executable, "-m", "warmstart", "train", "c.yaml", "run=cut"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not latest(Path("cut")) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(moment / 10)
    child.send_signal(signal.SIGKILL)
    child.wait()
    subprocess.run(command, check=True, capture_output=True)
    whole, cut = arrays("whole"), arrays("cut")
    assert [name for name in whole if whole[name].tobytes() != cut[name].tobytes()] == []
    assert timeless("cut") == timeless("whole")
    assert read_state(latest(Path("cut"))).exact  # type: ignore[arg-type]


def test_compiled_layers_compute_the_same(configured: Path) -> None:
    exact = ("training.precision=float32", "model.dropout=0.0", "training.optimizer.epsilon=1e-6", "training.steps=20")
    train("plain", *exact)
    train("compiled", "training.compile=true", *exact)
    for plain, compiled in zip(timeless("plain"), timeless("compiled"), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-3, abs=1e-4)


def test_bfloat16_learns(configured: Path) -> None:
    train("run", "training.precision=bfloat16", "training.steps=300", "training.evaluate_every=100")
    losses = [r["validation/loss"] for r in timeless("run") if r["kind"] == "validation"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_was_trained_here_translates_anywhere(configured: Path, device: str) -> None:
    train("run", "training.precision=float32")
    evaluations = [record for record in timeless("run") if record["kind"] == "validation"]
    best = min(evaluations, key=lambda record: record["validation/loss"])  # whose weights are shipped
    found = api.evaluate("run/model", "c.yaml", split="validation", device=device)["t"]
    assert found == pytest.approx({name: best[f"validation/{name}"] for name in found}, rel=0.02)
