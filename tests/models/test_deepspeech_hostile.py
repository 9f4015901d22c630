"""What lies beside Coqui's checkpoints and exported models, damaged by the hundred: read, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hostile
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.dialects.beside import CONFIG, config_file, read_config_file
from warmstart.models.deepspeech.dialects.flags import NAME, flags_of, parse_flags, read_flags
from warmstart.vocabularies.alphabet import Alphabet

LABELS = Alphabet(" abé'")
MODEL = DeepSpeechConfig(vocab_size=len(LABELS), n_hidden=16)


@pytest.mark.parametrize("lines", [False, True])
def test_flags(lines: bool, tmp_path: Path) -> None:
    def flags(path: Path) -> dict[str, Any]:
        found = read_flags(path.parent)
        assert found is not None
        return parse_flags(found, path).model()

    path = tmp_path / "file" / NAME
    path.parent.mkdir()
    said = flags_of(MODEL, utf8=False)
    text = "\n".join(f"--{name}={str(value).lower()}" for name, value in said.items()) if lines else json.dumps(said)
    path.write_text(text)
    assert flags(path)["sample_rate"] == MODEL.sample_rate
    hostile.run(path, [path], tmp_path / "work", read=flags)


def test_configurations(tmp_path: Path) -> None:
    def configuration(path: Path) -> tuple[DeepSpeechConfig, tuple[str, ...]]:
        config, alphabet = read_config_file(path.parent)
        assert config.vocab_size == len(alphabet)
        return config, alphabet.labels

    path = tmp_path / "file" / CONFIG
    path.parent.mkdir()
    path.write_bytes(config_file(MODEL, {"text": LABELS})[CONFIG])
    assert configuration(path)[1] == LABELS.labels
    hostile.run(path, [path], tmp_path / "work", read=configuration)
