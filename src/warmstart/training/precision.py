"""In which precision the model computes. Parameters, moments and the loss are float32 always."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

BFLOAT16 = "amx_bf16"  # avx512_bf16 alone multiplies bfloat16 no faster than float32 (docs/decisions/0074)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """The processor's features, sorted; empty where the system does not list them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(sorted(value.split()))
    return ()


def resolve(precision: str, device: torch.device, flags: tuple[str, ...] | None = None) -> tuple[str, str]:
    """``float32`` or ``bfloat16``, and why. ``auto`` takes bfloat16 where the hardware gains by it."""
    if precision != "auto":
        return precision, "as configured"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "the GPU computes it") if native else ("float32", "the GPU has no bfloat16")
    if BFLOAT16 in (cpu_flags() if flags is None else flags):
        return "bfloat16", f"the processor has {BFLOAT16}"
    return "float32", f"the processor has no {BFLOAT16}"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context for the forward pass in a resolved ``precision``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
