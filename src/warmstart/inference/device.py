"""Where a model computes: on the processor, or on a GPU. Everything else follows the model's parameters."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from warmstart.errors import ConfigError
from warmstart.formats.checkpoint import Array
from warmstart.storage.processes import local_rank, world_size


def choose_device(wanted: str, key: str) -> torch.device:
    """The device that ``wanted`` names: ``cpu``; ``cuda``, the first GPU, or with several ranks that of this one's
    local rank; ``cuda:N``; ``auto``, which is ``cuda`` where torch sees a GPU, and else ``cpu``.

    Args:
        key: where it was asked for, as an error says it.

    Raises:
        ConfigError: it names no device, there is no such GPU, or several ranks would share one.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise ConfigError("this names no device", where=key, expected="cpu, cuda, cuda:N or auto", found=wanted)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not there):
        return torch.device("cpu")
    number = wanted.partition(":")[2]
    if number and world_size() > 1:
        raise ConfigError(
            "the ranks would share one GPU",
            where=key,
            expected="cuda, which gives each rank its own, cpu or auto",
            found=wanted,
        )
    index = int(number) if number else local_rank()
    if index >= there:
        raise ConfigError(
            "there is no such GPU" if there else "there is no GPU",
            where=key,
            expected=f"cuda:{index} ({wanted})",
            found=_found(there),
            todo="start as many ranks as there are GPUs, or set it to cpu" if world_size() > 1 else "set it to cpu",
        )
    return torch.device("cuda", index)


def _found(there: int) -> str:
    if there:
        names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(there)]
        return ", ".join(names)
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"none that torch {torch.__version__}, which is built {built}, can use"


def device_name(device: torch.device) -> str:
    """What a GPU is sold as; ``cpu`` for the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def move(array: Array | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``array`` as a tensor on ``device``, in ``dtype`` if one is given. A GPU fetches it by itself, while Python goes
    on: from memory that stays where it is."""
    tensor = torch.as_tensor(array, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
