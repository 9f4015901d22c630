"""Dialects that are asked for and do not fit: the error says what would."""

from __future__ import annotations

from pathlib import Path

import pytest

import huggingface_models
from marian_models import OPTIONS, arrays, write
from warmstart import api
from warmstart.errors import ConfigError, DialectError


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "marian", OPTIONS, arrays(OPTIONS))


@pytest.mark.parametrize(
    ("to", "what"),
    [
        ("opennmt-py", "transformer models are read from opennmt-py, not written"),
        ("t5x", "transformer models are not converted to t5x"),
        ("openmnt", "there is no dialect 'openmnt' to convert to"),
    ],
)
def test_targets(to, what, folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        api.convert(folder, tmp_path / "out", to)
    assert caught.value.what == what
    assert caught.value.problem.expected == "marian, transformers, ctranslate2, warmstart, safetensors, npz, torch"


def test_sources(folder, tmp_path):
    theirs = huggingface_models.write(tmp_path / "bart", "bart")
    for source, asked, found in ((folder, "fairseq", "marian"), (theirs, "marian", "transformers")):
        with pytest.raises(DialectError, match=f"this is no model of {asked}") as caught:
            api.convert(source, tmp_path / "out", "ctranslate2", from_=asked)
        assert caught.value.problem.found == f"a model of {found} (transformer)"
    with pytest.raises(ConfigError, match="there is no dialect 'opus-mt' to read") as unknown:
        api.convert(folder, tmp_path / "out", "ctranslate2", from_="opus-mt")
    assert "fairseq" in str(unknown.value.problem.expected)


def test_a_reason_is_said_when_the_dialect_is_named_too(fixtures, tmp_path):
    source = fixtures / "fixtures/opennmt-py-2017-hbs-g2p/test_model2.pt"
    for asked in (None, "opennmt-py"):
        with pytest.raises(DialectError, match="LSTM cells"):
            api.convert(source, tmp_path / "out", "ctranslate2", from_=asked)
