"""Models of several releases of ctranslate2 are read, and it loads models of ours."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType

import ctranslate2
import numpy as np
import pytest

from warmstart.formats.ctranslate2 import CTranslate2Checkpoint
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.model_bin import write_ctranslate2

REQUIRES = {
    "ctranslate2-2.24": ["ctranslate2==2.24.0", "numpy<2", "setuptools<80"],
    "ctranslate2-3.0": ["ctranslate2==3.0.0", "numpy<2", "setuptools<80"],
    "ctranslate2-3.24": ["ctranslate2==3.24.0", "numpy<2", "setuptools<80"],
    "ctranslate2-4.0": ["ctranslate2==4.0.0", "numpy<2", "setuptools<80"],
    "ctranslate2-4.8": ["ctranslate2==4.8.5"],
}
GOLDEN = Path(__file__).parent.parent / "golden" / "ctranslate2"
RELEASE = tuple(int(part) for part in ctranslate2.__version__.split(".")[:2])
TOKENS = [["a", "б"], ["б", "б", "a", "</s>"], ["a"]]


def writer() -> ModuleType:
    """``write.py``, which made the goldens."""
    spec = importlib.util.spec_from_file_location("write", GOLDEN / "write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened(path: Path) -> CTranslate2Checkpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, CTranslate2Checkpoint)
    return checkpoint


def rewritten(source: Path, target: Path) -> Path:
    """``source`` with its model.bin read and written by us."""
    checkpoint = opened(source)
    target.mkdir()
    for path in source.iterdir():
        if path.suffix in (".txt", ".json"):
            (target / path.name).write_bytes(path.read_bytes())
    entries = [entry for name, entry in checkpoint.entries.items() if name not in checkpoint.ties]
    arrays = (checkpoint.read(entry.name) for entry in entries)
    said = checkpoint.metadata
    write_ctranslate2(target / "model.bin", said["specification"], said["revision"], entries, arrays, checkpoint.ties)
    return target


def translations(path: Path) -> list[tuple[list[str], float]]:
    translator = ctranslate2.Translator(str(path), device="cpu", intra_threads=1, inter_threads=1)
    results = translator.translate_batch(TOKENS, beam_size=2, max_decoding_length=8, return_scores=True)
    return [(result.hypotheses[0], result.scores[0]) for result in results]


@pytest.mark.parametrize("quantization", ["none", "int8", "int16", "float16"])
def test_what_the_library_writes_is_read_and_written_again(tmp_path: Path, quantization: str) -> None:
    source = tmp_path / "theirs"
    writer().main(str(source), quantization)
    checkpoint = opened(source)
    ties = json.loads((tmp_path / "theirs.aliases.json").read_text())
    assert checkpoint.metadata["binary_version"] == (6 if RELEASE >= (3, 0) else 5)
    assert checkpoint.ties == ties
    with np.load(tmp_path / "theirs.npz") as truth:
        assert [*truth.files, *ties] == list(checkpoint.entries)
        for name in truth.files:
            assert checkpoint.read(name).dtype == truth[name].dtype
            np.testing.assert_array_equal(checkpoint.read(name), truth[name])
    ours = rewritten(source, tmp_path / "ours")
    assert (ours / "model.bin").read_bytes()[4:] == (source / "model.bin").read_bytes()[4:]
    if RELEASE >= (3, 0):
        assert (ours / "model.bin").read_bytes()[:4] == struct.pack("<I", 6)
        assert translations(ours) == translations(source)


@pytest.mark.parametrize("name", ["v4", "v4-int16", "v5", "v6"])
def test_the_library_loads_every_golden(name: str) -> None:
    if RELEASE < (4, 8) and name == "v6":
        return  # of a revision that older releases do not know
    assert all(np.isfinite(score) for _, score in translations(GOLDEN / name))


def test_the_library_loads_version_3_as_we_understand_it(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "formats"))
    from test_formats_ctranslate2 import model_bin, variables_of

    golden = opened(GOLDEN / "v4")
    arrays = {name: golden.read(name) for name in golden.entries if name not in golden.ties}
    (tmp_path / "model.bin").write_bytes(model_bin(3, variables_of(arrays), golden.ties))
    (tmp_path / "shared_vocabulary.txt").write_bytes((GOLDEN / "v4/shared_vocabulary.txt").read_bytes())
    assert translations(tmp_path) == translations(GOLDEN / "v4")


def test_trained_models(fixtures: Path, tmp_path: Path) -> None:
    """Versions 1 and 2 by CTranslate2 of 2018, and each with its arrays through our reader and bytes of our own."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "formats"))
    from test_formats_ctranslate2 import model_bin, variables_of

    for name in ("aren-transliteration", "v1/aren-transliteration", "aren-transliteration-i8"):
        source, target = fixtures / "fixtures/ctranslate2-aren" / name, tmp_path / name.replace("/", "-")
        checkpoint = opened(source)
        target.mkdir()
        said = checkpoint.metadata
        arrays = variables_of({key: checkpoint.read(key) for key in checkpoint.entries})
        data = model_bin(said["binary_version"], arrays, {}, said["specification"], said["revision"])
        (target / "model.bin").write_bytes(data)
        for file in source.glob("*.txt"):
            (target / file.name).write_bytes(file.read_bytes())
        scores = []
        for path in (source, target):
            translator = ctranslate2.Translator(str(path), device="cpu", intra_threads=1, inter_threads=1)
            (result,) = translator.translate_batch([list("آتزمون")], return_scores=True)
            assert "".join(result.hypotheses[0]) == "atzmon"
            scores.append(result.scores[0])
        assert scores[0] == scores[1]
