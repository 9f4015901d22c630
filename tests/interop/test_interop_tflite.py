"""Coqui's own client, ``stt`` 1.4.0, opens our TensorFlow Lite files and hears what we hear.

Its wheels are for Python 3.10 or older, so it runs in a process of its own: ``WARMSTART_COQUI_PYTHON`` is a Python that
has it, and without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speech_models import ALPHABET, CONFIG, write_audio, write_model
from warmstart import api
from warmstart.inference.ctc import SpeechSearch
from warmstart.inference.speech.acoustic import open_acoustic
from warmstart.inference.speech.transcriber import Transcriber
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.vocabularies.alphabet import Alphabet

REQUIRES = ["torch==2.13.0", "ai-edge-litert==2.3.0", "soundfile", "soxr"]
PYTHON = os.environ.get("WARMSTART_COQUI_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="WARMSTART_COQUI_PYTHON names no Python with stt 1.4.0")

CLIENT = """
import json, sys
import numpy as np
from stt import Model
model = Model(sys.argv[1])
said = [model.stt(np.load(file)) for file in sys.argv[2:]]
stream = model.createStream()
samples = np.load(sys.argv[-1])
for first in range(0, len(samples), 777):
    stream.feedAudioContent(samples[first:first + 777])
print(json.dumps([model.sampleRate(), model.beamWidth(), said, stream.finishStream()]))
"""


def as_the_client_hears(samples: np.ndarray, mfcc: Mfcc) -> np.ndarray:
    """Features of int16 samples with what does not fill a last window, which the client fills with zeros."""
    missing = mfcc.window + mfcc.frames(len(samples)) * mfcc.step - len(samples)
    return mfcc(np.pad(samples, (0, missing)).astype(np.float32) / 32768)


def compared(model: str | Path, folder: Path, files: list[Path], quantize: str | None = None) -> tuple[list, list]:
    """What the client and we hear, beam search with 500 beams; the client's last text once more, of a stream."""
    api.convert(model, folder, "tflite", quantize=quantize)
    command = [str(PYTHON), "-c", CLIENT, str(folder / "model.tflite"), *map(str, files)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    rate, beams, theirs, streamed = json.loads(run.stdout.splitlines()[-1])
    ours = Transcriber(open_acoustic(folder if quantize else model), SpeechSearch(beam_size=beams))
    assert (rate, beams) == (ours.acoustic.mfcc.sample_rate, 500)
    features = [as_the_client_hears(np.load(file), ours.acoustic.mfcc) for file in files]
    heard = [ours.transcripts([one])[0].text for one in features]
    written = [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in (*theirs, streamed)]
    return written, [*heard, heard[-1]]


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize(
    ("config", "alphabet"),
    [
        (CONFIG, ALPHABET),
        (CONFIG.model_copy(update={"layer_norm": True, "relu_clip": 0.5, "sample_rate": 16000}), Alphabet(" яабвгдé")),
        (CONFIG.model_copy(update={"vocab_size": 256}), Alphabet.of_bytes()),
    ],
    ids=["letters", "layer norm, other letters", "bytes"],
)
def test_random_models(tmp_path: Path, config: DeepSpeechConfig, alphabet: Alphabet, quantize: str | None) -> None:
    write_model(tmp_path / "model", config, alphabet)
    files = []
    for k in range(3):
        samples = write_audio(tmp_path / "a.wav", 0.5 + 0.4 * k, seed=k, rate=config.sample_rate)
        files.append(tmp_path / f"{k}.npy")
        np.save(files[-1], np.round(samples * 32767).astype(np.int16))
    theirs, ours = compared(tmp_path / "model", tmp_path / "out", files, quantize)
    assert theirs == ours
    assert len(set(theirs)) == 3


def test_a_trained_model_on_recordings(fixtures: Path, tmp_path: Path) -> None:
    import soundfile

    files = []
    for recording in sorted((fixtures / "data" / "fsdd" / "recordings").glob("*_4.wav")):
        files.append(tmp_path / f"{recording.stem}.npy")
        np.save(files[-1], soundfile.read(recording, dtype="int16")[0])
    theirs, ours = compared(f"{fixtures / 'fixtures' / 'coqui-digits-en'}@best", tmp_path / "out", files)
    assert theirs == ours
    assert len(files) == 60
