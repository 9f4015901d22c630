"""T5 and its successors: the reference converter's bytes, and the ways between the dialects."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from sentencepiece import SentencePieceTrainer

import t5_models
from huggingface_models import change, rewrite
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import DialectError, VocabularyError
from warmstart.export.convert import convert_model
from warmstart.export.quantize import QUANTIZATIONS
from warmstart.formats import mapped
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import write_ctranslate2
from warmstart.formats.tensorflow import write_bundle

# Of ctranslate2 4.8.5 on transformers 5.23.0, for the directories of t5_models.py; recorded and compared again by
# tests/interop/test_interop_convert_t5.py, with the one correction of docs/decisions/0014.
DIGESTS = json.loads((Path(__file__).parents[1] / "golden/ctranslate2-converters/t5.json").read_text())
WAYS = ("t5x", "mesh-tensorflow", "warmstart", "ctranslate2")


def arrays_of(path: Path) -> dict[str, tuple[str, bytes]]:
    checkpoint = open_checkpoint(path)
    return {name: (e.dtype, checkpoint.read(name).tobytes()) for name, e in checkpoint.entries.items()}


@pytest.mark.parametrize("kind", t5_models.KINDS)
def test_bytes_are_those_of_the_reference_converter(kind, tmp_path):
    source = t5_models.write(tmp_path / "source", kind)
    for quantization in QUANTIZATIONS:
        ours = tmp_path / quantization
        api.convert(source, ours, "ctranslate2", quantize=quantization)
        for name, digest in DIGESTS[kind][quantization].items():
            assert sha256((ours / name).read_bytes()).hexdigest() == digest, (quantization, name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [k for k in t5_models.KINDS if k != "umt5"])
def test_a_model_returns_with_every_file(kind, way, tmp_path):
    source = t5_models.write(tmp_path / "source", kind)
    facts = api.convert(source, tmp_path / "way", way)
    assert facts["ledger"]["left_behind"] == facts["ledger"]["lossy"] == {}
    api.convert(tmp_path / "way", tmp_path / "back", "transformers")
    before, after = arrays_of(source), arrays_of(tmp_path / "back")
    if kind == "t5-1.1-tied":  # written beside, since tie_word_embeddings would scale
        assert after.pop("lm_head.weight") == before["shared.weight"]
    assert after == before
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            ours = (tmp_path / "back" / file.name).read_bytes()
            if file.name == "config.json":
                old, new = json.loads(file.read_bytes()), json.loads(ours)
                assert {k: new.get(k) for k in old} == old
                assert set(new) - set(old) <= DEFAULTS
            else:
                assert ours == file.read_bytes(), file.name


DEFAULTS = {  # which a config.json may leave out
    "dtype", "feed_forward_proj", "dropout_rate", "layer_norm_epsilon", "scale_decoder_outputs", "tie_word_embeddings",
}  # fmt: skip


def test_every_dialect_to_every_other(tmp_path):
    """From T5X's own tiny checkpoint all around, and each time the same arrays."""
    source = t5_models.write(tmp_path / "transformers", "t5-1.1")
    names = ["transformers", "t5x", "t5x-scanned", "mesh-tensorflow", "warmstart", "ctranslate2"]
    for name in names[1:]:
        if name == "t5x-scanned":
            with pytest.raises(DialectError, match="position bias for each layer"):
                api.convert(source, tmp_path / name, name)
        else:
            api.convert(source, tmp_path / name, name)
    names.remove("t5x-scanned")
    for first in names:
        for second in names:
            if second != first:
                api.convert(tmp_path / first, tmp_path / f"{first}-{second}", second)
                assert arrays_of(tmp_path / f"{first}-{second}") == arrays_of(tmp_path / second), (first, second)


