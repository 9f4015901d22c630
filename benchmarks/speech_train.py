"""How many seconds of audio a second are learnt from: ``warmstart train`` beside the same network in plain torch.

Both get the same batches of features in the same process, and take turns; the times are medians of the CPU time of the
second half (with one thread, what a quiet machine needs). A turn is some updates, because a training has the
processor's caches to itself: with turns of one update, each finds there what the others left. The peer is what most
would write: windows by ``unfold``, ``nn.Linear``, ``clamp``, dropout, ``nn.LSTM`` in float32, packed or padded,
``ctc_loss``, Adam.
"Flushed" is with ``torch.set_flush_denormal(True)``, which few would think of, and which our trainings on speech do.
Freed memory is kept, as our trainings have it; that is of the process, so the peers gain by it as well.

    python benchmarks/speech.py train LIST.csv --audio FOLDER [--widths 64 512 2048] [--threads 1]
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

LIMIT = 1.5
CONTEXT, INPUT, CLIP, DROPOUT, RATE = 9, 26, 20.0, 0.05, 1e-3
Update = Callable[[Any], float]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", type=Path, help="recordings and transcripts as Coqui lists them")
    parser.add_argument("--audio", type=Path, help="where their paths begin, if not beside the list")
    parser.add_argument("--sample-rate", type=int, default=8000)
    parser.add_argument("--batch-seconds", type=float, default=160.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--updates", type=int, default=30, help="that count; wide models get fewer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turn", type=int, default=10, help="updates of a contender, one after the other")


def run(given: argparse.Namespace) -> None:
    from warmstart.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(given.threads)
    print(f"{'n_hidden':>8}  {'contender':24} {'s of audio/s':>12} {'ours / it':>10}")
    with tempfile.TemporaryDirectory() as folder:
        lists = write_lists(given, Path(folder))
        for width in given.widths:
            report(width, *race(lists, width, given, Path(folder)))


def write_lists(given: argparse.Namespace, folder: Path) -> dict[str, str]:
    """The list with absolute paths, and some of it for validation."""
    with given.list.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["wav_filename"] = str(((given.audio or given.list.parent) / row["wav_filename"]).absolute())
    for name, part in (("train", rows), ("validation", rows[:8])):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(part)
    return {name: str(folder / f"{name}.csv") for name in ("train", "validation")}


def race(lists: dict[str, str], width: int, given: argparse.Namespace, folder: Path) -> tuple[float, dict[str, float]]:
    """Seconds of audio in the updates, and contender → seconds that it took for them (from medians)."""
    parts = {p: ours(lists, width, given, folder, p) for p in ("auto", "float32")}
    stream, vocab_size = parts["auto"].workload.stream, parts["auto"].learner.model.config.vocab_size
    contenders: dict[str, Update] = {
        f"warmstart, {part.learner.precision}": learning(part.learner) for part in parts.values()
    }
    for packed, flushed in ((False, False), (True, False), (False, True)):
        torch.manual_seed(1)
        name = f"torch, {'packed' if packed else 'padded'}{', flushed' if flushed else ''}"
        contenders[name] = plain(Plain(width, vocab_size, packed))
    counted = max(3, min(given.updates, given.updates * 256 // width))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    seconds, turns = [], deque(contenders.items())
    source = stream.iterate(stream_start())
    turn = min(given.turn, counted)
    for start in range(0, 2 * counted, turn):
        batches = [batch for _, batch in islice(source, turn)]
        turns.rotate(1)
        for name, update in turns:
            torch.set_flush_denormal(not name.startswith("torch") or name.endswith("flushed"))
            for batch in batches:
                began = time.process_time()
                update(batch)
                if start >= counted:
                    times[name].append(time.process_time() - began)
        if start >= counted:
            seconds += [float(batch.feature_lengths.sum()) * 0.02 for batch in batches]
    return statistics.mean(seconds), {name: statistics.median(taken) for name, taken in times.items()}


def stream_start() -> Any:
    from warmstart.data.batches import Position

    return Position(1, 0, 0)


def report(width: int, seconds: float, times: dict[str, float]) -> None:
    best = min(times[name] for name in times if name.startswith("warmstart"))
    for name, taken in times.items():
        print(f"{width:8}  {name:24} {seconds / taken:12,.0f} {taken / best:10.2f}", flush=True)
    peers = [taken for name, taken in times.items() if name.startswith("torch") and not name.endswith("flushed")]
    ratio = min(peers) / best
    verdict = "" if ratio >= LIMIT else "  BELOW"
    print(f"{width:8}  at least {LIMIT} times the best of the plain ones: {ratio:.2f}{verdict}")


def ours(lists: dict[str, str], width: int, given: argparse.Namespace, folder: Path, precision: str) -> Any:
    """What ``warmstart train`` trains with, before its first update."""
    from warmstart.training.run import prepare
    from warmstart.trainings import job_of, open_for_run

    config = {
        "run": str(folder / f"run-{width}-{precision}"),
        "family": "deepspeech",
        "model": {"n_hidden": width, "sample_rate": given.sample_rate},
        "vocabularies": {"text": {"type": "alphabet"}},
        "data": {
            "type": "speech",
            "tasks": {"t": {"splits": {name: {"files": path} for name, path in lists.items()}}},
            "batch_seconds": given.batch_seconds,
            "max_seconds": min(60.0, given.batch_seconds),
            "feature_cache": str(folder / "features"),
        },
        "training": {
            "steps": 1000,
            "learning_rate": RATE,
            "schedule": {"type": "constant"},
            "optimizer": {"type": "adam", "betas": [0.9, 0.999], "epsilon": 1e-8},
            "clip_norm": None,
            "evaluate_every": 1000,
            "checkpoint_every": 1000,
            "precision": precision,
        },
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return prepare(job_of(open_for_run(folder / "c.yaml", (), 0.0)), progress=False)


def learning(learner: Any) -> Update:
    learner.model.train()
    step = 0

    def update(batch: Any) -> float:
        nonlocal step
        step += 1
        found = learner.gradient([batch], step, 0)
        learner.apply(step, RATE)
        return float(found.loss)

    return update


class Plain(nn.Module):
    """DeepSpeech as a tutorial would write it."""

    def __init__(self, width: int, vocab_size: int, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.layers = nn.ModuleList(
            [nn.Linear((2 * CONTEXT + 1) * INPUT, width), *(nn.Linear(width, width) for _ in "23")]
        )
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.layer_5, self.layer_6 = nn.Linear(width, width), nn.Linear(width, vocab_size)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        padded = functional.pad(features, (0, 0, CONTEXT, CONTEXT))
        x = padded.unfold(1, 2 * CONTEXT + 1, 1).transpose(2, 3).flatten(2)
        for layer in self.layers:
            x = self.activate(layer(x))
        if self.packed:
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            x, _ = rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        else:
            x, _ = self.lstm(x)
        logits: Tensor = self.layer_6(self.activate(self.layer_5(x)))
        return logits

    def activate(self, x: Tensor) -> Tensor:
        return functional.dropout(x.clamp(0.0, CLIP), DROPOUT, self.training)


def plain(model: Plain) -> Update:
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=1e-8)

    def update(batch: Any) -> float:
        features, lengths = torch.from_numpy(batch.features), torch.from_numpy(batch.feature_lengths).long()
        labels, label_lengths = torch.from_numpy(batch.labels).long(), torch.from_numpy(batch.label_lengths).long()
        log_probs = model(features, lengths).log_softmax(-1).transpose(0, 1)
        blank = log_probs.shape[-1] - 1
        loss = functional.ctc_loss(log_probs, labels, lengths, label_lengths, blank=blank, reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return update
