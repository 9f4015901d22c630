"""transformers reads shards of ours, and its own are read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers

from warmstart.formats.checkpoint import Checkpoint, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import DTYPES, write_safetensors
from warmstart.formats.safetensors_index import write_sharded

REQUIRES = ["torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0"]


def model() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    return transformers.BertModel(config)


def same(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    assert set(checkpoint.entries) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(checkpoint.read(name).astype("f4"), tensor.detach().float().numpy())


def test_shards_of_transformers(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        saved = model().to(dtype)
        path = tmp_path / str(dtype)
        saved.save_pretrained(path, max_shard_size="40KB")
        assert len(list(path.glob("*.safetensors"))) > 1
        checkpoint = open_checkpoint(path)
        assert checkpoint.format == "sharded safetensors"
        assert checkpoint.metadata["format"] == "pt"
        assert {entry.dtype for entry in checkpoint.entries.values()} == {str(dtype).removeprefix("torch.")}
        same(checkpoint, saved.state_dict())


def test_transformers_loads_shards_of_ours(tmp_path: Path) -> None:
    saved = model()
    saved.save_pretrained(tmp_path / "theirs")
    source = open_checkpoint(tmp_path / "theirs")
    arrays = (source.read(name) for name in source.entries)
    write_sharded(tmp_path / "ours", list(source.entries.values()), arrays, 40_000, {"format": "pt"})
    (tmp_path / "ours/config.json").write_bytes((tmp_path / "theirs/config.json").read_bytes())
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    loaded, report = transformers.BertModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_every_dtype(tmp_path: Path) -> None:
    """Bytes of each type, as torch sees them and as we do."""
    entries = [Entry(f"{dtype}-{shape}", shape, dtype) for dtype in DTYPES.values() for shape in ((), (2, 3), (0, 2))]
    arrays = [np.ones(entry.shape).astype(entry.dtype) for entry in entries]
    write_safetensors(tmp_path / "ours.safetensors", entries, arrays)
    checkpoint = open_checkpoint(tmp_path / "ours.safetensors")
    with safetensors.safe_open(tmp_path / "ours.safetensors", "pt") as file:
        for entry, array in zip(entries, arrays, strict=True):
            tensor = file.get_tensor(entry.name)
            assert tuple(tensor.shape) == entry.shape
            assert tensor.dtype.itemsize == array.dtype.itemsize
            assert bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy()) == array.tobytes()
            assert checkpoint.read(entry.name).tobytes() == array.tobytes()
