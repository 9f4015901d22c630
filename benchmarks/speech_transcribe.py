"""How fast recordings become features and text, and how soon a large checkpoint of Coqui's is open.

``transcribe``'s own road (files, features, network, greedy labels, in batches of like length) beside onnxruntime on
the same exported network, clip by clip with our features; CPU time of one thread, rounds take turns, medians. Features
alone are made of samples in memory. Opening is ``warmstart inspect`` of 2,048 units, beside ``import numpy``.

``--coqui`` adds Coqui's own client, ``stt`` 1.4.0 from PyPI for Python 3.10 or older, on the files that ``warmstart
convert --to tflite`` writes and, with ``--tflite``, on one that TensorFlow's converter made (``speech_coqui_file.py``),
with the client's 500 beams and with one. It always runs four threads, whose waiting is CPU time, too. It hears a last,
partly filled frame, which we do not, and so spells a few recordings differently.

    python benchmarks/speech.py transcribe LIST.csv --audio FOLDER --model DIR@best [--coqui PYTHON [--tflite FILE]]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from warmstart import api
from warmstart.data.speech.audio import read_audio
from warmstart.inference.ctc import SpeechSearch
from warmstart.inference.speech.acoustic import open_acoustic
from warmstart.inference.speech.transcriber import Transcriber

FEATURES, OPENING = 100.0, 0.3  # times real time; seconds
WIDTH = 500  # beams, Coqui's default

COQUI = """
import json, sys, time, wave
import numpy as np
from stt import Model
model, width, rounds, *files = sys.argv[1:]
model, times = Model(model), []
model.setBeamWidth(int(width))
for _ in range(int(rounds)):
    began, wall, texts = time.process_time(), time.perf_counter(), []
    for file in files:
        with wave.open(file) as audio:
            texts.append(model.stt(np.frombuffer(audio.readframes(audio.getnframes()), np.int16)))
    times.append([time.process_time() - began, time.perf_counter() - wall])
print(json.dumps([times, texts]))
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", type=Path, help="recordings and transcripts as Coqui lists them")
    parser.add_argument("--audio", type=Path, help="where their paths begin, if not beside the list")
    parser.add_argument("--model", required=True, help="a speech model; of Coqui's with its directory's files")
    parser.add_argument("--coqui", help="a Python with stt 1.4.0")
    parser.add_argument("--tflite", type=Path, help="the same model, made by TensorFlow's converter")
    parser.add_argument("--rounds", type=int, default=5)