def test_umt5_in_scanned_layers(tmp_path):
    source = t5_models.write(tmp_path / "source", "umt5-tied")
    api.convert(source, tmp_path / "scanned", "t5x-scanned")
    there = open_checkpoint(tmp_path / "scanned")
    assert there.entries["target/encoder/encoder/attention/query/kernel"].shape == (16, 3, 4, 6)
    api.convert(tmp_path / "scanned", tmp_path / "apart", "t5x")
    api.convert(tmp_path / "apart", tmp_path / "back", "transformers")
    assert arrays_of(tmp_path / "back") == arrays_of(source)


def test_the_tiny_model_of_t5x(fixtures, tmp_path):
    source = fixtures / "fixtures/t5x/testdata/test_t5_tiny.checkpoint_0"
    facts = api.convert(source, tmp_path / "mtf", "mesh-tensorflow")
    assert facts["ledger"]["used"] == 52
    assert not facts["ledger"]["left_behind"]
    api.convert(tmp_path / "mtf", tmp_path / "t5x", "t5x")
    assert arrays_of(tmp_path / "t5x") == arrays_of(source)
    with pytest.raises(VocabularyError, match="vocabulary is not known"):
        api.convert(source, tmp_path / "no", "transformers")


def test_the_tiny_model_of_mesh_tensorflow(fixtures):
    """Its data are missing; its index says everything else, its operative_config.gin the activation."""
    model = open_model(fixtures / "fixtures/t5x/testdata/mtf_tiny_t5")
    assert (model.dialect, len(model.reading.origins), model.reading.unknown) == ("mesh-tensorflow", 52, [])
    assert (model.config.d_model, model.config.d_kv, model.config.num_heads) == (32, 64, 2)
    assert len(model.checkpoint.slots) == 52


def test_layers_that_its_gin_says_must_be_there(fixtures, tmp_path):
    shutil.copytree(fixtures / "fixtures/t5x/testdata/mtf_tiny_t5", tmp_path / "tiny")
    gin = tmp_path / "tiny/operative_config.gin"
    gin.write_text(gin.read_text().replace("decoder/make_layer_stack.num_layers = %num_layers", "decoder/num_layers=3"))
    with pytest.raises(DialectError, match="decoder/num_layers is 3, but the arrays say 2"):
        open_model(tmp_path / "tiny")


def with_adafactor(source: Path, folder: Path) -> Path:
    """The model in mesh-tensorflow's own bundle at step 7 with what its Adafactor keeps: factors of the larger
    matrices, squares of the rest."""
    checkpoint = open_checkpoint(source)
    rng = np.random.default_rng(2)
    arrays: dict[str, np.ndarray] = {}
    for name in checkpoint.entries:
        array = checkpoint.read(name)
        arrays[name] = array
        squares = rng.random(array.shape).astype("f4")
        if array.ndim == 2 and min(array.shape) >= 16:
            large, small = sorted((0, 1), key=lambda axis: -array.shape[axis])
            arrays[f"{name}_slot_vr"], arrays[f"{name}_slot_vc"] = squares.mean(large), squares.mean(small)
        else:
            arrays[f"{name}_slot_v"] = squares
    arrays["global_step"] = np.asarray(7, np.int64)
    folder.mkdir()
    write_bundle(folder / "model.ckpt-7", sorted(arrays.items()))
    return folder


