"""Makes t5x/ and orbax/ with flax 0.12.8, tensorstore 0.1.86 and orbax-checkpoint 0.12.8.

T5X itself is on no package index; what it writes is flax.serialization's msgpack and TensorStore's zarr, so they write
it here as t5x/checkpoints.py does (T5X at commit cc342d4 restored a directory made so).

    python tests/golden/make_jax.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import optax
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.training.train_state import TrainState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "formats"))
from jax_arrays import nested, numbers, others, parameters, slots

HERE = Path(__file__).resolve().parent
CHUNKS = {
    "target/encoder/layers_0/attention/query/kernel": {"chunks": [3, 4]},
    "target/token_embedder/embedding": {"chunks": [4, 4], "order": "F"},
    "target/encoder/stacked": {"chunks": [4, 2, 6], "dimension_separator": "/"},
}


def t5x_tree() -> dict[str, Any]:
    state = {f"state/param_states/{name}/{slot}": array for (name, slot), array in slots().items()}
    for name in parameters():
        for slot in ("m", "v", "v_row", "v_col"):
            state.setdefault(f"state/param_states/{name}/{slot}", np.zeros(1, "f4"))
    return {"state/step": np.int32(1000), **state, **{f"target/{name}": array for name, array in parameters().items()}}


def t5x(directory: Path) -> None:
    leaves: dict[str, Any] = {}
    for name, array in t5x_tree().items():
        if array.ndim == 0 or array.shape == (1,):
            leaves[name] = array
            continue
        metadata = {"compressor": {"id": "gzip", "level": 1}, "shape": list(array.shape), "chunks": list(array.shape)}
        metadata |= CHUNKS.get(name, {})
        store = {"driver": "file", "path": f"{name.replace('/', '.')}/"}
        spec = {"driver": "zarr", "dtype": array.dtype.name, "kvstore": store, "metadata": metadata}
        there = {**spec, "kvstore": {**store, "path": f"{directory}/{store['path']}"}}
        ts.open(there, create=True, open=True).result().write(array).result()
        kept = {key: metadata[key] for key in ("compressor", "shape", "chunks")}
        leaves[name] = {**spec, "metadata": kept}
    tree = {"version": 3, "optimizer": nested(leaves)}
    (directory / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(tree))


def train_state() -> TrainState:
    state = TrainState.create(apply_fn=None, params=nested(parameters()), tx=optax.adam(1e-3))
    adam, rest = state.opt_state[0], state.opt_state[1:]
    mu = nested({name: numbers(f"{name}/mu", a.shape, a.dtype.name) for name, a in parameters().items()})
    nu = nested({name: numbers(f"{name}/nu", a.shape, a.dtype.name) for name, a in parameters().items()})
    return state.replace(step=7, opt_state=(adam._replace(count=np.int32(7), mu=mu, nu=nu), *rest))


def flax_files(directory: Path) -> None:
    flax.serialization.MAX_CHUNK_SIZE = 100  # so that the larger arrays lie in pieces
    (directory / "state.msgpack").write_bytes(flax.serialization.to_bytes(train_state()))
    flax.serialization.MAX_CHUNK_SIZE = 2**30
    odd = {**others(), "complex": 1 + 2j, "scalar": np.float32(2.5), "text": "слово", "none": None, "number": 3}
    (directory / "odd.msgpack").write_bytes(flax.serialization.msgpack_serialize(odd))


def orbax(directory: Path) -> None:
    tree = {"step": np.int32(7), "params": nested(parameters()), **others(), "word": "слово"}
    tree = {name: value for name, value in tree.items() if name != "wave"}
    layouts = {"ocdbt": {}, "zarr": {"use_ocdbt": False}, "zarr3": {"use_ocdbt": False, "use_zarr3": True}}
    for name, options in layouts.items():
        handler = ocp.PyTreeCheckpointHandler(**options)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory / name, tree)


def main() -> None:
    for name in ("t5x", "orbax"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        (HERE / name).mkdir()
    directory = HERE / "t5x" / "checkpoint_1000"
    directory.mkdir()
    t5x(directory)
    flax_files(HERE / "t5x")
    orbax(HERE / "orbax")


if __name__ == "__main__":
    main()