def run(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with given.list.open(encoding="utf-8") as file:
        files = [(given.audio or given.list.parent) / row["wav_filename"] for row in csv.DictReader(file)]
    with tempfile.TemporaryDirectory() as folder:
        transcribing(given.model, files, given.rounds, Path(folder))
        if given.coqui:
            beside_coqui(given, files, Path(folder))
        opening(Path(folder))


def transcribing(model: str, files: Sequence[Path], rounds: int, folder: Path) -> None:
    api.convert(model, folder / "onnx", "onnx")
    ours, exported = Transcriber(open_acoustic(model)), Transcriber(open_acoustic(folder / "onnx"))
    mfcc = ours.acoustic.mfcc
    samples = [read_audio(file, mfcc.sample_rate) for file in files]
    seconds = sum(map(len, samples)) / mfcc.sample_rate
    contenders: dict[str, Callable[[], object]] = {
        "features": lambda: [mfcc(one) for one in samples],
        "warmstart": lambda: text_of(ours.files(files)),
        "warmstart, ONNX model": lambda: text_of(exported.files(files)),
        "onnxruntime, clip by clip": clip_by_clip(folder / "onnx", files, mfcc, ours.acoustic.alphabet),
    }
    found = {name: contender() for name, contender in contenders.items() if name != "features"}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            began = time.process_time()
            contender()
            times[name].append(time.process_time() - began)
    same = [sum(a == b for a, b in zip(texts, found["warmstart"], strict=True)) for texts in found.values()]
    print(f"{len(files)} recordings, {seconds:.1f} s; the same text as ours: {dict(zip(found, same, strict=True))}")
    ours_taken = statistics.median(times["warmstart"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:28} {median:8.3f} s {seconds / median:8,.0f} x real time {median / ours_taken:8.2f} of ours")
    ratio = seconds / statistics.median(times["features"])
    print(f"features at least {FEATURES:.0f} times real time: {ratio:.0f}{'' if ratio >= FEATURES else '  BELOW'}")


def text_of(found: object) -> list[str]:
    return [heard.text for _, heard in sorted(found, key=lambda pair: pair[0])]  # type: ignore[attr-defined, call-overload]


def beside_coqui(given: argparse.Namespace, files: Sequence[Path], folder: Path) -> None:
    """Coqui's client on files of ours and on its own, and our beam search; texts are compared with ours."""
    api.convert(given.model, folder / "float", "tflite")
    api.convert(given.model, folder / "int8", "tflite", quantize="int8")
    models = {"our file": folder / "float" / "model.tflite", "our file, int8": folder / "int8" / "model.tflite"}
    if given.tflite:
        models["TensorFlow's file"] = given.tflite
    rate = open_acoustic(given.model).mfcc.sample_rate
    seconds = sum(len(read_audio(file, rate)) for file in files) / rate
    for width in (1, WIDTH):
        ours = Transcriber(open_acoustic(given.model), SpeechSearch(beam_size=width))
        began = time.process_time(), time.perf_counter()
        expected = text_of(ours.files(files))
        taken = [[time.process_time() - began[0], time.perf_counter() - began[1]]]
        found = {"warmstart": (taken, expected)}
        for name, model in models.items():
            command = [given.coqui, "-c", COQUI, str(model), str(width), str(given.rounds), *map(str, files)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            found[f"stt 1.4.0, {name}"] = json.loads(run.stdout.splitlines()[-1])
        print(f"\nbeam search, width {width}\n{'':28} {'CPU s':>8} {'x real time':>12} {'wall s':>8} {'same text':>10}")
        for name, (times, texts) in found.items():
            cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
            same = sum(a == b for a, b in zip(texts, expected, strict=True))
            print(f"{name:28} {cpu:8.3f} {seconds / cpu:12,.0f} {wall:8.3f} {same:10}")


def clip_by_clip(model: Path, files: Sequence[Path], mfcc: object, alphabet: object) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model / "model.onnx"), options, providers=["CPUExecutionProvider"])
    width = next(i.shape[2] for i in session.get_inputs() if i.name == "h")

    def transcribe() -> list[str]:
        zeros, out = np.zeros((1, 1, width), np.float32), []
        for file in files:
            features = np.pad(mfcc(read_audio(file, mfcc.sample_rate)), ((9, 9), (0, 0)))  # type: ignore
            log_probs = session.run(["log_probs"], {"features": features[None], "h": zeros, "c": zeros})[0][0]
            best = log_probs.argmax(-1)
            kept = best[(np.diff(best, prepend=-1) != 0) & (best != log_probs.shape[-1] - 1)]
            out.append(alphabet.decode(kept.tolist()))  # type: ignore[attr-defined]
        return out

    return transcribe


def opening(folder: Path) -> None:
    write_checkpoint(folder / "large")
    size = sum(path.stat().st_size for path in (folder / "large").iterdir())
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    commands = {
        "import numpy": [sys.executable, "-c", "import numpy"],
        "warmstart inspect": [sys.executable, "-m", "warmstart", "inspect", f"{folder / 'large'}@best"],
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(8):
        for name, command in commands.items():
            began, before = time.perf_counter(), os.times()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            after = os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            if turn:  # the first compiles the modules, as installing does
                taken[name].append((time.perf_counter() - began, cpu))
    for name, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        limit = f", limit {OPENING} s" if name != "import numpy" else ""
        print(f"{name:28} {wall:.3f} s, {cpu:.3f} s of CPU{limit}")
    print(f"(a checkpoint of {size / 1e6:,.0f} MB)")


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of Coqui's of 2,048 units with Adam's moments, all zeros."""
    from warmstart.formats.tensorflow.writer import write_bundle
    from warmstart.models.deepspeech.config import DeepSpeechConfig
    from warmstart.models.deepspeech.dialects.flags import flags_of

    config = DeepSpeechConfig(vocab_size=29)
    width, cell = config.n_hidden, "cudnn_lstm/rnn/multi_rnn_cell/cell_0/cudnn_compatible_lstm_cell"
    shapes: dict[str, tuple[int, ...]] = {f"{cell}/kernel": (2 * width, 4 * width), f"{cell}/bias": (4 * width,)}
    sizes = {1: (494, width), 2: (width, width), 3: (width, width), 5: (width, width), 6: (width, 29)}
    for stage, (inputs, outputs) in sizes.items():
        shapes |= {f"layer_{stage}/weights": (inputs, outputs), f"layer_{stage}/bias": (outputs,)}
    shapes |= {f"{name}/{slot}": shape for name, shape in list(shapes.items()) for slot in ("Adam", "Adam_1")}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    arrays["global_step"] = np.asarray(12)
    folder.mkdir()
    write_bundle(folder / "best_dev-12", sorted(arrays.items()))
    (folder / "best_dev_checkpoint").write_text('model_checkpoint_path: "best_dev-12"\n')
    (folder / "flags.txt").write_text(json.dumps(flags_of(config, utf8=False)))
    (folder / "alphabet.txt").write_text("".join(f"{label}\n" for label in " abcdefghijklmnopqrstuvwxyz'"))
