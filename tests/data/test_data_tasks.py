"""Tasks, mixtures, rates, metrics, the index and their configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import pytest
from pydantic import ValidationError

from warmstart.data.config import DataConfig, TaskConfig
from warmstart.data.index import EncodedSplit, encode_split
from warmstart.data.metrics import METRICS
from warmstart.data.mixing import num_examples_rate
from warmstart.data.preprocessors import PREPROCESSORS
from warmstart.data.task import Example, Feature, Task
from warmstart.errors import DataError
from warmstart.vocabularies.characters import CharacterVocabulary

VOCABULARY = CharacterVocabulary(["</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])
FEATURES = {"source": Feature(VOCABULARY), "target": Feature(VOCABULARY)}


def make_task(*pairs: tuple[str, str], name: str = "toy", **options: object) -> Task:
    examples = [{"source": s, "target": t, "where": f"toy, line {i}"} for i, (s, t) in enumerate(pairs, 1)]
    return Task(name=name, splits={"train": lambda: examples}, features=FEATURES, **options)  # type: ignore[arg-type]


def test_rates_are_those_of_seqio() -> None:
    rates = num_examples_rate({"a": 100, "b": 300, "c": 1000}, maximum=500, temperature=2.0)
    assert {name: round(rate, 2) for name, rate in rates.items()} == {"a": 10.0, "b": 17.32, "c": 22.36}


def test_preprocessors_run_in_order_and_may_drop_or_multiply() -> None:
    def split(example: Example) -> list[Example]:
        return [{**example, "source": part} for part in example["source"].split("|")]

    def drop(example: Example) -> Example | None:
        return None if example["source"] == "b" else example

    task = make_task((" A|b|C ", "x"), preprocessors=(PREPROCESSORS["strip"], split, drop, PREPROCESSORS["lowercase"]))
    assert [example["source"] for example in task.examples("train")] == ["a", "c"]
    assert PREPROCESSORS["nfc"]({"source": "e\u0301"}) == {"source": "é"}


def test_required_features_and_splits_are_checked() -> None:
    task = make_task(("a", "b"), preprocessors=(lambda e: {"source": e["source"], "where": e["where"]},))
    with pytest.raises(DataError, match="no target") as caught:
        list(task.examples("train"))
    assert caught.value.where == "toy, line 1"
    with pytest.raises(DataError, match="no split 'dev'") as caught:
        list(task.examples("dev"))
    assert caught.value.expected == "one of train"


def test_metric_functions_are_called_by_parameter_name() -> None:
    def total(targets: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
        return {"total": sum(scores) + len(targets)}

    task = make_task(metric_fns=(METRICS["exact_match"], total))
    assert task.score(["a", "b"], predictions=["a", "c"]) == {"exact_match": 50.0}
    assert task.score(["a", "b"], scores=[1.0, 2.0]) == {"total": 5.0}
    assert set(task.score(["a"], ["a"], [0.5])) == {"exact_match", "total"}
    with pytest.raises(DataError, match="scored"):
        task.score(["a", "b"], predictions=["a"])
    with pytest.raises(DataError, match="other parameters"):
        make_task(metric_fns=(lambda references, outputs: {},))


def test_metrics_agree_with_jiwer_and_known_values() -> None:
    targets = ["the cat sat", "Брэст", "a b c d", "Kyiv"]
    predictions = ["the cat", "Брест", "", "Kyiv"]
    assert METRICS["wer"](targets, predictions)["wer"] == pytest.approx(100 * jiwer.wer(targets, predictions))
    assert METRICS["cer"](targets, predictions)["cer"] == pytest.approx(100 * jiwer.cer(targets, predictions))
    assert METRICS["exact_match"](targets, predictions) == {"exact_match": 25.0}
    assert METRICS["chrf"](targets, targets)["chrf"] == pytest.approx(100.0)
    assert METRICS["bleu"](["a b c d e"], ["a b c d e"])["bleu"] == pytest.approx(100.0)
    assert 0 < METRICS["chrf"](targets, predictions)["chrf"] < 100


def encode(task: Task, **options: object) -> EncodedSplit:
    return encode_split(task, "train", **{"max_length": 5, **options})  # type: ignore[arg-type]


def test_examples_are_encoded_back_to_back_and_counted() -> None:
    task = make_task(("ab", "c"), ("abcde", "a"), ("", "a"), ("a!", "abcd"))
    split = encode(task, empty_lines="drop", keep_examples=True)
    assert split.source.tolist() == [3, 4, 0, 3, 1, 0]
    assert split.target.tolist() == [5, 0, 3, 4, 5, 6, 0]
    assert split.source_offsets.tolist() == [0, 3, 6]
    assert split.target_lengths.tolist() == [2, 5]
    assert vars(split.counts) == {"kept": 2, "dropped_empty": 1, "dropped_long": 1, "unknown_source": 1}
    assert [example["source"] for example in split.examples] == ["ab", "a!"]
    assert (split.source.dtype, split.source_offsets.dtype) == (np.int32, np.int64)


def test_bad_lines_are_named_together() -> None:
    task = make_task(("a", "b"), (" ", "b"), ("a", "жb+"), ("", ""))
    with pytest.raises(DataError, match="3 bad lines") as caught:
        encode(task)
    assert [problem.where for problem in caught.value.problems] == ["toy, line 2", "toy, line 3", "toy, line 4"]
    assert caught.value.problems[1].found == "'+' (U+002B), 'ж' (U+0436)"
    assert caught.value.problems[2].what == "the source and target is empty"
    assert len(encode(task, empty_lines="drop", unknown_target="allow")) == 2


def test_many_bad_lines_do_not_flood() -> None:
    with pytest.raises(DataError, match="40 bad lines, the first 10") as caught:
        encode(make_task(*[("", "a")] * 40))
    assert len(caught.value.problems) == 10


def test_no_example_left_is_an_error() -> None:
    with pytest.raises(DataError, match="no example left") as caught:
        encode(make_task(("abcdef", "a"), ("", "")), empty_lines="drop")
    assert caught.value.found == "1 empty and 1 longer than 5 tokens"


def test_fingerprint_is_of_data_order_and_vocabulary() -> None:
    pairs = (("ab", "c"), ("b", "a"))
    base = encode(make_task(*pairs)).fingerprint
    assert base == encode(make_task(*pairs, name="renamed")).fingerprint
    permuted = {"source": FEATURES["source"], "target": Feature(CharacterVocabulary([*VOCABULARY.tokens, "ж"]))}
    task = make_task(*pairs)
    others = [
        encode(make_task(*reversed(pairs))).fingerprint,
        encode(make_task(("ab", "c"), ("b", "b"))).fingerprint,
        encode(make_task(("a", "bc"), ("b", "a"))).fingerprint,
        encode(Task("toy", task.splits, permuted)).fingerprint,
    ]
    assert len({base, *others}) == 5


def test_configuration_builds_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(" AB\tc\nde\tf\n")
    split = {"tsv": str(tmp_path / "a.tsv")}
    task = {"splits": {"train": split}, "preprocess": ["strip", "lowercase"], "metrics": ["cer"]}
    config = DataConfig.model_validate({"tasks": {"a": task, "b": {"splits": {"train": split}}}, "temperature": 2})
    tasks = config.build_tasks(VOCABULARY, VOCABULARY)
    assert list(tasks) == ["a", "b"]
    assert config.encode(tasks["a"], "train").source.tolist() == [3, 4, 0, 6, 7, 0]
    assert tasks["a"].score(["ab"], ["ab"]) == {"cer": 0.0}
    assert config.mixing_rates({"a": 4, "b": 9}) == {"a": 2.0, "b": 3.0}
    assert list(config.text("source")) == ["ab", "de", " AB", "de"]
    weighted = DataConfig.model_validate({"tasks": {"a": task}, "rates": {"a": 0.5}})
    assert weighted.mixing_rates({"a": 10}) == {"a": 0.5}
    with pytest.raises(DataError, match="no task has a split"):
        config.text("source", "dev")


TASK = {"splits": {"train": {"tsv": "x"}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": {}}, "at least 1"),
        ({"tasks": {"a": TASK}, "rates": {"b": 1}}, "rates must name every task: a"),
        ({"tasks": {"a": TASK}, "rates": {"a": 0}}, "greater than 0"),
        ({"tasks": {"a": TASK}, "rates": {"a": 1}, "temperature": 2}, "change nothing beside rates"),
        ({"tasks": {"a": TASK}, "max_length": 100, "batch_tokens": 50}, "more than batch_tokens"),
        ({"tasks": {"a": TASK}, "batch_token": 1}, "Extra inputs"),
        ({"tasks": {"a": {**TASK, "preprocess": ["lowercas"]}}}, "did you mean 'lowercase'"),
        ({"tasks": {"a": {**TASK, "metrics": ["chr"]}}}, "did you mean 'chrf'"),
        ({"tasks": {"a": {**TASK, "metrics": ["cer", "cer"]}}}, "named twice"),
        ({"tasks": {"a": {"splits": {"train": {"source": "x"}}}}}, "source and target, or tsv"),
        ({"tasks": {"a": {"splits": {"train": {"source": "x", "target": "y", "tsv": "z"}}}}}, "or tsv alone"),
    ],
)
def test_impossible_configurations_are_refused(content: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(content)


def test_task_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        TaskConfig.model_validate(TASK).metrics = ()
