"""Speech on the whole road by the public verbs: trained, started from, frozen, tried out, with bad data."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import marian_models
import tone_speech
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.cli.verbs import app
from warmstart.errors import ConfigError, DataError, PlanError, TrainingError
from warmstart.formats.detect import open_checkpoint
from warmstart.vocabularies.alphabet import Alphabet

ADAM = {"type": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8, "epsilon_rule": "tensorflow"}
TRAINING = {
    "steps": 150,
    "learning_rate": 3e-3,
    "schedule": {"type": "constant"},
    "optimizer": ADAM,
    "evaluate_every": 50,
    "checkpoint_every": 50,
    "log_every": 50,
    "precision": "float32",
}


def splits(name: str) -> dict[str, Any]:
    return {split: {"files": f"{name}-{split}.csv"} for split in ("train", "validation")}


def configuration(name: str, **changes: Any) -> dict[str, Any]:
    base = {
        "run": "run",
        "family": "deepspeech",
        "seed": 4,
        "model": {"n_hidden": 32, "sample_rate": 8000},
        "vocabularies": {"text": {"type": "alphabet"}},
        "data": {"type": "speech", "tasks": {"tones": {"splits": splits(name)}}, "batch_size": 16},
        "training": TRAINING,
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two languages, which share b, c and d, and a model of the first, trained."""
    folder = tmp_path_factory.mktemp("speech")
    for language, letters in (("first", "abcd"), ("second", "bcde")):
        for seed, (split, count) in enumerate((("train", 120), ("validation", 20))):
            tone_speech.write_list(folder, f"{language}-{split}", tone_speech.words(letters, count, seed), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("parent.yaml").write_text(yaml.safe_dump(configuration("first", run="parent")))
        api.train("parent.yaml", progress=False)
    return folder


@pytest.fixture
def place(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(parent, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def child(**start: Any) -> dict[str, Any]:
    return {"start": {"source": "parent", **start}, "model": None, "vocabularies": None, "run": "child"}


def write(config: dict[str, Any]) -> str:
    Path("child.yaml").write_text(yaml.safe_dump(config))
    return "child.yaml"


def train(config: dict[str, Any], **training: Any) -> dict[str, Any]:
    return api.train(write(config | {"training": TRAINING | training}), progress=False)


def at(run: str, step: int, file: str = "model") -> dict[str, np.ndarray]:
    opened = open_checkpoint(Path(f"{run}/checkpoints/step-{step:08d}/{file}.safetensors"))
    return {name: np.array(opened.read(name)) for name in opened.entries}


def records(run: str, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def test_a_model_learns_to_write_down_tones(place: Path) -> None:
    evaluations, updates = records("parent", "validation"), records("parent", "train")
    assert [r["validation/cer"] for r in evaluations][-1] == 0.0 < evaluations[0]["validation/cer"]
    assert evaluations[0]["validation/loss"] > 5
    assert evaluations[-1]["validation/loss"] < 0.05
    assert updates[0]["train/utterances"] == pytest.approx(50 * 15, abs=20)
    assert updates[0]["time"]["audio_seconds_per_second"] > 0
    model = open_model("parent")
    assert isinstance(model.vocabularies["text"], Alphabet)
    assert model.vocabularies["text"].labels == ("a", "b", "c", "d")
    last = [json.loads(line) for line in Path("parent/samples.jsonl").read_text().splitlines()][-5:]
    assert all(row["output"] == row["reference"] and row["source"].endswith(".wav") for row in last)


def test_the_same_alphabet_goes_on_or_begins_anew(place: Path) -> None:
    before, moments = at("parent", 150), at("parent", 150, "optimizer")
    train(configuration("first", **child(mode="continue")), steps=151, evaluate_every=1)
    assert all((at("child", 150)[name] == array).all() for name, array in before.items())
    assert all((at("child", 150, "optimizer")[name] == array).all() for name, array in moments.items())
    assert any((at("child", 151)[name] != array).any() for name, array in before.items())
    (first, *_) = records("child", "validation")
    assert first["validation/loss"] == records("parent", "validation")[-1]["validation/loss"]
    shutil.rmtree("child")
    train(configuration("first", **child(mode="init")), steps=1, checkpoint_every=1)
    assert all((at("child", 0)[name] == array).all() for name, array in before.items())
    assert at("child", 0, "optimizer") == {}


def test_continuing_a_run_is_the_longer_run(place: Path) -> None:
    """The next step takes weights, moments, step and position of the data over."""
    train(configuration("first", run="longer"), steps=160)
    train(configuration("first", **child(mode="continue")), steps=160)
    for file in ("model", "optimizer"):
        longer = at("longer", 160, file)
        assert all((at("child", 160, file)[name] == array).all() for name, array in longer.items())


LAST = ["layer_6", "layer_5", "lstm", "layer_3", "layer_2"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_last_stages_are_dropped_and_nothing_else(place: Path, count: int) -> None:
    config = configuration("second", **child(mode="transfer", drop_last=count))
    plan = api.plan(write(config | {"vocabularies": {"text": {"type": "alphabet"}}}))
    new = {row.stage for row in plan.rows if row.action == "initialise"}
    assert new == set(LAST[:count])
    assert {row.stage for row in plan.rows if row.action == "load"} == {"layer_1", *LAST} - new


def test_a_transfer_begins_with_what_it_keeps_and_learns_sooner(place: Path) -> None:
    before = at("parent", 150)
    alphabet = {"vocabularies": {"text": {"type": "alphabet"}}}
    train(configuration("second", **child(mode="transfer", drop_last=1)) | alphabet, steps=50)
    start = at("child", 0)
    for name, array in before.items():
        assert (start[name].shape == array.shape and (start[name] == array).all()) != name.startswith("layer_6")
    train(configuration("second", run="scratch"), steps=50)
    (transfer, scratch) = (records(run, "validation")[-1]["validation/loss"] for run in ("child", "scratch"))
    assert transfer < 0.75 * scratch


def test_rows_of_shared_characters_and_of_the_blank_are_kept(place: Path) -> None:
    alphabet = {"vocabularies": {"text": {"type": "alphabet"}}}
    train(configuration("second", **child(mode="transfer", vocabulary="rows")) | alphabet, steps=1, checkpoint_every=1)
    old, new = at("parent", 150), at("child", 0)
    for name in ("layer_6.weight", "layer_6.bias"):
        assert (new[name][[0, 1, 2, 4]] == old[name][[1, 2, 3, 4]]).all()  # b, c, d and the blank
    assert not (new["layer_6.weight"][3] == old["layer_6.weight"]).all(-1).any()


def test_another_alphabet_or_width_is_diagnosed_with_the_mode_that_would_do(place: Path) -> None:
    alphabet = {"vocabularies": {"text": {"type": "alphabet"}}}
    with pytest.raises(PlanError, match="the text vocabulary is not the source's") as caught:
        api.plan(write(configuration("second", **child(mode="init")) | alphabet))
    (problem,) = caught.value.problems
    assert "`vocabulary: rows`" in problem.todo
    assert "`mode: transfer`" in problem.todo
    assert "3 shared" in problem.found or "4 shared" in problem.found
    with pytest.raises(PlanError) as caught:
        api.plan(write(configuration("first", **child(mode="continue")) | {"model": {"n_hidden": 48}}))
    said = next(p for p in caught.value.problems if "n_hidden" in p.what)
    assert said.expected == "n_hidden 32, as the source has it"
    assert "`mode: init`" in said.todo


def test_stages_are_frozen_released_and_trained_at_rates_of_their_own(place: Path) -> None:
    groups = [
        {"stages": ["layer_1"], "freeze": True},
        {"stages": ["layer_2", "layer_3"], "freeze": {"step": 2}},
        {"stages": ["lstm"], "learning_rate": 0.5},
    ]
    config = configuration("first", **child(mode="init"))
    train(config, steps=4, groups=groups, checkpoint_every=1, evaluate_every=4, keep_last=9)
    states = [at("child", step) for step in range(5)]
    moved = [
        {name.split(".")[0] for name, array in after.items() if (array != before[name]).any()}
        for before, after in pairwise(states)
    ]
    free = {"lstm", "layer_5", "layer_6"}
    assert moved == [free, free, free | {"layer_2", "layer_3"}, free | {"layer_2", "layer_3"}]
    shift = {name: np.abs(array - states[0][name]).max() for name, array in states[1].items()}
    assert shift["lstm.bias"] == pytest.approx(0.5 * 3e-3, rel=1e-2)  # Adam's first step is the rate
    assert shift["layer_6.bias"] == pytest.approx(3e-3, rel=1e-2)


def test_byte_mode_goes_on_in_another_language_with_every_label(place: Path) -> None:
    found = train(configuration("first", vocabularies={"text": {"type": "bytes"}}, run="bytes"), steps=60)
    losses = [r["validation/loss"] for r in records("bytes", "validation")]
    assert losses[-1] < losses[0] / 4
    start = {"source": "bytes", "mode": "init"}
    train(configuration("second", model=None, vocabularies=None, run="child", start=start), steps=1, checkpoint_every=1)
    assert at("child", 0)["layer_6.bias"].shape == (256,)
    assert all((at("bytes", found["best_step"])[name] == array).all() for name, array in at("child", 0).items())
    alphabet = open_model("child").vocabularies["text"]
    assert isinstance(alphabet, Alphabet)
    assert alphabet.utf8


def test_keys_of_texts_are_refused_for_speech(place: Path) -> None:
    with pytest.raises(ConfigError, match="these keys are for text") as caught:
        train(configuration("first", decoding={"beam_size": 4}), label_smoothing=0.1)
    said = [problem.what.split()[0] for problem in caught.value.problems]
    assert said == ["training.label_smoothing", "decoding.beam_size"]
    with pytest.raises(ConfigError, match="do not fit the family"):
        api.plan(write(configuration("first", family="transformer", model={}, vocabularies={})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabularies": {"text": {"type": "characters"}}}, "(?s)expected: alphabet.*found: characters"),
        ({"family": "encoder"}, "encoder does not learn from data of the type speech"),
        ({"start": {"source": "text", "mode": "init"}}, "(?s)another family.*where: text.*deepspeech.*transformer"),
    ],
)
def test_what_is_no_model_of_speech_is_said(place: Path, changes: dict[str, Any], message: str) -> None:
    marian_models.write(Path("text"), marian_models.OPTIONS, marian_models.arrays(marian_models.OPTIONS))
    with pytest.raises(ConfigError, match=message):
        api.plan(write(configuration("first", **changes)))


def test_a_clip_too_short_for_its_transcript_is_named_and_skipped(place: Path) -> None:
    tone_speech.write_wav(Path("first-train/short.wav"), np.zeros(400, np.int16))
    with Path("first-train.csv").open("a") as file:
        file.write("first-train/short.wav,844,abcd\n")
    found = train(configuration("first", run="short"), steps=10, evaluate_every=10)
    (note,) = [note for note in found["notes"] if "too short" in note]
    assert "short.wav" in note
    assert "1 left out" in note


def test_a_transcript_outside_the_alphabet_is_an_error_that_lists_all(place: Path) -> None:
    with pytest.raises(DataError) as caught:
        train(configuration("second", **child(mode="init")))
    assert "'e' (U+0065" in str(caught.value)


def test_a_loss_that_is_no_number_names_its_recordings(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from warmstart.training import ctc

    measure, calls = ctc.CTC.__call__, []

    def poisoned(self: Any, model: Any, batch: Any) -> Any:
        calls.append(batch)
        loss = measure(self, model, batch)
        rows = loss.rows.clone()
        rows[[2, 5]] *= float("nan") if len(calls) == 3 else 1.0
        return replace(loss, loss=rows.sum(), rows=rows)

    monkeypatch.setattr(ctc.CTC, "__call__", poisoned)
    with pytest.raises(TrainingError, match="the loss is not finite") as caught:
        train(configuration("first", run="nan"), steps=5)
    written = json.loads(Path("nan/nonfinite/step-00000003.json").read_text())
    rows = written["batches"][0]
    assert len(rows) == len(calls[2].indices)
    guilty = [row for row in rows if row["loss"] == "nan"]
    assert guilty == [rows[2], rows[5]]
    assert [problem.where for problem in caught.value.problems] == [row["file"] for row in guilty]
    lines = [line.split(",") for line in Path("first-train.csv").read_text().splitlines()[1:]]
    assert {(row["file"], row["transcript"]) for row in rows} <= {(line[0], line[2]) for line in lines}


def test_a_dry_run_a_list_of_runs_and_curves(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    path = write(configuration("first", run="tried"))
    before[place / path] = Path(path).stat().st_mtime_ns
    found = api.dry_run(path, progress=False)
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }
    assert not Path("tried").exists()
    assert found["longest"].startswith("16 recordings of 0.4 s")
    assert (found["work"], found["steps"]) == ("audio_seconds", 150)
    assert found["work_per_second"] > 1
    (run,) = api.runs(["parent"])
    assert run.problems == ()
    files = api.curves(["parent"], place / "curves.png")
    header = files[-1].read_text().splitlines()[0]
    assert header == "run,step,train/loss,validation/loss,validation/wer,validation/cer"


def test_evaluation_says_rates_and_shows_the_best_and_the_worst(place: Path) -> None:
    reports: list[str] = []
    found = api.evaluate("parent", split="validation", output="out.json", report=reports.append)
    best = records("parent", "validation")[-1]
    assert found["tones"]["loss"] == pytest.approx(best["validation/loss"], rel=1e-5)
    assert (found["tones"]["wer"], found["tones"]["cer"]) == (best["validation/wer"], best["validation/cer"]) == (0, 0)
    assert reports[0].startswith("Test on tones - WER: 0.000000, CER: 0.000000, loss: ")
    assert reports[0].count(" - wav: ") == 15
    samples = json.loads(Path("out.json").read_text())
    assert [sample["res"] for sample in samples] == [sample["src"] for sample in samples]
    assert {sample["src"] for sample in samples} == set(tone_speech.words("abcd", 20, 1))
    wide = api.evaluate("parent", split="validation", beam_size=8)
    assert wide == found
    with pytest.raises(ConfigError, match="another kind of model") as caught:
        api.evaluate("parent", split="validation", engine="native")
    assert "engine changes nothing" in str(caught.value)
    with pytest.raises(ConfigError, match="normalize changes nothing"):
        api.evaluate("parent", split="validation", normalize=1.0)
    with pytest.raises(DataError, match="no task has a split 'test'"):
        api.evaluate("parent")


def test_features_are_computed_once_for_dry_runs_and_all_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMSTART_CACHE", str(place / "cache"))
    config = write(configuration("first", training=TRAINING | {"steps": 2}))
    api.dry_run(config, progress=False)
    made = sorted((place / "cache" / "features").iterdir())
    assert len(made) == 2  # training and validation
    monkeypatch.setattr("warmstart.data.speech.cache._fill", None)
    for run in ("one", "two"):
        os.utime(made[0], (0, 0))
        api.train(config, [f"run={run}"], progress=False)
        assert made[0].stat().st_mtime > 0  # when it was last used
        assert not Path(run, "features").exists()


def test_lists_of_recordings_are_enough_to_evaluate_on(place: Path) -> None:
    found = api.evaluate("parent", ["first-validation.csv", Path("first-train.csv")])
    assert list(found) == ["first-validation.csv", "first-train.csv"]
    assert found["first-validation.csv"] == pytest.approx(api.evaluate("parent", split="validation")["tones"], rel=1e-5)
    with pytest.raises(ConfigError) as caught:
        api.evaluate("parent", ["nowhere.csv", "nothing.csv", "first-train.csv"])
    assert [problem.where for problem in caught.value.problems] == ["nowhere.csv", "nothing.csv"]
    listed = Path("first-train.csv").read_bytes()
    with pytest.raises(ConfigError, match="would replace what is evaluated on"):
        api.evaluate("parent", "first-train.csv", output=Path.cwd() / "first-train.csv")
    assert Path("first-train.csv").read_bytes() == listed


def test_nothing_on_standard_input_is_an_error(place: Path) -> None:
    heard = CliRunner().invoke(app, ["transcribe", "parent", "-"], input=b"")
    assert isinstance(heard.exception, DataError)
    assert "there is nothing on standard input" in str(heard.exception)
    assert heard.stdout == ""


def test_a_file_on_standard_input_is_not_taken_for_samples(place: Path) -> None:
    for start in (b"RIFF", b"fLaC", b"OggS"):
        heard = CliRunner().invoke(app, ["transcribe", "parent", "-"], input=start + bytes(16000))
        assert isinstance(heard.exception, DataError)
        assert "ffmpeg -i FILE -f s16le" in str(heard.exception)


def test_adapters_are_trained_and_merged(place: Path) -> None:
    config = configuration("first", **child(mode="init"))
    lora = {"modules": ["layer_2", "layer_5"], "rank": 2, "alpha": 4.0}
    train(config, steps=20, lora=lora, evaluate_first=False)
    opened = open_checkpoint(Path("child/adapters/adapters.safetensors"))
    parts = {name: np.array(opened.read(name)) for name in opened.entries}
    assert set(parts) == {f"{layer}.lora_{part}" for layer in ("layer_2", "layer_5") for part in "ab"}
    assert all(np.abs(array).max() > 1e-3 for array in parts.values())  # B began at zero
    before, merged = at("parent", 150), open_checkpoint(Path("child/model/model.safetensors"))
    for name, array in before.items():
        layer = name.removesuffix(".weight")
        added = 2.0 * parts[f"{layer}.lora_b"] @ parts[f"{layer}.lora_a"] if f"{layer}.lora_a" in parts else 0.0
        np.testing.assert_allclose(merged.read(name), array + added, atol=1e-6)


def test_tasks_are_mixed_and_measured_apart(place: Path) -> None:
    tasks = {name: {"splits": splits("first")} for name in ("loud", "clear")}
    data = {"type": "speech", "tasks": tasks, "rates": {"loud": 1, "clear": 3}, "batch_seconds": 8, "max_seconds": 2}
    train(configuration("first", run="two", data=data), steps=10, evaluate_every=10, best_metric="validation/loud/cer")
    last = records("two", "validation")[-1]
    losses = [last[f"validation/{task}/loss"] for task in ("loud", "clear")]
    assert last["validation/loss"] == pytest.approx(sum(losses) / 2)
    assert {"validation/loud/wer", "validation/clear/cer"} <= set(last)
    rows = [json.loads(line) for line in Path("two/samples.jsonl").read_text().splitlines()]
    assert {row["task"] for row in rows} == {"loud", "clear"}


def test_missing_recordings_then_damaged_ones_are_named(place: Path) -> None:
    import soundfile

    samples, csv = tone_speech.speak("abcd", 7), Path("first-train.csv")
    soundfile.write("first-train/whole.flac", samples, tone_speech.RATE)
    data = Path("first-train/whole.flac").read_bytes()
    Path("first-train/cut.flac").write_bytes(data[: len(data) // 2])
    Path("first-train/empty.wav").write_bytes(b"")
    before, new = csv.read_text(), [f"first-train/{n},99,abcd\n" for n in ("whole.flac", "cut.flac", "empty.wav")]
    csv.write_text("".join([before, *new, "first-train/nowhere.wav,99,abcd\n"]))
    with pytest.raises(DataError, match=r"nowhere\.wav"):
        train(configuration("first", run="bad"), steps=2)
    csv.write_text("".join([before, *new]))
    with pytest.raises(DataError, match="2 recordings cannot be read") as caught:
        train(configuration("first", run="bad"), steps=2)
    named = {str(problem.where).split("/")[-1] for problem in caught.value.problems}
    assert named == {"cut.flac", "empty.wav"}


def test_every_recording_that_can_be_read_is_transcribed(place: Path) -> None:
    import soundfile

    samples = tone_speech.speak("abcd", 7)
    wide = np.repeat(samples, 6)[:, None].repeat(2, 1)
    soundfile.write("stereo.wav", wide, 6 * tone_speech.RATE)
    tone_speech.write_wav(Path("one.wav"), samples[:1])
    tone_speech.write_wav(Path("none.wav"), samples[:0])
    Path("empty.wav").write_bytes(b"")
    found = api.transcribe("parent", ["stereo.wav", "one.wav", "none.wav", "empty.wav", "nowhere.wav"])
    assert [row.get("text") for row in found] == ["abcd", "", "", None, None]
    assert [row["file"] for row in found if "error" in row] == ["empty.wav", "nowhere.wav"]


def test_other_noise_is_another_task(place: Path) -> None:
    """The updates that follow would not be those of a run that was not stopped."""
    tone_speech.write_wav(Path("noise.wav"), tone_speech.speak("dcba", 1))
    Path("noise.csv").write_text("wav_filename\nnoise.wav\n")
    config = configuration("first", run="noisy")
    config["data"] = {**config["data"], "augment": ["overlay[source=noise.csv]"]}
    train(config, steps=2)
    train(config, steps=3)
    state = Path("noisy/checkpoints/step-00000003/state.json")
    saved = json.loads(state.read_text())
    before, mark, _ = saved["task_fingerprint"].partition("+overlay:")
    assert mark
    tone_speech.write_wav(Path("noise.wav"), tone_speech.speak("dcba", 2))
    with pytest.raises(TrainingError, match="begun with another task"):
        train(config, steps=4)
    state.write_text(json.dumps({**saved, "task_fingerprint": before}))  # as earlier versions wrote it
    train(config, steps=4)


def test_a_recording_is_one_line_whatever_its_name_is(place: Path) -> None:
    names = ["two\nlines.wav", os.fsdecode(b"caf\xe9.wav")]
    for name in names:
        tone_speech.write_wav(Path(name), tone_speech.speak("abcd", 7))
    heard = CliRunner().invoke(app, ["transcribe", "parent", *names])
    assert heard.stdout == "two\\x0alines.wav\tabcd\ncaf\\udce9.wav\tabcd\n"


def test_a_choice_without_a_configuration_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    with pytest.raises(ConfigError, match="--data FILE"):
        api.evaluate(f"{tmp_path / 'some'}@best")
