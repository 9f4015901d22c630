"""Prefix beam search against Coqui STT's own decoder (``tests/golden/ctc``), against all paths, and in pieces."""

from __future__ import annotations

import csv
import itertools
import math
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctc_models import BYTES, GOLDEN, LABELS, Arpa, golden_cases, golden_input, golden_scorer, log_probs, noise
from warmstart.errors import ConfigError, DataError
from warmstart.inference.ctc import (
    BeamOptions,
    DecoderStream,
    Lexicon,
    Scorer,
    Transcript,
    decode_beam,
    open_scorer,
)
from warmstart.inference.ctc import beam as beam_module
from warmstart.vocabularies.alphabet import Alphabet


def options_of(case: dict[str, Any]) -> BeamOptions:
    # Coqui looks at cutoff_top_n only where cutoff_prob is below 1.
    top = case["cutoff_top_n"] if case["cutoff_prob"] < 1 else None
    return BeamOptions(case["width"], case["cutoff_prob"], top, case["hot_words"])


def same(found: list[Transcript], case: dict[str, Any]) -> None:
    assert [list(t.ids) for t in found] == [ids for _, ids, _ in case["results"]]
    # Coqui computes in float32.
    np.testing.assert_allclose([t.confidence for t in found], [c for c, _, _ in case["results"]], atol=2e-3, rtol=1e-5)
    if case["cutoff_prob"] == 1:  # with a cut-off Coqui meets the blank before the labels and keeps other times
        assert [list(t.timesteps) for t in found] == [times for _, _, times in case["results"]]


@pytest.mark.parametrize("case", golden_cases("oracle.json"), ids=lambda c: f"{c['input']}-{c['width']}-{c['weights']}")
def test_coqui_finds_the_same(case: dict[str, Any]) -> None:
    scorer = None
    if case["weights"]:
        scorer = golden_scorer("characters" if case["input"] == "bytes" else "words", *case["weights"])
    labels = BYTES if case["input"] == "bytes" else LABELS
    same(decode_beam(golden_input(case["input"]), labels, options_of(case), scorer, 3), case)


def test_coqui_finds_the_same_with_its_own_scorer(fixtures: Path) -> None:
    pytest.importorskip("kenlm")
    labels = Alphabet([" ", *string.ascii_lowercase, "'"])
    scorer = open_scorer(fixtures / "fixtures/stt-smoke/pruned_lm.scorer", labels)
    outputs = np.load(GOLDEN / "smoke.npz")["logits"]
    for case in golden_cases("smoke.json"):
        used = scorer.weighted(*case["weights"]) if case["weights"] else None
        same(decode_beam(log_probs(outputs[case["input"]]), labels, options_of(case), used, 3), case)


def test_the_search_sums_over_all_paths() -> None:
    labels, array = Alphabet("ab "), noise(6, 4, 7)
    sums: dict[str, float] = {}
    for path in itertools.product(range(4), repeat=6):
        text = labels.decode([label for label, _ in itertools.groupby(path)])
        probability = math.exp(sum(array[t, label] for t, label in enumerate(path)))
        sums[text] = sums.get(text, 0.0) + probability
    best = sorted(sums.items(), key=lambda pair: -pair[1])[:20]
    found = decode_beam(array, labels, BeamOptions(width=2000), results=20)
    assert [t.text for t in found] == [text for text, _ in best]
    np.testing.assert_allclose([t.confidence for t in found], np.log([p for _, p in best]), atol=1e-9)


@pytest.mark.parametrize("name", ["words", "bytes"])
@pytest.mark.parametrize("piece", [1, 7])
def test_a_stream_gives_what_everything_at_once_gives(name: str, piece: int) -> None:
    labels = BYTES if name == "bytes" else LABELS
    scorer = golden_scorer("characters" if name == "bytes" else "words", 0.7, 1.3)
    array, options = golden_input(name), BeamOptions(20)
    stream = DecoderStream(labels, options, scorer)
    for start in range(0, len(array), piece):
        stream.feed(array[start : start + piece])
        seen = array[: start + piece]
        assert stream.intermediate(2) == decode_beam(seen, labels, options, scorer, 2)  # and changes nothing
    assert stream.finish(5) == decode_beam(array, labels, options, scorer, 5)
    with pytest.raises(ConfigError, match="the stream is finished"):
        stream.feed(array[:1])


def test_a_long_stream_forgets_what_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    array, scorer = np.tile(golden_input("words"), (12, 1)), golden_scorer("words", 0.7, 1.3)
    whole = decode_beam(array, LABELS, BeamOptions(30), scorer, 3)
    monkeypatch.setattr(beam_module, "_ROOM", 50)
    stream = DecoderStream(LABELS, BeamOptions(30), scorer)
    sizes = []
    for frame in array:
        stream.feed(frame[None])
        sizes.append(len(stream._prefixes) + len(stream._times))
    assert stream.finish(3) == whole
    assert sum(later < earlier for earlier, later in itertools.pairwise(sizes)) >= 4
    assert max(sizes) < 4 * len(array)  # one path is as long as the text; without forgetting it is hundreds of times


