"""A training on speech that is killed at any moment ends bit-equal to one that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import tone_speech
from killing import Server, contents

KILLS = max(4, int(os.environ.get("WARMSTART_KILLS", "50")) // 10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for seed, (split, count) in enumerate((("train", 40), ("validation", 6))):
        tone_speech.write_list(tmp_path, split, tone_speech.words("abcd", count, seed), seed)
    splits = {split: {"files": f"{split}.csv"} for split in ("train", "validation")}
    config = {
        "run": "run",
        "family": "deepspeech",
        "model": {"n_hidden": 16, "sample_rate": 8000},
        "vocabularies": {"text": {"type": "alphabet"}},
        "data": {
            "type": "speech",
            "tasks": {"tones": {"splits": splits}},
            "batch_seconds": 4,
            "max_seconds": 2,
            "augment": ["volume[p=0.5,dbfs=-30:-10]", "frequency_mask[p=0.5]", "add[p=0.5]"],
            "augment_epochs": 3,
        },
        "training": {
            "steps": 12,
            "learning_rate": 0.01,
            "schedule": {"type": "inverse_sqrt", "warmup": 3},
            "optimizer": {"type": "adam", "epsilon_rule": "tensorflow"},
            "groups": [{"stages": ["layer_1"], "freeze": {"step": 5}}],
            "evaluate_every": 4,
            "checkpoint_every": 3,
            "log_every": 1,
            "samples": 2,
            "precision": "float32",
        },
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    server = Server(tmp_path)
    yield server
    server.stop()


def test_killed_at_random_moments(server: Server, tmp_path: Path) -> None:
    assert server.train("warm") == 0, (tmp_path / "log").read_text()
    began = time.perf_counter()
    assert server.train("whole", operation=-1) == 0
    seconds, operations = time.perf_counter() - began, int((tmp_path / "operations").read_text())
    expected = contents(tmp_path / "whole")
    assert "checkpoints/step-00000012/optimizer.safetensors" in expected
    chance = random.Random(1)
    killed = 0
    for trial in range(KILLS):
        run = f"cut-{trial}"
        for _ in range(2):
            if chance.random() < 0.5:
                pid = server.start(run)
                time.sleep(chance.random() * seconds)
                status = server.kill(pid, signal.SIGKILL)
            else:
                status = server.train(run, operation=chance.randint(1, operations))
            assert status in (0, -signal.SIGKILL), (tmp_path / "log").read_text()[-2000:]
            killed += status != 0
            if status == 0:
                break
        else:
            assert server.train(run) == 0, (tmp_path / "log").read_text()[-2000:]
        assert contents(tmp_path / run) == expected, run
    assert killed
