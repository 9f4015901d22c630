"""Models of every family in CTranslate2's engine: two exports give the same answers, and a damaged one does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_inference_verify import damaged
from typer.testing import CliRunner

import decoder_models
import huggingface_models
import pretrained_models
import t5_models
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.cli.verbs import app
from warmstart.errors import (
    ConfigError,
    CorruptCheckpoint,
    DialectError,
    MissingExtra,
    VerificationError,
    VocabularyError,
)
from warmstart.export import convert
from warmstart.inference import sides, verify
from warmstart.inference.compare_arrays import compare_arrays
from warmstart.inference.engine import Engine
from warmstart.inference.sides import Answer, limit_of, longest_source
from warmstart.inference.tolerance import Judge
from warmstart.inference.verify import require_same

pytest.importorskip("ctranslate2")

MADE = {
    "llama": decoder_models.write,
    "gpt2": decoder_models.write,
    "mistral": decoder_models.write,
    "t5": t5_models.write,
    "bert": pretrained_models.write,
    "roberta": pretrained_models.write,
    "whisper": pretrained_models.write,
    "wav2vec2": pretrained_models.write,
    "wav2vec2-hidden": pretrained_models.write,
}
ARRAYS = ("bert", "roberta", "whisper", "wav2vec2", "wav2vec2-hidden")


def test_where_the_user_says_how_outputs_begin_their_first_token_counts(tmp_path):
    """mBART: the engine's outputs are without the token that was given."""
    api.convert(huggingface_models.write(tmp_path / "source", "mbart"), tmp_path / "ct2", "ctranslate2")
    assert json.loads((tmp_path / "ct2/config.json").read_text())["decoder_start_token"] is None

    def restless(contents):
        contents["decoder/position_encodings/encodings"] *= 30
        contents["decoder/layernorm_embedding/gamma"][:] = contents["decoder/layer_norm/gamma"][:] = 9
        contents["decoder/layernorm_embedding/beta"][:] = contents["decoder/layer_norm/beta"][:] = 0

    side = sides.side_of(open_model(damaged(tmp_path / "ct2", tmp_path / "restless", restless)))
    sources = [(7, 9), (12, 30, 8)]
    rows = [row for row, token in enumerate(side.tokens[1]) if token != "<unk>"]
    for source, output in zip(sources, side.greedy(sources), strict=True):
        first = [scores[0] for scores in side.log_probs([source] * len(rows), [(row,) for row in rows])]
        assert output[0] == rows[int(np.argmax(first))]
        assert output[1] != output[0]


@pytest.mark.parametrize("kind", MADE)
def test_two_exports_give_the_same_answers(kind, tmp_path):
    source = MADE[kind](tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    api.convert(source, tmp_path / "half", "ctranslate2", quantize="float16")
    same = api.verify(tmp_path / "ct2", tmp_path / "ct2", count=5)
    assert same["same"]
    assert same["largest"] == 0
    assert same["engines"] == ["ctranslate2", "ctranslate2"]
    other = api.verify(tmp_path / "ct2", tmp_path / "half", count=5, tolerance=0.5)
    assert other["largest"] > 0
    assert other["same"]
    assert ("answers" in other) == (kind in ARRAYS)


@pytest.mark.parametrize(
    ("kind", "way", "to", "found"),
    [
        ("t5", "warmstart", "ctranslate2", "t5 models in warmstart are converted, but not computed here"),
        ("llama", "warmstart", "transformers", "decoder models in warmstart are converted, but not computed here"),
        ("t5", "ctranslate2", "t5x", "t5 models in t5x are converted, but not computed here"),
        ("bert", "ctranslate2", "warmstart", "encoder models in warmstart are converted, but not computed here"),
    ],
)
def test_what_nobody_computes_is_said_before_any_work(kind, way, to, found, tmp_path, monkeypatch):
    api.convert(MADE[kind](tmp_path / "source", kind), tmp_path / "way", way)
    monkeypatch.setattr(convert, "run_conversion", lambda *_, **__: pytest.fail("it was converted"))
    with pytest.raises(DialectError, match=found) as error:
        api.convert(tmp_path / "way", tmp_path / "out", to, verify=True)
    assert error.value.todo == "leave out --verify, without which it is converted"
    assert error.value.where == str(tmp_path / "way")
    assert not (tmp_path / "out").exists()


def test_neither_of_two_is_loaded_where_one_cannot_be_computed(tmp_path, monkeypatch):
    source = MADE["t5"](tmp_path / "source", "t5")
    for to in ("ctranslate2", "warmstart"):
        api.convert(source, tmp_path / to, to)
    monkeypatch.setattr(verify, "side_of", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(DialectError, match="not computed here"):
        api.verify(tmp_path / "ctranslate2", tmp_path / "warmstart")


def test_an_engine_that_is_not_installed_is_said_before_any_work(tmp_path, monkeypatch):
    source = MADE["llama"](tmp_path / "source", "llama")
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    monkeypatch.setattr(convert, "run_conversion", lambda *_, **__: pytest.fail("it was converted"))
    monkeypatch.setattr(sides, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="ctranslate2"):
        api.convert(tmp_path / "ct2", tmp_path / "out", "ctranslate2", verify=True)
    missing = "transformers, which has, is not installed(.|\\n)*converted, or pip install transformers$"
    with pytest.raises(DialectError, match=missing):
        api.convert(source, tmp_path / "out", "ctranslate2", verify=True)


def engine_of_damaged(tmp_path, kind, change):
    api.convert(MADE[kind](tmp_path / "source", kind), tmp_path / "ct2", "ctranslate2")
    return damaged(tmp_path / "ct2", tmp_path / "broken", change)


def no_heads(arrays):
    for name in [n for n in arrays if n.endswith("/num_heads")]:
        arrays[name] = np.zeros_like(arrays[name])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bert", "whisper", "wav2vec2"])
def test_no_heads_are_refused_before_the_engine_divides_by_them(kind, tmp_path):
    broken = engine_of_damaged(tmp_path, kind, no_heads)
    with pytest.raises(DialectError, match="heads") as error:
        api.verify(broken, broken)
    assert error.value.where == str(broken / "model.bin")


def test_a_crash_of_the_engine_is_an_error(tmp_path):
    broken = engine_of_damaged(tmp_path, "t5", no_heads)
    with pytest.raises(CorruptCheckpoint, match=r"a crash \(signal 8\)") as error:
        Engine(broken, "Translator", "float32").ask("translate_batch", "hypotheses", source=[["a", "</s>"]])
    assert error.value.where == str(broken)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "decoder/layer_0/self_attention/linear_1/weight"), ("t5", "decoder/layer_0/attention/linear_0/weight"),
     ("bert", "encoder/layer_0/ffn/linear_1/weight"), ("whisper", "encoder/conv2/weight")],
)  # fmt: skip
def test_a_model_that_is_not_whole_is_named_before_the_engine_takes_it(kind, name, tmp_path):
    for k, change in enumerate((lambda a: a.pop(name), lambda a: a.update({name: a[name][:5]}))):
        broken = engine_of_damaged(tmp_path / str(k), kind, change)
        with pytest.raises(DialectError, match=name):
            api.verify(broken, broken)


