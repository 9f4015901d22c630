"""How fast a model is trained: `warmstart train`, Seq2SeqTrainer of transformers, and on a CPU Marian.

The same architecture, data, vocabulary and number of sentences an update; each contender is a process of its own,
rounds take turns, and updates count once the libraries are warm. Target tokens per second with the end token: medians
of the rounds, ratios, and the fraction of the measured matrix-product rate.

    python benchmarks/train.py [SOURCE TARGET] [--device cuda] [--size base] [--rounds 3] [--only NAME ...]
    pip install transformers accelerate pymarian      # the peers; those that are missing are left out

Without SOURCE and TARGET the texts are random words, as long as sentences are.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Size:
    """Updates have about ``sentences``; after ``warm`` updates ``counted`` ones count: transformers sorts stretches of
    50 batches by length, so they are whole stretches."""

    width: int
    ffn: int
    heads: int
    layers: int
    vocabulary: int
    sentences: int
    warm: int = 50
    counted: int = 50


SIZES = {"small": Size(256, 1024, 4, 3, 4000, 64), "base": Size(512, 2048, 8, 6, 32000, 512, 100, 200)}
LONGEST = 100
RATE_SIZE = {"cpu": 1536, "cuda": 8192}
CONTENDERS = {
    "cpu": {
        "warmstart float32": "warmstart",
        "warmstart bfloat16": "warmstart",
        "transformers float32": "transformers",
        "transformers float32, by length": "transformers",
        "transformers bfloat16, by length": "transformers",
        "marian float32": "pymarian",
    },
    "cuda": {
        "warmstart bfloat16": "warmstart",
        "warmstart bfloat16, compiled": "warmstart",
        "warmstart bfloat16, compiled, not deterministic": "warmstart",
        "transformers bfloat16, by length": "transformers",
        "transformers bfloat16, compiled, by length": "transformers",
    },
}


def invent(folder: Path, size: Size) -> None:
    """Files as :func:`prepare` writes them, of random words: few are frequent, and lengths are those of sentences."""
    import numpy as np

    random, count = np.random.default_rng(1), (size.warm + size.counted) * size.sentences // 2
    words = ["</s>", "<unk>", *(f"w{k}" for k in range(2, size.vocabulary))]
    (folder / "v.yml").write_text("".join(f'"{word}": {row}\n' for row, word in enumerate(words)))
    longs = np.exp(random.normal(3.1, 0.6, count))
    for name in ("source", "target"):
        lengths = (longs * random.normal(1.0, 0.1, count)).astype(int).clip(1, LONGEST - 1)
        ids = [np.minimum(1 + random.zipf(1.3, n), size.vocabulary - 1).tolist() for n in lengths]
        lines = [" ".join(words[row] for row in one) + "\n" for one in ids]
        (folder / f"{name}.json").write_text(json.dumps([[*one, 0] for one in ids]))
        (folder / name).write_text("".join(lines))
        (folder / f"{name}.validation").write_text("".join(lines[:64]))


def prepare(source: Path, target: Path, folder: Path, size: Size) -> None:
    """Files that everybody reads: pairs of at most ``LONGEST`` tokens, and one vocabulary of both languages."""
    import sentencepiece

    lines = [p.read_text("utf-8").splitlines() for p in (source, target)]
    (folder / "text").write_text("\n".join(lines[0] + lines[1]) + "\n", "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "v"), vocab_size=size.vocabulary, minloglevel=2,
        character_coverage=1.0, eos_id=0, unk_id=1, bos_id=-1, pad_id=-1,
    )  # fmt: skip
    (folder / "v.model").rename(folder / "v.spm")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "v.spm"))
    ids = [[[*row, 0] for row in model.encode(side)] for side in lines]
    kept = [
        k for k, pair in enumerate(zip(*ids, strict=True)) if min(map(len, pair)) > 1 and max(map(len, pair)) <= LONGEST
    ]
    for side, name in enumerate(("source", "target")):
        (folder / name).write_text("\n".join(lines[side][k] for k in kept) + "\n", "utf-8")
        (folder / f"{name}.json").write_text(json.dumps([ids[side][k] for k in kept]))
        (folder / f"{name}.validation").write_text("\n".join(lines[side][k] for k in kept[:64]) + "\n", "utf-8")


def ours(folder: Path, precision: str, device: str, size: Size, *, compiled: bool, deterministic: bool) -> float:
    """Through the public verb; its own metrics say tokens and seconds."""
    import yaml

    from warmstart import api

    pairs = list(zip(*(json.loads((folder / f"{n}.json").read_text()) for n in ("source", "target")), strict=True))
    budget = int(size.sentences * statistics.mean(max(map(len, pair)) for pair in pairs))
    files = {"source": str(folder / "source"), "target": str(folder / "target")}
    few = {name: f"{path}.validation" for name, path in files.items()}
    on_gpu = {"compile": compiled, "deterministic": deterministic} if device == "cuda" else {}
    config = {
        "run": str(folder / f"run-{precision}-{time.time_ns()}"),
        "model": {
            "d_model": size.width, "d_ff": size.ffn, "num_heads": size.heads, "encoder_layers": size.layers,
            "decoder_layers": size.layers, "dropout": 0.1, "tied_embeddings": "all",
        },
        "vocabularies": {"shared": {"type": "file", "path": str(next(folder.glob("v.[sy]*m*")))}},
        "data": {
            "tasks": {"t": {"splits": {"train": files, "validation": few}}}, "max_length": LONGEST,
            "batch_tokens": budget,
        },
        "training": {
            "steps": size.warm + size.counted, "learning_rate": 0.0003, "schedule": {"type": "constant"},
            "precision": precision, "device": device, **on_gpu,
            "evaluate_every": 10**6, "evaluate_first": False, "checkpoint_every": 10**6, "log_every": 10, "samples": 0,
        },
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    api.train(folder / "c.yaml", progress=False)
    lines = (Path(config["run"]) / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    counted = [r for r in records if r["step"] > size.warm]
    seconds = records[-1]["time"]["seconds"] - next(r for r in records if r["step"] == size.warm)["time"]["seconds"]
    return float(sum(r["train/tokens"] for r in counted) / seconds)


def transformers(folder: Path, precision: str, device: str, size: Size, *, by_length: bool, compiled: bool) -> float:
    import torch
    from transformers import MarianConfig, MarianMTModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    source, target = (json.loads((folder / f"{n}.json").read_text()) for n in ("source", "target"))
    pad = size.vocabulary
    model = MarianMTModel(
        MarianConfig(
            vocab_size=pad + 1, d_model=size.width, encoder_layers=size.layers, decoder_layers=size.layers,
            encoder_attention_heads=size.heads, decoder_attention_heads=size.heads, encoder_ffn_dim=size.ffn,
            decoder_ffn_dim=size.ffn,
            dropout=0.1, activation_function="relu", pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad,
            scale_embedding=True, share_encoder_decoder_embeddings=True, max_position_embeddings=128,
        )
    )  # fmt: skip

    class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, i: int) -> dict[str, list[int]]:
            return {"input_ids": source[i], "labels": target[i]}

    count, log = [0], []

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], True, fill)

        ids = padded([r["input_ids"] for r in rows], pad)
        shifted = padded([[pad, *r["labels"][:-1]] for r in rows], pad)
        labels = padded([r["labels"] for r in rows], -100)
        return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels, "decoder_input_ids": shifted}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            log.append((time.perf_counter(), count[0]))

    class Counting(Seq2SeqTrainer):  # type: ignore[misc]
        def training_step(self, model: object, inputs: dict[str, torch.Tensor], *rest: object) -> torch.Tensor:
            count[0] += int((inputs["labels"] >= 0).sum())
            return super().training_step(model, inputs, *rest)  # type: ignore[no-any-return]

    options: dict[str, object] = {"train_sampling_strategy": "group_by_length"} if by_length else {}
    options |= {"torch_compile": compiled, "dataloader_num_workers": 4} if device == "cuda" else {"use_cpu": True}
    arguments = Seq2SeqTrainingArguments(
        str(folder / "hf"), per_device_train_batch_size=size.sentences, max_steps=size.warm + size.counted,
        learning_rate=3e-4, label_smoothing_factor=0.1, bf16=precision == "bfloat16", save_strategy="no",
        logging_steps=10**6, report_to=[], disable_tqdm=True, max_grad_norm=1.0, **options,
    )  # fmt: skip
    Counting(model, arguments, train_dataset=Data(), data_collator=collate, callbacks=[Clock()]).train()
    (began, before), (ended, after) = log[size.warm - 1], log[-1]
    return (after - before) / (ended - began)


def marian(folder: Path, size: Size) -> float:
    every, vocabulary = 10, next(folder.glob("v.[sy]*m*"))
    command = (
        f"train --type transformer -t {folder}/source {folder}/target -m {folder}/marian.npz "
        f"-v {vocabulary} {vocabulary} --dim-vocabs {size.vocabulary} {size.vocabulary} --dim-emb {size.width} "
        f"--enc-depth {size.layers} "
        f"--dec-depth {size.layers} --transformer-heads {size.heads} --transformer-dim-ffn {size.ffn} "
        f"--transformer-ffn-activation relu "
        f"--transformer-dropout 0.1 --label-smoothing 0.1 --tied-embeddings-all --learn-rate 0.0003 --clip-norm 1 "
        f"--cpu-threads {os.environ['OMP_NUM_THREADS']} --sync-sgd --maxi-batch 100 -w 3000 "
        f"--mini-batch {size.sentences} --cost-type ce-mean-words --max-length {LONGEST} --disp-freq {every}u "
        f"--after-batches {size.warm + size.counted} --overwrite"
    )
    program = str(Path(sys.executable).with_name("pymarian"))
    for old in folder.glob("marian.npz*"):
        old.unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # its own threads each compute with one
    ended = subprocess.run([program, *command.split()], capture_output=True, text=True, check=False, env=environment)
    speeds = [float(x.replace(",", "")) for x in re.findall(r"([\d.,]+) words/s", ended.stderr)][size.warm // every :]
    if not speeds:
        raise SystemExit(ended.stderr[-2000:])
    return len(speeds) / sum(1 / speed for speed in speeds)


def matrix_rate(dtype: str, device: str) -> float:
    """GFLOP/s of square matrix products, the best of several."""
    import torch

    side = RATE_SIZE[device]
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds) / 1e9


def flops_per_target_token(folder: Path, size: Size) -> float:
    """Of the matrix products with weights: 2 for each weight and token forward, and twice that backward."""
    source, target = (json.loads((folder / f"{n}.json").read_text()) for n in ("source", "target"))
    ratio, d, ffn = sum(map(len, source)) / sum(map(len, target)), size.width, size.ffn
    encoder = size.layers * (4 * d**2 + 2 * d * ffn) + size.layers * 2 * d**2  # keys and values of the source
    decoder = size.layers * (6 * d**2 + 2 * d * ffn) + d * size.vocabulary
    return 6.0 * (ratio * encoder + decoder)


def measure(name: str, folder: Path, device: str, size: Size) -> float:
    precision, compiled = "bfloat16" if "bfloat16" in name else "float32", ", compiled" in name
    if name in ("float32", "bfloat16"):
        return matrix_rate(name, device)
    if name.startswith("warmstart"):
        from warmstart.cli import wait_briefly

        wait_briefly()  # as its command line does; the peers' threads wait as theirs do
        deterministic = "not deterministic" not in name
        return ours(folder, precision, device, size, compiled=compiled, deterministic=deterministic)
    if name.startswith("marian"):
        return marian(folder, size)
    return transformers(folder, precision, device, size, by_length="by length" in name, compiled=compiled)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--device", choices=list(CONTENDERS), default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    size = SIZES[given.size]
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    if given.child:
        print(f"\nRESULT {measure(given.child, given.source, given.device, size)}")
        return
    contenders = CONTENDERS[given.device]
    if unknown := set(given.only or ()) - set(contenders):
        parser.error(f"no contender {', '.join(sorted(unknown))} (there are {'; '.join(contenders)})")
    names = [n for n in given.only or contenders if importlib.util.find_spec(contenders[n])]
    for missing in sorted({contenders[n] for n in given.only or contenders if n not in names}):
        print(f"{missing} is not installed, and left out: pip install transformers accelerate pymarian")
    found: dict[str, list[float]] = {n: [] for n in [*names, "float32", "bfloat16"]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if given.target is None:
            invent(folder, size)
        else:
            prepare(given.source, given.target, folder, size)
        for number in range(given.rounds):
            for name, speeds in found.items():
                command = [sys.executable, __file__, str(folder), "--device", given.device, "--size", given.size]
                command += ["--child", name]
                ended = subprocess.run(command, capture_output=True, text=True, check=False)
                result = re.search(r"^RESULT (.*)$", ended.stdout, re.M)
                if result is None:
                    raise SystemExit(f"{name}:\n{ended.stdout[-1000:]}{ended.stderr[-3000:]}")
                speeds.append(float(result[1]))
                print(f"round {number + 1}: {name}: {speeds[-1]:,.0f}", flush=True)
        needed = flops_per_target_token(folder, size) / 1e9
    middle = {name: statistics.median(speeds) for name, speeds in found.items()}
    print(f"\n{given.device}, {given.size}, {os.environ['OMP_NUM_THREADS']} threads, medians of {given.rounds} rounds; "
          f"matrix products: {middle['float32']:.0f} (float32) and {middle['bfloat16']:.0f} (bfloat16) "
          f"GFLOP/s\n")  # fmt: skip
    peers = {p: max((middle[n] for n in names if n.startswith(p)), default=0.0) for p in ("transformers", "marian")}
    print(f"{'':48}  target tokens/s  of the rate  / transformers' best  / marian")
    for name in names:
        reached = middle[name] * needed / middle["bfloat16" if "bfloat16" in name else "float32"]
        ratios = "".join(f"{middle[name] / best:17.2f}" if best else f"{'':17}" for best in peers.values())
        print(f"{name:48}  {middle[name]:15,.0f}  {reached:10.0%}  {ratios}")


if __name__ == "__main__":
    main()
