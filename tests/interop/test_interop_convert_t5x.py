"""What T5X itself left after fine-tuning (Orbax, with its config.gin) goes through mesh-tensorflow and back, with
Adafactor's state; tensorstore reads it, and what we write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import tensorstore

from warmstart import api
from warmstart.bundle.model import open_model

sys.path.insert(0, str(Path(__file__).parents[1]))
import t5_models

REQUIRES = ["tensorstore==0.1.86"]
RUN = Path(os.environ.get("WARMSTART_FIXTURES", "../shared")) / "fixtures" / "t5x" / "run"


def test_a_run_of_t5x_comes_back_whole(tmp_path):
    """Its parameters are within 7.5e-7 of those that a replay without JAX reached (``torch_final.npz``)."""
    before = open_model(RUN / "model" / "checkpoint_10")
    assert (before.dialect, before.checkpoint.step, before.config.dropout) == ("t5x", 10, 0.0)
    replayed = np.load(RUN / "torch_final.npz")
    for name in replayed:
        values = before.checkpoint.read(f"target/{name.replace('.', '/')}")
        assert np.abs(values - replayed[name]).max() <= 7.5e-7, name
    facts = api.convert(before.path, tmp_path / "mtf", "mesh-tensorflow")
    assert (facts["ledger"]["used"], facts["ledger"]["optimizer_left_behind"]) == (52, {})
    api.convert(tmp_path / "mtf", tmp_path / "t5x", "t5x")
    after = open_model(tmp_path / "t5x")
    assert after.config == before.config
    assert after.checkpoint.step == 10
    assert after.checkpoint.slots.keys() == before.checkpoint.slots.keys()
    for name in before.checkpoint.entries:
        assert np.array_equal(after.checkpoint.read(name), before.checkpoint.read(name)), name
    for key in before.checkpoint.slots:
        assert np.array_equal(after.checkpoint.read_slot(*key), before.checkpoint.read_slot(*key)), key


def test_tensorstore_reads_scanned_layers_as_they_are_written(tmp_path):
    source = t5_models.write(tmp_path / "source", "umt5-tied")
    api.convert(source, tmp_path / "scanned", "t5x-scanned")
    name = "target.encoder.encoder.attention.out.kernel"
    path = tmp_path / "scanned" / "checkpoint_0" / name
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    array = tensorstore.open(spec).result().read().result()
    assert array.shape == (4, 3, 6, 16)
    ours = open_model(source).checkpoint.read("encoder.block.1.layer.0.SelfAttention.o.weight")
    assert np.array_equal(array[:, 1].reshape(24, 16), ours.T)
