"""What is measured between updates of a training on text: the loss and decoded metrics of every validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from warmstart.data.batches import Batch, sequential_batches
from warmstart.data.index import EncodedSplit
from warmstart.data.task import Task
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import SearchConfig, translate_ids
from warmstart.training.objective import batch_loss
from warmstart.training.samples import sample_rows
from warmstart.training.terms import Measured, validation_prefix
from warmstart.vocabularies.vocabulary import Vocabulary


class Evaluation:
    """Loss and decoded metrics of every task; ``validation/loss`` is nats a token over all.

    With several tasks each has its own ``validation/TASK/METRIC``, the loss too. ``samples`` outputs of each task are
    returned to be looked at.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        splits: Mapping[str, EncodedSplit],
        vocabularies: tuple[Vocabulary, Vocabulary],
        search: SearchConfig | None,
        batch_tokens: int,
        samples: int = 0,
    ) -> None:
        self.tasks, self.splits, self.search, self.batch_tokens = tasks, splits, search, batch_tokens
        self.source, self.target = vocabularies
        self.samples = samples

    @property
    def names(self) -> list[str]:
        """What is measured."""
        names = ["validation/loss"]
        for name in self.splits:
            scores = self.tasks[name].score([], []) if self.search is not None else {}
            names += [f"{validation_prefix(name, self.splits)}/{key}" for key in ("loss", *scores)]
        return list(dict.fromkeys(names))

    def __call__(self, model: nn.Module, step: int) -> Measured:
        out: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        total, tokens = 0.0, 0
        for name, split in self.splits.items():
            nll, count = 0.0, 0
            for batch in sequential_batches(split, self.batch_tokens, (self.source.eos_id, self.target.eos_id)):
                loss = batch_loss(model, batch, 0.0)
                nll += float(loss.nll)
                count += loss.units
            total, tokens = total + nll, tokens + count
            prefix = validation_prefix(name, self.splits)
            out[f"{prefix}/loss"] = nll / count
            if self.search is not None:
                outputs = self.decode(model, split)
                task, references = self.tasks[name], [e["target"] for e in split.examples]
                predictions = [task.postprocess(o, dict(e)) for o, e in zip(outputs, split.examples, strict=True)]
                out |= {f"{prefix}/{k}": v for k, v in task.score(references, predictions).items()}
                rows += sample_rows(name, split.examples, outputs, self.samples)
        return Measured({**out, "validation/loss": total / tokens}, rows)

    def decode(self, model: Any, split: EncodedSplit) -> list[str]:
        """Greedy or beam-search outputs, in the split's order."""
        sources = [split.source[a:b].tolist() for a, b in _spans(split.source_offsets)]
        eos, unk = self.target.eos_id, self.target.unk_id
        found = translate_ids([TransformerScorer(model)], sources, self.search, eos_id=eos, unk_id=unk)
        return [self.target.decode(best[0].ids) for best in found]


def _spans(offsets: Any) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in pairwise(offsets)]


def describe_batch(batch: Batch, tasks: Sequence[str], source: Vocabulary, target: Vocabulary) -> list[dict[str, Any]]:
    """The examples of a training batch, to be looked at: their tasks and places in it, texts and token ids."""
    sides = (batch.source, batch.source_lengths, batch.target, batch.target_lengths)
    rows = zip(batch.tasks, batch.indices, *sides, strict=True)
    return [
        {
            "task": tasks[int(t)],
            "index": int(i),
            "source": source.decode(x[: n - 1].tolist()),
            "target": target.decode(y[: m - 1].tolist()),
            "source_ids": x[:n].tolist(),
            "target_ids": y[:m].tolist(),
        }
        for t, i, x, n, y, m in rows
    ]
