"""The width of Coqui's release models, 2048: fine-tuned and transferred for one step each. Nightly: it takes 2 GB."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import tone_speech
from warmstart import api
from warmstart.formats.detect import open_checkpoint

pytestmark = pytest.mark.skipif(not os.environ.get("WARMSTART_NIGHTLY"), reason="2 GB of disk and memory: nightly")


def train(language: str, run: str, **more: Any) -> dict[str, Any]:
    part = {"files": f"{language}.csv"}
    tasks = {"tones": {"splits": {"train": part, "validation": part}}}
    config = {
        "run": run,
        "family": "deepspeech",
        "vocabularies": {"text": {"type": "alphabet"}},
        "data": {"type": "speech", "tasks": tasks, "batch_size": 4},
        "training": {
            "steps": 1,
            "learning_rate": 1e-4,
            "schedule": {"type": "constant"},
            "optimizer": {"type": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8, "epsilon_rule": "tensorflow"},
            "evaluate_every": 1,
            "checkpoint_every": 1,
            "keep_last": 1,
            "precision": "float32",
        },
    }
    Path(f"{run}.yaml").write_text(yaml.safe_dump(config | more))
    return api.train(f"{run}.yaml", progress=False)


def test_one_step_of_fine_tuning_and_one_of_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (language, letters) in enumerate((("first", "abcd"), ("second", "bcde"))):
        tone_speech.write_list(tmp_path, language, tone_speech.words(letters, 4, seed), seed)
    train("first", "parent", model={"n_hidden": 2048, "sample_rate": 8000})
    facts = api.convert("parent", "coqui", "coqui")
    assert facts["bytes"] > 4 * 46_000_000  # 47 M parameters
    shutil.rmtree("parent")
    fine = train("first", "fine", start={"source": "coqui", "mode": "init"}, vocabularies={})
    assert (fine["steps"], fine["best_step"]) == (1, 1)  # better than before it
    shutil.rmtree("fine")
    transfer = train("second", "transfer", start={"source": "coqui", "mode": "transfer", "drop_last": 2})
    assert (transfer["steps"], transfer["best_step"]) == (1, 1)
    entries = open_checkpoint(Path("transfer/model/model.safetensors")).entries
    shapes = {name: entry.shape for name, entry in entries.items()}
    assert shapes["layer_6.weight"] == (5, 2048)
    assert shapes["lstm.weight"] == (8192, 4096)
