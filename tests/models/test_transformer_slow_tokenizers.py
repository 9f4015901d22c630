"""mBART, NLLB and Pegasus with a SentencePiece model and no ``tokenizer.json``."""

from __future__ import annotations

import json

import pytest

import huggingface_models
from warmstart import api
from warmstart.bundle.model import open_model
from warmstart.errors import VocabularyError

PIECES = 20


def write(folder, kind):
    """A model of ``kind`` as those are published that were saved by a slow tokenizer."""
    huggingface_models.write(folder, kind)
    (folder / "tokenizer.json").unlink()
    for key in ("additional_special_tokens", "extra_special_tokens", "src_lang", "tgt_lang"):
        change(folder / "tokenizer_config.json", key, None)
    pegasus = kind == "pegasus"
    name = "spiece.model" if pegasus else "sentencepiece.bpe.model"
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} if pegasus else {}
    (folder / name).write_bytes(huggingface_models.sentencepiece(**ids))
    return folder


def change(path, key, value):
    content = json.loads(path.read_text())
    content.pop(key, None)
    path.write_text(json.dumps(content if value is None else {**content, key: value}))


def rows_of(folder, rows):
    """The model in ``folder`` with ``rows`` rows."""
    import numpy as np

    from warmstart.formats.checkpoint import Entry
    from warmstart.formats.detect import open_checkpoint
    from warmstart.formats.safetensors import write_safetensors

    checkpoint = open_checkpoint(folder / "model.safetensors")
    arrays = {n: np.array(checkpoint.read(n)) for n in checkpoint.entries}
    for name in ("model.shared.weight", "final_logits_bias"):
        if name in arrays:
            axis = arrays[name].ndim - 1 if name == "final_logits_bias" else 0
            arrays[name] = np.resize(arrays[name], [rows if k == axis else n for k, n in enumerate(arrays[name].shape)])
    (folder / "model.safetensors").unlink()
    entries = [Entry(n, a.shape, a.dtype.name) for n, a in arrays.items()]
    write_safetensors(folder / "model.safetensors", entries, arrays.values(), {"format": "pt"})
    change(folder / "config.json", "vocab_size", rows)
    return folder


@pytest.mark.parametrize(
    ("kind", "rows", "some"),
    [
        ("mbart", PIECES + 1 + 25 + 1, {1: "<pad>", 2: "</s>", 3: "<unk>", 21: "ar_AR", 45: "zh_CN", 46: "<mask>"}),
        ("mbart50", PIECES + 1 + 52 + 1, {3: "<unk>", 21: "ar_AR", 46: "af_ZA", 72: "sl_SI", 73: "<mask>"}),
        ("nllb", PIECES + 1 + 202 + 1 + 2, {21: "ace_Arab", 222: "zul_Latn", 223: "<mask>", 224: "madeupword0"}),
        ("pegasus", PIECES + 103, {0: "<pad>", 1: "</s>", 2: "<mask_1>", 3: "<mask_2>", 4: "<unk_2>", 105: "<unk>"}),
    ],
)  # fmt: skip
def test_the_table_is_the_slow_tokenizers(kind, rows, some, tmp_path):
    folder = rows_of(write(tmp_path / kind, kind), rows)
    model = open_model(folder)
    tokens = model.vocabularies["source"].tokens
    assert len(tokens) == rows
    assert {row: tokens[row] for row in some} == some
    api.convert(folder, tmp_path / "ct2", "ctranslate2")
    assert json.loads((tmp_path / "ct2/shared_vocabulary.json").read_text()) == list(tokens)
    api.convert(tmp_path / "ct2", tmp_path / "back", "transformers")
    name = next(n for n in ("spiece.model", "sentencepiece.bpe.model") if (folder / n).is_file())
    assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert open_model(tmp_path / "back").vocabularies["source"].tokens == tokens


def test_a_pegasus_without_masks_keeps_the_rows_of_its_pieces(tmp_path):
    folder = rows_of(write(tmp_path / "pegasus", "pegasus"), PIECES)
    for key, value in (("offset", 0), ("mask_token_sent", "null"), ("mask_token", None)):
        change(folder / "tokenizer_config.json", key, value)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**content, "mask_token_sent": None}))
    tokens = open_model(folder).vocabularies["source"].tokens
    assert tokens[:3] == ("<pad>", "</s>", "<unk>")


def test_a_damaged_model_is_named(tmp_path):
    folder = write(tmp_path / "mbart", "mbart")
    (folder / "sentencepiece.bpe.model").write_bytes(b"\x00no model")
    with pytest.raises(VocabularyError, match=r"sentencepiece.bpe.model is damaged"):
        open_model(folder)


@pytest.mark.parametrize("kind", ["mbart", "pegasus"])
@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"offset": "x"}', '{"offset": 1e400}', '{"offset": 1000000000000}']
)
def test_settings_that_are_none(kind, content, tmp_path):
    folder = write(tmp_path / "source", kind)
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(VocabularyError, match=r"tokenizer_config\.json is damaged"):
        open_model(folder)
