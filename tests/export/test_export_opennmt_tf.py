"""OpenNMT-tf: the reference converter's bytes, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.converters import OpenNMTTFConverter
from warmstart.errors import ConfigError, DialectError, SourceError, VocabularyError
from warmstart.formats.tensorflow.writer import write_bundle
from warmstart.frontends import ct2

TESTS = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("record", TESTS / "interop/record_opennmt_tf.py")
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)

# Of OpenNMT-tf 2.32.0, TensorFlow 2.13.1 and ctranslate2 4.8.5; config.json with Keras's epsilon, which it leaves out.
KINDS = json.loads((TESTS / "golden/ctranslate2-converters/opennmt-tf.json").read_text())


def write(folder: Path, kind: str, description: str | None = None) -> Path:
    folder.mkdir()
    for side, rows in KINDS[kind]["rows"].items():
        (folder / f"{side}.txt").write_text("\n".join(record.tokens(rows)) + "\n", "utf-8")
    names = {f"{name}{record.VALUE}": tuple(shape) for name, shape in KINDS[kind]["shapes"].items()}
    write_bundle(folder / "ckpt-5", ((name, record.value(name, shape)) for name, shape in sorted(names.items())))
    (folder / "checkpoint").write_text('model_checkpoint_path: "ckpt-5"\n')
    (folder / "model_description.py").write_text(record.description(kind) if description is None else description)
    return folder


def vocabularies(folder: Path) -> list[str]:
    """Those of the source in their order, then the target's."""
    return [str(path) for path in sorted(folder.glob("*.txt"))]


@pytest.mark.parametrize("kind", KINDS)
def test_as_its_converter_writes_it(kind, tmp_path):
    source = write(tmp_path / "source", kind)
    for quantization, digests in KINDS[kind]["digests"].items():
        ours = tmp_path / quantization
        files = vocabularies(source)
        api.convert(source / "ckpt-5", ours, "ctranslate2", quantize=quantization, vocabularies=files)
        for name, digest in digests.items():
            assert sha256((ours / name).read_bytes()).hexdigest() == digest, (quantization, name)


def test_vectors_of_distances_are_in_the_file_as_a_specification_has_them(tmp_path):
    """OpenNMT-tf's library is not to be had any more: the expected file is ``ctranslate2.specs`` filled here."""
    specs = pytest.importorskip("ctranslate2.specs")
    shapes = {n: s for n, s in KINDS["before"]["shapes"].items() if "relative" not in n}
    parts = [f"{side}/layers/{i}" for side, count in (("encoder", 2), ("decoder", 3)) for i in range(count)]
    for part in parts:
        for what in ("keys", "values"):
            shapes[f"model/{part}/self_attention/layer/relative_position_{what}"] = [2 * 5 + 1, 4]
    folder = write(tmp_path / "source", "before")
    arrays = {n: record.value(n, tuple(s)) for n, s in shapes.items()}
    write_bundle(folder / "ckpt-5", ((f"{n}{record.VALUE}", array) for n, array in sorted(arrays.items())), force=True)
    api.convert(folder / "ckpt-5", tmp_path / "ours", "ctranslate2", vocabularies=vocabularies(folder))

    made = specs.transformer_spec.TransformerSpec.from_config((2, 3), 4, with_relative_position=True)
    for side, spec in (("encoder", made.encoder), ("decoder", made.decoder)):
        table = "features" if side == "encoder" else "labels"
        embeddings = spec.embeddings[0] if side == "encoder" else spec.embeddings
        embeddings.weight = arrays[f"model/examples_inputter/{table}_inputter/embedding"]
        fill_norm(spec.layer_norm, arrays, f"model/{side}/layer_norm")
        for i, layer in enumerate(spec.layer):
            at = f"model/{side}/layers/{i}"
            fill_attention(layer.self_attention, arrays, f"{at}/self_attention", ((0, "queries keys values"),))
            for what in ("keys", "values"):
                table = arrays[f"{at}/self_attention/layer/relative_position_{what}"]
                setattr(layer.self_attention, f"relative_position_{what}", table)
            if side == "decoder":
                fill_attention(layer.attention, arrays, f"{at}/attention/0", ((0, "queries"), (1, "keys values")))
            fill_norm(layer.ffn.layer_norm, arrays, f"{at}/ffn/input_layer_norm")
            for linear, name in ((layer.ffn.linear_0, "inner"), (layer.ffn.linear_1, "outer")):
                fill_linear(linear, [arrays[f"{at}/ffn/layer/{name}/{w}"] for w in ("kernel", "bias")])
    output = "model/decoder/output_layer"
    fill_linear(made.decoder.projection, [arrays[f"{output}/kernel"], arrays[f"{output}/bias"]])
    tables = {side: [*(folder / f"{side}.txt").read_text().split(), "<unk>"] for side in ("source", "target")}
    made.register_source_vocabulary(tables["source"])
    made.register_target_vocabulary(tables["target"])
    made.validate()
    made.optimize()
    (tmp_path / "theirs").mkdir()
    made.save(str(tmp_path / "theirs"))
    assert (tmp_path / "ours/model.bin").read_bytes() == (tmp_path / "theirs/model.bin").read_bytes()
    config = open_model(folder / "ckpt-5", vocabularies=vocabularies(folder)).config
    assert (config.positions, config.max_relative_positions) == ("relative", 5)


