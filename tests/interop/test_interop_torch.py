"""Several versions of torch: what each writes is read equal, and each loads what is written here.

torch 1.13 is the oldest that installs on Python 3.11, and the first with ``weights_only``; ``mmap`` came with 2.1.
"""

from __future__ import annotations

import inspect
import io
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (its dtypes become known to numpy by name)
import numpy as np
import pytest
import torch
from torch import nn

from warmstart.formats.checkpoint import Entry, dtype_of
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.torch_tensors import readable
from warmstart.formats.torch_write import write_torch

REQUIRES = {
    "torch-1.13": ["torch==1.13.1", "numpy<2"],
    "torch-2.1": ["torch==2.1.2", "numpy<2"],
    "torch-2.5": ["torch==2.5.1"],
    "torch-2.13": ["torch==2.13.0"],
}
DTYPES = [
    *("float32", "float16", "float64", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool", "complex64"),
    *("complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
]


def _saved(name: str) -> bool:
    """Whether this torch has the dtype and can save it (2.3 to 2.5 have uint16 but cannot)."""
    try:
        torch.save(torch.zeros(1, dtype=getattr(torch, name)), io.BytesIO())
    except (AttributeError, KeyError):
        return False
    return True


KNOWN = [name for name in DTYPES if _saved(name)]
LEGACY = pytest.mark.parametrize("legacy", [False, True])
warnings.filterwarnings("ignore", category=UserWarning)


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def equal(path: Path, truth: dict[str, torch.Tensor]) -> Any:
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.entries) == set(truth)
    for name, tensor in truth.items():
        array = checkpoint.read(name)
        assert (array.shape, f"torch.{array.dtype.name}") == (tuple(tensor.shape), str(tensor.dtype)), name
        assert np.ascontiguousarray(array).tobytes() == raw(tensor), name
        checkpoint.verify(name)
    return checkpoint


@LEGACY
def test_tensors_of_every_dtype(tmp_path: Path, legacy: bool) -> None:
    truth = {}
    for name in KNOWN:
        whole = torch.arange(24).reshape(4, 6).to(torch.float32).to(getattr(torch, name))
        truth |= {name: whole, f"{name} part": whole[1:3, ::2], f"{name} turned": whole.t()}
        truth |= {f"{name} empty": whole[:0], f"{name} scalar": whole[0, 3]}
    truth["parameter"] = nn.Parameter(torch.ones(3))
    truth["expanded"] = torch.ones(1).expand(3, 2)
    torch.save(truth, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    equal(tmp_path / "x.pt", truth)
    torch.save({"a": torch.tensor([1 + 2j]).conj()}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    equal(tmp_path / "x.pt", torch.load(tmp_path / "x.pt"))  # torch 1.13 itself loses the conjugation


@LEGACY
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path: Path, legacy: bool, protocol: int) -> None:
    truth = {"a": torch.arange(5.0), "б": torch.ones(2, 3)}
    path = tmp_path / "x.pt"
    torch.save(truth, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    equal(path, truth)


@LEGACY
def test_modules_and_optimizers(tmp_path: Path, legacy: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GRU(4, 3))
    torch.save(model, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    equal(tmp_path / "whole.pt", model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3))[0].sum().backward()
    optimizer.step()
    value = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 7}
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    checkpoint = equal(tmp_path / "x.pt", {f"model.{name}": t for name, t in model.state_dict().items()})
    assert checkpoint.step == 7
    assert checkpoint.optimizer["step"] == 1
    for name, parameter in model.named_parameters():
        for slot, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            assert checkpoint.read_slot(f"model.{name}", slot).tobytes() == raw(optimizer.state[parameter][key])


def test_torchscript(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.jit.save(torch.jit.script(model), tmp_path / "x.pt")
    assert equal(tmp_path / "x.pt", model.state_dict()).metadata["torchscript"] is True


def test_what_is_written_here_is_loaded(tmp_path: Path) -> None:
    arrays = {}
    for name in KNOWN:
        assert readable(name)
        arrays[name] = np.arange(6).reshape(2, 3).astype(dtype_of(name))
        arrays[f"{name} scalar"] = arrays[name][1, 1].reshape(())
        arrays[f"{name} empty"] = arrays[name][:0]
    arrays["tied"] = arrays["float32"]
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    rate = "0.5" if torch.__version__ < "2" else 0.5  # with weights_only, 1.13 cannot load a float
    metadata = {"epoch": 3, "args": {"lr": rate, "names": ["a", None, True]}}
    write_torch(tmp_path / "x.pt", entries, arrays.values(), metadata, {"tied": "float32"})
    can_map = "mmap" in inspect.signature(torch.load).parameters
    for options in ({}, {"mmap": True}) if can_map else ({},):
        loaded = torch.load(str(tmp_path / "x.pt"), weights_only=True, **options)
        assert {name: loaded.pop(name) for name in metadata} == metadata
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            assert (str(loaded[name].dtype), tuple(loaded[name].shape)) == (f"torch.{array.dtype.name}", array.shape)
            assert raw(loaded[name]) == np.ascontiguousarray(array).tobytes(), name
        assert loaded["tied"].data_ptr() == loaded["float32"].data_ptr()
