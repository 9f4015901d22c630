"""How fast a model is trained on a CPU: `warmstart train`, Seq2SeqTrainer of transformers, and Marian.

The same architecture, data, vocabulary and number of sentences an update; each contender is a process of its own,
rounds take turns, and updates count once the libraries are warm. Target tokens per second with the end token: medians
of the rounds, ratios, and the fraction of the measured matrix-product rate.

    python benchmarks/train.py SOURCE TARGET [--rounds 3] [--only NAME ...]
    pip install transformers accelerate pymarian      # the peers; those that are missing are left out
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
from pathlib import Path

WIDTH, FFN, HEADS, LAYERS, VOCABULARY, SENTENCES, LONGEST = 256, 1024, 4, 3, 4000, 64, 100
WARM, COUNTED = 50, 50  # updates; transformers sorts stretches of 50 batches by length, so whole stretches count
RATE_SIZE = 1536
CONTENDERS = {
    "warmstart float32": "warmstart",
    "warmstart bfloat16": "warmstart",
    "transformers float32": "transformers",
    "transformers float32, by length": "transformers",
    "transformers bfloat16, by length": "transformers",
    "marian float32": "pymarian",
}


def prepare(source: Path, target: Path, folder: Path) -> None:
    """Files that everybody reads: pairs of at most ``LONGEST`` tokens, and one vocabulary of both languages."""
    import sentencepiece

    lines = [p.read_text("utf-8").splitlines() for p in (source, target)]
    (folder / "text").write_text("\n".join(lines[0] + lines[1]) + "\n", "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "v"), vocab_size=VOCABULARY, minloglevel=2,
        character_coverage=1.0, eos_id=0, unk_id=1, bos_id=-1, pad_id=-1,
    )  # fmt: skip
    (folder / "v.model").rename(folder / "v.spm")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "v.spm"))
    ids = [[[*row, 0] for row in model.encode(side)] for side in lines]
    kept = [
        k for k, pair in enumerate(zip(*ids, strict=True)) if min(map(len, pair)) > 1 and max(map(len, pair)) <= 100
    ]
    for side, name in enumerate(("source", "target")):
        (folder / name).write_text("\n".join(lines[side][k] for k in kept) + "\n", "utf-8")
        (folder / f"{name}.json").write_text(json.dumps([ids[side][k] for k in kept]))
        (folder / f"{name}.validation").write_text("\n".join(lines[side][k] for k in kept[:64]) + "\n", "utf-8")


def ours(folder: Path, precision: str) -> float:
    """Through the public verb; its own metrics say tokens and seconds."""
    import yaml

    from warmstart import api

    pairs = list(zip(*(json.loads((folder / f"{n}.json").read_text()) for n in ("source", "target")), strict=True))
    budget = int(SENTENCES * statistics.mean(max(map(len, pair)) for pair in pairs))
    files = {"source": str(folder / "source"), "target": str(folder / "target")}
    few = {name: f"{path}.validation" for name, path in files.items()}
    config = {
        "run": str(folder / f"run-{precision}-{time.time_ns()}"),
        "model": {
            "d_model": WIDTH, "d_ff": FFN, "num_heads": HEADS, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
            "dropout": 0.1, "tied_embeddings": "all",
        },
        "vocabularies": {"shared": {"type": "file", "path": str(folder / "v.spm")}},
        "data": {
            "tasks": {"t": {"splits": {"train": files, "validation": few}}}, "max_length": 100, "batch_tokens": budget,
        },
        "training": {
            "steps": WARM + COUNTED, "learning_rate": 0.0003, "schedule": {"type": "constant"}, "precision": precision,
            "evaluate_every": 10**6, "evaluate_first": False, "checkpoint_every": 10**6, "log_every": 10, "samples": 0,
        },
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    api.train(folder / "c.yaml", progress=False)
    lines = (Path(config["run"]) / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["kind"] == "train"]
    counted = [r for r in records if r["step"] > WARM]
    seconds = records[-1]["time"]["seconds"] - next(r for r in records if r["step"] == WARM)["time"]["seconds"]
    return float(sum(r["train/tokens"] for r in counted) / seconds)


def transformers(folder: Path, precision: str, by_length: bool) -> float:
    import torch
    from transformers import MarianConfig, MarianMTModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    source, target = (json.loads((folder / f"{n}.json").read_text()) for n in ("source", "target"))
    pad = VOCABULARY
    model = MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY + 1, d_model=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS,
            encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, encoder_ffn_dim=FFN, decoder_ffn_dim=FFN,
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

        count[0] += sum(len(r["labels"]) for r in rows)
        ids = padded([r["input_ids"] for r in rows], pad)
        shifted = padded([[pad, *r["labels"][:-1]] for r in rows], pad)
        labels = padded([r["labels"] for r in rows], -100)
        return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels, "decoder_input_ids": shifted}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            log.append((time.perf_counter(), count[0]))

    grouping = {"train_sampling_strategy": "group_by_length"} if by_length else {}
    arguments = Seq2SeqTrainingArguments(
        str(folder / "hf"), per_device_train_batch_size=SENTENCES, max_steps=WARM + COUNTED, learning_rate=3e-4,
        label_smoothing_factor=0.1, bf16=precision == "bfloat16", use_cpu=True, save_strategy="no", logging_steps=10**6,
        report_to=[], disable_tqdm=True, max_grad_norm=1.0, **grouping,
    )  # fmt: skip
    Seq2SeqTrainer(model, arguments, train_dataset=Data(), data_collator=collate, callbacks=[Clock()]).train()
    (began, before), (ended, after) = log[WARM - 1], log[-1]
    return (after - before) / (ended - began)


def marian(folder: Path) -> float:
    every = 10
    command = (
        f"train --type transformer -t {folder}/source {folder}/target -m {folder}/marian.npz "
        f"-v {folder}/v.spm {folder}/v.spm --dim-vocabs {VOCABULARY} {VOCABULARY} --dim-emb {WIDTH} "
        f"--enc-depth {LAYERS} "
        f"--dec-depth {LAYERS} --transformer-heads {HEADS} --transformer-dim-ffn {FFN} "
        f"--transformer-ffn-activation relu "
        f"--transformer-dropout 0.1 --label-smoothing 0.1 --tied-embeddings-all --learn-rate 0.0003 --clip-norm 1 "
        f"--cpu-threads {os.environ['OMP_NUM_THREADS']} --sync-sgd --mini-batch {SENTENCES} --maxi-batch 100 -w 3000 "
        f"--cost-type ce-mean-words --max-length {LONGEST} --disp-freq {every}u "
        f"--after-batches {WARM + COUNTED} --overwrite"
    )
    program = str(Path(sys.executable).with_name("pymarian"))
    for old in folder.glob("marian.npz*"):
        old.unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # its own threads each compute with one
    ended = subprocess.run([program, *command.split()], capture_output=True, text=True, check=False, env=environment)
    speeds = [float(x.replace(",", "")) for x in re.findall(r"([\d.,]+) words/s", ended.stderr)][WARM // every :]
    if not speeds:
        raise SystemExit(ended.stderr[-2000:])
    return len(speeds) / sum(1 / speed for speed in speeds)


def matrix_rate(dtype: str) -> float:
    """GFLOP/s of square matrix products, the best of several."""
    import torch

    a, b = (torch.randn(RATE_SIZE, RATE_SIZE).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * RATE_SIZE**3 / min(seconds) / 1e9


def flops_per_target_token(folder: Path) -> float:
    """Of the matrix products with weights: 2 for each weight and token forward, and twice that backward."""
    source, target = (json.loads((folder / f"{n}.json").read_text()) for n in ("source", "target"))
    ratio = sum(map(len, source)) / sum(map(len, target))
    encoder = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * FFN) + LAYERS * 2 * WIDTH**2  # keys and values of the source
    decoder = LAYERS * (6 * WIDTH**2 + 2 * WIDTH * FFN) + WIDTH * VOCABULARY
    return 6.0 * (ratio * encoder + decoder)


def measure(name: str, folder: Path) -> float:
    precision = "bfloat16" if "bfloat16" in name else "float32"
    if name.startswith("warmstart"):
        from warmstart.cli import wait_briefly

        wait_briefly()  # as its command line does; the peers' threads wait as theirs do
        return ours(folder, precision)
    return marian(folder) if name.startswith("marian") else transformers(folder, precision, "by length" in name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    if given.child:
        rate = (
            matrix_rate(given.child) if given.child in ("float32", "bfloat16") else measure(given.child, given.source)
        )
        print(f"\nRESULT {rate}")
        return
    names = [n for n in given.only if importlib.util.find_spec(CONTENDERS[n])]
    for missing in sorted({CONTENDERS[n] for n in given.only if n not in names}):
        print(f"{missing} is not installed, and left out: pip install transformers accelerate pymarian")
    found: dict[str, list[float]] = {n: [] for n in [*names, "float32", "bfloat16"]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(given.source, given.target, folder)
        for number in range(given.rounds):
            for name, speeds in found.items():
                command = [sys.executable, __file__, str(folder), str(folder), "--child", name]
                ended = subprocess.run(command, capture_output=True, text=True, check=False)
                result = re.search(r"^RESULT (.*)$", ended.stdout, re.M)
                if result is None:
                    raise SystemExit(f"{name}:\n{ended.stdout[-1000:]}{ended.stderr[-3000:]}")
                speeds.append(float(result[1]))
                print(f"round {number + 1}: {name}: {speeds[-1]:,.0f}", flush=True)
        needed = flops_per_target_token(folder) / 1e9
    middle = {name: statistics.median(speeds) for name, speeds in found.items()}
    print(f"\n{os.environ['OMP_NUM_THREADS']} threads, medians of {given.rounds} rounds; matrix products: "
          f"{middle['float32']:.0f} (float32) and {middle['bfloat16']:.0f} (bfloat16) GFLOP/s\n")  # fmt: skip
    peers = {p: max((middle[n] for n in names if n.startswith(p)), default=0.0) for p in ("transformers", "marian")}
    print(f"{'':34}  target tokens/s  of the rate  / transformers' best  / marian")
    for name in names:
        reached = middle[name] * needed / middle["bfloat16" if "bfloat16" in name else "float32"]
        ratios = "".join(f"{middle[name] / best:17.2f}" if best else f"{'':17}" for best in peers.values())
        print(f"{name:34}  {middle[name]:15,.0f}  {reached:10.0%}  {ratios}")


if __name__ == "__main__":
    main()
