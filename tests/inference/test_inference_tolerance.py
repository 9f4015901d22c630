"""What rounding explains is allowed, in models of any spread; what is damaged is found under every rounding."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_inference_verify import damaged

import decoder_models
import pretrained_models
import t5_models
from warmstart import api
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import read_header
from warmstart.inference.tolerance import PARTS, Judge, judge_of, round_again

pytest.importorskip("ctranslate2")

# Log-probabilities of the first two lie 3 to 5 apart, of GPT-2 and Llama 0.04, as transformers initialises them.
MADE = {
    "whisper": pretrained_models.write,
    "whisper-plain": pretrained_models.write,
    "wav2vec2": pretrained_models.write,
    "camembert": pretrained_models.write,
    "gpt2": decoder_models.write,
    "llama": decoder_models.write,
    "t5": t5_models.write,
}
ROUNDED = ("float16", "bfloat16", "int16", "int8")


@pytest.mark.parametrize("quantize", ROUNDED)
@pytest.mark.parametrize("kind", MADE)
def test_a_correct_conversion_is_within_what_rounding_explains(kind, quantize, tmp_path):
    source = MADE[kind](tmp_path / "source", kind)
    api.convert(source, tmp_path / "whole", "ctranslate2", quantize="float32")
    api.convert(source, tmp_path / "rounded", "ctranslate2", quantize=quantize)
    pairs = (("whole", "rounded"), ("rounded", "whole"))
    for pair in pairs[: 1 + (quantize == "int8")]:
        facts = api.verify(*(tmp_path / name for name in pair), count=20)
        assert facts["same"], facts
        assert facts["tolerance_from"] == "another rounding"
        assert facts["largest"] > 0


def exchange(arrays, layers):
    """Two layers' arrays change places, with their scales."""
    for end in ("", "_scale"):
        a, b = (f"{place}/weight{end}" for place in layers[:2])
        if a in arrays:
            arrays[a], arrays[b] = arrays[b].copy(), arrays[a].copy()


def double(arrays, layers):
    """A weight is twice what it should be, as if its scale were wrong, in every layer."""
    for place in layers:
        scale = arrays.get(f"{place}/weight_scale")
        if scale is None:
            arrays[f"{place}/weight"] *= np.asarray(2, arrays[f"{place}/weight"].dtype)
        else:
            arrays[f"{place}/weight_scale"] = np.asarray(scale / 2, scale.dtype)


def forget(arrays, layers):
    """A bias is lost, in every layer."""
    for place in layers:
        arrays[f"{place}/bias"][:] = 0


PLACES = {
    "whisper": "decoder/layer_{}/ffn/linear_0",
    "gpt2": "decoder/layer_{}/ffn/linear_0",
    "camembert": "encoder/layer_{}/ffn/linear_0",
}
# In 8 bits Whisper's lost biases change no more than another rounding does, and so it is with the trained model's.
DAMAGES = [
    (kind, change, quantize)
    for kind in PLACES
    for change in (exchange, double, forget)
    for quantize in ("none", "float16", "int16", "int8")
    if (kind, change, quantize) != ("whisper", forget, "int8")
]


@pytest.mark.parametrize(("kind", "change", "quantize"), DAMAGES)
def test_what_is_damaged_is_found_under_any_rounding(kind, change, quantize, tmp_path):
    source = MADE[kind](tmp_path / "source", kind)
    api.convert(source, tmp_path / "whole", "ctranslate2", quantize="float32")
    api.convert(source, tmp_path / "right", "ctranslate2", quantize=quantize)
    layers = [PLACES[kind].format(k) for k in range(2)]
    damaged(tmp_path / "right", tmp_path / "wrong", lambda arrays: change(arrays, layers))
    assert api.verify(tmp_path / "whole", tmp_path / "right")["same"]
    facts = api.verify(tmp_path / "whole", tmp_path / "wrong")
    assert not facts["same"], facts


