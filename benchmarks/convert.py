"""How fast a model is converted, and in how much memory: warmstart beside CTranslate2's own converters.

Whole processes in turn, from the command to its end: seconds, seconds of processor, peak resident memory; medians after
a round that is not counted, and how the other load of the machine was. `cp` of the source is the floor that the memory
sets, `cp` and `sync` the one that the disk sets: CTranslate2 leaves its output to the system, warmstart waits for the
disk.

    python benchmarks/convert.py DIRECTORY [--rounds 5] [--models opus-base transformers-base transformers-big]
        [--peer /path/to/bin/with/ct2-converters] [--quantization int8 none]

DIRECTORY gets the models (0.3 GB, 0.3 GB and 1.65 GB) and the outputs. The peer needs `pip install ctranslate2 torch
transformers sentencepiece`; its Python makes the models of transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
BIG = {"d": 1024, "ffn": 4096, "layers": 12, "heads": 16}
OPUS, TRANSFORMERS = ("ct2-opus-mt-converter", "--model_dir"), ("ct2-transformers-converter", "--model")
MODELS = {"opus-base": (OPUS, BASE), "transformers-base": (TRANSFORMERS, BASE), "transformers-big": (TRANSFORMERS, BIG)}


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


def write_transformers_model(folder: Path, d: int, ffn: int, layers: int, heads: int) -> None:
    """A Marian model of transformers, every array random (none equals another), with pieces of a made-up language."""
    import sentencepiece
    import torch
    from transformers import MarianConfig, MarianMTModel

    folder.mkdir(parents=True)
    rng, spm = random.Random(0), folder / "source.spm"
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(6_000)]
    with spm.open("wb") as file:
        sentences = (" ".join(rng.choices(words, k=12)) for _ in range(6_000))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=file, vocab_size=4_000, minloglevel=2
        )
    shutil.copyfile(spm, folder / "target.spm")
    pieces = sentencepiece.SentencePieceProcessor(str(spm))
    known = dict.fromkeys(["</s>", "<unk>", *(pieces.id_to_piece(row) for row in range(len(pieces)))])
    known.pop("<s>", None)
    tokens = [*known, *(f"token{n}" for n in range(VOCABULARY - 1 - len(known))), "<pad>"]
    vocabulary = json.dumps({token: row for row, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, "utf-8")
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pad = VOCABULARY - 1
    config = MarianConfig(
        vocab_size=VOCABULARY, d_model=d, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn, encoder_attention_heads=heads, decoder_attention_heads=heads, activation_function="swish",
        max_position_embeddings=512, scale_embedding=True, pad_token_id=pad, decoder_start_token_id=pad, bos_token_id=0,
        eos_token_id=0, forced_eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MarianMTModel(config)
    with torch.no_grad():
        for name, array in (*model.named_parameters(), *model.named_buffers()):
            if "embed_positions" not in name:
                array.normal_(0, 0.05)
    model.save_pretrained(folder)


def make(kind: str, folder: Path, peer: Path) -> None:
    """In a process of its own: a child's peak begins with what its parent holds."""
    (command, _), shape = MODELS[kind]
    if command == OPUS[0]:
        with ProcessPoolExecutor(1) as process:
            process.submit(write_opus_model, folder, **shape).result()
        return
    here = str(Path(__file__).resolve().parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import convert, pathlib\n"
    code += f"convert.write_transformers_model(pathlib.Path({str(folder)!r}), **{shape!r})"
    subprocess.run([str(peer / "python"), "-c", code], check=True)


def run(command: Sequence[str]) -> Cost:
    """One process, from its start to its end; with compiled modules, as an installed package has them."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        *(statistics.median(getattr(c, field) for c in costs) for field in ("seconds", "processor", "megabytes"))
    )


def compare(kind: str, source: Path, output: Path, peer: Path, quantization: str, rounds: int) -> None:
    """One row of the table: every contender in turn."""
    command, flag = MODELS[kind][0]
    more = [] if quantization == "none" else ["--quantization", quantization]
    flags = [flag, str(source), "--output_dir", str(output), "--force", *more]
    flushed = 'cp -rL "$0" "$1" && find "$1" -type f -exec sync {} +'
    commands = {
        "ctranslate2": [str(peer / command), *flags],
        "warmstart": [str(Path(sys.executable).with_name("warmstart")), command, *flags],
        "cp": ["cp", "-rL", str(source), str(output)],
        "cp and sync": ["sh", "-c", flushed, str(source), str(output)],
    }
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, words in commands.items():
            shutil.rmtree(output, ignore_errors=True)
            cost = run(words)
            costs[name] += [cost] if turn else []
    size = sum(file.stat().st_size for file in source.iterdir())
    print(f"{kind}, {size / 1e6:.0f} MB → {quantization}")
    found = {name: median(values) for name, values in costs.items()}
    for name, cost in found.items():
        speed = statistics.median(a.seconds / b.seconds for a, b in zip(costs["ctranslate2"], costs[name], strict=True))
        work = found["ctranslate2"].processor / cost.processor
        memory = cost.megabytes / found["ctranslate2"].megabytes
        print(
            f"  {name:12} {cost.seconds:6.2f} s  {cost.processor:6.2f} s of processor  {cost.megabytes:6.0f} MB"
            f"  {speed:5.1f} × as fast, {work:5.1f} × by processor, {memory:.2f} of the memory"
        )
    load = os.getloadavg()[0]
    print(
        f"  {rounds} rounds; {len(os.sched_getaffinity(0))} processors; load of the last minute {load:.1f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, required=True, help="directory of the peer's commands")
    parser.add_argument("--models", nargs="+", default=["opus-base"], choices=MODELS)
    parser.add_argument("--quantization", nargs="+", default=["int8", "none"])
    args = parser.parse_args()
    for kind in args.models:
        source = args.directory / kind
        if not source.is_dir():
            make(kind, source, args.peer)
        for quantization in args.quantization:
            compare(kind, source, args.directory / "output", args.peer, quantization, args.rounds)


if __name__ == "__main__":
    main()
