"""Decoder-only models of ``transformers``: the reference converter's bytes, and the way back."""

from __future__ import annotations

import io
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

import decoder_models
from decoder_models import write
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.converters import OpenAIGPT2Converter, TransformersConverter
from warmstart.errors import ConfigError, CorruptCheckpoint, DialectError, FormatError, VocabularyError
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors
from warmstart.formats.tensorflow import write_bundle
from warmstart.frontends import ct2
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.architectures import ARCHITECTURES
from warmstart.models.decoder.dialects.transformers import choose
from warmstart.models.decoder.dialects.transformers import read as read_config
from warmstart.models.decoder.dialects.transformers import write as write_config

# Of ctranslate2 4.8.5 on transformers 5.23.0; recorded and compared again by
# tests/interop/test_interop_convert_decoder.py.
DIGESTS = json.loads((decoder_models.GOLDEN / "digests.json").read_text())
KINDS = sorted(kind for kind in DIGESTS if "-awq-" not in kind and kind != "opt-smoothed")
PACKED = [(kind, layout) for kind, layouts in decoder_models.PACKED.items() for layout in layouts]


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_reference_converter(kind, tmp_path):
    source = write(tmp_path / "source", kind)
    for quantization in QUANTIZATIONS:
        ours = tmp_path / quantization
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        for name, digest in DIGESTS[kind][quantization].items():
            assert sha256((ours / name).read_bytes()).hexdigest() == digest, (quantization, name)


LOSSY = {"opt": {"positions.weight"}, "opt-projected": {"positions.weight"}}
FORGOTTEN = {
    "gemma2": {"attention_softcap", "logit_softcap", "sliding_window"},
    "phi3-long": {"original_max_positions"},
}


