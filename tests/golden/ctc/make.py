"""Makes the golden files of this folder: what Coqui STT 1.4.0's own decoder finds in made-up outputs.

Three steps, since that decoder's wheels end at Python 3.10:

1. ``python make.py inputs`` writes ``words.arpa``, ``characters.arpa`` and ``inputs.npz``.
2. ``python make.py packages BUILD_BINARY`` (with warmstart installed) makes ``words.scorer`` and ``characters.scorer``;
   BUILD_BINARY is KenLM's program, from the sources of ``kenlm`` 0.3.0.
3. ``python3.10 make.py oracle [SMOKE]`` (with ``coqui_stt_ctcdecoder==1.4.0`` and ``numpy<2``) writes ``oracle.json``;
   SMOKE is a directory with Coqui's ``alphabet.txt`` and ``pruned_lm.scorer``, for ``smoke.json``.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
LABELS = [*"abcdefgh", " ", *"ijklmnopqrstuvwxyz'é"]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "o'clock", "café", "a"]
CHARACTERS = ["o", "n", "e", " ", "é", "ß", "€", "中", "😀"]


def arpa(units: list[str], seed: int) -> str:
    """A model of order 3 with arbitrary numbers."""
    random = np.random.default_rng(seed)
    number = lambda low, high: f"{random.uniform(low, high):.4f}"  # noqa: E731
    unigrams = [f"{number(-2, -0.5)}\t{unit}\t{number(-0.8, 0)}" for unit in [*units, "<unk>"]]
    unigrams += [f"-99\t<s>\t{number(-0.8, 0)}", f"{number(-2, -0.5)}\t</s>"]
    pairs = [pair for pair in itertools.product(["<s>", *units], units) if random.random() < 0.3]
    triples = [(*a, b[1]) for a in pairs for b in pairs if a[1] == b[0] and random.random() < 0.3]
    bigrams = [f"{number(-1.5, -0.1)}\t{' '.join(pair)}\t{number(-0.5, 0)}" for pair in pairs]
    trigrams = [f"{number(-1, -0.05)}\t{' '.join(triple)}" for triple in triples]
    counts = "".join(f"ngram {n}={len(part)}\n" for n, part in enumerate((unigrams, bigrams, trigrams), 1))
    parts = zip(("1", "2", "3"), (unigrams, bigrams, trigrams))  # noqa: B905 (Python 3.9 and older run this, too)
    body = "".join(f"\\{n}-grams:\n" + "".join(f"{line}\n" for line in part) + "\n" for n, part in parts)
    return f"\\data\\\n{counts}\n{body}\\end\\\n"


def outputs(text: list[int], size: int, frames: int, seed: int, sharp: float) -> np.ndarray:
    """Logits · 16 as int8 (frames, size + 1) of ``text`` with noise; three silent frames before it."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(frames, size + 1))
    logits[:, size] += 1
    for i, label in enumerate(text):
        logits[3 + i * (frames - 3) // len(text), label] += sharp
    logits[:3, size] += 20
    return np.clip(np.rint(logits * 16 / max(1, abs(logits[3:]).max() / 7)), -127, 127).astype(np.int8)


def write_inputs() -> None:
    for name, units, seed in (("words", WORDS, 1), ("characters", [c for c in CHARACTERS if c != " "], 2)):
        (HERE / f"{name}.arpa").write_text(arpa(units, seed), "utf-8")
    spelt = [LABELS.index(character) for character in "seven o'clock café"]
    spelt_bytes = [byte - 1 for byte in "onß€中e😀é".encode()]
    np.savez_compressed(
        HERE / "inputs.npz",
        words=outputs(spelt, len(LABELS), 45, 3, 4),
        noise=outputs(spelt[:1], len(LABELS), 30, 4, 0),
        bytes=outputs(spelt_bytes, 255, 40, 5, 5),
    )


def write_packages(build_binary: str) -> None:
    from warmstart.inference.ctc import write_package
    from warmstart.vocabularies.alphabet import Alphabet

    for name, units, labels in (
        ("words", WORDS, Alphabet(LABELS)),
        ("characters", [c for c in CHARACTERS if c != " "], Alphabet.of_bytes()),
    ):
        with tempfile.TemporaryDirectory() as folder:
            binary = Path(folder, "lm.binary")
            subprocess.run([build_binary, "-v", "trie", HERE / f"{name}.arpa", binary], check=True)
            write_package(HERE / f"{name}.scorer", binary, units, labels, alpha=0.7, beta=1.3)


def softmax(stored: np.ndarray) -> np.ndarray:
    """Probabilities of stored logits, with what leaves no two paths equally likely."""
    logits = stored / 16 + 0.003 * np.sin(1 + np.arange(stored.size)).reshape(stored.shape)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def write_oracle(smoke: list[str]) -> None:
    import coqui_stt_ctcdecoder as coqui

    alphabet, utf8 = coqui.Alphabet(), coqui.UTF8Alphabet()
    alphabet.InitFromLabels(LABELS)
    inputs = {name: softmax(array) for name, array in np.load(HERE / "inputs.npz").items()}
    opened = {}

    def case(path: Path, labels: object, probabilities: np.ndarray, **options: object) -> dict[str, object]:
        weights = options["weights"]
        key = (str(path), weights)
        if weights and key not in opened:
            opened[key] = coqui.Scorer(*weights, str(path), labels)
        hot = {word.encode(): boost for word, boost in options["hot_words"].items()}
        found = coqui.swigwrapper.ctc_beam_search_decoder(  # the wrapper around it fails where bytes are no UTF-8
            probabilities, labels, options["width"], options["cutoff_prob"], options["cutoff_top_n"],
            opened[key] if weights else None, hot, 3,
        )  # fmt: skip
        return {**options, "results": [[r.confidence, list(r.tokens), list(r.timesteps)] for r in found]}

    plain = {"cutoff_prob": 1.0, "cutoff_top_n": 300, "hot_words": {}, "weights": None}
    cases = []
    for name, labels, path, hot in (
        ("words", alphabet, HERE / "words.scorer", {"three": 4.0, "o'clock": -2.5}),
        ("noise", alphabet, HERE / "words.scorer", {"three": 9.0}),
        ("bytes", utf8, HERE / "characters.scorer", {"€": 3.0, "o": 1.0}),
    ):
        for width in (8, 100):
            for change in (
                {}, {"cutoff_prob": 0.9}, {"cutoff_prob": 0.99, "cutoff_top_n": 6},
                {"weights": (0.7, 1.3)}, {"weights": (2.5, -0.5)}, {"weights": (0.7, 1.3), "hot_words": hot},
                {"weights": (0.7, 1.3), "cutoff_prob": 0.9},
            ):  # fmt: skip
                options = {**plain, **change, "input": name, "width": width}
                cases.append(case(path, labels, inputs[name], **options))
    (HERE / "oracle.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    if smoke:
        folder = Path(smoke[0])
        labels = coqui.Alphabet(str(folder / "alphabet.txt"))
        random = np.random.default_rng(6)
        logits = np.rint(random.normal(size=(3, 40, 29)) * 40).astype(np.int8)
        np.savez_compressed(HERE / "smoke.npz", logits=logits)
        cases = [
            case(folder / "pruned_lm.scorer", labels, softmax(array), **plain | change | {"input": i, "width": 200})
            for i, array in enumerate(logits)
            for change in ({}, {"weights": (0.75, 1.85)}, {"weights": (0.75, 1.85), "hot_words": {"the": 7.5}})
        ]
        (HERE / "smoke.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    step, *rest = sys.argv[1:]
    {"inputs": write_inputs, "packages": lambda: write_packages(rest[0]), "oracle": lambda: write_oracle(rest)}[step]()
