"""A checkpoint that no family recognises says what it lacks to be one of those that are."""

from __future__ import annotations

import json

import pytest

import huggingface_models
from warmstart import api
from warmstart.errors import DialectError


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "there is no config.json beside it"),
        ("{", "config.json: this file cannot be read"),
        (json.dumps({"d_model": 16}), "its config.json has no model_type"),
        (json.dumps({"model_type": "longt5"}), "the model_type longt5"),
    ],
    ids=["missing", "damaged", "silent", "unknown"],
)
def test_a_directory_of_transformers_without_a_known_configuration(config, reason, tmp_path):
    source = huggingface_models.write(tmp_path / "source", "bart")
    (source / "config.json").unlink()
    if config is not None:
        (source / "config.json").write_text(config)
    with pytest.raises(DialectError, match="no family recognises") as caught:
        api.convert(source, tmp_path / "out", "ctranslate2")
    assert reason in str(caught.value.found)
    assert reason in api.inspect(source)["not_recognised"]["transformers"]
    with pytest.raises(DialectError, match="no model of transformers") as caught:
        api.convert(source, tmp_path / "out", "ctranslate2", from_="transformers")
    assert str(caught.value.found).count(reason) == 1
