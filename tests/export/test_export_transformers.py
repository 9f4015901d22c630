"""Encoder-decoder Transformers of ``transformers``: the reference converter's bytes, and the way back."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from huggingface_models import KINDS, POSITIONS, change, rewrite, write
from marian_models import OPTIONS, arrays
from marian_models import write as write_marian
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import DialectError, VocabularyError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.detect import open_checkpoint

# Of ctranslate2 4.8.5 on transformers 5.23.0, for the directories of huggingface_models.py; recorded and compared again
# by tests/interop/test_interop_convert_seq2seq.py. The positions of M2M100 and NLLB are ours (last bit of a sine).
DIGESTS = json.loads((Path(__file__).parents[1] / "golden/ctranslate2-converters/transformers.json").read_text())


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
    # the rows that the class adds and never computes with: zeros when they return
    cut = {"encoder.embedding.weight"} if "marian" in kind else set()
    cut |= {"decoder.output.bias"} if kind == "marian" else set()  # of the others it is zero, and not carried
    cut |= {"decoder.embedding.weight"} if kind == "marian-untied" else set()
    cut |= {"encoder.positions.weight", "decoder.positions.weight"} if "bart" in kind else set()
    assert set(facts["ledger"]["lossy"]) == cut
    assert all("would return as zeros" in why for why in facts["ledger"]["lossy"].values())
    api.convert(tmp_path / "way", tmp_path / "back", "transformers")
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = (open_checkpoint(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    saved = {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")} if kind == "pegasus" else set()
    unused = {"model.shared.weight"} if kind in ("bart-untied", "nllb-untied") else set()
    assert set(facts["ledger"].get("left_behind", {})) == unused
    assert set(after.entries) - set(before.entries) == saved
    assert set(before.entries) - set(after.entries) == unused
    for name in set(before.entries) - unused:
        expected = np.array(before.read(name))
        if "embed_positions" in name:
            expected[:2] = 0
        assert after.read(name).dtype == expected.dtype
        np.testing.assert_array_equal(after.read(name), expected, name)


def test_marians_own_model_becomes_theirs_with_its_positions(tmp_path):
    """What transformers' ``convert_marian_to_pytorch`` did: a row of zeros for ``<pad>``, biases and weights turned.
    Positions are written beside, since the class would compute others."""
    options = {**OPTIONS, "tied-embeddings-all": True, "dim-vocabs": [41, 41]}
    model = write_marian(tmp_path / "marian", options, arrays(options))
    facts = api.convert(model, tmp_path / "theirs", "transformers")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"], config["decoder_start_token_id"]) == (42, 41, 41)
    ours, theirs = open_checkpoint(model / "model.npz"), open_checkpoint(tmp_path / "theirs/model.safetensors")
    table = theirs.read("model.shared.weight")
    np.testing.assert_array_equal(table[:-1], ours.read("Wemb"))
    assert not table[-1].any()
    np.testing.assert_array_equal(theirs.read("final_logits_bias")[:, :-1], ours.read("decoder_ff_logit_out_b"))
    weight = theirs.read("model.decoder.layers.0.encoder_attn.k_proj.weight")
    np.testing.assert_array_equal(weight, ours.read("decoder_l1_context_Wk").T)
    assert theirs.entries["model.encoder.embed_positions.weight"].shape == (512, options["dim-emb"])
    assert facts["ledger"]["lossy"] == {"layer_norm_epsilon": "1e-05, not 1e-06"}
    api.convert(tmp_path / "theirs", tmp_path / "back", "marian")
    back = open_checkpoint(tmp_path / "back/model.npz")
    for name in ours.entries:
        np.testing.assert_array_equal(back.read(name), ours.read(name), name)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"decoder_attention_heads": 2}, "decoder_attention_heads: 2 is not supported"),
        ({"activation_function": "mish"}, "activation_function: 'mish' is not supported"),
        ({"normalize_before": True}, "normalize_before: True is not supported"),
        ({"new_trick": 3}, "new_trick: 3 is not an option that is known here"),
        ({"d_model": ...}, "d_model is missing"),
        ({"decoder_start_token_id": 7}, "decoder_start_token_id is not the end, start or padding token"),
        ({"encoder_layers": "2"}, "encoder_layers is not a positive whole number"),
        ({"encoder_attention_heads": 5, "decoder_attention_heads": 5}, "not a multiple of num_heads 5"),
    ],
)
def test_options_are_understood_or_refused(values, found, tmp_path):
    folder = write(tmp_path / "source", "bart")
    change(folder, **values)
    with pytest.raises(DialectError, match=found):
        open_model(folder)


def test_what_every_configuration_may_say_and_how_a_model_was_distilled(tmp_path):
    folder = write(tmp_path / "source", "bart")
    api.convert(folder, tmp_path / "plain", "ctranslate2")
    change(folder, pruned_heads={}, add_cross_attention=False, cross_attention_hidden_size=None, sep_token_id=None)
    change(folder, replacing_rate=0, save_step=17, student_decoder_layers=None, student_encoder_layers=None)
    api.convert(folder, tmp_path / "told", "ctranslate2")
    for name in ("model.bin", "config.json", "shared_vocabulary.json"):
        assert (tmp_path / "told" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_all_problems_are_told_at_once(tmp_path):
    folder = write(tmp_path / "source", "bart")
    change(folder, new_trick=3, activation_function="mish", decoder_attention_heads=2)
    with pytest.raises(DialectError) as error:
        open_model(folder)
    assert len(error.value.problems) == 3


def test_older_files_name_tied_tables_again(tmp_path):
    folder = write(tmp_path / "source", "bart")
    again = {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"}
    rewrite(folder, lambda arrays: arrays.update(dict.fromkeys(again, arrays["model.shared.weight"])))
    facts = api.convert(folder, tmp_path / "out", "ctranslate2")
    assert set(facts["ledger"]["left_behind"]) == set()
    assert set(facts["ledger"]["checked"]) == again | {"final_logits_bias"}
    for name in sorted(again):  # transformers 5 takes both where they differ: the model is not tied then
        rewrite(folder, lambda arrays, name=name: arrays.update({name: arrays["model.shared.weight"] + 1}))
        with pytest.raises(DialectError, match=f"{re.escape(name)} is not the same as encoder.embedding.weight"):
            api.convert(folder, tmp_path / "no", "ctranslate2")
        rewrite(folder, lambda arrays, name=name: arrays.update({name: arrays["model.shared.weight"]}))


def test_arrays_must_fit_and_none_is_forgotten(tmp_path):
    folder = write(tmp_path / "source", "mbart")
    rewrite(folder, lambda arrays: arrays.update({"extra.weight": np.zeros(3, np.float32)}))
    with pytest.raises(DialectError, match=r"extra\.weight would be left behind"):
        api.convert(folder, tmp_path / "no", "ctranslate2")
    rewrite(folder, lambda arrays: (arrays.pop("extra.weight"), arrays.pop("model.encoder.layers.1.fc1.bias")))
    with pytest.raises(DialectError, match=r"model\.encoder\.layers\.1\.fc1\.bias is missing"):
        api.convert(folder, tmp_path / "no", "ctranslate2")


def test_computed_positions_in_a_file_are_compared(tmp_path):
    folder = write(tmp_path / "source", "pegasus")
    name = "model.encoder.embed_positions.weight"
    rewrite(folder, lambda arrays: arrays.update({name: np.ones((POSITIONS, 16), np.float32)}))
    with pytest.raises(DialectError, match=r"model\.decoder\.embed_positions\.weight is missing"):
        api.convert(folder, tmp_path / "no", "ctranslate2")  # no longer computed: then both sides must bring theirs


def test_what_no_class_computes_is_refused(tmp_path):
    source = write(tmp_path / "source", "bart")
    with pytest.raises(DialectError, match="positions_per_side: True is not what Marian computes"):
        api.convert(source, tmp_path / "no", "marian")
    options = {**OPTIONS, "transformer-preprocess": "n", "transformer-postprocess": "da", "version": "v1.12.0"}
    options["transformer-postprocess-top"] = "n"
    model = write_marian(tmp_path / "marian", options, arrays(options))
    with pytest.raises(DialectError, match="MarianMTModel: it is post-norm"):
        api.convert(model, tmp_path / "no", "transformers")


def test_a_tokenizer_is_needed_and_named(tmp_path):
    folder = write(tmp_path / "source", "nllb")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(VocabularyError, match="no table of tokens lies beside the model"):
        open_model(folder)


def test_a_start_token_that_no_file_names_is_still_written(tmp_path):
    """The reference writes ``null`` (mBART-50 on transformers 5), and the engine then refuses its own model."""
    folder = write(tmp_path / "source", "mbart50")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    api.convert(folder, tmp_path / "out", "ctranslate2")
    assert json.loads((tmp_path / "out/config.json").read_text())["bos_token"] == "<s>"


@pytest.mark.parametrize("kind", ["marian", "pegasus", "m2m"])
def test_what_a_model_bin_has_no_place_for_comes_back(kind, tmp_path):
    """Its config.json says that sources are not framed, since transformers' tokenizers do it: Marian must know."""
    source = write(tmp_path / "source", kind)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    assert open_model(tmp_path / "ct2").config == open_model(source).config
    for step, before in (("bundle", "ct2"), ("again", "bundle")):
        api.convert(tmp_path / before, tmp_path / step, "warmstart" if step == "bundle" else "ctranslate2")
    for name in ("model.bin", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ct2" / name).read_bytes()
    if kind == "marian":
        api.convert(tmp_path / "ct2", tmp_path / "npz", "marian")