@pytest.mark.parametrize("kind", ["t5", "t5-square", "umt5-tied"])
def test_adafactor_comes_along(kind, tmp_path):
    """Between T5X and mesh-tensorflow, with the step; and by axis, since of equal axes each calls another the first."""
    changes = {"num_heads": 4, "d_kv": 4} if kind == "t5-square" else {}
    model = t5_models.write(tmp_path / "model", kind.removesuffix("-square"), **changes)
    api.convert(model, tmp_path / "plain", "mesh-tensorflow")
    source = with_adafactor(tmp_path / "plain", tmp_path / "source")
    facts = api.convert(source, tmp_path / "t5x", "t5x")
    assert facts["ledger"]["optimizer_left_behind"] == {}
    before, t5x = open_checkpoint(source), open_checkpoint(tmp_path / "t5x")
    assert (t5x.step, len(t5x.slots)) == (7, len(before.slots))
    query, q = "target/encoder/layers_0/attention/query/kernel", "encoder/block_000/layer_000/SelfAttention/q"
    by_axis = [
        {c.slots[name, slot].axis: c.read_slot(name, slot).tolist() for n, slot in c.slots if n == name}
        for c, name in ((t5x, query), (before, q))
    ]
    assert by_axis[0] == by_axis[1]
    assert set(by_axis[0]) == {0, 1}
    facts = api.convert(tmp_path / "t5x", tmp_path / "back", "mesh-tensorflow")
    assert facts["ledger"]["optimizer_left_behind"] == {}  # T5X's placeholders hold nothing
    after = open_checkpoint(tmp_path / "back")
    assert arrays_of(tmp_path / "back") == arrays_of(source)
    assert after.slots == before.slots
    assert all(np.array_equal(after.read_slot(*key), before.read_slot(*key)) for key in before.slots)
    facts = api.convert(source, tmp_path / "ws", "warmstart")
    assert facts["ledger"]["optimizer_left_behind"] == {"all": "warmstart keeps no optimizer state"}


def test_adafactor_of_stacked_layers(tmp_path):
    """Layers that are stacked keep their factors; where heads are apart, theirs have no place, and that is said."""
    model = t5_models.write(tmp_path / "model", "umt5-tied")
    api.convert(model, tmp_path / "plain", "mesh-tensorflow")
    source = with_adafactor(tmp_path / "plain", tmp_path / "source")
    facts = api.convert(source, tmp_path / "scanned", "t5x-scanned")
    scanned, before = open_checkpoint(tmp_path / "scanned"), open_checkpoint(source)
    lost = facts["ledger"]["optimizer_left_behind"]
    assert lost
    assert all("attention" in name and "position_bias" not in name for name in lost)
    wi = "target/encoder/encoder/mlp/wi_0/kernel"
    row = scanned.read_slot(wi, "v_row")
    assert row.shape == (16, 3)
    kept = before.read_slot("encoder/block_002/layer_001/DenseReluDense/wi_0/kernel", "v_row")
    assert np.array_equal(row[:, 2], kept)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj: 'gated-mish' is not supported"),
        ({"feed_forward_proj": "twice-gelu"}, "feed_forward_proj: 'twice-gelu' is not supported"),
        ({"new_trick": 3}, "new_trick: 3 is not an option that is known here"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder: False is not supported"),
        ({"decoder_start_token_id": 7}, "the decoder does not start from the padding token"),
        ({"num_layers": "2"}, "num_layers is not a positive whole number"),
        ({"vocab_size": ...}, "vocab_size is missing"),
    ],
)
def test_options_are_understood_or_refused(values, found, tmp_path):
    folder = t5_models.write(tmp_path / "source", "t5")
    change(folder, **values)
    with pytest.raises(DialectError, match=found):
        open_model(folder)


@pytest.mark.parametrize(
    ("settings", "added", "expected"),
    [
        ({"extra_ids": 4}, {"<new>": 34}, [*(f"<extra_id_{k}>" for k in (3, 2, 1, 0)), "<new>"]),
        ({"extra_ids": 0, "additional_special_tokens": ["<a>", "<b>"]}, {}, ["<a>", "<b>"]),
        ({"extra_ids": 0, "added_tokens_decoder": {"30": {"content": "<c>"}}}, {"<not>": 31}, ["<c>"]),
    ],
)
def test_tokens_added_to_a_sentencepiece_model(settings, added, expected, tmp_path):
    """Expected is what ct2-transformers-converter writes with transformers 5.23."""
    folder = t5_models.write(tmp_path / "source", "t5")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "tokenizer.json").unlink()
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world this is a test", "the quick brown fox jumps"] * 20), model_writer=model,
        vocab_size=30, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **settings}))
    (folder / "added_tokens.json").write_text(json.dumps(added))
    api.convert(folder, tmp_path / "out", "ctranslate2")
    found = json.loads((tmp_path / "out/shared_vocabulary.json").read_text())
    assert found[30 : 30 + len(expected)] == expected
    assert found[30 + len(expected) :] == [f"<extra_id_{k}>" for k in range(rows - 30 - len(expected))]