@pytest.mark.parametrize(("key", "value"), [("unk_token", ["a"]), ("layer_norm_epsilon", {}), ("bos_token", 3)])
def test_a_description_of_other_types_is_refused(key, value, tmp_path):
    broken = engine_of_damaged(tmp_path, "gpt2", lambda arrays: None)
    shutil.rmtree(broken / "vocabularies")
    said = json.loads((broken / "config.json").read_text("utf-8"))
    (broken / "config.json").write_text(json.dumps({**said, key: value}), "utf-8")
    with pytest.raises(DialectError, match=f"{key} is ") as error:
        api.verify(broken, broken)
    assert error.value.where == str(broken / "config.json")


PLACES = {
    "llama": "decoder/layer_1/ffn/linear_1/weight",
    "gpt2": "decoder/layer_1/self_attention/linear_1/weight",
    "t5": "decoder/layer_1/ffn/linear_1/weight",
    "bert": "encoder/layer_1/ffn/linear_1/weight",
    "whisper": "decoder/layer_1/attention/linear_2/weight",
    "wav2vec2": "encoder/layer_1/self_attention/linear_1/weight",
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_damaged_export_is_found(kind, tmp_path):
    """Two rows of one weight change places."""
    source = MADE[kind](tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")

    def change(arrays):
        arrays[PLACES[kind]][[0, 1]] = arrays[PLACES[kind]][[1, 0]]

    broken = damaged(tmp_path / "ct2", tmp_path / "broken", change)
    facts = api.verify(tmp_path / "ct2", broken, count=10)
    assert not facts["same"]
    if kind == "whisper":  # its encoder is whole
        assert {answer["name"]: answer["same"] for answer in facts["answers"]} == {"encoder": True, "tokens": False}


def test_the_answers_of_an_encoder_are_those_of_its_arithmetic(tmp_path):
    """A pooler of zeros gives zeros: what is compared is what the engine computes."""
    from warmstart.bundle.model import open_model
    from warmstart.inference.sides import side_of

    api.convert(pretrained_models.write(tmp_path / "source", "bert"), tmp_path / "ct2", "ctranslate2")

    def change(arrays):
        arrays["pooler_dense/weight"][:] = 0
        arrays["pooler_dense/bias"][:] = 0

    side = side_of(open_model(damaged(tmp_path / "ct2", tmp_path / "zero", change)))
    answers = side.answers({"ids": np.array([5, 6, 7])})
    assert answers["states"].values.shape == (3, pretrained_models.WIDTH)
    assert not answers["pooled"].values.any()


def test_conversions_are_verified_between_exports(tmp_path):
    source = pretrained_models.write(tmp_path / "source", "bert")
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    facts = api.convert(tmp_path / "ct2", tmp_path / "int16", "ctranslate2", quantize="int16", verify=True)
    assert [answer["name"] for answer in facts["verification"]["answers"]] == ["states", "pooled"]
    with pytest.raises(VerificationError, match="does not give the answers") as caught:
        require_same(api.verify(tmp_path / "ct2", tmp_path / "int16", tolerance=1e-9))
    assert "states (states), pooled (states)" in str(caught.value)


def test_what_cannot_be_compared_is_said(tmp_path):
    sources = {kind: MADE[kind](tmp_path / kind, kind) for kind in ("bert", "wav2vec2", "llama")}
    for kind, source in sources.items():
        api.convert(source, tmp_path / f"{kind}-ct2", "ctranslate2")
    with pytest.raises(DialectError, match="of different kinds"):
        api.verify(tmp_path / "bert-ct2", tmp_path / "llama-ct2")
    (tmp_path / "lines").write_text("##p1 ##p2\n")
    with pytest.raises(ConfigError, match="hears sound"):
        api.verify(tmp_path / "wav2vec2-ct2", tmp_path / "wav2vec2-ct2", inputs=tmp_path / "lines")
    facts = api.verify(tmp_path / "bert-ct2", tmp_path / "bert-ct2", inputs=tmp_path / "lines")
    assert facts["inputs"] == 1
    assert facts["kind"] == "given"
    other = json.loads((tmp_path / "llama-ct2/vocabulary.json").read_text())
    shutil.copytree(tmp_path / "llama-ct2", tmp_path / "renamed")
    (tmp_path / "renamed/vocabularies").joinpath("text.json").unlink()
    (tmp_path / "renamed/vocabulary.json").write_text(json.dumps([*other[:5], "another", *other[6:]]))
    with pytest.raises(VocabularyError, match=r"different (text|source) vocabularies"):
        api.verify(tmp_path / "llama-ct2", tmp_path / "renamed")


def test_the_report_names_every_array(tmp_path):
    api.convert(pretrained_models.write(tmp_path / "source", "whisper"), tmp_path / "ct2", "ctranslate2")
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "ct2"), str(tmp_path / "ct2"), "--count", "2"])
    assert done.exit_code == 0
    assert "the same answers: 2 inputs (random)" in done.output
    assert "encoder: " in done.output
    assert "tokens: " in done.output


