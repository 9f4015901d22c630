"""A GPU that is not there: tensors that say ``pretended:0`` and compute on the CPU.

What is made on the device inside :func:`pretended_gpu`, or copied there, is a :class:`OnGPU`, and what an operation
makes of such is one, too. As on a real one, an operation that is given tensors of both devices fails, and a value comes
back by a copy alone. What it cannot show: kernels of CUDA (their numbers, which of them torch takes, that they repeat),
``torch.autocast`` for CUDA, memory, streams, speed.

The name is not ``cuda``: torch without CUDA knows no streams of such a device, which the backward pass asks for. It is
that of torch's place for other makers' devices, which stays taken until the process ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

aten = torch.ops.aten
NAME, GPU = "pretended", "pretended:0"
COPIES = {aten._to_copy.default, aten.copy_.default}
CPU_INDICES = {aten.index.Tensor, aten._index_put_impl_.default, aten.index_put_.default}  # CUDA takes these, too
CPU_LENGTHS = {aten._ctc_loss.Tensor}  # CUDA's fetches lengths to the CPU


class OnGPU(torch.Tensor):
    """``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGPU:
        made: OnGPU = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a GPU's tensor outside of pretended_gpu")


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import all of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        there = [x for x in given if isinstance(x, OnGPU)]
        if there and func not in COPIES:
            strays = [x for x in given if not isinstance(x, OnGPU) and x.ndim]
            if func in CPU_INDICES:
                strays = [x for x in strays if x is args[0]]
            if func in CPU_LENGTHS:
                strays = [x for x in strays if x is args[0] or x is args[1]]
            if strays:
                raise RuntimeError(f"{func}: tensors on the GPU and on the CPU, of shapes {[x.shape for x in strays]}")
        asked = kwargs.get("device")
        to_gpu = asked is not None and torch.device(asked).type == NAME
        if to_gpu:
            kwargs["device"] = torch.device("cpu")
        wrappers = {id(x.held): x for x in there}
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if asked is None and func is not aten.copy_.default:
            to_gpu = bool(there)
        elif func is aten.copy_.default:
            to_gpu = isinstance(args[0], OnGPU)

        def wrapped(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or not to_gpu:
                return x
            known = wrappers.get(id(x))
            return OnGPU(x) if known is None else known

        return tree_map(wrapped, found)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGPU) else x


@cache
def _register() -> None:
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    class Module(_DummyBackendModule):
        def manual_seed_all(self, seed: int) -> None:
            """Random numbers are the CPU's."""

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    _setup_privateuseone_for_python_backend(NAME, Module())


@contextmanager
def pretended_gpu(patch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device."""
    _register()
    patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    patch.setattr(torch.cuda, "set_device", lambda device: None)
    patch.setattr(torch, "inference_mode", lambda on=True: torch.no_grad() if on else nullcontext())  # lacks wrappers
    patch.setattr(torch, "lstm", _lstm)  # cuDNN's
    patch.setattr(torch.Tensor, "tolist", lambda self, own=torch.Tensor.tolist: own(self.cpu()))  # lacks subclasses
    with torch.autograd.set_multithreading_enabled(False), _Mode():
        yield torch.device(NAME, 0)


_LSTM = torch.lstm


def _lstm(x: torch.Tensor, state: Any, weights: Any, *options: Any) -> tuple[torch.Tensor, ...]:
    given = (x.cpu(), [s.cpu() for s in state], [w.cpu() for w in weights])
    return tuple(y.to(x.device) for y in _LSTM(*given, *options))
