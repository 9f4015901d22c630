"""What a configuration may say, and how it is refused: one problem a key, in one form."""

from __future__ import annotations

from pathlib import Path

import pytest

from warmstart.config import load_config
from warmstart.errors import ConfigError, DataError, SourceError

TEXT = """
run: run
start: {source: parent, mode: init}
data:
  tasks: {names: {splits: {train: {tsv: train.tsv}, validation: {tsv: dev.tsv}}}}
training:
  steps: 20
  learning_rate: 1e-3
  schedule: {type: constant}
  evaluate_every: 10
  checkpoint_every: 10
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "c.yaml").write_text(TEXT)
    return tmp_path / "c.yaml"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.steps=0", "training.steps is not valid\n  expected: more than 0\n  found: 0"),
        ("training.steps=1.5", "training.steps is not valid\n  expected: a whole number\n  found: 1.5"),
        ("training.steps=", "training.steps is not valid\n  expected: a whole number\n  found: null"),
        ("training.learning_rate=fast", "learning_rate is not valid\n  expected: a number\n  found: 'fast'"),
        ("training.learning_rate=.nan", "learning_rate is not valid\n  expected: a finite number\n  found: nan"),
        ("training.compile=maybe", "compile is not valid\n  expected: true or false\n  found: 'maybe'"),
        ("training.label_smoothing=1", "label_smoothing is not valid\n  expected: less than 1\n  found: 1"),
        ("training.device=gpu", "training.device: a device is cpu, cuda, cuda:N or auto\n  found: 'gpu'"),
        ("training.samples=-1", "samples is not valid\n  expected: at least 0\n  found: -1"),
        ("start.mode=Init", "start.mode is not valid\n  expected: use, continue, init or transfer\n  found: 'Init'"),
        ("start.drop=decoder", "start.drop is not valid\n  expected: a list\n  found: 'decoder'"),
        ("run=2024-01-01", "run is not valid\n  expected: a path"),
        ("training.loss_normalizer=3 tokens", "is not valid\n  expected: tokens or sequences or a number"),
        ("training.optimizer={type: adam, betas: 0.9}", "optimizer.betas is not valid\n  expected: a list"),
        (
            "training.groups=[{stages: [encoder], freeze: {step: 0}}]",
            "training.groups.0.freeze.step is not valid\n  expected: more than 0\n  found: 0",
        ),
        ("data=3", "data has no keys\n  expected: type, tasks,"),
        ("data.type=speec", "data.type: there is no 'speec'\n  expected: text, speech\n  to do: did you mean speech?"),
        ("optimizer=adam", "unknown key optimizer\n  to do: did you mean start.optimizer or training.optimizer?"),
        ("training.batch_tokens=3", "unknown key training.batch_tokens\n  to do: did you mean data.batch_tokens?"),
        ("training.epochs=3", "unknown key training.epochs\n  to do: remove it"),
    ],
)
def test_a_wrong_value_is_one_problem_with_what_was_expected(path: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)
    assert "Input" not in str(caught.value)


def test_long_values_are_cut(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"training.steps={list(range(1000))}"])
    assert len(str(caught.value.problems[0].found)) == 201


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training", "'training' is no override"),
        ("=3", "'=3' is no override"),
        ("training.=3", "'training.=3' is no override"),
        ("training.schedule={type: constant", "the value of training.schedule is not valid YAML"),
        ("training.schedule={type: constant, type: linear}", "has keys twice.*\n.*\n- type stands twice"),
        ("training.steps.more=3", "goes into steps, which holds no keys"),
    ],
)
def test_what_is_no_override(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_a_key_that_stands_twice_is_refused(path: Path) -> None:
    path.write_text(TEXT + "seed: 1\ntraining: {steps: 3}\nseed: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert [(p.what, p.found) for p in caught.value.problems] == [
        ("training stands twice", "lines 6 and 13"),
        ("seed stands twice", "lines 12 and 14"),
    ]


def test_merged_keys_stand_once(path: Path) -> None:
    path.write_text(TEXT + "sources: {mirrors: {<<: {'gs://a': b, 'gs://c': d}, 'gs://a': e}}\n")
    assert load_config(path).sources.mirrors == {"gs://a": "e", "gs://c": "d"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_ends_of_lines_make_no_difference(path: Path, encoding: str, end: str) -> None:
    expected = load_config(path)
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert load_config(path) == expected


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, SourceError, "the configuration does not exist"),
        ("", ConfigError, "the configuration holds no keys"),
        ("a b", ConfigError, "the configuration holds no keys"),
        ("a: [", ConfigError, "the configuration is not valid YAML"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, content: str | None, error: type[Exception], message: str) -> None:
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(error, match=message):
        load_config(tmp_path / "c.yaml")


def test_other_encodings_and_directories_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(TEXT, "utf-16")
    with pytest.raises(ConfigError, match="the configuration is not UTF-8"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(SourceError, match="the configuration is a directory"):
        load_config(tmp_path)


def test_a_tilde_is_the_users_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    splits = "{train: {files: ~/train.csv, folder: ~/wav}}"
    overrides = ["run=~/run", f"data={{type: speech, feature_cache: ~/features, tasks: {{a: {{splits: {splits}}}}}}}"]
    config = load_config(path, overrides)
    assert (config.run, config.data.feature_cache) == (Path("/home/somebody/run"), Path("/home/somebody/features"))
    with pytest.raises(DataError, match=r"/home/somebody/train\.csv"):
        config.data.tasks["a"].splits["train"].examples()
    assert load_config(path, ["run=~nobody-of-this-name/run"]).run == Path("~nobody-of-this-name/run")
