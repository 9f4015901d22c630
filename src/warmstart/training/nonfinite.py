"""What is written down about an update whose loss or gradient is not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from warmstart.data.batches import Position
from warmstart.storage import atomic
from warmstart.training.learner import Gradient
from warmstart.training.lora import canonical_parameters
from warmstart.training.terms import Describe


def write_record(
    run: Path,
    step: int,
    where: Position,
    found: Gradient,
    model: nn.Module,
    parts: Sequence[Any],
    describe: Describe | None,
) -> tuple[str, Path]:
    """Write ``nonfinite/step-….json`` of ``run``: the update, its parameters with a gradient that is not finite, and
    its batches. Returns what is not finite, ``gradient`` or ``loss``, and the file."""
    path = run / "nonfinite" / f"step-{step:08d}.json"
    gradients = {n: p.grad for n, p in canonical_parameters(model).items() if p.grad is not None}
    record = {
        "step": step,
        "position": asdict(where),
        "loss": str(found.loss),
        "gradient_norm": str(found.norm),
        "parameters": [n for n, gradient in gradients.items() if not gradient.isfinite().all()],
        "batches": [describe(part) for part in parts] if describe else [],
    }
    atomic.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return "gradient" if math.isfinite(found.loss) else "loss", path
