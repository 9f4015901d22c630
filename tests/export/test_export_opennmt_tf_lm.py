"""Language models of OpenNMT-tf: the reference converter's bytes, the framework's scores, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.converters import OpenNMTTFConverter
from warmstart.errors import DialectError, VocabularyError
from warmstart.formats.tensorflow.writer import write_bundle
from warmstart.frontends import ct2

TESTS = Path(__file__).parents[1]


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"interop/{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


common = load("record_opennmt_tf")
record = load("record_opennmt_tf_lm")

# Of OpenNMT-tf 2.32.0, TensorFlow 2.13.1 and ctranslate2 4.8.5; config.json with Keras's epsilon, which it leaves out.
KINDS = json.loads((TESTS / "golden/ctranslate2-converters/opennmt-tf-lm.json").read_text())
MADE = "LanguageModel(SelfAttentionDecoder(2, 16, 4{0}), 16)"


def write(folder: Path, kind: str, model: str | None = None, drop: str = "", add=()) -> Path:
    """A checkpoint of ``kind`` beside its vocabulary and a description: its own, or of ``model``."""
    folder.mkdir()
    (folder / "words.txt").write_text("\n".join(common.tokens(record.ROWS)) + "\n", "utf-8")
    shapes = {**KINDS[kind]["shapes"], **dict(add)}
    names = {f"{n}{common.VALUE}": tuple(shape) for n, shape in shapes.items() if not drop or drop not in n}
    write_bundle(folder / "ckpt-5", ((name, common.value(name, shape)) for name, shape in sorted(names.items())))
    (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-5"\n')
    description = record.description(kind) if model is None else f"model = lambda: {model}\n"
    (folder / "model_description.py").write_text(description)
    return folder


def convert(source: Path, to: Path, **options) -> Path:
    api.convert(source / "ckpt-5", to, "ctranslate2", vocabularies=[str(source / "words.txt")], **options)
    return to


@pytest.mark.parametrize("kind", KINDS)
def test_as_its_converter_writes_it_and_as_the_framework_scores(kind, tmp_path):
    source = write(tmp_path / "source", kind)
    for quantization, digests in KINDS[kind]["digests"].items():
        ours = convert(source, tmp_path / quantization, quantize=quantization)
        for name, digest in digests.items():
            assert sha256((ours / name).read_bytes()).hexdigest() == digest, (quantization, name)

    engine = pytest.importorskip("ctranslate2")
    tokens = json.loads((tmp_path / "none/vocabulary.json").read_text())
    sentence = [tokens[row] for row in record.SENTENCE]
    answer = engine.Generator(str(tmp_path / "none")).score_batch([sentence])[0].log_probs
    assert answer == pytest.approx(KINDS[kind]["scores"], abs=5e-6)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "after"])
def test_what_was_written_opens_and_is_written_again(kind, tmp_path):
    source = write(tmp_path / "source", kind)
    first = convert(source, tmp_path / "first")
    (first / "warmstart.json").unlink(missing_ok=True)
    expected, found = open_model(source / "ckpt-5").config, open_model(first).config
    assert found == expected
    assert found.positions == ("sinusoidal" if kind == "sinusoidal" else "learned")
    api.convert(first, tmp_path / "bundle", "warmstart")
    api.convert(tmp_path / "bundle", tmp_path / "again", "ctranslate2")
    assert (tmp_path / "again/model.bin").read_bytes() == (first / "model.bin").read_bytes()
    with pytest.raises(DialectError, match="no architecture of transformers is like this model"):
        api.convert(first, tmp_path / "theirs", "transformers")


def test_the_command_and_the_class(tmp_path):
    source = write(tmp_path / "source", "learned")
    expected = (convert(source, tmp_path / "expected") / "model.bin").read_bytes()
    config = tmp_path / "data.yml"
    config.write_text(f"model_dir: {source}\ndata:\n  vocabulary: words.txt\n  sequence_controls: {{start: true}}\n")
    vocabulary = str(source / "words.txt")
    ways = {
        "config": ["--config", str(config), "--auto_config"],
        "path": ["--model_path", str(source / "ckpt-5"), "--src_vocab", vocabulary, "--tgt_vocab", vocabulary],
    }
    for name, flags in ways.items():
        ct2.run("ct2-opennmt-tf-converter", [*flags, "--output_dir", str(tmp_path / name)])
        assert (tmp_path / name / "model.bin").read_bytes() == expected
    OpenNMTTFConverter.from_config(str(config), auto_config=True).convert(tmp_path / "class")
    assert (tmp_path / "class/model.bin").read_bytes() == expected


def test_prompts_begin_as_sequences_did(tmp_path):
    source = write(tmp_path / "source", "learned")
    assert open_model(source / "ckpt-5", dialect="opennmt-tf:end").remarks == []
    (remark,) = open_model(source / "ckpt-5", dialect="opennmt-tf:start,end").remarks
    assert "prompts must begin with it" in remark


def test_it_has_one_vocabulary(tmp_path):
    source = write(tmp_path / "source", "learned")
    (source / "other.txt").write_text("a\n")
    with pytest.raises(VocabularyError, match="a language model has one vocabulary"):
        open_model(source / "ckpt-5", vocabularies=[str(source / "words.txt"), str(source / "other.txt")])


def test_heads_come_from_a_description_or_from_a_name(tmp_path):
    source = write(tmp_path / "source", "learned", 'models.get_model_from_catalog("GPT2Small")')
    for name in (None, "opennmt-tf:GPT2Small"):
        with pytest.raises(DialectError, match="the options say 12 layers of the decoder") as caught:
            open_model(source / "ckpt-5", dialect=name)
        assert "12 heads do not divide 16" in str(caught.value)  # told together
    with pytest.raises(DialectError, match="TransformerBase is not a language model that is known here"):
        open_model(source / "ckpt-5", dialect="opennmt-tf:TransformerBase")
    (source / "model_description.py").unlink()
    with pytest.raises(DialectError, match="nothing says how many heads"):
        open_model(source / "ckpt-5")


@pytest.mark.parametrize(
    "text",
    [
        "model = lambda: onmt.models." + MADE.format(", 24, num_sources=0"),
        "class M(LanguageModel):\n def __init__(self):\n  super().__init__(SelfAttentionDecoder(2, num_heads=4))",
        "model = lambda: " + MADE.format(", position_encoder_class=onmt.layers.SinusoidalPositionEncoder"),
        "model = lambda: " + MADE.format(", position_encoder_class=lambda: SinusoidalPositionEncoder()"),
    ],
)
def test_descriptions_are_written_in_several_ways(text, tmp_path):
    source = write(tmp_path / "source", "sinusoidal")
    (source / "model_description.py").write_text(text)
    assert open_model(source / "ckpt-5").config.num_heads == 4


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (MADE.format(", ffn_activation=tf.nn.elu"), "ffn_activation: 'elu' is not supported"),
        (MADE.format(", position_encoder_class=None"), "a model without positions"),
        (MADE.format(", position_encoder_class=PositionEmbedder"), "learned positions\n  found: no table of positions"),
        (MADE.format(", position_encoder_class=Mine"), "position_encoder_class: Mine is not supported"),
        (
            MADE.format(", position_encoder_class=lambda: SinusoidalPositionEncoder(reducer=ConcatReducer())"),
            "SinusoidalPositionEncoder with a reducer is not supported",
        ),
        (MADE.format(", sliding=3"), "SelfAttentionDecoder has an argument sliding that is not known"),
        ("LanguageModel(SelfAttentionDecoder(2, 16, 0), 16)", "num_heads is not a positive number"),
        ("LanguageModel(SelfAttentionDecoder(2, 16, HEADS), 16)", "num_heads is not a positive number"),
        ("LanguageModel(SelfAttentionDecoder(3, 16, 4), 16)", "the options say 3 layers of the decoder"),
        ("LanguageModel(SelfAttentionDecoder(2, 16, 3), 16)", "3 heads do not divide 16"),
        ("LanguageModel(RNNDecoder(2, 16), 16)", "decoder: RNNDecoder is not supported"),
        ("LanguageModel(made, 16)", "decoder: made is not supported"),
        ("LanguageModel()", r"decoder: \? is not supported"),
        ("Transformer(num_heads=4)", "calls no LanguageModel"),
        ("(", "is not Python"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(model, found, tmp_path):
    source = write(tmp_path / "source", "sinusoidal", model)
    with pytest.raises(DialectError, match=found):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("drop", "add", "found"),
    [
        ("", {"model/decoder/layers/0/self_attention/layer/relative_position_keys": (7, 4)}, "maximum_relative_pos"),
        ("", {"model/examples_inputter/embedding": (24, 8)}, "embedding_size 8 is not num_units 16"),
        ("", {"model/examples_inputter/embedding": (24,)}, "examples_inputter/embedding is no matrix in the file"),
        ("layers/0/ffn/layer/inner/kernel", {}, "layers/0/ffn/layer/inner/kernel is no matrix in the file"),
        ("", {"model/decoder/position_encoder/position_embedding": (21, 16)}, "a table of positions in the file"),
        ("layers/1/ffn/layer/outer/kernel", {}, "layers/1/ffn/layer/outer/kernel"),
    ],
)
def test_arrays_that_do_not_fit_are_named(drop, add, found, tmp_path):
    source = write(tmp_path / "source", "sinusoidal", drop=drop, add=add)
    with pytest.raises(DialectError, match=found):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_description_that_is_no_text(tmp_path):
    source = write(tmp_path / "source", "learned")
    (source / "model_description.py").write_bytes(b"\xff\xfe")
    with pytest.raises(DialectError, match="the model's description cannot be read"):
        open_model(source / "ckpt-5")