class Fixed:
    engine, quantization, tokens, text = "fixed", "float32", ("ab",), None

    def __init__(self, *values, unit="states"):
        self.answer = {"x": Answer(np.array(values, np.float32), unit)}

    def answers(self, given):
        return self.answer


def test_states_are_measured_by_their_size():
    limits = Judge(0.1)
    small = compare_arrays(Fixed(0.01, 0.01), Fixed(0.01, 0.0105), [{}], limits)[0]
    assert small["largest"] == pytest.approx(0.05, rel=1e-5)
    assert not small["same"]  # the mean is 0.025, and 0.01 is allowed
    plain = compare_arrays(
        Fixed(0.01, 0.01, unit="log-probabilities"), Fixed(0.01, 0.0105, unit="log-probabilities"), [{}], limits
    )[0]
    assert plain["largest"] == pytest.approx(0.0005, rel=1e-3)
    assert plain["same"]
    lost = compare_arrays(Fixed(1.0, 2.0), Fixed(1.0, float("nan")), [{}], limits)[0]
    assert lost["largest"] == float("inf")
    assert not lost["same"]
    with pytest.raises(DialectError, match="do not give the same arrays"):
        compare_arrays(Fixed(1.0), Fixed(1.0, 2.0), [{}], limits)


def test_inputs_leave_room_for_their_outputs():
    for positions in range(5, 300):
        source = [0] * longest_source(positions, 24)
        assert 1 <= len(source) <= 24
        assert len(source) + limit_of(source, positions) + 2 <= max(positions, 3 + len(source))
    assert longest_source(None, 24) == 24
    assert limit_of([0] * 9) == 30


def test_without_transformers_its_directories_are_not_computed(tmp_path, monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    importlib.invalidate_caches()
    source = Path(pretrained_models.write(tmp_path / "source", "bert"))
    with pytest.raises(DialectError, match="transformers, which has, is not installed"):
        api.convert(source, tmp_path / "ct2", "ctranslate2", verify=True)
    assert not (tmp_path / "ct2").exists()


def test_what_transformers_itself_cannot_do_is_an_error_of_that_side(tmp_path, monkeypatch):
    """transformers 5 fails on a T5 whose decoder has more layers than its encoder."""
    import sys
    from importlib.machinery import ModuleSpec
    from types import ModuleType, SimpleNamespace

    class Fails:
        @staticmethod
        def from_pretrained(*_, **__):
            raise RuntimeError("encoder_attention_mask is None")

    library = ModuleType("transformers")
    library.__spec__ = ModuleSpec("transformers", None)
    library.AutoConfig = SimpleNamespace(from_pretrained=lambda folder: None)
    library.AutoModel = Fails
    monkeypatch.setitem(sys.modules, "transformers", library)
    source = pretrained_models.write(tmp_path / "source", "bert")
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    with pytest.raises(DialectError, match="transformers itself cannot") as caught:
        api.verify(tmp_path / "ct2", source)
    assert caught.value.problem.where == str(source)
    assert caught.value.problem.found == "RuntimeError: encoder_attention_mask is None"
