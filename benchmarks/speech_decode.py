"""How fast outputs become text: our search, flashlight-text, pyctcdecode and Coqui STT's decoder on the same outputs.

The outputs are made: seconds of frames in which one label is likely, most often the blank, and others compete. All
decode with the same width, language model and weights, one utterance at a time, in CPU time; rounds take turns, and
medians are printed. ``--outputs`` takes outputs of a model instead (an npz of logits, frames × labels).

    pip install kenlm flashlight-text pyctcdecode      # the peers; what is missing is left out
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from warmstart.inference.ctc import BeamOptions, FlashlightDecoder, Scorer, decode_beam, open_scorer
from warmstart.vocabularies.alphabet import Alphabet

ALPHA, BETA = 0.75, 1.85
FRAMES_PER_SECOND = 50
Arrays = list[np.ndarray]
Decode = Callable[[Arrays], list[str]]

COQUI = """
import sys, time
import numpy as np
import coqui_stt_ctcdecoder as coqui
outputs, alphabet, scorer, width, alpha, beta = sys.argv[1:]
labels = coqui.Alphabet(alphabet)
scorer = coqui.Scorer(float(alpha), float(beta), scorer, labels) if scorer else None
arrays = [np.exp(array.astype(np.float64)) for array in np.load(outputs).values()]
for line in sys.stdin:
    start = time.process_time()
    for array in arrays:
        coqui.ctc_beam_search_decoder(array, labels, int(width), 1.0, 300, scorer)
    print(time.process_time() - start, flush=True)
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scorer", type=Path, required=True, help="a .scorer package")
    parser.add_argument("--alphabet", type=Path, required=True, help="its alphabet.txt")
    parser.add_argument("--outputs", type=Path, help="logits of a model, an npz; made ones without it")
    parser.add_argument("--coqui", help="a Python with coqui_stt_ctcdecoder 1.4.0")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)


def run(given: argparse.Namespace) -> None:
    labels = Alphabet.from_text(given.alphabet.read_text("utf-8"), given.alphabet)
    scorer = open_scorer(given.scorer, labels, alpha=ALPHA, beta=BETA)
    arrays = read(given.outputs) if given.outputs else made(labels, scorer)
    seconds = sum(map(len, arrays)) / FRAMES_PER_SECOND
    print(f"{len(arrays)} utterances, {seconds:.1f} s in frames of 20 ms, {len(labels)} labels, width {given.width}")
    for name, used in (("no language model", None), ("language model", scorer)):
        peers = decoders(labels, used, given)
        times: dict[str, list[float]] = {peer: [] for peer in peers}
        for decode in peers.values():  # what is built at the first use is no part of it
            decode(arrays[:1])
        for _ in range(given.rounds):
            for peer, decode in peers.items():
                start = time.process_time()
                decode(arrays)
                times[peer].append(time.process_time() - start)
        if given.coqui:
            times["coqui"] = coqui_times(arrays, used, given)
        ours = statistics.median(times["warmstart"])
        print(f"\n{name}\n{'decoder':12} {'CPU s':>8} {'x real time':>12} {'of ours':>8}")
        for peer, measured in times.items():
            median = statistics.median(measured)
            print(f"{peer:12} {median:8.3f} {seconds / median:12.1f} {median / ours:8.2f}")


def decoders(labels: Alphabet, scorer: Scorer | None, given: argparse.Namespace) -> dict[str, Decode]:
    options = BeamOptions(given.width)
    found: dict[str, Decode] = {
        "warmstart": lambda arrays: [decode_beam(array, labels, options, scorer)[0].text for array in arrays]
    }
    if scorer is not None:
        try:
            flashlight = FlashlightDecoder(labels, scorer, options)
            found["flashlight"] = lambda arrays: [flashlight.decode(array)[0].text for array in arrays]
        except Exception as error:
            print(f"without flashlight: {error}", file=sys.stderr)
    try:
        from pyctcdecode import build_ctcdecoder
    except ImportError:
        print("without pyctcdecode", file=sys.stderr)
        return found
    model: dict[str, object] = {}
    if scorer is not None and scorer.lexicon is not None:
        words = list(scorer.lexicon.words(labels))
        model = {"kenlm_model_path": str(given.scorer), "unigrams": words, "alpha": ALPHA, "beta": BETA}
    peer = build_ctcdecoder([*labels.labels, ""], **model)
    found["pyctcdecode"] = lambda arrays: [peer.decode(array, beam_width=given.width) for array in arrays]
    return found


def coqui_times(arrays: Arrays, scorer: Scorer | None, given: argparse.Namespace) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outputs.npz")
        np.savez(path, **{f"{i:04}": array for i, array in enumerate(arrays)})
        model = str(given.scorer) if scorer else ""
        command = [given.coqui, "-c", COQUI, str(path), str(given.alphabet), model, str(given.width)]
        done = subprocess.run(
            [*command, str(ALPHA), str(BETA)], input="go\n" * given.rounds, capture_output=True, text=True, check=True
        )
    return [float(line) for line in done.stdout.splitlines()]


def read(path: Path) -> Arrays:
    return [log_softmax(logits) for logits in np.load(path).values()]


def made(labels: Alphabet, scorer: Scorer, utterances: int = 10, seconds: int = 5) -> Arrays:
    """Outputs of sentences of the scorer's words: each letter likely in one frame, the blank in most others."""
    random, frames = np.random.default_rng(0), seconds * FRAMES_PER_SECOND
    assert scorer.lexicon is not None
    words = list(scorer.lexicon.words(labels))
    arrays = []
    for _ in range(utterances):
        text = ""
        while len(text) < seconds * 13:  # letters a second, as in reading
            text += words[int(random.integers(len(words)))] + " "
        logits = random.normal(size=(frames, len(labels))) * 1.5
        logits[:, labels.blank_id] += 7
        ids = labels.encode(text.strip())
        for i, label in enumerate(ids):
            frame = i * frames // len(ids)
            logits[frame, [label, labels.blank_id]] += 7, -7
        arrays.append(log_softmax(logits))
    return arrays


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)