def test_only_words_of_the_lexicon_are_spelt() -> None:
    lexicon, left = Lexicon.of(["two", "three", "naïve"], LABELS)
    assert left == ["naïve"]
    scorer = Scorer(Arpa(GOLDEN / "words.arpa"), 0.5, 0.0, lexicon=lexicon)
    for seed in range(3):
        for transcript in decode_beam(noise(40, 30, seed), LABELS, BeamOptions(50), scorer, 10):
            *whole, last = transcript.text.split(" ")
            assert set(whole) <= {"two", "three"}
            assert any(word.startswith(last) for word in ("two", "three"))


def test_without_a_lexicon_unknown_words_cost_a_thousand() -> None:
    outputs = np.full((6, 30), -90.0)
    outputs[range(6), LABELS.encode("xy two")] = 0.0
    found = decode_beam(outputs, LABELS, BeamOptions(20), Scorer(Arpa(GOLDEN / "words.arpa"), 0.01, 2.0))[0]
    assert found.text == "xy two"
    assert found.confidence == pytest.approx(0.01 * (-1000 - 1000) + 2 * 2.0, abs=1e-6)  # also where "xy" is context


def test_a_list_of_words_mends_what_a_model_misspells(fixtures: Path) -> None:
    folder = fixtures / "fixtures/coqui-digits-en"
    labels = Alphabet.from_text((folder / "alphabet.txt").read_text("utf-8"))
    outputs = np.load(folder / "expected/logits.npz")
    lexicon, _ = Lexicon.of(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], labels)
    scorer = Scorer(Arpa(GOLDEN / "words.arpa"), 0.5, 0.0, lexicon=lexicon)
    with (folder / "expected/transcripts.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    log_softmax = {key: x - np.logaddexp.reduce(x, axis=1, keepdims=True) for key, x in outputs.items()}
    found = [decode_beam(log_softmax[Path(r["wav_filename"]).stem], labels, None, scorer)[0].text for r in rows]
    assert [row["greedy"] for row in rows if row["greedy"] != row["reference"]] == ["zer", "threee", "feven"]
    assert found == [row["reference"] for row in rows]


def test_no_frames_are_an_empty_transcript() -> None:
    assert decode_beam(noise(12, 30, 0)[:0], LABELS, BeamOptions(10)) == [Transcript("", 0.0, (), ())]


def test_nothing_begins_while_the_blank_is_sure() -> None:
    frame = np.log(np.array([[0.0004, 0.0001, 0.0001, 0.9994]]))
    later = np.log(np.array([[0.9, 0.03, 0.03, 0.04]]))
    found = decode_beam(np.concatenate([frame, frame, later]), Alphabet("ab "))[0]
    assert (found.text, found.timesteps) == ("a", (2,))
    assert found.confidence == pytest.approx(math.log(0.9), abs=1e-6)  # the silence costs nothing


def test_a_frame_that_leads_nowhere_is_looked_at_whole() -> None:
    labels = Alphabet("ab ")
    lexicon, _ = Lexicon.of(["a"], labels)
    scorer = Scorer(Arpa(GOLDEN / "words.arpa"), 0.0, 0.0, lexicon=lexicon)
    array = np.log(np.array([[0.9, 0.05, 0.01, 0.04], [0.03, 0.9, 0.01, 0.06]]))
    found = decode_beam(array, labels, BeamOptions(cutoff_top_n=1), scorer)[0]
    assert found.text == "a"  # "ab" is no word, and the blank was cut off, too
    assert found.confidence == pytest.approx(math.log(0.9 * (0.06 + 0.03)), abs=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), "(frames, 30)"),
        (np.zeros(30), "shape (30,)"),
        (np.full((2, 30), np.nan), "NaN"),
        (np.full((2, 30), 1.5), "up to 1.5"),
    ],
)
def test_other_outputs_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_beam(array, LABELS)
    assert message in str(caught.value)


def test_every_bad_option_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        BeamOptions(0, 1.5, 0, {"a": math.nan})
    assert len(caught.value.problems) == 4


def test_hot_words_that_are_never_met_are_named() -> None:
    with pytest.raises(ConfigError, match="hot words need a scorer"):
        DecoderStream(LABELS, BeamOptions(hot_words={"a": 1.0}))
    hot = {"two": 1.0, "twenty": 1.0, "Ö": 1.0, "one two": 1.0, "": 1.0}
    with pytest.raises(ConfigError) as caught:
        DecoderStream(LABELS, BeamOptions(hot_words=hot), golden_scorer("words", 1.0, 1.0))
    assert [problem.what.split("'")[1] for problem in caught.value.problems] == ["twenty", "Ö", "one two", ""]
    with pytest.raises(ConfigError) as caught:
        DecoderStream(BYTES, BeamOptions(hot_words={"é": 1.0, "éß": 1.0}), golden_scorer("characters", 1.0, 1.0))
    assert [problem.expected for problem in caught.value.problems] == ["one character"]
