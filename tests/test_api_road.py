"""The whole road by the public verbs, on Marian's own models and on a small training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from huggingface_models import write as write_huggingface
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import BundleError, ConfigError, DataError, DialectError, PlanError, StorageError, WarmstartError
from warmstart.formats.detect import open_checkpoint

TINY = {"d_model": 16, "num_heads": 2, "d_ff": 32, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture
def marian(fixtures) -> Path:
    return fixtures / "fixtures" / "marian-ar-en-translit"


def test_exports_of_a_marian_model_decode_as_marian_did(marian, tmp_path):
    lines = (marian / "test.ar").read_text("utf-8").splitlines()
    expected = (marian / "test.greedy.out").read_text("utf-8").splitlines()
    assert [best[0][0] for best in api.translate([marian], lines)] == expected
    rounded = [best[0] for best in api.translate([marian], lines[:200], precision="bfloat16")]
    exact = [best[0] for best in api.translate([marian], lines[:200])]
    assert sum(a[0] == b[0] for a, b in zip(rounded, exact, strict=True)) > 180
    assert [score for _, score in rounded] != [score for _, score in exact]
    api.convert(marian, tmp_path / "ct2", "ctranslate2")
    exported = [best[0][0] for best in api.translate([tmp_path / "ct2"], lines)]
    with pytest.raises(ConfigError, match="--quantize"):
        api.translate([tmp_path / "ct2"], lines, precision="bfloat16")
    assert sum(a == b for a, b in zip(exported, expected, strict=True)) >= 1588
    api.convert(marian, tmp_path / "int8", "ctranslate2", quantize="int8")
    quantized = [best[0][0] for best in api.translate([tmp_path / "int8"], lines[:200])]
    assert sum(a == b for a, b in zip(quantized, expected, strict=False)) > 150
    assert (tmp_path / "int8/model.bin").stat().st_size < (tmp_path / "ct2/model.bin").stat().st_size / 2


def test_a_marian_model_returns_array_by_array(marian, tmp_path):
    api.convert(marian, tmp_path / "bundle", "warmstart")
    api.convert(tmp_path / "bundle", tmp_path / "back", "marian")
    with np.load(marian / "model.npz") as old, np.load(tmp_path / "back/model.npz") as new:
        assert set(old.files) == set(new.files)
        for name in set(old.files) - {"special:model.yml"}:
            assert old[name].tobytes() == new[name].tobytes()
            assert old[name].shape == new[name].shape
    lines = (marian / "test.ar").read_text("utf-8").splitlines()[:50]
    assert api.translate([tmp_path / "back"], lines) == api.translate([marian], lines)


def test_use_passes_the_model_on_verified(marian, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"run": "run", "start": {"source": str(marian), "mode": "use"}}
    Path("use.yaml").write_text(yaml.safe_dump(config))
    facts = api.train("use.yaml")
    assert facts["steps"] == 0
    lineage = json.loads(Path("run/model/lineage.json").read_text())
    assert lineage["starts"][0]["files"][0]["name"] == "model.npz"
    assert str(marian) not in Path("run/model/lineage.json").read_text()
    weights = Path("run/model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    Path("again.yaml").write_text(yaml.safe_dump({"run": "run2", "start": {"source": "run", "mode": "use"}}))
    with pytest.raises(BundleError, match=r"model\.safetensors has other content"):
        api.train("again.yaml")
    assert not Path("run2").exists()


def test_newer_bundles_name_both_versions(marian, tmp_path):
    api.convert(marian, tmp_path / "bundle", "warmstart")
    manifest = tmp_path / "bundle/warmstart.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "format_version": 9, "warmstart_version": "7.0"}))
    with pytest.raises(BundleError, match="format version 9"):
        api.translate([tmp_path / "bundle"], ["a"])


def test_an_existing_destination_is_left_as_it_was(marian, tmp_path):
    (tmp_path / "ct2").mkdir()
    (tmp_path / "ct2/mine.txt").write_text("mine")
    with pytest.raises(StorageError):
        api.convert(marian, tmp_path / "ct2", "ctranslate2")
    with pytest.raises(ConfigError, match="quantization 'int4'"):
        api.convert(marian, tmp_path / "ct2", "ctranslate2", quantize="int4", force=True)
    assert (tmp_path / "ct2/mine.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["ct2"]


def test_starting_from_marian_begins_at_its_loss_with_its_weights(fixtures, tmp_path, monkeypatch):
    """Marian's own cross-entropy of the references, in nats a token, is the loss at step 0."""
    monkeypatch.chdir(tmp_path)
    source = fixtures / "fixtures" / "marian-en-ru-names"
    pair = {"source": str(source / "test.en"), "target": str(source / "test.ru")}
    config = {
        "run": "run",
        "start": {"source": f"{source}@last", "mode": "continue", "data": "start"},
        "data": {"tasks": {"names": {"splits": {"train": pair, "validation": pair}}}, "max_length": 64},
        "training": {
            "steps": 2501,
            "learning_rate": 1e-3,
            "schedule": {"type": "inverse_sqrt", "warmup": 500},
            "evaluate_every": 1,
            "checkpoint_every": 1,
            "precision": "float32",
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    api.train("c.yaml", progress=False)
    (zero,) = [
        r for line in Path("run/metrics.jsonl").read_text().splitlines() if (r := json.loads(line))["step"] == 2500
    ]
    marian = float((source / "expected" / "ref.ce-mean-words").read_text())
    assert zero["validation/loss"] == pytest.approx(marian, abs=1e-5)
    old, before = open_model(f"{source}@last"), open_checkpoint(Path("run/checkpoints/step-00002500/model.safetensors"))
    moments = open_checkpoint(Path("run/checkpoints/step-00002500/optimizer.safetensors"))
    after = open_checkpoint(Path("run/checkpoints/step-00002501/model.safetensors"))
    assert len(before.entries) == 88
    for name in before.entries:
        assert before.read(name).tobytes() == old.reading.read(name).tobytes()
        assert moments.read(f"m.{name}").tobytes() == old.reading.read_slot(name, "m").tobytes()
        assert before.read(name).tobytes() != after.read(name).tobytes()


def test_permuting_a_vocabulary_changes_no_prediction(marian, tmp_path, monkeypatch):
    """The child's characters in another order, rows loaded by token: the same model."""
    monkeypatch.chdir(tmp_path)
    for side in ("ar", "en"):
        table = yaml.safe_load((marian / f"vocab.{side}.yml").read_text("utf-8"))
        shuffled = ["</s>", "<unk>", *np.random.default_rng(1).permutation(sorted(set(table) - {"</s>", "<unk>"}))]
        lines = [f"{json.dumps(str(token), ensure_ascii=False)}: {row}\n" for row, token in enumerate(shuffled)]
        Path(f"{side}.yml").write_text("".join(lines), "utf-8")
    pair = {"source": str(marian / "test.ar"), "target": str(marian / "test.en")}
    config = {
        "run": "run",
        "start": {"source": str(marian), "mode": "init", "vocabulary": "rows"},
        "vocabularies": {"source": {"type": "file", "path": "ar.yml"}, "target": {"type": "file", "path": "en.yml"}},
        "data": {
            "tasks": {"names": {"splits": {"train": pair, "validation": pair}}},
            "unknown_target": "allow",
            "empty_lines": "drop",
        },
        "training": {
            "steps": 1,
            "learning_rate": 1e-12,
            "schedule": {"type": "constant"},
            "evaluate_every": 1,
            "evaluate_first": False,
            "checkpoint_every": 1,
            "precision": "float32",
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert api.plan("c.yaml").coverage == 1.0
    api.train("c.yaml", progress=False)
    lines = (marian / "test.ar").read_text("utf-8").splitlines()[:400]
    texts = [[best[0][0] for best in api.translate([m], lines)] for m in (marian, "run")]
    assert texts[0] == texts[1]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """Pairs of words (reversed), and a tiny configuration."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcde"), size=rng.integers(2, 6))) for _ in range(120)]
    for split, part in (("train", words[:100]), ("validation", words[100:])):
        Path(f"{split}.tsv").write_text("".join(f"{w}\t{w[::-1]}\n" for w in part))
    config = {
        "run": "run",
        "model": TINY,
        "vocabularies": {"source": {"type": "characters"}, "target": {"type": "characters"}},
        "data": {
            "tasks": {"reverse": {"splits": {s: {"tsv": f"{s}.tsv"} for s in ("train", "validation")}}},
            "max_length": 32,
            "batch_tokens": 256,
        },
        "training": {
            "steps": 4,
            "learning_rate": 0.001,
            "schedule": {"type": "constant"},
            "evaluate_every": 2,
            "checkpoint_every": 2,
            "precision": "float32",
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_train_continue_and_init_at_step_zero(workplace):
    first = api.train("c.yaml", progress=False)
    assert first["steps"] == 4
    child = ["run=child", "start.source=run", "start.mode=init", "model={}", "vocabularies={}"]
    assert api.plan("c.yaml", child).coverage == 1.0
    api.train("c.yaml", [*child, "training.steps=2"], progress=False)
    records = [json.loads(line) for line in Path("child/metrics.jsonl").read_text().splitlines()]
    zero = next(r for r in records if r["step"] == 0)
    best = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert zero["validation/loss"] == pytest.approx(first["metrics"]["validation/loss"], abs=1e-6)
    assert best["step"] == 4
    on = ["run=further", "start.source=run", "start.mode=continue", "model={}", "vocabularies={}", "training.steps=6"]
    plan = api.plan("c.yaml", on)
    assert (plan.step, plan.answers[0].optimizer) == (4, "carry")
    api.train("c.yaml", on, progress=False)
    longer = ["run=long", "training.steps=6"]
    api.train("c.yaml", longer, progress=False)
    name = "checkpoints/step-00000006/model.safetensors"
    assert Path("further", name).read_bytes() == Path("long", name).read_bytes()


def test_the_same_command_again_finishes_or_says_that_all_is_done(workplace):
    first = api.train("c.yaml", progress=False)
    bundle = Path("run/model/model.safetensors").read_bytes()
    shutil.rmtree("run/model")

    again = api.train("c.yaml", progress=False)
    scores = api.evaluate("run", split="validation")
    assert "reverse" in scores
    tsv = yaml.safe_load(Path("run/config.yaml").read_text())["data"]["tasks"]["reverse"]["splits"]["validation"]["tsv"]
    columns = zip(*(line.split("\t") for line in Path(tsv).read_text().splitlines()), strict=True)
    for name, lines in zip(("source", "target"), columns, strict=True):
        Path(name).write_text("".join(f"{line}\n" for line in lines))
    for files in (["source", "target"], tsv):
        (found,) = api.evaluate("run", files).values()
        assert {name: found[name] for name in scores["reverse"]} == scores["reverse"]
    assert again["metrics"] == first["metrics"]
    assert Path("run/model/model.safetensors").read_bytes() == bundle


def test_an_unfinished_run_is_no_model_yet(workplace):
    api.train("c.yaml", ["training.steps=2"], progress=False)
    shutil.rmtree("run/model")
    for verb in (api.inspect, lambda m: api.translate([m], ["abc"])):
        with pytest.raises(WarmstartError, match="this run has no finished model yet"):
            verb("run")


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(workplace):
    api.train("c.yaml", ["run=whole", "training.steps=6"], progress=False)
    api.train("c.yaml", ["run=cut", "training.steps=6"], progress=False)
    shutil.rmtree("cut/model")
    for step in (4, 6):
        shutil.rmtree(f"cut/checkpoints/step-{step:08d}", ignore_errors=True)
    assert [p.name for p in sorted(Path("cut/checkpoints").iterdir())] in (["step-00000002"], [])
    api.train("c.yaml", ["run=cut", "training.steps=6"], progress=False)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (
            Path("cut/checkpoints/step-00000006", name).read_bytes()
            == Path("whole/checkpoints/step-00000006", name).read_bytes()
        )


def test_a_tilde_in_a_configuration_is_the_users_directory(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace / "home"))
    Path("home").mkdir()
    shutil.move("train.tsv", "home/train.tsv")
    api.train("c.yaml", ["run=~/run", "training.steps=2", "data.tasks.reverse.splits.train.tsv=~/train.tsv"])
    assert not Path("~").exists()
    assert Path("home/run/model/model.safetensors").is_file()
    scores = api.evaluate("~/run", "~/train.tsv")
    assert scores == api.evaluate("home/run", workplace / "home/train.tsv")


def test_a_configuration_says_everything_that_is_wrong_at_once(workplace):
    with pytest.raises(ConfigError) as caught:
        api.plan("c.yaml", ["trainning.steps=1", "data.batch_token=5", "training.steps=-1"])
    text = str(caught.value)
    assert "unknown key trainning\n  to do: did you mean training?" in text
    assert "unknown key data.batch_token\n  to do: did you mean batch_tokens?" in text
    assert "training.steps is not valid\n  expected: more than 0\n  found: -1" in text
    with pytest.raises(ConfigError, match="did you mean d_ff"):
        api.plan("c.yaml", ["model.d_f=3"])


def test_lines_that_a_vocabulary_cannot_be_trained_on(workplace):
    Path("bad.tsv").write_text(Path("train.tsv").read_text() + "one column\n")
    kinds = "{source: {type: sentencepiece, size: 20}, target: {type: sentencepiece, size: 20}}"
    overrides = [f"vocabularies={kinds}", "data.tasks.reverse.splits.train.tsv=bad.tsv"]
    with pytest.raises(DataError, match="wrong number of columns") as caught:
        api.plan("c.yaml", overrides)
    assert "bad.tsv, line" in str(caught.value.where)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.schedule=null", "training.schedule has no keys\n  expected: {type: …} of inverse_sqrt, constant,"),
        (
            "training.schedule=constant",
            "training.schedule has no keys\n  expected: {type: …} of inverse_sqrt, constant,",
        ),
        ("training.schedule={}", "training.schedule has no type\n  expected: {type: …} of inverse_sqrt, constant,"),
        ("data.tasks.reverse.splits.train=a.tsv", "splits.train has no keys\n  expected: source, target, tsv"),
        ("vocabularies=joint", "vocabularies has no keys\n  expected: a key for each\n  found: 'joint'"),
        ("start=runs/parent", "start has no keys\n  expected: source, mode,"),
    ],
)
def test_a_value_where_keys_belong(workplace, override, message):
    with pytest.raises(ConfigError) as caught:
        api.plan("c.yaml", [override])
    assert message in str(caught.value)


def test_another_configuration_in_a_run_directory_is_refused(workplace):
    api.train("c.yaml", ["training.steps=2"], progress=False)
    with pytest.raises(ConfigError, match="the run directory holds another run"):
        api.train("c.yaml", ["training.steps=2", "model.d_ff=64"], progress=False)
    Path("run/config.yaml").unlink()
    with pytest.raises(ConfigError, match="nothing says any more what the run in this directory is"):
        api.train("c.yaml", ["training.steps=2"], progress=False)


@pytest.mark.parametrize(
    ("dialect", "message"), [("marianne", "there is no dialect 'marianne'"), ("fairseq", "this is no model of fairseq")]
)
def test_a_source_in_another_dialect_than_the_one_it_must_be_in(workplace, dialect, message):
    api.train("c.yaml", ["training.steps=2"], progress=False)
    sources = ["run=b", "start.source=run", "start.mode=init", "model={}", "vocabularies={}"]
    with pytest.raises(WarmstartError, match=message):
        api.plan("c.yaml", [*sources, f"start.dialect={dialect}"])
    assert api.plan("c.yaml", [*sources, "start.dialect=warmstart"]).coverage == 1.0


def test_a_model_that_is_only_converted_is_refused_by_the_plan_of_a_training(workplace):
    write_huggingface(workplace / "bart", "bart")
    with pytest.raises(DialectError, match="not run or trained") as caught:
        api.plan("c.yaml", ["start.source=bart", "start.mode=init", "model={}", "vocabularies={}"])
    assert "decoder_start: 'eos' is converted, but not computed here" in str(caught.value)


def test_a_problem_of_the_whole_model_has_no_key(workplace):
    with pytest.raises(ConfigError) as caught:
        api.plan("c.yaml", ["model.num_heads=3"])
    assert [p.what for p in caught.value.problems] == ["model: d_model 16 is not a multiple of num_heads 3"]


@pytest.mark.parametrize("option", ["scorer", "report_count", "hot_words"])
def test_options_of_speech_are_refused_for_texts(workplace, option):
    Path("test.tsv").write_text("ab\tba\n")
    with pytest.raises(ConfigError, match=f"{option} changes nothing when evaluating texts"):
        api.evaluate("run", "test.tsv", **{option: 1})


@pytest.mark.parametrize("override", ["start.optimizer=fresh", "start.strict=true"])
def test_a_key_that_changes_nothing(workplace, override):
    shutil.copytree(workplace, workplace / "copy", dirs_exist_ok=True, ignore=shutil.ignore_patterns("copy"))
    api.train("c.yaml", ["training.steps=2"], progress=False)
    with pytest.raises(PlanError, match="changes nothing"):
        api.plan("c.yaml", ["run=b", "start.source=run", "start.mode=init", "model={}", "vocabularies={}", override])


def test_inspect_of_what_is_no_checkpoint(tmp_path):
    (tmp_path / "model.npz").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(WarmstartError, match="HTML"):
        api.inspect(tmp_path / "model.npz")
