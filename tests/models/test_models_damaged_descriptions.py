"""What lies beside a model's arrays may be damaged: an error says so with the file and the key, never a traceback."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest

import decoder_models
import huggingface_models
import onmt_lm_models
import pretrained_models
from warmstart import api
from warmstart.errors import DialectError, WarmstartError
from warmstart.formats.checkpoint import Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors

MADE = {
    "gpt2": decoder_models.write,
    "llama": decoder_models.write,
    "bert": pretrained_models.write,
    "whisper": pretrained_models.write,
    "marian": huggingface_models.write,
    "m2m": huggingface_models.write,
    "relative": onmt_lm_models.write_eole,
    "rotary": onmt_lm_models.write_eole,
}
LOST = object()
VALUES = (LOST, LOST, None, -1, 0, "x", [], {}, 1.5, True, 10**12)


def change(file, place, value):
    content = json.loads(file.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is LOST:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    file.write_text(json.dumps(content))


def places(content, before=()):
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*before, key)
            yield from places(value, (*before, key))


@pytest.mark.parametrize(
    ("kind", "file", "place", "value", "found"),
    [
        ("bert", "tokenizer_config.json", ["cls_token"], {}, "files of the tokenizer are damaged"),
        ("bert", "tokenizer_config.json", ["pad_token"], -1, "pad_token is -1"),
        ("gpt2", "tokenizer.json", ["model", "vocab", "t20"], {}, "the row of 't20' is no number"),
        ("m2m", "config.json", ["encoder_layers"], 10**12, "no model has so many of model.encoder.layers.{i}"),
        ("marian", "config.json", ["vocab_size"], LOST, "config.json does not say the size of the vocabulary"),
        ("relative", "vocab.json", ["specials"], True, "the special tokens are no tokens"),
        ("relative", "vocab.json", ["specials", "eos_token"], {}, "the special tokens are no tokens"),
        ("relative", "vocab.json", ["tgt"], [1, 2], "holds no target vocabulary"),
        ("rotary", "config.json", ["model", "decoder"], 3, "model.decoder is no part"),
        ("rotary", "config.json", ["model", "rope_config"], -1, "rope_config is no part"),
        ("llama", "config.json", ["head_dim"], 10**12, "a number of the model does not fit into ctranslate2"),
    ],
)
def test_what_is_wrong_is_named(kind, file, place, value, found, tmp_path):
    source = MADE[kind](tmp_path / "source", kind)
    change(source / file, place, value)
    with pytest.raises(WarmstartError) as error:
        api.convert(source, tmp_path / "out", "ctranslate2")
    assert found in str(error.value)
    assert str(source) in str(error.value)


@pytest.mark.parametrize("kind", MADE)
def test_any_value_of_any_key_is_taken_or_refused(kind, tmp_path):
    source = MADE[kind](tmp_path / "source", kind)
    choice = random.Random(kind)
    names = ("config.json", "tokenizer_config.json", "vocab.json", "tokenizer.json")
    files, nowhere = [name for name in names if (source / name).is_file()], []
    for k in range(12):
        copy = tmp_path / str(k)
        shutil.copytree(source, copy)
        file = copy / choice.choice(files)
        change(file, choice.choice(list(places(json.loads(file.read_text())))), choice.choice(VALUES))
        try:
            api.convert(copy, tmp_path / "out", "ctranslate2", force=True)
        except WarmstartError as error:
            if not any([error.where, *(problem.where for problem in error.problems)]):
                nowhere.append(str(error))
    assert nowhere == []


@pytest.mark.parametrize("kind", ["relative", "rotary", "table"])
def test_arrays_from_which_sizes_are_read_are_tables(kind, tmp_path):
    source = onmt_lm_models.write_eole(tmp_path / "source", kind)
    file = source / "model.00.safetensors"
    arrays = {name: np.array(open_checkpoint(file).read(name)) for name in open_checkpoint(file).entries}
    ends = (".pe", "embeddings.weight", "self_attn.linear_query.weight")
    tables = [name for name in arrays if name.endswith(ends) and "layers.1" not in name]
    assert len(tables) >= 2
    for name in tables:
        flat = {**arrays, name: arrays[name].reshape(-1)[0]}
        write_safetensors(file, [Entry(n, a.shape, a.dtype.name) for n, a in flat.items()], flat.values(), {})
        with pytest.raises(DialectError, match=f"{name} is no table"):
            api.convert(source, tmp_path / "out", "ctranslate2")