def test_what_umt5_says_and_nothing_computes_with(tmp_path):
    folder = t5_models.write(tmp_path / "source", "umt5")
    plain = open_model(folder).config
    change(folder, scalable_attention=True, pruned_heads={}, tie_encoder_decoder=False)
    assert open_model(folder).config == plain


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda a: a.update(extra=np.zeros(3, "f4")), "extra would be left behind"),
        (lambda a: a.pop("encoder.block.1.layer.1.DenseReluDense.wo.weight"), "wo.weight is missing"),
        (lambda a: a.update({"decoder.final_layer_norm.weight": np.zeros(3, "f4")}), "another shape"),
    ],
)
def test_arrays_must_fit_and_none_is_forgotten(edit, found, tmp_path):
    folder = t5_models.write(tmp_path / "source", "t5")
    rewrite(folder, edit)
    with pytest.raises(DialectError, match=found):
        api.convert(folder, tmp_path / "out", "ctranslate2")


def test_older_files_name_tied_tables_again(tmp_path):
    """As t5-small lies on the Hub: tables under several names, and a bias that nothing uses."""
    folder = t5_models.write(tmp_path / "source", "t5-old")
    again = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    shared = {}

    def edit(arrays):
        shared["table"] = arrays["shared.weight"]
        arrays.update(dict.fromkeys((*again, "lm_head.weight"), shared["table"]))
        arrays[unused] = np.zeros((32, 4), "f4")

    rewrite(folder, edit)
    facts = api.convert(folder, tmp_path / "out", "ctranslate2")
    assert set(facts["ledger"]["left_behind"]) == {unused}
    assert set(facts["ledger"]["checked"]) == {*again, "lm_head.weight"}
    assert sha256((tmp_path / "out/model.bin").read_bytes()).hexdigest() == DIGESTS["t5-old"]["none"]["model.bin"]
    rewrite(folder, lambda arrays: arrays.update({"lm_head.weight": shared["table"] + 1}))
    with pytest.raises(DialectError, match=r"lm_head\.weight is not the same as embedding\.weight"):
        api.convert(folder, tmp_path / "no", "ctranslate2")


def test_a_model_bin_is_quantized_later(tmp_path):
    source = t5_models.write(tmp_path / "source", "mt5")
    api.convert(source, tmp_path / "none", "ctranslate2")
    for quantization in QUANTIZATIONS:
        api.convert(tmp_path / "none", tmp_path / quantization / "later", "ctranslate2", quantize=quantization)
        digest = sha256((tmp_path / quantization / "later/model.bin").read_bytes()).hexdigest()
        assert digest == DIGESTS["mt5"][quantization]["model.bin"], quantization


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        ({"encoder/pre_norm": np.int8(0)}, "encoder/pre_norm: 0 is not supported"),
        ({"decoder/scale_outputs": np.float32(0.3)}, "scale_outputs: 0.3"),
        ({"decoder/num_heads": np.int16(3)}, "num_heads differs on the two sides"),
        ({"encoder/activation": np.int8(9), "decoder/activation": np.int8(9)}, "activation 9 is not supported"),
        ({"decoder/layer_1/self_attention/relative_attention_max_distance": np.int32(9)}, "differs between layers"),
        ({"encoder/layer_1/self_attention/queries_scale": np.float32(0.5)}, "queries_scale"),
        ({"encoder/layer_7/ffn/linear_0/weight": np.zeros((24, 16), "f4")}, "encoder/layer_3 is missing"),
        ({"encoder/odd/weight": np.zeros((2, 2), "f4")}, "encoder/odd/weight would be left behind"),
    ],
)
def test_a_model_bin_that_is_another_model_is_refused(edit, found, tmp_path):
    api.convert(t5_models.write(tmp_path / "source", "t5"), tmp_path / "ct2", "ctranslate2")
    checkpoint = open_checkpoint(tmp_path / "ct2")
    arrays = {name: np.array(checkpoint.read(name)) for name in checkpoint.entries if name not in checkpoint.ties}
    arrays = dict(sorted({**arrays, **edit}.items()))
    entries = [Entry(name, np.shape(a), np.asarray(a).dtype.name) for name, a in arrays.items()]
    (tmp_path / "ct2/model.bin").unlink()
    write_ctranslate2(tmp_path / "ct2/model.bin", "TransformerSpec", 7, entries, map(np.asarray, arrays.values()),
                      dict(checkpoint.ties))  # fmt: skip
    with pytest.raises(DialectError) as error:
        api.convert(tmp_path / "ct2", tmp_path / "out", "transformers")
    assert found in str(error.value)


