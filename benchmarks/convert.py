"""How fast a model is converted, and in how much memory: warmstart beside CTranslate2's own converters.

Whole processes in turn, from the command to its end: seconds, seconds of processor, peak resident memory; medians, and
how the other load of the machine was. `cp` of the source is the floor that the disk sets.

    python benchmarks/convert.py DIRECTORY [--rounds 5] [--peer /path/to/bin/with/ct2-converters]

DIRECTORY gets the models (0.3 GB) and the outputs. The peer needs `pip install ctranslate2 torch transformers`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

VOCABULARY = 58_101  # tokens of opus-mt-en-de
BASE = {"d": 512, "ffn": 2048, "layers": 6, "heads": 8}


@dataclass(frozen=True)
class Cost:
    """One whole process."""

    seconds: float
    processor: float
    megabytes: float


def write_opus_model(folder: Path, d: int, ffn: int, layers: int, heads: int) -> None:
    """A model of random numbers as OPUS-MT ships it: tied everywhere, post-norm, swish."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}

    def add(name: str, *shape: int) -> None:
        arrays[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)

    add("Wemb", VOCABULARY, d)
    add("decoder_ff_logit_out_b", 1, VOCABULARY)
    for side in ("encoder", "decoder"):
        for layer in range(1, layers + 1):
            for attention in ("self", "context") if side == "decoder" else ("self",):
                prefix = f"{side}_l{layer}_{attention}"
                for letter in "qkvo":
                    add(f"{prefix}_W{letter}", d, d)
                    add(f"{prefix}_b{letter}", 1, d)
                add(f"{prefix}_Wo_ln_scale", 1, d)
                add(f"{prefix}_Wo_ln_bias", 1, d)
            prefix = f"{side}_l{layer}_ffn"
            add(f"{prefix}_W1", d, ffn)
            add(f"{prefix}_b1", 1, ffn)
            add(f"{prefix}_W2", ffn, d)
            add(f"{prefix}_b2", 1, d)
            add(f"{prefix}_ffn_ln_scale", 1, d)
            add(f"{prefix}_ffn_ln_bias", 1, d)
    options = {
        "type": "transformer", "dim-vocabs": [VOCABULARY] * 2, "dim-emb": d, "enc-depth": layers, "dec-depth": layers,
        "transformer-heads": heads, "transformer-dim-ffn": ffn, "transformer-decoder-autoreg": "self-attention",
        "transformer-no-projection": False, "transformer-ffn-activation": "swish", "transformer-preprocess": "",
        "transformer-postprocess": "dan", "transformer-postprocess-emb": "d", "tied-embeddings-all": True,
        "transformer-guided-alignment-layer": "last", "version": "v1.9.0",
    }  # fmt: skip
    folder.mkdir(parents=True)
    text = yaml.safe_dump(options).encode() + b"\0"
    np.savez(folder / "model.npz", **arrays, **{"special:model.yml": np.frombuffer(text, np.int8)})
    tokens = ["</s>", "<unk>", *(f"▁token{n}" for n in range(VOCABULARY - 2))]
    (folder / "vocab.yml").write_text("".join(f'"{token}": {row}\n' for row, token in enumerate(tokens)), "utf-8")
    (folder / "decoder.yml").write_text(yaml.safe_dump({"models": ["model.npz"], "vocabs": ["vocab.yml"] * 2}))


def run(command: Sequence[str]) -> Cost:
    """One process, from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        *(statistics.median(getattr(c, field) for c in costs) for field in ("seconds", "processor", "megabytes"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", default="", help="directory of the peer's commands")
    parser.add_argument("--quantization", nargs="+", default=["int8", "none"])
    args = parser.parse_args()
    source, output = args.directory / "base", args.directory / "output"
    if not source.is_dir():
        with ProcessPoolExecutor(1) as process:  # a child's peak begins with what its parent holds
            process.submit(write_opus_model, source, **BASE).result()
    shutil.copytree(source, output, dirs_exist_ok=True)  # into the page cache
    peer = str(Path(args.peer) / "ct2-opus-mt-converter")
    ours = [str(Path(sys.executable).with_name("warmstart")), "ct2-opus-mt-converter"]
    for quantization in args.quantization:
        more = [] if quantization == "none" else ["--quantization", quantization]
        flags = ["--model_dir", str(source), "--output_dir", str(output), "--force", *more]
        commands = {
            "ctranslate2": [peer, *flags],
            "warmstart": [*ours, *flags],
            "cp": ["cp", "-r", str(source), str(output)],
        }
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(args.rounds):
            for name, command in commands.items():
                shutil.rmtree(output, ignore_errors=True)
                costs[name].append(run(command))
        print(f"OPUS-MT base, {source.joinpath('model.npz').stat().st_size / 1e6:.0f} MB → {quantization}")
        found = {name: median(values) for name, values in costs.items()}
        for name, cost in found.items():
            speed = found["ctranslate2"].seconds / cost.seconds
            memory = cost.megabytes / found["ctranslate2"].megabytes
            print(
                f"  {name:12} {cost.seconds:6.2f} s  {cost.processor:6.2f} s of processor  {cost.megabytes:6.0f} MB"
                f"  {speed:5.1f} × as fast, {memory:.2f} of the memory"
            )
    load = os.getloadavg()[0]
    print(f"medians of {args.rounds}; {len(os.sched_getaffinity(0))} processors; load of the last minute {load:.1f}")


if __name__ == "__main__":
    main()