@pytest.mark.parametrize("way", ["warmstart", "ctranslate2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_returns_with_every_file(kind, way, tmp_path):
    source = write(tmp_path / "source", kind)
    ledger = api.convert(source, tmp_path / "way", way)["ledger"]
    assert not ledger["left_behind"]
    lost = FORGOTTEN.get(kind, set()) if way == "ctranslate2" else set()
    assert set(ledger["lossy"]) == LOSSY.get(kind, set()) | lost
    api.convert(tmp_path / "way", tmp_path / "back", "transformers")
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = (open_checkpoint(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert set(before.entries) == set(after.entries)
    for name in before.entries:
        expected = np.array(before.read(name))
        if "embed_positions" in name:
            expected[:2] = 0  # rows that stand for padding, which the model never reads
        assert after.read(name).tobytes() == expected.tobytes(), name


def test_without_our_records_a_model_returns_as_the_first_architecture_that_is_alike(tmp_path):
    for kind, expected in {"qwen2": "qwen2", "falcon-40b": "falcon", "gemma3": "gemma3_text", "mpt": "mpt"}.items():
        source = write(tmp_path / kind, kind)
        api.convert(source, tmp_path / f"{kind}-ct2", "ctranslate2")
        for name in ("warmstart.json", "vocabularies/text.json"):
            (tmp_path / f"{kind}-ct2" / name).unlink()
        api.convert(tmp_path / f"{kind}-ct2", tmp_path / f"{kind}-back", "transformers")
        config = json.loads((tmp_path / f"{kind}-back/config.json").read_text())
        assert config["model_type"] == expected
        before, after = (open_checkpoint(tmp_path / n / "model.safetensors") for n in (kind, f"{kind}-back"))
        assert {n: before.read(n).tobytes() for n in before.entries} == {
            n: after.read(n).tobytes() for n in after.entries
        }


@pytest.mark.parametrize("scalar", [8, 144, 168])
def test_a_scale_of_scores_returns_as_the_number_that_it_is_the_root_of(scalar, tmp_path):
    write(tmp_path / "source", "gemma3", query_pre_attn_scalar=scalar, head_dim=8)
    api.convert(tmp_path / "source", tmp_path / "ct2", "ctranslate2")
    (tmp_path / "ct2/warmstart.json").unlink()
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    assert json.loads((tmp_path / "back/config.json").read_text())["query_pre_attn_scalar"] == scalar


ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
LLAMA3 = {
    "rope_theta": 1e6, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kinds", "rope"),
    [
        (["sliding_attention"] * 7, {"full_attention": {**ROPE, "rope_theta": 1e6}, "sliding_attention": ROPE}),
        (["full_attention"] * 7, {"full_attention": {**ROPE, "rope_theta": 1e6}, "sliding_attention": ROPE}),
        (["sliding_attention", "full_attention"] * 3 + ["full_attention"],
         {"full_attention": LLAMA3, "sliding_attention": ROPE}),
        (["sliding_attention", "full_attention"] * 3 + ["full_attention"],
         {"full_attention": ROPE, "sliding_attention": ROPE}),
    ],
)  # fmt: skip
def test_gemma_3_returns_with_the_positions_of_each_layer(kinds, rope, tmp_path):
    write(tmp_path / "source", "gemma3", layer_types=kinds, rope_parameters=rope)
    for name, source in (("ct2", "source"), ("back", "ct2"), ("again", "back")):
        api.convert(tmp_path / source, tmp_path / name, "transformers" if name == "back" else "ctranslate2")
        (tmp_path / name / "warmstart.json").unlink(missing_ok=True)
    assert (tmp_path / "again/model.bin").read_bytes() == (tmp_path / "ct2/model.bin").read_bytes()


def test_the_engine_scales_by_lengths_only_where_the_model_does(tmp_path):
    """It multiplies sines and cosines by a factor of their quotient, of whatever kind the positions are."""
    source = write(tmp_path / "source", "phi3", max_position_embeddings=4096, original_max_position_embeddings=64)
    api.convert(source, tmp_path / "out", "ctranslate2")
    assert "decoder/layer_0/self_attention/max_position_embeddings" not in open_checkpoint(tmp_path / "out").entries
    api.convert(tmp_path / "out", tmp_path / "back", "transformers")
    assert (tmp_path / "back/config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("llama-llama3", {}, 1024),
        ("llama-llama3", {"original_max_position_embeddings": ...}, 77),
        ("phi3-long", {"original_max_position_embeddings": 48}, 32),
    ],
)
def test_the_length_before_stretching_is_found_as_transformers_does(kind, values, expected, tmp_path):
    source = write(tmp_path / "source", kind)
    config = json.loads((source / "config.json").read_text())
    rope = {k: v for k, v in {**config["rope_parameters"], **values}.items() if v is not ...}
    config |= {"max_position_embeddings": 77, "rope_parameters": rope}
    (source / "config.json").write_text(json.dumps(config))
    assert open_model(source).config.original_max_positions == expected


def test_a_factor_of_long_rope_that_the_engine_does_not_compute_is_named(tmp_path):
    rope = {"rope_type": "longrope", "long_factor": [1.5, 2.0], "short_factor": [1.0, 1.25], "rope_theta": 10000.0}
    values = {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}
    for factor, lost in ((1.0, set()), (2.0, {"rotary_scaling.attention_factor"})):
        source = write(tmp_path / f"{factor}", "phi3-long", rope_parameters={**rope, "factor": factor}, **values)
        facts = api.convert(source, tmp_path / f"{factor}-out", "ctranslate2")
        assert set(facts["ledger"]["lossy"]) == lost


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_tables_say_what_they_read(architecture):
    """Every architecture's defaults are read, written from the settings alone, and read again alike."""
    config = read_config(architecture, {"model_type": architecture.name})
    plain = config.model_copy(update={"original": {}})
    assert choose(plain) == architecture
    again = read_config(architecture, write_config(architecture, plain))
    assert again.model_copy(update={"original": {}}) == plain


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("llama", {"new_trick": 3}, "new_trick: 3 is not an option that is known here"),
        ("llama", {"hidden_act": "mish"}, "hidden_act: 'mish' is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "type 'yarn' are not supported"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "knob": 1}}, "knob is not known here"),
        ("llama", {"num_attention_heads": 3, "head_dim": ...}, "3 heads do not divide 16"),
        ("llama", {"num_key_value_heads": 3}, "4 heads do not share 3 keys"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5 is not supported"),
        ("gpt2", {"n_layer": "two"}, "not positive whole numbers"),
        ("gptj", {"rotary_dim": 3}, "rotary_dim 3 is odd"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm: True is not supported"),
        ("mpt", {"attn_config": {"alibi": False}}, "attn_config.alibi: False is not supported"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "is not supported"),
        ("phi3-long", {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
         "LongRoPE needs a factor"),
    ],
)  # fmt: skip
def test_options_are_understood_or_refused(kind, values, found, tmp_path):
    folder = write(tmp_path / "source", kind, **values)
    with pytest.raises(DialectError, match=found):
        open_model(folder)


@pytest.mark.parametrize(
    ("files", "tail", "eos"),
    [
        ({"added_tokens.json": {"<x>": 45}}, ["<x>", "<extra_id_0>", "<extra_id_1>"], "</s>"),
        ({"special_tokens_map.json": {"eos_token": "<unk>"}},
         ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"], "<unk>"),
        ({"special_tokens_map.json": {"eos_token": "<unk>"}, "tokenizer_config.json": {"added_tokens_decoder": {}}},
         ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"], "</s>"),
        ({"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<i>"}}},
         ["<i>", "<extra_id_0>", "<extra_id_1>"], "</s>"),
        ({"tokenizer_config.json": {"image_token": "<i>", "additional_special_tokens": ["<q>"], "pad_token": "<p>"}},
         ["<p>", "<i>", "<q>"], "</s>"),
    ],
)  # fmt: skip
def test_tokens_that_a_tokenizers_files_add_to_its_table(files, tail, eos, tmp_path):
    """Expected is what ct2-transformers-converter writes with transformers 5.23."""
    source = write(tmp_path / "source", "llama")
    for name, values in files.items():
        known = json.loads((source / name).read_text()) if (source / name).is_file() else {}
        (source / name).write_text(json.dumps({**known, **values}))
    api.convert(source, tmp_path / "out", "ctranslate2")
    assert json.loads((tmp_path / "out/vocabulary.json").read_text())[45:] == tail
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token"] == eos


def test_pieces_are_the_table_where_there_is_no_other(tmp_path):
    """Expected is what ct2-transformers-converter writes with transformers 5.23."""
    source = write(tmp_path / "source", "llama")
    settings = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<p>"}
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    model = io.BytesIO()
    text = ["hello world this is a test", "the quick brown fox jumps"] * 20
    SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=model, vocab_size=30, minloglevel=2)
    (source / "tokenizer.model").write_bytes(model.getvalue())
    pieces = SentencePieceProcessor(model_proto=model.getvalue()).id_to_piece(list(range(30)))
    api.convert(source, tmp_path / "out", "ctranslate2")
    found = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert found == [*pieces, "<p>", *(f"<extra_id_{k}>" for k in range(17))]
    api.convert(tmp_path / "out", tmp_path / "back", "transformers")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == sorted(
        [*(p.name for p in source.iterdir()), "conversion.json"]
    )
    (source / "tokenizer.model").write_bytes(b"no pieces")
    with pytest.raises(VocabularyError, match=r"not a SentencePiece model(?s:.)*where: "):
        open_model(source)


@pytest.mark.parametrize(
    ("kind", "settings", "values", "expected"),
    [
        ("llama", None, {}, ("<s>", "</s>", "")),  # tokenizer.json alone
        ("llama", None, {"eos_token_id": [2, 5], "bos_token_id": None}, ("</s>", "</s>", "")),
        ("llama", {"bos_token": None}, {"bos_token_id": 3}, ("t3", "</s>", "<unk>")),
        ("qwen2", {"bos_token": None, "unk_token": None, "pad_token": "t4"}, {"bos_token_id": 3},
         ("t4", "</s>", "<|endoftext|>")),
        ("mpt", None, {"bos_token_id": 1, "eos_token_id": 2}, ("<|endoftext|>", "<|endoftext|>", "<|endoftext|>")),
        ("falcon-7b", None, {"eos_token_id": 2}, ("</s>", "</s>", "</s>")),
    ],
)  # fmt: skip
def test_tokens_without_which_the_engine_opens_no_model(kind, settings, values, expected, tmp_path):
    source = write(tmp_path / "source", kind, **values)
    path = source / "tokenizer_config.json"
    known = json.loads(path.read_text())
    path.unlink() if settings is None else path.write_text(json.dumps({**known, **settings}))
    api.convert(source, tmp_path / "out", "ctranslate2")
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert tuple(said[f"{role}_token"] for role in ("bos", "eos", "unk")) == expected
    open_model(tmp_path / "out")


def test_a_language_model_without_an_end_token_is_refused(tmp_path):
    source = write(tmp_path / "source", "llama", eos_token_id=None)
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(DialectError, match=r"nothing names the end token(?s:.)*where: .*source"):
        api.convert(source, tmp_path / "out", "ctranslate2")
    api.convert(source, tmp_path / "bundle", "warmstart")


EVERY_CONFIGURATION = {
    "pruned_heads": {}, "cross_attention_hidden_size": None, "add_cross_attention": False, "is_decoder": False,
    "tie_encoder_decoder": False, "is_encoder_decoder": False, "quantization_config": None, "xla_device": None,
    "unk_token_id": None, "auto_map": {"AutoConfig": "own.Config"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        *((kind, EVERY_CONFIGURATION) for kind in ("gpt2", "llama", "falcon-7b", "mpt", "phi3", "gemma3")),
        ("gemma3", {"sliding_window_pattern": 6, "_sliding_window_pattern": 6}),  # fine-tuned with transformers 4.53
        ("gemma3", {"sliding_window_pattern": 6, "_sliding_window_pattern": 6, "layer_types": ...}),
        ("gpt2", {"n_special": 0, "predict_special_tokens": True}),  # gpt2-medium and larger
        ("llama", {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {}}),  # SmolLM2
        ("llama", {"max_sequence_length": 2048, "unsloth_fixed": True}),  # Vicuna
        ("neox", {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "custom_pipelines": {}}),  # 20B, Dolly
        ("bloom", {"n_embed": 16}),
        ("gpt2", {"apply_query_key_layer_scaling": True, "normalize_attention_scores": True}),  # GPT-SW3
        ("mistral", {"attention_bias": False}),
        ("gemma2", {"sliding_window_size": 4096}),  # 9B and 27B
        ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False}),  # Phi-4-mini
        ("falcon-40b", {"ff_factor": 4}),  # Falcon 2
        ("opt", {"learned_embeddings": True, "scale_embeddings": False}),
        ("mpt", {"attn_config": {"alibi": True, "attn_impl": "torch", "attn_pdrop": 0, "model_type": ""}}),
    ],
)
def test_what_published_configurations_say_and_nothing_computes_with(kind, values, tmp_path):
    source = write(tmp_path / "source", kind, **values)
    api.convert(source, tmp_path / "out", "ctranslate2")
    for name, digest in DIGESTS[kind]["none"].items():
        assert sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize(
    ("kind", "values", "found"),
    [
        ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads: .* is not supported"),
        ("llama", {"tie_encoder_decoder": True}, "tie_encoder_decoder: True is not supported"),
        ("opt", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config: .* is not supported"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved: True is not supported"),
        ("mistral", {"attention_bias": True}, "attention_bias: True is not supported"),
        ("phi3", {"full_attn_mod": 2}, "full_attn_mod: 2 is not supported"),
        ("opt", {"scale_embeddings": True}, "scale_embeddings: True is not supported"),
        ("bloom", {"n_embed": 32}, "n_embed: 32 is not an option that is known here"),
        ("mpt", {"attn_config": {"rope": True}}, "attn_config.rope: True is not an option that is known here"),
    ],
)
def test_the_same_switched_on_is_refused(kind, values, found, tmp_path):
    with pytest.raises(DialectError, match=found):
        open_model(write(tmp_path / "source", kind, **values))


def test_an_unknown_key_says_what_may_be_done(tmp_path):
    with pytest.raises(DialectError) as error:
        open_model(write(tmp_path / "source", "llama", new_trick=3))
    assert "may be taken out of config.json" in str(error.value.todo)


def test_all_problems_are_told_at_once(tmp_path):
    folder = write(tmp_path / "source", "llama", new_trick=3, hidden_act="mish", rope_parameters={"rope_type": "yarn"})
    with pytest.raises(DialectError) as error:
        open_model(folder)
    assert len(error.value.problems) == 3


def test_older_configurations_mean_the_same(tmp_path):
    new = open_model(write(tmp_path / "new", "llama-linear")).config
    old = open_model(
        write(
            tmp_path / "old", "llama-linear", rope_parameters=..., rope_theta=5000.0,
            rope_scaling={"type": "linear", "factor": 2.0},
        )
    ).config  # fmt: skip
    assert isinstance(new, DecoderConfig)
    assert isinstance(old, DecoderConfig)
    assert new.model_copy(update={"original": {}}) == old.model_copy(update={"original": {}})


def test_falcon_under_its_first_name(tmp_path):
    gone = dict.fromkeys(
        ("new_decoder_architecture", "num_kv_heads", "multi_query", "num_hidden_layers", "num_attention_heads"), ...
    )
    source = write(
        tmp_path / "source", "falcon-40b", model_type="RefinedWeb", n_head_kv=2, n_layer=2, n_head=4, **gone
    )  # fmt: skip
    api.convert(source, tmp_path / "out", "ctranslate2")
    digest = sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest()
    assert digest == DIGESTS["falcon-40b"]["none"]["model.bin"]


def rewrite(folder: Path, change) -> None:
    """The arrays of ``folder``, as ``change`` (arrays → arrays) leaves them."""
    checkpoint = open_checkpoint(folder / "model.safetensors")
    arrays = change({name: np.array(checkpoint.read(name)) for name in checkpoint.entries})
    entries = [Entry(name, value.shape, value.dtype.name) for name, value in arrays.items()]
    write_safetensors(folder / "new", entries, arrays.values(), {"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")


def test_pointers_of_git_lfs_are_named(tmp_path):
    source = write(tmp_path / "source", "llama")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (source / "tokenizer.json").write_text(pointer)
    with pytest.raises(VocabularyError, match="a git-lfs pointer"):
        open_model(source)
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (source / "model.safetensors").rename(source / shards[0])
    (source / shards[1]).write_text(pointer)
    index = {"a": shards[0], "b": shards[1]}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(CorruptCheckpoint, match=f"{shards[1]} is a git-lfs pointer"):
        open_model(source)


def test_names_without_the_prefix_and_buffers_of_older_versions(tmp_path):
    source = write(tmp_path / "source", "gpt2")

    def older(arrays):
        arrays = {name.removeprefix("transformer."): value for name, value in arrays.items()}
        return {**arrays, "h.0.attn.bias": np.ones((1, 1, 20, 20), np.float32)}

    rewrite(source, older)
    ledger = api.convert(source, tmp_path / "out", "ctranslate2")["ledger"]
    assert list(ledger["left_behind"]) == ["transformer.h.0.attn.bias"]
    digest = sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest()
    assert digest == DIGESTS["gpt2"]["none"]["model.bin"]


def test_a_tied_table_under_two_names_must_be_one(tmp_path):
    source = write(tmp_path / "source", "gpt2")
    rewrite(source, lambda arrays: {**arrays, "lm_head.weight": arrays["transformer.wte.weight"]})
    api.convert(source, tmp_path / "out", "ctranslate2")
    rewrite(source, lambda arrays: {**arrays, "lm_head.weight": arrays["transformer.wte.weight"] + 1})
    with pytest.raises(DialectError, match="contradict each other"):
        api.convert(source, tmp_path / "other", "ctranslate2")


def test_unexplained_and_misshapen_arrays_are_named(tmp_path):
    source = write(tmp_path / "source", "llama")
    rewrite(source, lambda arrays: {**arrays, "model.layers.0.surprise": np.ones(3, np.float32)})
    with pytest.raises(DialectError, match=r"model.layers.0.surprise would be left behind"):
        api.convert(source, tmp_path / "out", "ctranslate2")
    source = write(tmp_path / "second", "llama")
    key = "model.layers.1.mlp.up_proj.weight"
    rewrite(source, lambda arrays: {**arrays, key: arrays[key].T.copy()})
    with pytest.raises(DialectError, match=r"mlp.up_proj.weight has another shape"):
        api.convert(source, tmp_path / "out", "ctranslate2")


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    source = write(tmp_path / "source", "gpt2")
    decoder_models.tokenizer(source, 46)
    with pytest.raises(Exception, match="does not fit the model"):
        open_model(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(VocabularyError, match="no table of tokens"):
        api.convert(source, tmp_path / "out", "ctranslate2")


def test_quantized_models_return_with_the_error_stated(tmp_path):
    source = write(tmp_path / "source", "llama")
    api.convert(source, tmp_path / "int8", "ctranslate2", quantize="int8")
    ledger = api.convert(tmp_path / "int8", tmp_path / "back", "transformers")["ledger"]
    assert "dequantized from int8" in ledger["lossy"]["decoder/layer_0/ffn/linear_1/weight"]
    before, after = (open_checkpoint(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    name = "model.layers.0.self_attn.k_proj.weight"
    step = np.abs(before.read(name)).max(axis=1, keepdims=True) / 127
    assert (np.abs(before.read(name) - after.read(name)) <= step * 0.5001).all()
    with pytest.raises(ConfigError, match="quantized already"):
        api.convert(tmp_path / "int8", tmp_path / "again", "ctranslate2", quantize="int16")


def test_the_family_converts_but_does_not_train(tmp_path):
    family, config, _ = open_model(write(tmp_path / "source", "llama")).require()
    with pytest.raises(DialectError, match="can be converted"):
        family.build(config)


@pytest.mark.parametrize(("kind", "layout"), PACKED)
def test_packed_weights_are_passed_on(kind, layout, tmp_path):
    source = decoder_models.write_packed(tmp_path / "source", kind, layout)
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    for name, digest in DIGESTS[f"{kind}-awq-{layout}"]["none"].items():
        assert sha256((tmp_path / "ct2" / name).read_bytes()).hexdigest() == digest, name
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    before, after = (open_checkpoint(folder / "model.safetensors") for folder in (source, tmp_path / "back"))
    assert {n: before.read(n).tobytes() for n in before.entries} == {n: after.read(n).tobytes() for n in after.entries}
    with pytest.raises(ConfigError, match="quantized already"):
        api.convert(source, tmp_path / "again", "ctranslate2", quantize="int8")


def test_what_goes_with_packed_weights_is_float16(tmp_path):
    """Whatever config.json says: the engine computes with packed weights in float16 alone."""
    source = decoder_models.write_packed(tmp_path / "source", "llama", "gemm")
    config = json.loads((source / "config.json").read_text())
    expected = api.convert(source, tmp_path / "a", "ctranslate2")
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    facts = api.convert(source, tmp_path / "b", "ctranslate2")
    assert (tmp_path / "a/model.bin").read_bytes() == (tmp_path / "b/model.bin").read_bytes()
    assert facts["ledger"]["lossy"] == expected["ledger"]["lossy"] == {}


def test_a_dtype_that_config_json_says_is_followed_and_told(tmp_path):
    source = write(tmp_path / "source", "gpt2", dtype="float16")
    stored = open_checkpoint(source / "model.safetensors")
    arrays = {name: np.array(stored.read(name), np.float32) for name in stored.entries}
    entries = [Entry(name, value.shape, "float32") for name, value in arrays.items()]
    write_safetensors(source / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    told = api.convert(source, tmp_path / "a", "ctranslate2")["ledger"]["lossy"]
    assert told["transformer.wte.weight"] == "float32 becomes float16, which config.json says"
    arrays["transformer.h.1.mlp.c_fc.weight"][0, 0] = 1e6
    write_safetensors(source / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    with pytest.raises(FormatError, match="values do not fit into float16") as error:
        api.convert(source, tmp_path / "b", "ctranslate2")
    assert "transformer.h.1.mlp.c_fc.weight" in error.value.where


def test_biases_of_packed_layers_travel(tmp_path):
    """The reference leaves them out when it joins packed queries, keys and values."""
    source = decoder_models.write_packed(tmp_path / "source", "qwen2", "gemm")
    api.convert(source, tmp_path / "ct2", "ctranslate2")
    before, after = open_checkpoint(source / "model.safetensors"), open_checkpoint(tmp_path / "ct2/model.bin")
    biases = [before.read(f"model.layers.0.self_attn.{part}_proj.bias") for part in "qkv"]
    np.testing.assert_array_equal(after.read("decoder/layer_0/self_attention/linear_0/bias"), np.concatenate(biases))


def test_activations_are_smoothed_as_theirs(tmp_path):
    source = write(tmp_path / "source", "opt")
    scales = decoder_models.activation_scales(source)

    def save(arrays: dict[str, np.ndarray]) -> Path:
        entries = [Entry(name, value.shape, value.dtype.name) for name, value in arrays.items()]
        write_safetensors(tmp_path / "scales.safetensors", entries, arrays.values())
        return tmp_path / "scales.safetensors"

    for quantization, digests in DIGESTS["opt-smoothed"].items():
        out = tmp_path / quantization
        api.convert(source, out, "ctranslate2", quantize=quantization, activation_scales=save(scales))
        assert sha256((out / "model.bin").read_bytes()).hexdigest() == digests["model.bin"]
    del scales["model.decoder.layers.1.fc1"]
    with pytest.raises(DialectError, match=r"layers.1.fc1 is missing"):
        api.convert(source, tmp_path / "out", "ctranslate2", activation_scales=save(scales))
    with pytest.raises(DialectError, match="cannot be smoothed"):
        api.convert(write(tmp_path / "b", "llama"), tmp_path / "out", "ctranslate2", activation_scales=save(scales))


def write_openai(folder: Path) -> Path:
    """The arrays of ``write(…, "gpt2")`` as OpenAI's code saved them."""
    source = write(folder / "gpt2", "gpt2")
    checkpoint = open_checkpoint(source / "model.safetensors")
    spelt = {"ln_1": "ln_1", "ln_2": "ln_2", "ln_f": "ln_f"}
    arrays: list[tuple[str, np.ndarray]] = []
    for name in checkpoint.entries:
        value = np.array(checkpoint.read(name))
        *path, what = name.removeprefix("transformer.").split(".")
        place = "/".join(["model", *path]).replace("/h/", "/h")
        if path[-1] in ("wte", "wpe"):
            arrays.append((place, value))
        elif path[-1] in spelt:
            arrays.append((f"{place}/{'g' if what == 'weight' else 'b'}", value))
        else:
            arrays.append((f"{place}/{what[0]}", value[None] if what == "weight" else value))
    model = folder / "124M"
    model.mkdir()
    write_bundle(model / "model.ckpt", sorted(arrays))
    (model / "hparams.json").write_text('{"n_vocab": 48, "n_ctx": 20, "n_embd": 16, "n_head": 4, "n_layer": 2}')
    words = {"<|endoftext|>": 47, **{f"t{row}": row for row in range(47)}}
    (model / "encoder.json").write_text(json.dumps(words))
    (model / "vocab.bpe").write_text("#version: 0.2\n")
    return model


def test_gpt2_as_openai_published_it(tmp_path):
    """The reference converter fails (it sets an attribute that is none); the arrays are those of transformers' GPT-2,
    so the bytes are those of its converter."""
    model = write_openai(tmp_path)
    OpenAIGPT2Converter(model).convert(tmp_path / "ct2")
    ct2.run("ct2-openai-gpt2-converter", ["--model_dir", str(model), "--output_dir", str(tmp_path / "command")])
    for folder in ("ct2", "command"):
        digest = sha256((tmp_path / folder / "model.bin").read_bytes()).hexdigest()
        assert digest == DIGESTS["gpt2"]["none"]["model.bin"]
    assert json.loads((tmp_path / "ct2/config.json").read_text()) == {
        "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "layer_norm_epsilon": None,
        "multi_query_attention": True, "unk_token": "<|endoftext|>",
    }  # fmt: skip
    assert json.loads((tmp_path / "ct2/vocabulary.json").read_text())[45:] == ["t45", "t46", "<|endoftext|>"]
    api.convert(model, tmp_path / "theirs", "transformers")
    before, after = (open_checkpoint(tmp_path / n / "model.safetensors") for n in ("gpt2", "theirs"))
    assert {n: before.read(n).tobytes() for n in before.entries} == {n: after.read(n).tobytes() for n in after.entries}
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert (config["model_type"], config["eos_token_id"], config["n_positions"]) == ("gpt2", 47, 20)
    (model / "hparams.json").write_text('{"n_vocab": 48, "n_ctx": 20, "n_embd": 18, "n_head": 4, "layers": 2}')
    with pytest.raises(DialectError) as error:
        open_model(model)
    assert len(error.value.problems) == 3


def test_upstreams_command_and_class(tmp_path):
    source = write(tmp_path / "source", "qwen3")
    flags = ["--model", str(source), "--output_dir", str(tmp_path / "a"), "--quantization", "int8", "--copy_files"]
    ct2.run("ct2-transformers-converter", [*flags, "tokenizer.json", "--low_cpu_mem_usage"])
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    TransformersConverter(source, load_as_float16=True).convert(tmp_path / "b", quantization="int8")
    for folder, quantization in (("a", "int8"), ("b", "int8_float16")):
        digest = sha256((tmp_path / folder / "model.bin").read_bytes()).hexdigest()
        assert digest == DIGESTS["qwen3"][quantization]["model.bin"]
    with pytest.raises(ConfigError) as error:
        TransformersConverter(source, trust_remote_code=True)
    assert len(error.value.problems) == 1
