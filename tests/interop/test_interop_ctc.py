"""Language models through kenlm, and flashlight-text's search beside ours."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctc_models import BYTES, GOLDEN, LABELS, golden_input, golden_scorer
from warmstart.errors import ConfigError
from warmstart.inference.ctc import BeamOptions, FlashlightDecoder, decode_beam, open_scorer

REQUIRES = ["kenlm==0.3.0", "flashlight-text==0.0.7"]


def sure(text: str) -> np.ndarray:
    """Outputs that say ``text`` with certainty, a blank between any two labels."""
    labels = [label for character in LABELS.encode(text) for label in (character, LABELS.blank_id)]
    outputs = np.full((len(labels), len(LABELS)), -40.0)
    outputs[range(len(labels)), labels] = 0.0
    return outputs


def test_kenlm_gives_the_search_what_a_plain_model_gives() -> None:
    for name, stored, labels in (("words", "words", LABELS), ("characters", "bytes", BYTES)):
        scorer = open_scorer(GOLDEN / f"{name}.scorer", labels)
        plain = golden_scorer(name, scorer.alpha, scorer.beta)
        for ours, reference in zip(
            decode_beam(golden_input(stored), labels, BeamOptions(50), scorer, 5),
            decode_beam(golden_input(stored), labels, BeamOptions(50), plain, 5),
            strict=True,
        ):
            assert (ours.ids, ours.timesteps) == (reference.ids, reference.timesteps)
            assert ours.confidence == pytest.approx(reference.confidence, abs=1e-3)


@pytest.mark.parametrize("text", ["seven o'clock café", "two", "one one"])
def test_flashlight_weighs_the_language_model_alike(text: str) -> None:
    scorer = open_scorer(GOLDEN / "words.scorer", LABELS, alpha=0.6, beta=1.1)
    found = FlashlightDecoder(LABELS, scorer, BeamOptions(50)).decode(sure(text))[0]
    ours = decode_beam(sure(text), LABELS, BeamOptions(50), scorer)[0]
    assert (found.text, found.ids, found.timesteps) == (text, ours.ids, ours.timesteps)
    import kenlm

    model = kenlm.Model(str(GOLDEN / "words.arpa"))
    words = text.split()
    with_end = model.score(text, bos=True, eos=True) * math.log(10)
    without = model.score(text, bos=True, eos=False) * math.log(10)
    assert found.confidence == pytest.approx(0.6 * with_end + 1.1 * len(words), abs=1e-3)
    assert ours.confidence == pytest.approx(0.6 * without + 1.1 * len(words), abs=1e-3)


def test_flashlight_finds_the_same_in_noise() -> None:
    scorer = open_scorer(GOLDEN / "words.scorer", LABELS)
    flashlight = FlashlightDecoder(LABELS, scorer, BeamOptions(200))
    assert flashlight.decode(golden_input("words"), 3)[0].text == "seven o'clock café"
    assert decode_beam(golden_input("words"), LABELS, BeamOptions(200), scorer)[0].text == "seven o'clock café"
    assert flashlight.decode(np.zeros((0, len(LABELS))))[0].text == ""


def test_flashlight_refuses_what_it_does_not_know() -> None:
    scorer = open_scorer(GOLDEN / "words.scorer", LABELS)
    with pytest.raises(ConfigError) as caught:
        FlashlightDecoder(LABELS, scorer, BeamOptions(cutoff_prob=0.9, hot_words={"two": 1.0}))
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="words only"):
        FlashlightDecoder(BYTES, open_scorer(GOLDEN / "characters.scorer", BYTES))
