"""Greedy decoding, times, error reports, and the choice of a language model's weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ctc_models import BYTES, GOLDEN, LABELS, golden_input, golden_scorer, noise
from warmstart.errors import ConfigError, DataError
from warmstart.inference.ctc import (
    BeamOptions,
    Timed,
    Transcript,
    Trial,
    characters,
    decode_beam,
    error_report,
    greedy,
    tune,
    words,
    write_samples,
)
from warmstart.inference.ctc.tune import Tuning
from warmstart.vocabularies.alphabet import Alphabet


@pytest.mark.parametrize(("name", "clips"), [("digits", 20), ("bytes", 5)])
def test_greedy_transcripts_are_tensorflows(name: str, clips: int, fixtures: Path) -> None:
    folder = fixtures / f"fixtures/coqui-{name}-en"
    labels = BYTES if name == "bytes" else Alphabet.from_text((folder / "alphabet.txt").read_text("utf-8"))
    outputs = np.load(folder / "expected/logits.npz")
    with (folder / "expected/transcripts.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["wav_filename"]).stem: row["greedy"] for row in csv.DictReader(file)}
    assert len(rows) == clips
    for key, text in rows.items():
        log_probs = outputs[key] - np.logaddexp.reduce(outputs[key], axis=1, keepdims=True)
        found = greedy(log_probs, labels)
        assert found.text == text
        assert found.confidence == pytest.approx(float(log_probs.max(axis=1).sum()))
        if name == "digits":  # sure outputs: the best path is nearly all there is
            assert decode_beam(log_probs, labels, BeamOptions(50))[0].confidence >= found.confidence - 1e-4


def test_greedy_takes_repetitions_together() -> None:
    labels = Alphabet("ab ")
    path = [3, 0, 0, 3, 0, 1, 1, 2, 3]
    array = np.full((len(path), 4), -20.0)
    array[range(len(path)), path] = -0.5
    assert greedy(array, labels) == Transcript("aab ", -4.5, (0, 0, 1, 2), (1, 4, 5, 7))
    assert greedy(np.zeros((0, 4)), labels) == Transcript("", 0.0, (), ())


def test_words_and_characters_have_times() -> None:
    transcript = Transcript("ab  é", -1.0, tuple(LABELS.encode("ab  é")), (2, 4, 9, 11, 12))
    assert words(transcript, LABELS, 0.02) == [Timed("ab", 0.04, 0.18), Timed("é", 0.24, 0.26)]
    spelt = characters(transcript, LABELS, 0.5)
    assert [(c.text, c.start, c.end) for c in spelt] == [
        ("a", 1.0, 2.0), ("b", 2.0, 4.5), (" ", 4.5, 5.5), (" ", 5.5, 6.0), ("é", 6.0, 6.5),
    ]  # fmt: skip
    assert words(Transcript("", 0.0, (), ()), LABELS, 0.02) == characters(Transcript("", 0.0, (), ()), LABELS, 1) == []


def test_bytes_are_timed_as_characters() -> None:
    ids = tuple(BYTES.encode("a é中"))
    transcript = Transcript("a é中", -1.0, ids, tuple(range(0, 2 * len(ids), 2)))
    assert characters(transcript, BYTES, 1.0) == [
        Timed("a", 0, 2), Timed(" ", 2, 4), Timed("é", 4, 8), Timed("中", 8, 13),
    ]  # fmt: skip
    assert words(transcript, BYTES, 1.0) == [Timed("a", 0, 2), Timed("é中", 4, 13)]


# What Coqui STT 1.4.0's calculate_and_print_report prints for these (its plot left out), with report_count 2.
ROWS = [
    ("a.wav", "she had your", "she had your", 0.5),
    ("b.wav", "dark suit", "dark suit in wash water", 2.0),
    ("c.wav", "greasy", "greazy", 7.25),
    ("d.wav", "one two", "one tu", 3.0),
    ("e.wav", "é é", "é é", 9.0),
]


def test_the_report_is_coquis() -> None:
    report = error_report(*zip(*ROWS, strict=True))
    assert report.text("test.csv", 2) == (GOLDEN / "report.txt").read_text("utf-8")
    assert [s.wav_filename for s in report.samples] == ["e.wav", "a.wav", "d.wav", "c.wav", "b.wav"]


def test_rates_of_everything_are_at_most_one() -> None:
    report = error_report(["x"], ["a"], ["b c d e"], [1.0])
    assert (report.wer, report.cer, report.samples[0].wer, report.samples[0].cer) == (1.0, 1.0, 4.0, 7.0)


def test_bytes_are_sorted_by_characters() -> None:
    names, references, found, losses = zip(*ROWS, strict=True)
    report = error_report(names, references, found, losses, sort_by="cer")
    assert [s.wav_filename for s in report.samples] == ["e.wav", "a.wav", "c.wav", "d.wav", "b.wav"]


def test_samples_are_written_as_json(tmp_path: Path) -> None:
    report = error_report(*zip(*ROWS, strict=True))
    write_samples(report.samples, tmp_path / "out.json")
    text = (tmp_path / "out.json").read_text("utf-8")
    assert "é é" in text
    assert json.loads(text)[-1] == {
        "wav_filename": "b.wav", "src": "dark suit", "res": "dark suit in wash water", "loss": 2.0,
        "char_distance": 14, "char_length": 9, "word_distance": 3, "word_length": 2, "cer": 14 / 9, "wer": 1.5,
    }  # fmt: skip


def test_references_without_words_are_listed() -> None:
    with pytest.raises(DataError) as caught:
        error_report(["x", "y", "z"], ["", "a", " "], ["a", "a", "a"], [1.0, 1.0, 1.0])
    assert [problem.where for problem in caught.value.problems] == ["x", "z"]
    with pytest.raises(DataError, match="found: no samples"):
        error_report([], [], [], [])


def test_weights_are_chosen_on_outputs_alone() -> None:
    references = ["seven o'clock café", "two one"]
    scorer = golden_scorer("words", 0.0, 0.0)
    utterances = [(golden_input("words"), references[0]), (noise(20, 30, 9), references[1])]
    seen: list[Trial] = []
    options = BeamOptions(20)
    tuning = tune(utterances, LABELS, scorer, options, alpha_max=2, beta_max=4, grid=3, rounds=2, progress=seen.append)
    assert tuning == tune(utterances, LABELS, scorer, options, alpha_max=2, beta_max=4, grid=3, rounds=2)
    assert tuple(seen) == tuning.trials
    grid = [(t.alpha, t.beta) for t in tuning.trials[:9]]
    assert grid == [(a, b) for a in (0.0, 1.0, 2.0) for b in (0.0, 2.0, 4.0)]
    centre = min(tuning.trials[:9], key=lambda t: (t.wer, t.cer, t.alpha, t.beta))
    near = {(centre.alpha + i / 2, centre.beta + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} - set(grid)
    assert {(t.alpha, t.beta) for t in tuning.trials[9:]} == {(a, b) for a, b in near if 0 <= a <= 2 and 0 <= b <= 4}
    assert tuning.best.wer == min(t.wer for t in tuning.trials) < max(t.wer for t in tuning.trials)
    for trial in (tuning.best, tuning.trials[-1]):
        weighted = scorer.weighted(trial.alpha, trial.beta)
        found = [decode_beam(array, LABELS, options, weighted)[0].text for array, _ in utterances]
        report = error_report(["", ""], references, found, [0.0, 0.0])
        assert (min(trial.wer, 1.0), min(trial.cer, 1.0)) == (report.wer, report.cer)


def test_ties_go_to_the_smallest_weights() -> None:
    scorer = golden_scorer("words", 0.0, 0.0)
    tuning = tune([(noise(0, 30, 0), "two")], LABELS, scorer, BeamOptions(2), grid=2, rounds=1)
    assert tuning == Tuning(tuning.trials, Trial(0.0, 0.0, 1.0, 1.0))


def test_every_bad_range_is_named() -> None:
    scorer, array = golden_scorer("words", 0.0, 0.0), golden_input("words")
    with pytest.raises(ConfigError) as caught:
        tune([(array, "two")], LABELS, scorer, alpha_max=0, beta_max=np.nan, grid=1, rounds=0, by="loss")
    assert len(caught.value.problems) == 5
    with pytest.raises(DataError, match="1 of 2 without words"):
        tune([(array, "two"), (array, " ")], LABELS, scorer)
