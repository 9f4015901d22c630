"""OpenNMT-py and fairseq: the reference converters' bytes, and what is refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from torch_models import (
    EOLE_KINDS,
    FAIRSEQ_KINDS,
    ONMT_KINDS,
    eole_arrays,
    torchtext,
    write_eole,
    write_fairseq,
    write_onmt,
)
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import BundleError, ConfigError, DialectError, VocabularyError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint
from warmstart.models import opennmt_py
from warmstart.models.transformer.dialects.marian import MarianDialect

# Of ctranslate2 4.8.5, for the files of torch_models.py; recorded and compared again by
# tests/interop/test_interop_convert_seq2seq.py. Sinusoids are ours (last bit), norms' epsilon is the truth.
GOLDEN = Path(__file__).parents[1] / "golden/ctranslate2-converters"
ONMT, FAIRSEQ, EOLE = (json.loads((GOLDEN / f"{name}.json").read_text()) for name in ("opennmt-py", "fairseq", "eole"))


def assert_same(source: Path, digests: dict[str, dict[str, str]], tmp_path: Path) -> None:
    for quantization in QUANTIZATIONS:
        ours = tmp_path / quantization
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        for name, digest in digests[quantization].items():
            assert sha256((ours / name).read_bytes()).hexdigest() == digest, (quantization, name)


@pytest.mark.parametrize("kind", ONMT_KINDS)
def test_opennmt_py_as_its_converter_writes_it(kind, tmp_path):
    assert_same(write_onmt(tmp_path / "model.pt", kind), ONMT[kind], tmp_path)


@pytest.mark.parametrize("kind", FAIRSEQ_KINDS)
def test_fairseq_as_its_converter_writes_it(kind, tmp_path):
    assert_same(write_fairseq(tmp_path / "source", kind), FAIRSEQ[kind], tmp_path)


@pytest.mark.parametrize("kind", EOLE_KINDS)
def test_eole_as_its_converter_writes_it(kind, tmp_path):
    assert_same(write_eole(tmp_path / "source", kind), EOLE[kind], tmp_path)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"position_encoding_type": "Rotary"}, "model.position_encoding_type: 'Rotary' is not supported"),
        ({"mlp_activation_fn": "gated-gelu"}, "mlp_activation_fn: 'gated-gelu' is not supported"),
        ({"layer_norm": "gemma-rms"}, "model.layer_norm: 'gemma-rms' is not supported"),
        ({"decoder": {"layer_norm": "rms"}}, "one of encoder and decoder has RMS norms, the other has not"),
        ({"decoder": {"decoder_type": "transformer_lm"}}, "decoder.decoder_type: 'transformer_lm' is not supported"),
        ({"heads_kv": 2}, "heads_kv: 2 is not supported"),
        ({"position_encoding_type": "Learned"}, "model.position_encoding_type: 'Learned' is not supported"),
        ({"embeddings": {"position_encoding_type": "Alibi"}}, "embeddings.position_encoding_type: 'Alibi' is not"),
        ({"embeddings": {"position_encoding_type": "Relative"}}, "self_attn.relative_positions_embeddings.weight is m"),
        ({"encoder": {"position_encoding_type": "Relative"}}, "position_encoding_type differs: "),
        ({"encoder": {"layers": 6}}, "the options say 6 layers of the encoder"),
        ({"layers": 7, "decoder": {}}, "the options say 7 layers of the decoder"),
        ({"encoder_layer_style": "postnorm"}, "encoder_layer_style: 'postnorm' is not supported"),
    ],
)
def test_options_of_eole_are_understood_or_refused(values, found, tmp_path):
    folder = write_eole(tmp_path / "source", "usual")
    content = json.loads((folder / "config.json").read_text())
    content["model"].update(values)
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(DialectError, match=found):
        open_model(folder)


@pytest.mark.parametrize(("said", "kind"), [("rms", "usual"), ("standard", "rms")])
def test_norms_of_eole_are_what_it_says(said, kind, tmp_path):
    """A bias that an RMS norm has not, and one that a usual norm lacks, are named."""
    folder = write_eole(tmp_path / "source", kind)
    content = json.loads((folder / "config.json").read_text())
    content["model"]["layer_norm"] = said
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(DialectError, match=r"encoder\.layer_norm\.bias"):
        api.convert(folder, tmp_path / "no", "ctranslate2")


def test_vectors_of_distances_of_eole_fit_what_it_says_and_return_as_one_table(tmp_path):
    """The engine divides by √d_head what EOLE adds to scores as it is: keys are written times that, values as they are,
    so that no bit is lost even where the product is rounded."""
    folder = write_eole(tmp_path / "source", "relative")
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    there = open_checkpoint(tmp_path / "ct2/model.bin")
    table = eole_arrays("relative")["decoder.transformer_layers.1.self_attn.relative_positions_embeddings.weight"]
    keys, values = (
        there.read(f"decoder/layer_1/self_attention/relative_position_{what}") for what in ("keys", "values")
    )
    assert values.tobytes() == table.tobytes()
    assert keys.tobytes() == (torch.from_numpy(table) * 8**0.5).numpy().tobytes()
    (tmp_path / "ct2/warmstart.json").unlink()
    config = open_model(tmp_path / "ct2").config
    assert (config.max_relative_positions, config.relative_tables, config.relative_scaled) == (3, "one", False)
    content = json.loads((folder / "config.json").read_text())
    content["model"]["embeddings"]["n_positions"] = 4
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(DialectError, match=r"relative_positions_embeddings.weight has another shape"):
        api.convert(folder, tmp_path / "no", "ctranslate2")


@pytest.mark.parametrize("way", ["warmstart", "ctranslate2"])
def test_both_return_from_their_copies_unchanged(way, tmp_path):
    for name, source in (
        ("onmt", write_onmt(tmp_path / "model.pt", "version 1")),
        ("fairseq", write_fairseq(tmp_path / "source", "pre-norm")),
        ("relative", write_onmt(tmp_path / "relative.pt", "relative")),
        ("gated", write_eole(tmp_path / "eole", "gated")),
        ("rms", write_eole(tmp_path / "rms", "rms")),
        ("rms-onmt", write_onmt(tmp_path / "rms.pt", "rms")),
        ("unscaled", write_eole(tmp_path / "unscaled", "relative")),
        ("features", write_onmt(tmp_path / "features.pt", "features")),
        ("added", write_onmt(tmp_path / "added.pt", "features added")),
    ):
        api.convert(source, tmp_path / f"{name}-way", way)
        api.convert(source, tmp_path / f"{name}-direct", "ctranslate2")
        api.convert(tmp_path / f"{name}-way", tmp_path / f"{name}-again", "ctranslate2")
        files = [path.name for path in (tmp_path / f"{name}-direct").iterdir()]
        assert len([file for file in files if file.endswith("_vocabulary.json")]) == {"features": 4, "added": 3}.get(
            name, 2
        )
        for file in [file for file in files if file == "model.bin" or file.endswith(("config.json", "lary.json"))]:
            direct, again = ((tmp_path / f"{name}-{which}" / file).read_bytes() for which in ("direct", "again"))
            assert direct == again, (name, file)


def edited(path: Path, key: str, **values: object) -> Path:
    with torchtext():
        content = torch.load(path, weights_only=False)
        vars(content[key]).update(values)
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"self_attn_type": "average"}, "self_attn_type: 'average' is not supported"),
        ({"dropout": "x"}, "the model's options are wrong"),
        ({"dropout": [{}]}, "the model's options are wrong"),
        ({"max_relative_positions": 20}, "max_relative_positions is 20 and position_encoding True"),
        ({"max_relative_positions": -1, "position_encoding": False}, r"-1 \(rotary positions\) is not supported"),
        ({"max_relative_positions": -2, "position_encoding": False}, r"-2 \(alibi positions\) is not supported"),
        ({"encoder_type": "mean"}, "encoder_type: 'mean' is not supported"),
        ({"pos_ffn_activation_fn": "prelu"}, "pos_ffn_activation_fn: 'prelu' is not supported"),
        ({"copy_attn": True}, "copy_attn: True is not supported"),
        ({"enc_layers": 6}, "6 layers of the encoder"),
        ({"layers": 6}, "6 layers of the decoder"),
        ({"heads": 5}, "not a multiple of num_heads 5"),
        ({"decoder_start_token": "<go>"}, "decoder_start_token: '<go>' is not supported"),
    ],
)
def test_options_of_opennmt_py_are_understood_or_refused(values, found, tmp_path):
    with pytest.raises(DialectError, match=found):
        open_model(edited(write_onmt(tmp_path / "model.pt", "version 1"), "opt", **values))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"decoder_attention_heads": 2}, "encoder_attention_heads and decoder_attention_heads differ"),
        ({"decoder_normalize_before": True}, "encoder_normalize_before and decoder_normalize_before differ"),
        ({"activation_fn": "tanh"}, "activation_fn: 'tanh' is not supported"),
        ({"no_token_positional_embeddings": True}, "no_token_positional_embeddings: True is not supported"),
        ({"lang_tok_replacing_bos_eos": True}, "lang_tok_replacing_bos_eos: True is not supported"),
        ({"adaptive_softmax_cutoff": "10,20"}, "adaptive_softmax_cutoff: '10,20' is not supported"),
        ({"encoder_layers": 6}, "6 layers of the encoder"),
    ],
)
def test_options_of_fairseq_are_understood_or_refused(values, found, tmp_path):
    with pytest.raises(DialectError, match=found):
        open_model(edited(write_fairseq(tmp_path, "transformer"), "args", **values))


@pytest.mark.parametrize(("layer", "marians"), [(-3, "1"), (-2, "2"), (-1, "last"), (2, "3")])
def test_the_layer_of_alignments_may_be_counted_from_the_last(layer, marians, tmp_path):
    """-3, with all heads, is what OpenNMT-py takes where nobody says which one is supervised (``onmt/opts.py``)."""
    path = write_onmt(tmp_path / "model.pt", "version 1")
    edited(path, "opt", lambda_align=0.05, alignment_layer=layer, alignment_heads=0)
    api.convert(path, tmp_path / "out", "ctranslate2")
    stored = open_checkpoint(tmp_path / "out/model.bin").metadata["attributes"]
    assert (stored["decoder/alignment_layer"], stored["decoder/alignment_heads"]) == (layer, 0)
    config = open_model(tmp_path / "out").config
    assert config.alignment_layer == layer
    assert MarianDialect().options(config)["transformer-guided-alignment-layer"] == marians
    with pytest.raises(DialectError, match=r"alignment_layer -4 is none of 3 decoder layers"):
        open_model(edited(path, "opt", alignment_layer=-4))


def test_dictionaries_are_found_given_or_asked_for(tmp_path):
    source = write_fairseq(tmp_path / "source", "transformer")
    (tmp_path / "data").mkdir()
    for path in (tmp_path / "source").glob("dict.*"):
        path.rename(tmp_path / "data" / path.name)
    with pytest.raises(VocabularyError, match="the source and target vocabulary is not known"):
        api.convert(source, tmp_path / "no", "ctranslate2")
    api.convert(source, tmp_path / "a", "ctranslate2", vocabularies=[tmp_path / "data"])
    files = [tmp_path / f"data/dict.{language}.txt" for language in ("de", "en")]
    api.convert(source, tmp_path / "b", "ctranslate2", vocabularies=files)
    assert (tmp_path / "a/source_vocabulary.json").read_bytes() == (tmp_path / "b/source_vocabulary.json").read_bytes()
    with pytest.raises(BundleError, match="vocabulary does not fit the model"):
        api.convert(source, tmp_path / "no", "ctranslate2", vocabularies=files[::-1])
    files[0].write_text("one line without count\n")
    with pytest.raises(VocabularyError, match="not a line of a dictionary"):
        api.convert(source, tmp_path / "no", "ctranslate2", vocabularies=files)


_SEVERAL = {"task": "translation_multi_simple_epoch", "langs": None, "lang_pairs": ["de-en", "fr-en"]}


@pytest.mark.parametrize(
    ("said", "added"),
    [
        ({"task": "translation_from_pretrained_bart", "langs": "de,en"}, ["[de]", "[en]", "<mask>"]),
        ({**_SEVERAL, "langs": ["en", "de"], "lang_tok_style": "multilingual"}, ["__en__", "__de__"]),
        (_SEVERAL, ["__de__", "__en__", "__fr__"]),
        ({**_SEVERAL, "lang_tok_style": "mbart"}, ["[de]", "[en]", "[fr]", "<mask>"]),
        ({**_SEVERAL, "lang_dict": "/elsewhere/langs.txt"}, ["__it__", "__de__", "__en__"]),
        (
            {**_SEVERAL, "langs": ["de", "en"], "langtoks_specs": ["main", "mono_dae"], "extra_data": {"mono_dae": ""}},
            ["__de__", "__en__", "__de_dae__", "__en_dae__", "<mask>"],
        ),
        ({**_SEVERAL, "task": "multilingual_translation", "encoder_langtok": "tgt"}, ["__de__", "__en__", "__fr__"]),
        ({**_SEVERAL, "task": "multilingual_translation", "encoder_langtok": None, "decoder_langtok": False}, []),
    ],
)
def test_tokens_that_a_task_of_fairseq_adds_to_its_dictionary(said, added, tmp_path):
    """``augment_dictionary`` and ``prepare`` of ``fairseq/data/multilingual`` and ``fairseq/tasks``."""
    path = edited(write_fairseq(tmp_path, "shared"), "args", **said)
    (tmp_path / "langs.txt").write_text("it\n\n de\nen\n")
    for file in tmp_path.glob("dict.*.txt"):
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[: len(lines) - len(added)]) + "\n")
    api.convert(path, tmp_path / "out", "ctranslate2")
    tokens = json.loads((tmp_path / "out/shared_vocabulary.json").read_text())
    assert tokens[len(tokens) - len(added) :] == added
    for file in tmp_path.glob("dict.*.txt"):  # what the dictionary holds already is not added
        file.write_text("".join(f"{token} 1\n" for token in tokens[4 : len(tokens) - len(added) + 1]))
    assert list(open_model(path).vocabularies["source"].tokens) == tokens


@pytest.mark.parametrize("name", ["nothere.txt", "\0"])
def test_a_list_of_languages_that_is_not_there(name, tmp_path):
    path = edited(write_fairseq(tmp_path, "shared"), "args", **_SEVERAL, lang_dict=name)
    with pytest.raises(VocabularyError, match="cannot read the list of languages"):
        open_model(path)


def test_several_pairs_must_be_chosen_from(tmp_path):
    path = write_fairseq(tmp_path, "multilingual")
    content = torch.load(path, weights_only=False)
    content["model"] |= {n.replace("de-en", "fr-en"): array for n, array in content["model"].items()}
    torch.save(content, path)
    left = api.convert(path, tmp_path / "out", "ctranslate2")["ledger"]["left_behind"]
    assert left["model.models.fr-en.encoder.embed_tokens.weight"] == "another pair of languages"
    edited(path, "args", source_lang=None)
    with pytest.raises(DialectError, match="several pairs of languages"):
        open_model(path)


def test_what_is_only_read_says_so(tmp_path):
    source = write_onmt(tmp_path / "model.pt", "version 1")
    with pytest.raises(ConfigError, match="opennmt-py"):
        api.convert(source, tmp_path / "no", "opennmt-py")


@pytest.mark.parametrize(
    "vocab", [None, 3, {}, {"src": ["a"]}, {"src": ["a"], "tgt": [1]}, {"src": ["a"], "tgt": ["b"], "src_feats": True},
              {"src": {"fields": [3]}, "tgt": ["a"]}, [3], [("src", {"itos": ["a"]})], "text"],
)  # fmt: skip
def test_vocabularies_of_opennmt_py_that_are_none(vocab):
    with pytest.raises(VocabularyError, match=r"the file holds no .*vocabulary") as error:
        opennmt_py.tables_of(vocab, "model.pt")
    assert error.value.where == "model.pt"
