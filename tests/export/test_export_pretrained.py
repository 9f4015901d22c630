"""Encoder-only and speech models of ``transformers``: the reference converter's bytes, and the way back."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import decoder_models
import huggingface_models
import t5_models
from huggingface_models import change, rewrite
from pretrained_models import KINDS, WIDTH, small_engine, write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import ConfigError, DialectError, VocabularyError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint
from warmstart.models.registry import FAMILIES

# Of ctranslate2 4.8.5 on transformers 5.23.0, for the directories of pretrained_models.py; recorded and compared again
# by tests/interop/test_interop_convert_pretrained.py.
DIGESTS = json.loads((Path(__file__).parents[1] / "golden/ctranslate2-pretrained/digests.json").read_text())
POSITIONS_CONVOLUTION = "wav2vec2.encoder.pos_conv_embed.conv"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_engine(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_reference_converter(kind, tmp_path):
    source = write(tmp_path / "source", kind)
    for quantization in QUANTIZATIONS:
        ours = tmp_path / quantization
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        for name, digest in DIGESTS[kind][quantization].items():
            assert sha256((ours / name).read_bytes()).hexdigest() == digest, (quantization, name)


@pytest.mark.parametrize("way", ["warmstart", "ctranslate2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_returns_with_every_file(kind, way, tmp_path):
    source = write(tmp_path / "source", kind)
    facts = api.convert(source, tmp_path / "way", way)
    assert open_model(tmp_path / "way").remarks == []
    # rows that text never reaches, and what a weight is made of
    lossy = {"positions.weight"} if kind in ("roberta", "xlm-roberta", "camembert") else set()
    if "wav2vec2" in kind and "bert" not in kind and way == "ctranslate2":
        lossy |= {"positions.scale", "positions.direction"}
    if "wav2vec2-bert" in kind and way == "ctranslate2":
        lossy |= {"adapters.ffn"}  # which the engine computes for nothing
    assert set(facts["ledger"]["lossy"]) == lossy
    api.convert(tmp_path / "way", tmp_path / "back", "transformers")
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = open_model(source).checkpoint, open_model(tmp_path / "back").checkpoint
    left = set(facts["ledger"]["left_behind"])
    assert set(after.entries) == set(before.entries) - left
    for name in after.entries:
        expected, found = np.array(before.read(name)), after.read(name)
        if "positions.weight" in lossy and "position_embeddings" in name:
            expected[:2] = 0
        if "positions.scale" in lossy and name.startswith(f"{POSITIONS_CONVOLUTION}.parametrizations"):
            continue  # below
        assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes()), name
    if "positions.scale" in lossy and "float16" not in kind:  # the same product, to the bit
        api.convert(tmp_path / "back", tmp_path / "again", "ctranslate2")
        one, two = (tmp_path / folder / "model.bin" for folder in ("way", "again"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_the_reference_converter_returns(kind, tmp_path):
    """Its directory knows less than ours: the class is guessed, and the tokenizer is a table."""
    source = write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "way", "ctranslate2")
    for name in ("warmstart.json", "conversion.json", "vocabularies/text.json"):
        (tmp_path / "way" / name).unlink()
    api.convert(tmp_path / "way", tmp_path / "back", "transformers")
    if kind.startswith("wav2vec2"):
        write_table(tmp_path)
    api.convert(tmp_path / "back", tmp_path / "again", "ctranslate2")
    if kind != "wav2vec2-float16":  # whose normed weight is stored in float32, and read in the model's dtype
        assert (tmp_path / "way/model.bin").read_bytes() == (tmp_path / "again/model.bin").read_bytes()
    for name in ("config.json", "vocabulary.json"):
        assert (tmp_path / "way" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("rows", [51864, 51865])
def test_whisper_of_the_reference_converter_is_told_what_surrounds_a_text(rows, tmp_path):
    """Without it the library takes the rows of English models, and neither ends nor knows a task."""
    source = write(tmp_path / "source", "whisper-plain")
    table = "model.decoder.embed_tokens.weight"
    rewrite(source, lambda arrays: arrays.update({table: np.resize(arrays[table], (rows, WIDTH))}))
    change(source, vocab_size=rows)
    api.convert(source, tmp_path / "way", "ctranslate2")
    (tmp_path / "way/warmstart.json").unlink()
    shutil.rmtree(tmp_path / "way/vocabularies")
    api.convert(tmp_path / "way", tmp_path / "back", "transformers")
    config, said = (
        json.loads((tmp_path / "back" / name).read_text()) for name in ("config.json", "generation_config.json")
    )
    ids = {"bos_token_id": 8, "eos_token_id": 8, "pad_token_id": 8, "decoder_start_token_id": 9}
    assert ids.items() <= config.items()
    assert {**ids, "no_timestamps_token_id": 17, "prev_sot_token_id": 15}.items() <= said.items()
    assert said["is_multilingual"] is (rows == 51865)
    assert said.get("task_to_id") == ({"transcribe": 13, "translate": 12} if rows == 51865 else None)
    assert ("lang_to_id" in said) is (rows == 51865)  # or English models would be asked for the language


def write_table(folder: Path) -> None:
    tokens = json.loads((folder / "way/vocabulary.json").read_text())
    (folder / "back/vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_is_told_of(kind, tmp_path):
    source = write(tmp_path / "source", kind)
    ledger = api.convert(source, tmp_path / "out", "ctranslate2")["ledger"]
    arrays = open_checkpoint(source / "model.safetensors").entries
    assert ledger["used"] + len(ledger["checked"]) + len(ledger["left_behind"]) == len(arrays)
    assert all(ledger["left_behind"].values())


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key' is not supp"),
        ("bert", {"is_decoder": True}, "is_decoder: True is not supported"),
        ("bert", {"new_trick": 3}, "new_trick: 3 is not an option that is known here"),
        ("bert", {"hidden_size": ...}, "hidden_size is missing"),
        ("bert", {"num_attention_heads": 5}, "not a multiple of num_heads 5"),
        ("roberta", {"hidden_act": "mish"}, "hidden_act: 'mish' is not supported"),
        ("distilbert", {"n_layers": "3"}, "n_layers is not a positive whole number"),
        ("whisper", {"activation_function": "relu"}, "activation_function: 'relu' is not supported"),
        ("whisper", {"vocab_size": 3}, "row 11 is suppressed or a language, but there are 3 rows"),
        ("wav2vec2", {"do_stable_layer_norm": ...}, "do_stable_layer_norm is not supported"),
        ("wav2vec2", {"feat_extract_norm": "group"}, "feat_extract_norm is not supported"),
        ("wav2vec2", {"conv_stride": [5, 2, 3]}, "conv_stride is not supported"),
        ("wav2vec2", {"adapter_attn_dim": 16}, "adapter_attn_dim: 16 is not supported"),
        ("wav2vec2-bert", {"position_embeddings_type": "rotary"}, "position_embeddings_type: 'rotary' is not suppo"),
        ("wav2vec2-bert", {"adapter_stride": 3}, "adapter_stride: 3 is not supported"),
    ],
)
def test_options_are_understood_or_refused(kind, values, found, tmp_path):
    folder = write(tmp_path / "source", kind)
    change(folder, **values)
    with pytest.raises((DialectError, VocabularyError), match=found):
        open_model(folder)


@pytest.mark.parametrize(
    "values", [{"alignment_heads": 3}, {"alignment_heads": [[0, 9]]}, {"lang_to_id": {"a": "b", "c": 1}}]
)
def test_what_a_decoder_is_told_must_make_sense(values, tmp_path):
    folder = write(tmp_path / "source", "whisper")
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, **values}))
    with pytest.raises(DialectError, match="options are wrong"):
        open_model(folder)


@pytest.mark.parametrize("kind", ["bert", "whisper", "wav2vec2", "llama", "t5"])
def test_a_tokenizer_that_lies_elsewhere_is_given_by_its_table(kind, tmp_path):
    """With what lies beside it; the bytes are those of one directory."""
    makers = {"llama": decoder_models.write, "t5": t5_models.write}
    source = makers.get(kind, write)(tmp_path / "source", kind)
    api.convert(source, tmp_path / "whole", "ctranslate2")
    (tmp_path / "apart").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        if (source / name).is_file():
            (source / name).rename(tmp_path / "apart" / name)
    table = next(tmp_path / "apart" / n for n in ("tokenizer.json", "vocab.json") if (tmp_path / "apart" / n).is_file())
    api.convert(source, tmp_path / "out", "ctranslate2", vocabularies=[str(table)])
    written = ("model.bin", "config.json", "vocabulary.json", "shared_vocabulary.json")
    whole, out = (
        {name: (tmp_path / folder / name).read_bytes() for name in written if (tmp_path / folder / name).is_file()}
        for folder in ("whole", "out")
    )
    assert len(whole) == 3
    assert out == whole
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert {file.name for file in (tmp_path / "apart").iterdir()} <= {
        file["name"] for file in record["source"]["files"]
    }


def test_all_problems_are_told_at_once(tmp_path):
    folder = write(tmp_path / "source", "bert")
    change(folder, new_trick=3, hidden_act="mish", is_decoder=True)
    with pytest.raises(DialectError) as error:
        open_model(folder)
    assert len(error.value.problems) == 3


def test_configurations_of_today_lack_a_key_that_the_reference_needs(tmp_path):
    folder = write(tmp_path / "source", "bert")
    change(folder, position_embedding_type=...)
    api.convert(folder, tmp_path / "out", "ctranslate2")
    assert sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest() == DIGESTS["bert"]["none"]["model.bin"]


def test_older_files_name_norms_otherwise(tmp_path):
    def older(arrays):
        for name in list(arrays):
            if "LayerNorm" in name:
                new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                arrays[new] = arrays.pop(name)

    folder = write(tmp_path / "source", "bert")
    rewrite(folder, older)
    api.convert(folder, tmp_path / "out", "ctranslate2")
    assert sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest() == DIGESTS["bert"]["none"]["model.bin"]


def test_older_files_name_the_two_parts_of_a_weight_otherwise(tmp_path):
    def older(arrays):
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            name = f"{POSITIONS_CONVOLUTION}.parametrizations.weight.{new}"
            arrays[f"{POSITIONS_CONVOLUTION}.{old}"] = arrays.pop(name)

    folder = write(tmp_path / "source", "wav2vec2")
    rewrite(folder, older)
    api.convert(folder, tmp_path / "out", "ctranslate2")
    assert sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest() == DIGESTS["wav2vec2"]["none"]["model.bin"]


def test_one_array_under_two_names_is_refused(tmp_path):
    folder = write(tmp_path / "source", "bert")
    name = "embeddings.LayerNorm.weight"
    rewrite(folder, lambda arrays: arrays.update({"embeddings.LayerNorm.gamma": arrays[name]}))
    with pytest.raises(DialectError, match="two arrays have one name"):
        open_model(folder)


def test_a_pooler_that_nobody_trained_is_not_made_up(tmp_path):
    """The reference writes random numbers for it."""
    folder = write(tmp_path / "source", "bert")
    rewrite(folder, lambda arrays: [arrays.pop(f"pooler.dense.{what}") for what in ("weight", "bias")])
    api.convert(folder, tmp_path / "out", "ctranslate2")
    assert not [name for name in open_checkpoint(tmp_path / "out/model.bin").entries if "pooler" in name]


def test_xlm_roberta_is_converted_without_its_pooler(tmp_path):
    """As by the reference, whose class for it has none; it is named."""
    folder = write(tmp_path / "source", "xlm-roberta")
    more = {"roberta.pooler.dense.weight": np.ones((16, 16), np.float32)}
    more["roberta.embeddings.position_ids"] = np.arange(20)
    rewrite(folder, lambda arrays: arrays.update(more))
    facts = api.convert(folder, tmp_path / "out", "ctranslate2")
    assert sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest() == DIGESTS["xlm-roberta"]["none"]["model.bin"]
    assert facts["ledger"]["left_behind"]["pooler.dense.weight"] == "the class that is converted has none"


def test_arrays_must_fit_and_none_is_forgotten(tmp_path):
    folder = write(tmp_path / "source", "whisper")
    rewrite(folder, lambda arrays: arrays.update({"model.encoder.layers.0.self_attn.k_proj.bias": np.zeros(16)}))
    with pytest.raises(DialectError, match=r"k_proj\.bias would be left behind"):
        api.convert(folder, tmp_path / "no", "ctranslate2")
    folder = write(tmp_path / "other", "wav2vec2-bert")
    rewrite(folder, lambda arrays: arrays.pop("wav2vec2_bert.adapter.layers.1.residual_conv.bias"))
    with pytest.raises(DialectError, match=r"adapter\.layers\.1\.residual_conv\.bias is missing"):
        api.convert(folder, tmp_path / "no", "ctranslate2")


def test_languages_are_found_where_no_file_lists_them(tmp_path):
    """The reference writes none on transformers 5, and its engine then detects no language."""
    source = write(tmp_path / "source", "whisper-plain")
    api.convert(source, tmp_path / "out", "ctranslate2")
    assert json.loads((tmp_path / "out/config.json").read_text())["lang_ids"] == [10, 11]
    assert "config.json" not in DIGESTS["whisper-plain"]["none"]


def test_a_table_of_letters_follows_the_rows(tmp_path):
    """``save_pretrained`` sorts vocab.json by letter, and the reference takes the order of the file."""
    source = write(tmp_path / "source", "wav2vec2")
    table = json.loads((source / "vocab.json").read_text())
    (source / "vocab.json").write_text(json.dumps(table, sort_keys=True))
    api.convert(source, tmp_path / "out", "ctranslate2")
    tokens = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert tokens == sorted(table, key=table.__getitem__) != sorted(table)


def test_tables_of_several_languages_are_refused(tmp_path):
    source = write(tmp_path / "source", "wav2vec2")
    (source / "vocab.json").write_text(json.dumps({"eng": {"a": 0}, "deu": {"b": 0}}))
    with pytest.raises(VocabularyError, match="a table for each of several languages"):
        open_model(source)


def test_what_the_engine_computes_otherwise_is_refused(tmp_path, monkeypatch):
    monkeypatch.undo()
    source = write(tmp_path / "source", "wav2vec2-bert")
    with pytest.raises(DialectError, match="CTranslate2 computes another wav2vec2-BERT") as error:
        api.convert(source, tmp_path / "no", "ctranslate2")
    assert len(error.value.problems) == 2
    api.convert(source, tmp_path / "yes", "warmstart")


def test_rounded_models_return_and_are_not_rounded_twice(tmp_path):
    source = write(tmp_path / "source", "whisper")
    api.convert(source, tmp_path / "int8", "ctranslate2", quantize="int8")
    facts = api.convert(tmp_path / "int8", tmp_path / "back", "transformers")
    assert "dequantized from int8" in facts["ledger"]["lossy"]["encoder/conv1/weight"]
    name = "model.encoder.conv1.weight"
    before, after = (open_checkpoint(f / "model.safetensors").read(name) for f in (source, tmp_path / "back"))
    step = np.abs(before).max(axis=(1, 2), keepdims=True) / 127
    assert np.all(np.abs(before - after) <= step * 0.51)
    with pytest.raises(ConfigError, match="rounded a second time"):
        api.convert(tmp_path / "int8", tmp_path / "no", "ctranslate2", quantize="int16")


def test_a_bias_for_keys_has_no_place_in_whisper(tmp_path):
    source = write(tmp_path / "source", "whisper")
    api.convert(source, tmp_path / "out", "ctranslate2")
    data = bytearray((tmp_path / "out/model.bin").read_bytes())
    name = b"decoder/layer_1/attention/linear_1/bias\0"
    data[data.index(name) + len(name) + 1 + 4 + 1 + 4] ^= 0x40  # rank, dimension, dtype and size stand between
    (tmp_path / "out/model.bin").write_bytes(data)
    with pytest.raises(DialectError, match=r"decoder/layer_1/attention/linear_1/bias has a bias for keys"):
        open_model(tmp_path / "out")


@pytest.mark.parametrize("kind", ["bert", "whisper", "wav2vec2", "wav2vec2-bert"])
def test_such_models_are_not_trained_here(kind, tmp_path):
    family, config, _ = open_model(write(tmp_path / "source", kind)).require()
    assert family in FAMILIES
    with pytest.raises(DialectError, match="can be converted, but not run or trained"):
        family.build(config)


@pytest.mark.parametrize(
    ("kind", "pieces", "before"),
    [
        ("xlm-roberta", 28, ["<s>", "<pad>", "</s>", "<unk>"]),
        ("camembert", 25, ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_sentencepiece_model_is_a_table_where_there_is_no_other(kind, pieces, before, named, tmp_path):
    """As transformers 5.23's classes of tokenizers order their rows; CTranslate2's converter writes that table."""
    from sentencepiece import SentencePieceProcessor

    folder = write(tmp_path / "source", kind)
    (folder / "tokenizer.json").unlink()
    settings = {"tokenizer_class": {"xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer"}[kind]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings if named else {}))
    model = huggingface_models.sentencepiece(pieces, user_defined_symbols="uu,vv,ww,xx,yy")
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    api.convert(folder, tmp_path / "out", "ctranslate2")
    processor = SentencePieceProcessor(model_proto=model)
    expected = [*before, *(processor.id_to_piece(row) for row in range(3, pieces)), "<mask>"]
    assert json.loads((tmp_path / "out/vocabulary.json").read_text()) == expected

    api.convert(tmp_path / "out", tmp_path / "back", "transformers")
    assert (tmp_path / "back/sentencepiece.bpe.model").read_bytes() == model
    assert not (tmp_path / "back/vocab.json").exists()

    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(VocabularyError, match=r"tokenizer_config\.json is damaged"):
        open_model(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "sentencepiece.bpe.model").write_bytes(model[:200])
    with pytest.raises(VocabularyError, match="SentencePiece model"):
        open_model(folder)
