"""Every checkpoint of the shared folder opens, and is what its catalogue says."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from warmstart.errors import FormatError, UnknownFormat, WarmstartError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.formats.detect import open_checkpoint

# source below fixtures/: format, arrays, elements in them, step, optimizer slots
CHECKPOINTS = {
    "coqui-bytes-en@best": ("tensorflow", 12, 35_776, 2128, 24),
    "coqui-bytes-en@last": ("tensorflow", 12, 35_776, 2800, 24),
    "coqui-digits-en@best": ("tensorflow", 12, 79_069, 3354, 24),
    "coqui-digits-en@last": ("tensorflow", 12, 79_069, 4680, 24),
    "ctranslate2-aren/aren-transliteration": ("ctranslate2", 200, 182_731, None, 0),
    "ctranslate2-aren/aren-transliteration-i16": ("ctranslate2", 269, 182_800, None, 0),
    "ctranslate2-aren/aren-transliteration-i8": ("ctranslate2", 269, 187_092, None, 0),
    "ctranslate2-aren/v1/aren-transliteration": ("ctranslate2", 200, 182_731, None, 0),
    "ctranslate2-aren/v1/aren-transliteration-i16": ("ctranslate2", 200, 182_731, None, 0),
    "ctranslate2-onmt-lm": ("ctranslate2", 49, 2_566_644, None, 0),
    "marian-ar-en-translit": ("marian", 87, 530_921, 5050, 0),
    "marian-en-de-spm": ("marian", 90, 716_624, 3500, 0),
    "marian-en-ru-names@best": ("marian", 88, 538_214, None, 0),
    "marian-en-ru-names@last": ("marian", 88, 538_214, 2500, 176),
    "npz-g2p-en": ("npz", 12, 834_890, None, 0),
    "opennmt-py-2017-hbs-g2p/test_model2.pt": ("torch", 30, 813_485, None, 0),
    "opennmt-py-2017-hbs-g2p/test_model2-adam.pt": ("torch", 14, 199_731, 1410, 28),
    "silero-vad": ("safetensors", 15, 309_633, None, 0),
    "t5x/run/model": ("orbax", 52, None, 10, 52),
    "t5x/testdata/mtf_tiny_t5": ("tensorflow", 52, 2_179_584, 0, 52),
    "t5x/testdata/test_t5_tiny.checkpoint_0": ("t5x", 52, 518_240, 0, 52),
    "tf-mlperf-tiny-kws/pretrainedResnet.h5": ("keras", 48, 78_666, 781_500, 68),
    "tf-mlperf-tiny-kws/variables": ("tensorflow", 60, 24_912, 30_816, 76),
    "tf1-regression": ("tensorflow", 2, 2, None, 0),
    "torch-misc/fairseq2-fbank.pt": ("torch", 1, 35_520, None, 0),
    "torch-misc/sockeye-deepspeed/converted": ("torch", 40, 5_384, None, 0),
    "torch-misc/sockeye-deepspeed/model/params.00000": ("torch", 40, 5_384, 4000, 0),
    "torch-misc/tiny_fair_checkpoint.pt": ("torch", 21, 89_504, None, 0),
}

# source, array, shape, some of its values as the catalogue gives them
VALUES = [
    ("tf1-regression", "W", (), [0.21396]),
    ("tf1-regression", "b", (), [1.04953]),
    ("npz-g2p-en", "enc_emb", (29, 256), None),
    ("npz-g2p-en", "fc_w", (74, 256), None),
    ("silero-vad", "stft_conv.weight", (258, 1, 256), None),
    ("silero-vad", "final_conv.weight", (1, 128, 1), None),
    ("opennmt-py-2017-hbs-g2p/test_model2.pt", "model.encoder.embeddings.emb_luts.0.weight", (71, 150), None),
    ("opennmt-py-2017-hbs-g2p/test_model2.pt", "model.decoder.attn.linear_in.weight", (150, 150), None),
    ("opennmt-py-2017-hbs-g2p/test_model2.pt", "generator.0.weight", (35, 150), None),
    ("t5x/testdata/test_t5_tiny.checkpoint_0", "target/token_embedder/embedding", (32128, 8), None),
    (
        "tf-mlperf-tiny-kws/variables",
        "layer_with_weights-0/kernel/.ATTRIBUTES/VARIABLE_VALUE",
        (10, 4, 1, 64),
        None,
    ),
]

OTHERS = {
    "lm/kenlm-test.arpa": "language model",
    "lm/pruned_lm.scorer": "language model",
    "marian-en-de-spm/vocab.spm": "binary data",
    "stt-smoke/LDC93S1.wav": "binary data",
    "t5x/seqio_golden.json": "JSON",
    "t5x/operative.gin": "text",
}


def opened(fixtures: Path, source: str) -> Checkpoint:
    return open_checkpoint(f"{fixtures}/fixtures/{source}")


@pytest.mark.parametrize("source", CHECKPOINTS)
def test_it_opens(fixtures: Path, source: str) -> None:
    checkpoint = opened(fixtures, source)
    size = sum(entry.size for entry in checkpoint.entries.values())
    found = (checkpoint.format, len(checkpoint.entries), size, checkpoint.step, len(checkpoint.slots))
    expected = CHECKPOINTS[source]
    assert tuple(None if want is None else have for have, want in zip(found, expected, strict=True)) == expected
    if source == "t5x/testdata/mtf_tiny_t5":  # its data are not in the folder
        with pytest.raises(WarmstartError, match="data-00001-of-00002"):
            checkpoint.read(next(iter(checkpoint.entries)))
        return
    for name, entry in checkpoint.entries.items():
        array = checkpoint.read(name)
        assert (array.shape, array.dtype.name) == (entry.shape, entry.dtype), name
        checkpoint.verify(name)


@pytest.mark.parametrize(("source", "name", "shape", "values"), VALUES)
def test_values(fixtures: Path, source: str, name: str, shape: tuple[int, ...], values: list[float] | None) -> None:
    array = opened(fixtures, source).read(name)
    assert array.shape == shape
    if values is not None:
        np.testing.assert_allclose(array.reshape(-1)[: len(values)], values, atol=5e-6)


@pytest.mark.parametrize("source", ["coqui-digits-en", "coqui-bytes-en", "marian-en-ru-names", "torch-misc"])
def test_several_are_a_question(fixtures: Path, source: str) -> None:
    with pytest.raises(FormatError, match="several checkpoints") as caught:
        opened(fixtures, source)
    assert f"{source}@" in str(caught.value.todo)


def test_auto_is_the_best_or_else_the_last(fixtures: Path, tmp_path: Path) -> None:
    """As Coqui's ``--load_evaluate auto``; where nothing is to be chosen, the directory itself."""
    assert opened(fixtures, "coqui-digits-en@auto").path.name == "best_dev-3354"
    for file in (fixtures / "fixtures/coqui-digits-en").glob("*.*"):
        shutil.copy(file, tmp_path)
    shutil.copy(fixtures / "fixtures/coqui-digits-en/checkpoint", tmp_path)
    assert open_checkpoint(f"{tmp_path}@auto").path.name == "train-4680"
    with pytest.raises(FormatError, match="several checkpoints") as caught:
        opened(fixtures, "torch-misc@auto")
    assert "@auto" not in str(caught.value.todo)


@pytest.mark.parametrize("source", OTHERS)
def test_what_is_no_checkpoint_is_named(fixtures: Path, source: str) -> None:
    with pytest.raises(UnknownFormat) as caught:
        opened(fixtures, source)
    assert OTHERS[source] in str(caught.value.found)


def test_no_file_of_the_folder_is_a_surprise(fixtures: Path) -> None:
    """Whatever lies there opens, or is one clear error."""
    files = [path for path in (fixtures / "fixtures").rglob("*") if path.is_file()]
    assert len(files) > 100
    count = 0
    for path in files:
        with contextlib.suppress(WarmstartError):
            count += len(open_checkpoint(path).entries) > 0
    assert count >= len(CHECKPOINTS) - 6  # directories apart
