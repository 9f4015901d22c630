"""Damaged arrays of a ``model.bin``, in every family: refused with their names, and never with a traceback."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import decoder_models
import onmt_lm_models
import pretrained_models
import t5_models
from warmstart import api
from warmstart.errors import DialectError, WarmstartError
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import read_header

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "inference"))
from test_inference_verify import damaged

MADE = {
    **dict.fromkeys(("bert", "distilbert", "whisper", "wav2vec2"), pretrained_models.write),
    **dict.fromkeys(("gpt2", "llama", "gemma2"), decoder_models.write),
    "t5": t5_models.write,
    "relative and wide": onmt_lm_models.write_eole,
}


def bare(tmp_path, kind):
    """A ``model.bin`` beside which nothing of ours lies."""
    api.convert(MADE[kind](tmp_path / "source", kind), tmp_path / "ct2", "ctranslate2")
    for name in ("warmstart.json", "conversion.json"):
        (tmp_path / "ct2" / name).unlink()
    shutil.rmtree(tmp_path / "ct2/vocabularies", ignore_errors=True)
    return tmp_path / "ct2"


def lose(arrays, name):
    del arrays[name]


def flatten(arrays, name):
    """The first number of an array in place of it; of a number a list."""
    arrays[name] = arrays[name].reshape(-1)[:1] if not arrays[name].shape else np.asarray(arrays[name].reshape(-1)[0])


def empty(arrays, name):
    arrays[name] = arrays[name].reshape(-1)[:0]


@pytest.mark.parametrize("kind", MADE)
def test_arrays_that_are_not_what_they_are_called_are_named(kind, tmp_path):
    model = bare(tmp_path, kind)
    names = [n for n in read_header(model / "model.bin").variables if "layer_1" not in n and "layer_2" not in n]
    for k, name in enumerate(names):
        change = (flatten, empty)[k % 2]
        broken = damaged(model, tmp_path / f"{k}", lambda a, c=change, n=name: c(a, n))
        with pytest.raises(DialectError, match=name) as error:
            api.convert(broken, tmp_path / "out", "ctranslate2")
        assert error.value.where
        shutil.rmtree(broken)


# What the engine takes for a number that is not there; 0 for all others.
TAKEN = {
    "pre_norm": 1, "scale_embeddings": 1, "alignment_layer": -1, "alignment_heads": 1, "rotary_base": 10000,
    "rotary_interleave": 1,
}  # fmt: skip


def may_be_lost(name, value):
    """Numbers that the engine takes anyway, those of which a remark is made, and what makes another model that the
    engine computes and we say (without a table a decoder has sinusoids)."""
    last = name.rpartition("/")[2]
    if value.shape:
        return name in ("decoder/layer_norm/gamma", "decoder/projection/bias", "decoder/position_encodings/encodings")
    return (
        name == "decoder/scale_embeddings"
        or last in ("num_heads", "activation", "multiply_by_sqrt_depth", "scale_outputs")
        or value == TAKEN.get(last, 0)
    )


@pytest.mark.parametrize("kind", MADE)
def test_a_lost_array_is_refused_or_is_what_the_engine_takes(kind, tmp_path):
    model = bare(tmp_path, kind)
    stored = open_checkpoint(model)
    header, accepted = read_header(model / "model.bin"), []
    for k, name in enumerate(sorted(set(header.variables) - set(header.aliases.values()))):
        broken = damaged(model, tmp_path / f"{k}", lambda a, n=name: lose(a, n))
        try:
            api.convert(broken, tmp_path / "out", "ctranslate2", force=True)
            accepted.append(name)
        except WarmstartError:
            pass
        shutil.rmtree(broken)
    assert [name for name in accepted if not may_be_lost(name, stored.read(name))] == []
    assert ("decoder/scale_embeddings" in accepted) <= (kind in ("gpt2", "llama", "gemma2", "relative and wide"))
