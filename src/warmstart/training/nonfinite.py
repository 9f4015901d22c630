"""What is written down about an update whose loss or gradient is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from warmstart.data.plan import Position
from warmstart.errors import Problem
from warmstart.storage import atomic
from warmstart.training.learner import Gradient
from warmstart.training.lora import canonical_parameters
from warmstart.training.ranks import Ranks
from warmstart.training.terms import Describe


def write_record(
    run: Path,
    step: int,
    where: Position,
    found: Gradient,
    model: nn.Module,
    parts: Sequence[Any],
    describe: Describe | None,
    ranks: Ranks,
    order: int = 0,
) -> tuple[str, Path, list[Problem]]:
    """Write ``nonfinite/step-….json`` of ``run`` (``step-…-order-N.json`` once the run was rewound N times): the
    update, its parameters with a gradient that is not finite, and its batches, all ranks' in their order. Returns what
    is not finite, ``gradient`` or ``loss``, the file, and the examples that are known to be the cause."""
    path = run / "nonfinite" / (f"step-{step:08d}" + (f"-order-{order}" if order else "") + ".json")
    gradients = {n: p.grad for n, p in canonical_parameters(model).items() if p.grad is not None}
    described = [describe(part) for part in parts] if describe else []
    losses = [*found.rows, *[None] * len(described)]
    own = [(rows, list(_mark(rows, of_rows))) for rows, of_rows in zip(described, losses, strict=False)]
    marked = [item for turn in zip(*ranks.gather(own), strict=True) for item in turn]
    record = {
        "step": step,
        "position": asdict(where),
        "loss": str(found.loss),
        "gradient_norm": str(found.norm),
        "parameters": [n for n, gradient in gradients.items() if not gradient.isfinite().all()],
        "batches": [rows for rows, _ in marked],
    }
    if ranks.first:
        atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return "gradient" if math.isfinite(found.loss) else "loss", path, [p for _, causes in marked for p in causes]


def _mark(rows: list[dict[str, Any]], losses: Tensor | None) -> Iterator[Problem]:
    """Say in each of ``rows``, the examples of a batch, what its loss was; those that are not finite are the cause."""
    for row, loss in zip(rows, [] if losses is None else losses.tolist(), strict=False):
        row["loss"] = str(loss)
        if not math.isfinite(loss):
            where = row.get("file", f"example {row.get('index')} of {row.get('task')}")
            yield Problem("its loss is not finite", where=where, found=str(loss))
