"""Coqui's checkpoints on the whole road, beside what TensorFlow itself made of them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from warmstart import api
from warmstart.errors import PlanError
from warmstart.formats.detect import open_checkpoint
from warmstart.setting import open_setting

TRAINING = {
    "steps": 4681,
    "learning_rate": 1e-3,
    "schedule": {"type": "constant"},
    "optimizer": {"type": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8, "epsilon_rule": "tensorflow"},
    "clip_norm": None,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "precision": "float32",
}


def configuration(train: dict[str, Any], validation: dict[str, Any], **more: Any) -> dict[str, Any]:
    task = {"splits": {"train": train, "validation": validation}}
    base = {"run": "run", "family": "deepspeech", "training": TRAINING}
    return base | {"data": {"type": "speech", "tasks": {"digits": task}, "batch_size": 8}} | more


@pytest.fixture
def english(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return fixtures / "fixtures/coqui-digits-en"


def test_continuing_takes_the_same_next_step_as_tensorflow(english: Path, fixtures: Path) -> None:
    """``resume_step.npz``: one more step of TensorFlow's Adam from ``train-4680``, without dropout."""
    with np.load(english / "expected/resume_step.npz") as file:
        truth = {key: file[key] for key in file.files}
    lines = [f"{clip},0,{text}" for clip, text in zip(truth["clips"], truth["transcripts"], strict=True)]
    Path("step.csv").write_text("\n".join(["wav_filename,wav_filesize,transcript", *lines]) + "\n")
    part = {"files": "step.csv", "folder": str(fixtures / "data/fsdd")}
    config = configuration(
        part,
        part,
        start={"source": f"{english}@last", "mode": "continue", "data": "start"},
        model={f"dropout_{layer}": 0.0 for layer in (1, 2, 3, 5)},
        training=TRAINING | {"best_mode": "max"},  # the loss rises by this step, and the bundle is to have it
    )
    Path("c.yaml").write_text(yaml.safe_dump(config))
    api.train("c.yaml", progress=False)
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["validation/loss"] for r in records if r["kind"] == "validation"}
    assert losses == pytest.approx({4680: float(truth["loss_before"]), 4681: float(truth["loss_after"])}, rel=1e-4)
    api.convert("run", "back", "coqui")
    after, before = open_checkpoint("back"), open_checkpoint(f"{english}@last")
    names = [key.removeprefix("delta_norm|") for key in truth if key.startswith("delta_norm|")]
    assert len(names) == 12
    for name in names:
        moved = np.linalg.norm(after.read(name) - before.read(name))
        assert moved == pytest.approx(truth[f"delta_norm|{name}"], rel=1e-5)
        if f"after|{name}" in truth:
            np.testing.assert_allclose(after.read(name), truth[f"after|{name}"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "recordings", "wer", "cer"), [("coqui-digits-en", 300, 11.0, 4.33), ("coqui-bytes-en", 120, 35.0, 14.79)]
)
def test_evaluation_writes_what_tensorflow_wrote(
    name: str, recordings: int, wer: float, cer: float, english: Path, fixtures: Path
) -> None:
    """Letters and bytes: every transcript and every loss, from the recordings on."""
    source = english.parent / name
    part = {"files": str(source / "expected/test.csv"), "folder": str(fixtures / "data/fsdd")}
    config = configuration(part, part)
    config["data"] = config["data"] | {"tasks": {"digits": {"splits": {"test": part}}}, "batch_size": 50}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    found = api.evaluate(f"{source}@best", "c.yaml", output="out.json")
    made = {Path(sample["wav_filename"]).name: sample for sample in json.loads(Path("out.json").read_text())}
    with (source / "expected/test_greedy.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert len(expected) == len(made) == recordings
    for row in expected:
        sample = made[Path(row["wav_filename"]).name]
        assert (sample["res"], sample["src"]) == (row["greedy"], row["reference"])
        assert sample["loss"] == pytest.approx(float(row["ctc_loss"]), abs=1e-4)
    assert found["digits"]["wer"] == pytest.approx(wer, abs=0.01)
    assert found["digits"]["cer"] == pytest.approx(cer, abs=0.01)


def test_bytes_learn_another_script_with_everything_kept(english: Path, fixtures: Path) -> None:
    """No row is another language's: an English byte model is continued on Arabic transcripts."""
    arabic = {"files": str(fixtures / "data/arabic-digits-8k/arabic_digits.csv"), "limit": 16}
    start = {"source": f"{english.parent / 'coqui-bytes-en'}@last", "mode": "continue", "data": "start"}
    training = TRAINING | {"steps": 2804, "evaluate_every": 4, "checkpoint_every": 4}
    Path("c.yaml").write_text(yaml.safe_dump(configuration(arabic, arabic, start=start, training=training)))
    plan = api.plan("c.yaml")
    assert (plan.coverage, plan.step, len(plan.slots)) == (1.0, 2800, 24)
    api.train("c.yaml", progress=False)
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [r["validation/loss"] for r in records if r["kind"] == "validation"]
    assert losses[-1] < 0.9 * losses[0]


def test_what_a_checkpoint_without_flags_does_not_say_is_said_by_the_start(english: Path, fixtures: Path) -> None:
    Path("bare").mkdir()
    for file in (*english.glob("best_dev*"), english / "alphabet.txt"):
        shutil.copy(file, "bare")
    start = {"source": "bare@best", "mode": "init", "dialect": "coqui:audio_sample_rate=8000"}
    Path("c.yaml").write_text(yaml.safe_dump(configuration({"files": "a.csv"}, {"files": "a.csv"}, start=start)))
    assert open_setting("c.yaml", (), 0.0).model_config.sample_rate == 8000
    assert open_setting("c.yaml", ["start.dialect=coqui"], 0.0).model_config.sample_rate == 16000


def test_another_alphabet_says_what_would_do(english: Path, fixtures: Path) -> None:
    arabic = {"files": str(fixtures / "data/arabic-digits-8k/arabic_digits.csv"), "limit": 40}
    alphabet = {"vocabularies": {"text": {"type": "alphabet"}}}
    for mode in ("continue", "init"):
        start = {"source": f"{english}@best", "mode": mode}
        Path("c.yaml").write_text(yaml.safe_dump(configuration(arabic, arabic, start=start) | alphabet))
        with pytest.raises(PlanError, match="the text vocabulary is not the source's") as caught:
            api.plan("c.yaml")
        assert "`mode: transfer`" in str(caught.value)
    start = {"source": f"{english}@best", "mode": "transfer", "drop_last": 1}
    Path("c.yaml").write_text(yaml.safe_dump(configuration(arabic, arabic, start=start) | alphabet))
    assert {row.target for row in api.plan("c.yaml").rows if row.action == "initialise"} == {
        "layer_6.weight",
        "layer_6.bias",
    }