def test_quantized_models_return_within_half_a_step(tmp_path):
    source = t5_models.write(tmp_path / "source", "t5-1.1")
    api.convert(source, tmp_path / "int8", "ctranslate2", quantize="int8")
    facts = api.convert(tmp_path / "int8", tmp_path / "back", "transformers")
    assert all("dequantized" in why for why in facts["ledger"]["lossy"].values())
    before, after = open_checkpoint(source), open_checkpoint(tmp_path / "back")
    assert set(before.entries) == set(after.entries)
    for name in before.entries:
        a, b = before.read(name), after.read(name)
        step = np.abs(a).max(axis=-1, keepdims=True) / 127
        assert (np.abs(a - b) <= step * 0.501).all(), name


def test_sentencepiece_gives_rows_sentinels_and_padding(tmp_path):
    from warmstart.models.t5.vocabulary import vocabulary_of
    from warmstart.vocabularies.sentencepiece import SentencePieceVocabulary

    pieces = SentencePieceVocabulary.train(["a few words about nothing", "some more of them"], 20)
    path = tmp_path / "pieces.model"
    path.write_bytes(pieces.file()[1])
    table = vocabulary_of([path], 130, path)["text"]
    assert table.tokens[:20] == pieces.tokens
    assert table.tokens[20:22] == ("<extra_id_99>", "<extra_id_98>")
    assert table.tokens[119:122] == ("<extra_id_0>", "<extra_id_0>", "<extra_id_1>")
    assert len(table) == 130
    assert len(vocabulary_of([path], 21, path)["text"]) == 21
    with pytest.raises(VocabularyError, match="more tokens than the embedding has rows"):
        vocabulary_of([path], 19, path)


def test_bfloat16_stays_bfloat16(tmp_path):
    source = t5_models.write(tmp_path / "source", "t5-half")
    api.convert(source, tmp_path / "t5x", "t5x")
    there = open_checkpoint(tmp_path / "t5x")
    assert {there.read(name).dtype for name in there.entries} == {np.dtype(ml_dtypes.bfloat16)}


def test_stacked_layers_are_read_once(tmp_path, monkeypatch):
    source = t5_models.write(tmp_path / "source", "umt5-tied")
    api.convert(source, tmp_path / "scanned", "t5x-scanned")
    model, read = open_model(tmp_path / "scanned"), Counter()
    raw = model.checkpoint.raw
    monkeypatch.setattr(mapped, "_PIECE", 1)  # none is so small that it is held in memory
    monkeypatch.setattr(model.checkpoint, "raw", lambda name: read.update([name]) or raw(name))
    convert_model(model, tmp_path / "way", "transformers")
    stacked = {name for name in read if "/encoder/encoder/" in name or "/decoder/decoder/" in name}
    assert stacked
    assert {read[name] for name in stacked} == {1}
    assert arrays_of(tmp_path / "way") == arrays_of(source)
    assert not list((tmp_path / "way").glob("tmp*"))