def fill_linear(spec, kernel_and_bias):
    spec.weight, spec.bias = np.ascontiguousarray(kernel_and_bias[0].T), kernel_and_bias[1]


def fill_norm(spec, arrays, name):
    spec.gamma, spec.beta = arrays[f"{name}/gamma"], arrays[f"{name}/beta"]


def fill_attention(spec, arrays, at, parts):
    fill_norm(spec.layer_norm, arrays, f"{at}/input_layer_norm")
    for k, names in (*parts, (-1, "output")):
        joined = [np.concatenate([arrays[f"{at}/layer/linear_{n}/{w}"] for n in names.split()], -1) for w in KERNEL]
        fill_linear(spec.linear[k], joined)


KERNEL = ("kernel", "bias")


def test_the_command(tmp_path):
    source = write(tmp_path / "source", "before")
    files = vocabularies(source)
    api.convert(source / "ckpt-5", tmp_path / "expected", "ctranslate2", vocabularies=files)
    config = tmp_path / "data.yml"
    config.write_text(f"model_dir: {source}\ndata:\n  source_vocabulary: source.txt\n  target_vocabulary: target.txt\n")
    ways = {
        "config": ["--config", str(config), "--auto_config"],
        "path": ["--model_path", str(source / "ckpt-5"), "--src_vocab", files[0], "--tgt_vocab", files[1]],
    }
    for name, flags in ways.items():
        ct2.run("ct2-opennmt-tf-converter", [*flags, "--output_dir", str(tmp_path / name)])
        expected = (tmp_path / "expected/model.bin").read_bytes()
        assert (tmp_path / name / "model.bin").read_bytes() == expected


def test_the_command_does_not_replace_its_configuration(tmp_path):
    source = write(tmp_path / "source", "before")
    (tmp_path / "there").mkdir()
    config = tmp_path / "there/data.yml"
    config.write_text(f"model_dir: {source}\ndata:\n  source_vocabulary: source.txt\n  target_vocabulary: target.txt\n")
    with pytest.raises(SourceError, match="would replace its own source"):
        ct2.run("ct2-opennmt-tf-converter", ["--config", str(config), "--output_dir", str(config.parent), "--force"])
    with pytest.raises(SourceError, match="would replace its own source"):
        OpenNMTTFConverter.from_config(str(config)).convert(config.parent, force=True)
    assert config.is_file()


def test_the_command_wants_both_vocabularies_of_a_translation_model(tmp_path):
    """As upstream; one file twice is one that both sides share."""
    source = write(tmp_path / "source", "before")
    path, file = str(source / "ckpt-5"), vocabularies(source)[0]
    config = tmp_path / "data.yml"
    config.write_text(f"model_dir: {source}\ndata:\n  source_vocabulary: source.txt\n")
    for flags in (["--src_vocab", file], ["--tgt_vocab", file], ["--config", str(config)]):
        with pytest.raises(ConfigError, match="has a source and a target vocabulary"):
            ct2.run("ct2-opennmt-tf-converter", ["--model_path", path, *flags, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "flags", "start", "end"),
    [
        ("source_sequence_controls: {start: true}", [], True, False),
        ("sequence_controls: {start: true, end: true}", [], True, True),
        ("source_sequence_controls: {end: true}\n  sequence_controls: {start: true}", [], False, True),
        ("source_1_sequence_controls: {start: true}", [], False, False),
        ("source_sequence_controls: {start: true}", ["--auto_config"], True, True),
    ],
)
def test_tokens_that_frame_a_source_stand_in_its_configuration(data, flags, start, end, tmp_path):
    """Source: the real OpenNMT-tf's inputters (``RelativeConfig``), seen to write the same config.json."""
    kind = "ScalingNmtEnDe" if flags else "Transformer"
    text = f"model = lambda: {kind}(num_layers=(2, 3), num_heads=4)\n"
    source = write(tmp_path / "source", "before", text)
    (tmp_path / "data.yml").write_text(
        f"model_dir: {source}\ndata:\n  source_vocabulary: source.txt\n  target_vocabulary: target.txt\n  {data}\n"
    )
    flags = ["--config", str(tmp_path / "data.yml"), "--output_dir", str(tmp_path / "ct2"), *flags]
    ct2.run("ct2-opennmt-tf-converter", flags)
    said = json.loads((tmp_path / "ct2/config.json").read_text())
    assert (said["add_source_bos"], said["add_source_eos"]) == (start, end)


