"""What a trainer is expected to do, by its effect, through the public verbs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from warmstart import api
from warmstart.config import ADJUSTABLE, IDENTITY, RunConfig
from warmstart.errors import ConfigError, DataError, StorageError, TrainingError, VocabularyError
from warmstart.formats.detect import open_checkpoint
from warmstart.storage.locks import directory_lock

MODEL = {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), size=rng.integers(2, 6))) for _ in range(120)]
    for split, part in (("train", words[:100]), ("validation", words[100:])):
        Path(f"{split}.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in part))
    task = {"splits": {s: {"tsv": f"{s}.tsv"} for s in ("train", "validation")}}
    config = {
        "run": "run",
        "model": MODEL,
        "vocabularies": {"source": {"type": "characters"}, "target": {"type": "characters"}},
        "data": {"tasks": {"reverse": task}, "max_length": 32, "batch_tokens": 256},
        "training": {
            "steps": 4,
            "learning_rate": 0.01,
            "schedule": {"type": "constant"},
            "evaluate_every": 2,
            "checkpoint_every": 2,
            "keep_last": 9,
            "precision": "float32",
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def train(**training: Any) -> dict[str, Any]:
    run = training.pop("run", "run")
    start = training.pop("start", [])
    overrides = [f"training.{key}={json.dumps(value)}" for key, value in training.items()]
    return api.train("c.yaml", [f"run={run}", *start, *overrides], progress=False)


def arrays(path: str) -> dict[str, np.ndarray]:
    opened = open_checkpoint(Path(path))
    return {name: np.array(opened.read(name)) for name in opened.entries}


def at(run: str, step: int, file: str = "model") -> dict[str, np.ndarray]:
    return arrays(f"{run}/checkpoints/step-{step:08d}/{file}.safetensors")


def records(run: str, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k != "time"} for r in lines if r["kind"] == kind]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in models_in(part)]


def undeclared(model: type[BaseModel], prefix: str = "") -> list[str]:
    out = []
    for name, field in model.model_fields.items():
        if not {IDENTITY, ADJUSTABLE} & {m for m in field.metadata if isinstance(m, str)}:
            inner = [key for m in models_in(field.annotation) for key in undeclared(m, f"{prefix}{name}.")]
            out += inner if models_in(field.annotation) else [prefix + name]
    return out


def test_every_key_is_declared() -> None:
    assert undeclared(RunConfig) == []


def test_a_run_is_extended_and_says_so(place: Path) -> None:
    train()
    train(steps=8, learning_rate=0.005, log_every=1)
    changes = [json.loads(line) for line in Path("run/changes.jsonl").read_text().splitlines()]
    assert [(c["step"], c["key"], c["old"], c["new"]) for c in changes] == [
        (4, "training.steps", 4, 8),
        (4, "training.learning_rate", 0.01, 0.005),
        (4, "training.log_every", 50, 1),
    ]
    assert [r["train/learning_rate"] for r in records("run", "train")][-1] == 0.005
    train(run="whole", steps=8, keep_last=9)
    train(run="longer")
    train(run="longer", steps=8)
    assert all((at("longer", 8)[n] == a).all() for n, a in at("whole", 8).items())


def test_a_training_that_never_became_better_says_so(place: Path) -> None:
    """Every output is wrong from the beginning: the first of equals is the best, and that is shipped."""
    said = train(best_metric="validation/exact_match", best_mode="max")
    assert (said["best_step"], said["steps"]) == (0, 4)
    assert said["notes"][-1].startswith("no evaluation was better than that before the first update")
    better = train(run="better")
    assert better["best_step"] > 0
    assert not any("no evaluation was better" in note for note in better["notes"])


def test_another_identity_names_every_key_and_leaves_the_run(place: Path) -> None:
    train()
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(ConfigError, match="another run") as caught:
        train(start=["seed=2", "model.d_ff=64"], label_smoothing=0.2)
    said = {p.what.split()[0] for p in caught.value.problems}
    assert said == {"seed", "model.d_ff", "training.label_smoothing"}
    assert {p: p.read_bytes() for p in before} == before


def test_an_extension_that_is_refused_leaves_the_run(place: Path) -> None:
    train()
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file() and p.name != ".lock"}
    with pytest.raises(TrainingError, match="all steps are done already"):
        train(steps=3, log_every=1)
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_metrics_that_nothing_measures_are_named_before_anything_is_trained(place: Path) -> None:
    rules = {"best_metric": "validation/cherf", "plateau": {"patience": 1, "metric": "validation/b/loss"}}
    with pytest.raises(ConfigError, match="is not measured") as caught:
        train(**rules, early_stopping={"patience": 1, "metric": "validation/cer"})
    said = {p.where: p.todo for p in caught.value.problems}
    assert said == {
        "training.best_metric": "did you mean validation/chrf?",
        "training.plateau.metric": "did you mean validation/loss?",
    }
    assert not Path("run/checkpoints").exists()


def test_a_second_training_is_refused_and_names_the_first(place: Path) -> None:
    train()
    written = Path("run/config.yaml").read_bytes()
    with directory_lock(Path("run")), pytest.raises(StorageError, match=r"process \d+ on"):
        train(steps=8)
    assert Path("run/config.yaml").read_bytes() == written


def test_frozen_arrays_are_bit_equal_and_released_ones_move(place: Path) -> None:
    groups = [
        {"stages": ["encoder"], "freeze": True},
        {"parameters": ["decoder.layers.0.ffn.**"], "freeze": {"step": 2}},
    ]
    train(groups=groups)
    first, middle, last = at("run", 0), at("run", 2), at("run", 4)
    moved = {n: ((a != middle[n]).any(), (a != last[n]).any()) for n, a in first.items()}
    assert {v for n, v in moved.items() if n.startswith("encoder.layers")} == {(False, False)}
    assert {v for n, v in moved.items() if n.startswith("decoder.layers.0.ffn.")} == {(False, True)}
    assert moved["decoder.layers.0.self_attention.query.weight"] == (True, True)
    steps = json.loads(Path("run/checkpoints/step-00000004/state.json").read_text())["optimizer_steps"]
    assert steps["decoder.layers.0.ffn.up.weight"] == 2


def test_the_average_is_evaluated_and_shipped(place: Path) -> None:
    train(average={"decay": 0.5, "warmup": False}, checkpoint_every=1)
    average = at("run", 0)
    for step in range(1, 5):
        now = at("run", step)
        average = {n: 0.5 * a + 0.5 * now[n] for n, a in average.items()}
        kept = at("run", step, "average")
        assert all(np.allclose(kept[n], a, atol=1e-6) for n, a in average.items())
    best = api.train(
        "c.yaml",
        ["run=run", 'training.average={"decay": 0.5, "warmup": false}', "training.checkpoint_every=1"],
        progress=False,
    )["best_step"]
    shipped = arrays("run/model/model.safetensors")
    assert all((shipped[n] == a).all() for n, a in at("run", best, "average").items())
    child = ["start.source=run", "start.mode=init", "model={}", "vocabularies={}"]
    train(run="child", start=child, steps=1)
    measured = next(r for r in records("run", "validation") if r["step"] == best)
    assert records("child", "validation")[0]["validation/loss"] == pytest.approx(measured["validation/loss"], abs=1e-6)


def test_adapters_are_trained_merged_and_saved_apart(place: Path) -> None:
    train()
    lora = {"modules": ["**.query"], "rank": 2, "alpha": 4}
    child = ["start.source=run", "start.mode=init", "model={}", "vocabularies={}"]
    train(run="child", start=child, lora=lora, best_mode="max")
    base, first, last = arrays("run/model/model.safetensors"), at("child", 0), at("child", 4)
    assert all((last[n] == a).all() for n, a in base.items())
    assert {n for n in last if n not in base} == {n for n in first if n.endswith((".lora_a", ".lora_b"))}
    best = json.loads(Path("child/model/lineage.json").read_text())["step"]
    kept, shipped = at("child", best), arrays("child/model/model.safetensors")
    for n, a in base.items():
        layer, wanted = n.removesuffix(".weight"), a
        if f"{layer}.lora_a" in kept:
            wanted = a + 2.0 * kept[f"{layer}.lora_b"] @ kept[f"{layer}.lora_a"]
        assert np.allclose(shipped[n], wanted, atol=1e-6)
    apart = arrays("child/adapters/adapters.safetensors")
    assert set(apart) == {n for n in kept if ".lora_" in n}
    assert all((apart[n] == kept[n]).all() for n in apart)
    shutil.rmtree("child/checkpoints/step-00000004")
    train(run="child", start=child, lora=lora, best_mode="max")
    assert all((at("child", 4)[n] == a).all() for n, a in last.items())


def test_a_lineage_keeps_the_source_as_it_was(place: Path) -> None:
    def child(steps: int) -> list[dict[str, Any]]:
        start = ["start.source=run", "start.mode=init", "model={}", "vocabularies={}"]
        train(run="child", start=start, steps=steps)
        found: list[dict[str, Any]] = json.loads(Path("child/model/lineage.json").read_text())["starts"]
        return found

    train()
    began = child(2)
    train(steps=8)
    (weights,) = (file for file in began[0]["files"] if file["name"] == "model.safetensors")
    assert weights["sha256"] != sha256(Path("run/model/model.safetensors").read_bytes()).hexdigest()
    assert child(4) == began
    Path("child/starts.json").write_text("[")
    with pytest.raises(TrainingError, match=r"starts.json"):
        child(6)


@pytest.mark.parametrize("level", ["word", "sequence"])
def test_a_student_learns_from_its_teacher(place: Path, level: str) -> None:
    train(steps=40, keep_last=1)
    train(run="student", distillation={"teachers": ["run"], "level": level}, steps=6)
    plain = train(run="plain", steps=6)
    assert plain["steps"] == 6
    assert any((at("plain", 6)[n] != a).any() for n, a in at("student", 6).items())
    assert json.loads(Path("student/model/lineage.json").read_text())["teachers"] == ["run"]
    assert Path("student/distilled").is_dir() == (level == "sequence")
    Path("other.tsv").write_text("xyz\tzyx\n" * 20)
    task = '{"t": {"splits": {"train": {"tsv": "other.tsv"}, "validation": {"tsv": "other.tsv"}}}}'
    with pytest.raises(VocabularyError):
        train(run="b", start=[f"data.tasks={task}"], distillation={"teachers": ["run"], "level": level})


def test_several_tasks_are_evaluated_and_any_metric_decides(place: Path) -> None:
    task = {"splits": {s: {"tsv": f"{s}.tsv"} for s in ("train", "validation")}}
    two = [f"data.tasks={json.dumps({'a': task, 'b': task})}"]
    result = train(start=two, best_metric="validation/b/chrf", best_mode="max", samples=3)
    assert {"validation/a/loss", "validation/b/cer", "validation/loss"} <= set(result["metrics"])
    lines = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert [(x["step"], x["task"]) for x in lines[:6]] == [(0, "a")] * 3 + [(0, "b")] * 3
    assert {x["reference"] for x in lines} == {x["source"][::-1] for x in lines}


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "adam", "epsilon_rule": "tensorflow"},
        {"type": "adafactor", "min_dim_size_to_factor": 8},
        {"type": "adabelief"},
        {"type": "sgd", "momentum": 0.9},
    ],
)
def test_every_optimizer_resumes_and_continues_bit_equal(place: Path, optimizer: dict[str, Any]) -> None:
    train(run="whole", optimizer=optimizer)
    shutil.copytree("whole", "cut")
    shutil.rmtree("cut/model")
    shutil.rmtree("cut/checkpoints/step-00000004")
    train(run="cut", optimizer=optimizer)
    for file in ("model", "optimizer"):
        assert all((at("cut", 4, file)[n] == a).all() for n, a in at("whole", 4, file).items())


def test_the_command_line_ends_with_the_signals_status(place: Path) -> None:
    command = [sys.executable, "-m", "warmstart", "train", "c.yaml", "training.steps=100000"]
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            before = set(Path().glob("run/checkpoints/step-*/state.json"))
            while set(Path().glob("run/checkpoints/step-*/state.json")) <= before and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == status, said
        assert "the same command goes on from here" in said


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_a_damaged_checkpoint_says_how_to_go_on(place: Path, name: str) -> None:
    train()
    last = Path("run/checkpoints/step-00000004")
    os.truncate(last / f"{name}.safetensors", 300)
    with pytest.raises(TrainingError, match="a file of this checkpoint cannot be read") as caught:
        train(steps=6)
    assert str(caught.value.where).startswith(f"{last}/{name}.safetensors")
    assert "remove this checkpoint's directory" in str(caught.value.todo)
    shutil.rmtree(last)
    assert train(steps=6)["steps"] == 6


def test_files_of_every_split_are_missed_before_the_training(place: Path) -> None:
    splits = "data.tasks.reverse.splits"
    Path("folder").mkdir()
    Path("test.tsv").touch()
    with pytest.raises(DataError, match="the data cannot be read") as caught:
        train(start=[f"{splits}.validation.tsv=folder", f"{splits}.test={{source: gone.a, target: test.tsv}}"])
    assert [(p.what, p.where) for p in caught.value.problems] == [
        ("validation of task reverse names a file that is not there", "folder"),
        ("test of task reverse names a file that is not there", "gone.a"),
    ]


def test_data_and_vocabularies_that_do_not_fit_the_family_are_all_named(place: Path) -> None:
    sides = "vocabularies={source: {type: characters}, text: {type: characters}, shared: {type: characters}}"
    with pytest.raises(ConfigError, match="do not fit the family") as caught:
        train(start=[sides])
    assert [p.what.split()[0] for p in caught.value.problems] == ["vocabularies.text", "vocabularies.shared"]
    with pytest.raises(ConfigError, match="do not fit the family") as caught:
        train(start=["family=wav2vec2"])
    said = {p.what for p in caught.value.problems}
    assert "a model of the family wav2vec2 does not learn from data of the type text" in said
    assert "expected: a family that is trained here: deepspeech, transformer" in str(caught.value)
    assert "vocabularies.target is no vocabulary of wav2vec2" in said
    with pytest.raises(ConfigError, match=r"family deepspeech does not learn .* type text\n  expected: speech\n"):
        train(start=["family=deepspeech"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer", {"type": "adamm"}, "training.optimizer.type: there is no 'adamm'"),
        ("optimizer", {"type": "sgd", "betas": [0.9, 0.9]}, "unknown key training.optimizer.betas"),
        ("schedule", {"type": "inverse_sqrt"}, "training.schedule.warmup is missing"),
        ("loss_normalizer", "batches", "training.loss_normalizer is not valid"),
        ("groups", [{"stages": ["encoder"], "freeze": {}}], "training.groups.0.freeze: say either step or plateaus"),
    ],
)
def test_errors_name_keys_as_they_are_written(place: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train(**{key: value})
    assert said in {problem.what for problem in caught.value.problems}