@pytest.mark.parametrize(("change", "quantize"), [(exchange, "int8"), (double, "int8"), (forget, "int16")])
def test_what_is_damaged_is_found_in_a_trained_model(change, quantize, fixtures, tmp_path):
    source = fixtures / "fixtures" / "marian-ar-en-translit"
    api.convert(source, tmp_path / "right", "ctranslate2", quantize=quantize)
    layers = [f"decoder/layer_{k}/attention/linear_1" for k in (0, 1)]
    damaged(tmp_path / "right", tmp_path / "wrong", lambda arrays: change(arrays, layers))
    assert api.verify(source, tmp_path / "right")["same"]
    assert not api.verify(source, tmp_path / "wrong")["same"]


@pytest.mark.parametrize(
    "folder", ["aren-transliteration-i8", "aren-transliteration-i16", "v1/aren-transliteration-i16"]
)
def test_models_of_old_versions_are_rounded_again_too(folder, fixtures):
    models = fixtures / "fixtures/ctranslate2-aren"
    facts = api.verify(models / "aren-transliteration", models / folder)
    assert facts["tolerance_from"] == "another rounding"
    assert facts["mean"] < 2 * facts["mean_tolerance"]  # they were cut off, not rounded: twice the error


def test_numbers_that_are_none_are_explained_by_nothing(tmp_path):
    source = decoder_models.write(tmp_path / "source", "gpt2")
    api.convert(source, tmp_path / "int8", "ctranslate2", quantize="int8")

    def change(arrays):
        arrays["decoder/layer_norm/gamma"][:] = np.nan

    facts = api.verify(tmp_path / "int8", damaged(tmp_path / "int8", tmp_path / "wrong", change), count=5)
    assert not facts["same"]
    assert facts["largest"] == np.inf
    assert Judge().allowed(np.inf, (np.inf, 1.0)).largest == 0


def test_where_nothing_can_be_rounded_again_a_part_of_the_spread_is_allowed():
    models = tuple(SimpleNamespace(checkpoint=SimpleNamespace(format="safetensors")) for _ in range(2))
    sides = tuple(SimpleNamespace(quantization=kind) for kind in ("float32", "bfloat16"))
    with judge_of(models, sides, None, 0) as judge:
        assert judge.again is None
        assert judge.allowed(2.0).largest == pytest.approx(2 * 3 * PARTS["bfloat16"][0])
    with judge_of(models, sides, 0.5, 0) as judge:
        assert (judge.allowed(2.0).largest, judge.allowed(2.0).mean) == (0.5, 0.05)


@pytest.mark.parametrize("quantize", ROUNDED)
def test_another_rounding_moves_one_weight_in_twelve_by_one_step(quantize, tmp_path):
    source = pretrained_models.write(tmp_path / "source", "bert")
    api.convert(source, tmp_path / "model", "ctranslate2", quantize=quantize)
    kept = (tmp_path / "model/model.bin").read_bytes()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        round_again(tmp_path / "model", tmp_path / name, seed)
    assert (tmp_path / "model/model.bin").read_bytes() == kept
    once, twice, other = ((tmp_path / name / "model.bin").read_bytes() for name in "abc")
    assert once == twice
    assert once != other
    left, right = open_checkpoint(tmp_path / "model"), open_checkpoint(tmp_path / "a")
    moved = weights = 0
    for name, variable in read_header(tmp_path / "model/model.bin").variables.items():
        before, after = np.asarray(left.read(name)), np.asarray(right.read(name))
        if variable.entry.dtype != quantize or not variable.entry.shape:
            np.testing.assert_array_equal(before, after)
            continue
        bits = {"int8": np.int8, "int16": np.int16}.get(quantize, np.int16)
        steps = np.abs(before.view(bits).astype(int) - after.view(bits).astype(int))
        assert steps.max() <= 1
        moved, weights = moved + int(steps.sum()), weights + steps.size
    assert moved / weights == pytest.approx(1 / 12, rel=0.2)