def test_what_cannot_be_said_of_a_model(tmp_path):
    source = write(tmp_path / "source", "before")
    for what in ("Transformer,TransformerBig", "start,", "end,,start"):
        with pytest.raises(ConfigError, match="this is not what can be said of a model of OpenNMT-tf"):
            open_model(source / "ckpt-5", dialect=f"opennmt-tf:{what}")
    (tmp_path / "data.yml").write_text(f"model_dir: {source}\ndata:\n  sequence_controls: {{begin: true}}\n")
    with pytest.raises(ConfigError, match=r"data\.sequence_controls is not understood"):
        ct2.run("ct2-opennmt-tf-converter", ["--config", str(tmp_path / "data.yml"), "--output_dir", str(tmp_path)])


def test_heads_come_from_a_description_or_from_a_name(tmp_path):
    source = write(tmp_path / "source", "before")
    (source / "model_description.py").unlink()
    with pytest.raises(DialectError, match="nothing says how many heads"):
        open_model(source / "ckpt-5")
    with pytest.raises(DialectError, match="the options say 6 layers of the encoder\n  found: 2 in the file"):
        open_model(source / "ckpt-5", dialect="opennmt-tf:TransformerBase")
    with pytest.raises(DialectError, match=r"LuongAttention is not a model that is known here\n  where: [^\n]*\n  exp"):
        open_model(source / "ckpt-5", dialect="opennmt-tf:LuongAttention")
    (source / "model_description.py").write_text(
        'from opennmt import models\nmodel = lambda: models.get_model_from_catalog("TransformerTiny")\n'
    )
    with pytest.raises(DialectError, match="the options say 2 layers of the decoder\n  found: 3 in the file"):
        open_model(source / "ckpt-5")


@pytest.mark.parametrize(
    "text",
    [
        "model = lambda: Transformer(WordEmbedder(16), WordEmbedder(16), (2, 3), 16, 2)",
        "class Mine(onmt.Transformer):\n def __init__(self):\n  super().__init__(num_layers=[2, 3], num_heads=2)",
        "class Mine(Transformer):\n def __init__(self):\n  super().__init__(num_layers=N, num_heads=2)\nmodel = Mine",
    ],
)
def test_descriptions_are_written_in_several_ways(text, tmp_path):
    assert open_model(write(tmp_path / "source", "before", text) / "ckpt-5").config.num_heads == 2


def test_inputs_in_parallel_are_features_of_the_source(tmp_path):
    folder = write(tmp_path / "source", "joined inputs")
    files = vocabularies(folder)
    config = open_model(folder / "ckpt-5", vocabularies=files).config
    assert (config.features, config.feature_merge, config.tied_features) == (((9, 4), (7, 2)), "concat", False)
    with pytest.raises(VocabularyError, match="this model has 4 vocabularies"):
        open_model(folder / "ckpt-5", vocabularies=files[:2])
    data = "".join(f"  source_{k + 1}_vocabulary: source_{k + 1}.txt\n" for k in range(3))
    (folder / "data.yml").write_text(f"model_dir: {folder}\ndata:\n{data}  target_vocabulary: target.txt\n")
    ct2.run("ct2-opennmt-tf-converter", ["--config", str(folder / "data.yml"), "--output_dir", str(tmp_path / "ct2")])
    written = json.loads((tmp_path / "ct2/source_3_vocabulary.json").read_text())
    assert written == [*(folder / "source_3.txt").read_text().split(), "<unk>"]

    api.convert(folder / "ckpt-5", tmp_path / "bundle", "warmstart", vocabularies=files)
    api.convert(tmp_path / "bundle", tmp_path / "again", "ctranslate2")
    assert (tmp_path / "again/model.bin").read_bytes() == (tmp_path / "ct2/model.bin").read_bytes()


def test_one_table_for_all_inputs_stays_one(tmp_path):
    folder = write(tmp_path / "source", "shared by all")
    files = vocabularies(folder)
    config = open_model(folder / "ckpt-5", vocabularies=files).config
    assert (config.features, config.feature_merge, config.tied_features) == (((28, 16), (28, 16)), "sum", True)
    api.convert(folder / "ckpt-5", tmp_path / "ct2", "ctranslate2", vocabularies=files)
    (tmp_path / "ct2/warmstart.json").unlink()
    found = open_model(tmp_path / "ct2").config
    assert (found.tied_features, found.tied_embeddings, found.features) == (True, "all", config.features)


def test_inputs_that_share_parameters_have_one_table_beside_the_target(tmp_path):
    """As ``share_parameters=True`` without a shared target is saved: under the first input alone."""
    text = "model = lambda: Transformer(ParallelInputter([W(16), W(16)], SumReducer(), True), None, (2, 3), 16, 4)\n"
    folder = write(tmp_path / "source", "target tied", text.replace("W(", "WordEmbedder("))
    shapes = KINDS["target tied"]["shapes"]
    names = {n.replace("features_inputter/", "features_inputter/inputters/0/"): tuple(s) for n, s in shapes.items()}
    arrays = ((f"{n}{record.VALUE}", record.value(n, s)) for n, s in sorted(names.items()))
    write_bundle(folder / "ckpt-5", arrays, force=True)
    source, target = vocabularies(folder)
    facts = api.convert(folder / "ckpt-5", tmp_path / "ct2", "ctranslate2", vocabularies=[source, source, target])
    aliases = {"encoder/embeddings_1/weight": "encoder/embeddings_0/weight"}
    assert facts["aliases"] == {**aliases, "decoder/projection/weight": "decoder/embeddings/weight"}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("position_encoder_class=None", "a model without positions"),
        ("maximum_relative_position=5", "vectors of distances beside encoded positions"),
        ("maximum_relative_position=5, position_encoder_class=None", None),
    ],
)
def test_positions_are_encoded_or_distances_have_vectors(arguments, found, tmp_path):
    """The reference refuses both together, and neither."""
    text = f"model = lambda: Transformer(num_layers=(2, 3), num_heads=4, {arguments})\n"
    folder = write(tmp_path / "source", "before", text)
    if "maximum" in arguments:
        shapes = {f"{n}{record.VALUE}": tuple(s) for n, s in KINDS["before"]["shapes"].items()}
        for i, side in ((0, "encoder"), (1, "encoder"), (0, "decoder"), (1, "decoder"), (2, "decoder")):
            for what in ("keys", "values"):
                place = f"model/{side}/layers/{i}/self_attention/layer/relative_position_{what}"
                shapes[f"{place}{record.VALUE}"] = (11, 4)
        write_bundle(folder / "ckpt-5", ((n, record.value(n, s)) for n, s in sorted(shapes.items())), force=True)
    if found is None:
        assert open_model(folder / "ckpt-5").config.max_relative_positions == 5
        return
    with pytest.raises(DialectError, match=found):
        open_model(folder / "ckpt-5")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("ParallelInputter([W(10), W(4), W(2)])", "reducer: None is not supported"),
        ("ParallelInputter([W(10), W(4), W(2)], reducer=onmt.layers.MultiplyReducer())", "reducer: MultiplyReducer is"),
        ("ParallelInputter([W(10), W(4)], reducer=ConcatReducer())", "2 inputters are described"),
        ("ParallelInputter([W(10), CharConvEmbedder(4), W(2)], ConcatReducer())", "CharConvEmbedder is not supported"),
        ("MixedInputter([W(10), W(4), W(2)])", "source_inputter: MixedInputter"),
        ("inputter()", "source_inputter: inputter"),
        ("None", "nothing says how several inputs of the source are one"),
    ],
)
def test_inputs_that_are_not_one_are_refused(source, found, tmp_path):
    text = f"model = lambda: Transformer({source}, num_heads=4)\n".replace("W(", "onmt.inputters.WordEmbedder(")
    folder = write(tmp_path / "source", "joined inputs", text)
    with pytest.raises(DialectError, match=found):
        open_model(folder / "ckpt-5")


def test_an_encoder_for_each_input_is_refused_by_name(tmp_path):
    """OpenNMT-tf builds them where a ParallelInputter has no reducer; the engine has one encoder."""
    folder = write(tmp_path / "source", "joined inputs")
    shapes = KINDS["joined inputs"]["shapes"]
    names = {n.replace("model/encoder/", "model/encoder/encoders/0/"): tuple(s) for n, s in shapes.items()}
    arrays = ((f"{n}{record.VALUE}", record.value(n, s)) for n, s in sorted(names.items()))
    write_bundle(folder / "ckpt-5", arrays, force=True)
    with pytest.raises(DialectError, match="a ParallelInputter without a reducer, with an encoder for each input"):
        open_model(folder / "ckpt-5")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ("num_heads=HEADS * 2", "num_heads is not a number"),
        ("ffn_activation=tf.nn.elu", "ffn_activation: 'elu' is not supported"),
        ("attention_reduction=R.AVERAGE_ALL_LAYERS", "attention_reduction: AVERAGE_ALL_LAYERS is not supported"),
        ("num_layers=(2, 3)) or open('never', 'w'", None),
    ],
)
def test_a_description_is_read_and_never_run(arguments, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "source", "before", f"model = lambda: onmt.models.Transformer({arguments})\n")
    if found is None:
        assert open_model(source / "ckpt-5").config.num_heads == 8
        assert not (tmp_path / "never").exists()
        return
    with pytest.raises(DialectError, match=found):
        open_model(source / "ckpt-5")
