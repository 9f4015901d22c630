"""Records what ``ct2-opennmt-tf-converter`` writes of small models of OpenNMT-tf: names and shapes of the arrays, and
digests of the converted files. Values follow from the names (:func:`value`).

OpenNMT-tf 2.32 needs TensorFlow 2.13 and its numpy, which do not go with warmstart in one environment; hence a script
(Python 3.11; `--no-deps`, since what it pins besides is not to be had, nor needed here):

    pip install --no-deps OpenNMT-tf==2.32.0 tensorflow-addons==0.22.0
    pip install tensorflow-cpu==2.13.1 typeguard==2.13.3 pyyaml rouge sacrebleu pyonmttok ctranslate2==4.8.5
    python tests/interop/record_opennmt_tf.py tests/golden/ctranslate2-converters/opennmt-tf.json

(The converter needs torch for bfloat16, which is left out.)
"""

from __future__ import annotations

import json
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

UNITS, HEADS, INNER, LAYERS = 16, 4, 24, (2, 3)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
QUANTIZATIONS = ("none", "int8", "int8_float32", "int8_float16", "int16", "float16", "float32")
# kind → arguments of the model's class, as text
KINDS = {
    "before": "",
    "after": "pre_norm=False",
    "target tied": "share_embeddings=onmt.models.EmbeddingsSharingLevel.TARGET",
    "all tied": "share_embeddings=onmt.models.EmbeddingsSharingLevel.ALL",
    "inputs tied": "share_embeddings=onmt.models.EmbeddingsSharingLevel.SOURCE_TARGET_INPUT",
    "learned": "position_encoder_class=lambda: onmt.layers.PositionEmbedder(maximum_position=20)",
    "aligned": "attention_reduction=onmt.layers.MultiHeadAttentionReduction.AVERAGE_LAST_LAYER",
    "without biases": "output_layer_bias=False, mha_bias=False",
    "gelu": "ffn_activation=onmt.layers.gelu",
    "joined inputs": "share_embeddings=onmt.models.EmbeddingsSharingLevel.TARGET",
    "shared by all": "share_embeddings=onmt.models.EmbeddingsSharingLevel.ALL",
}
_WORDS = "onmt.inputters.WordEmbedder({0})"
_ADDED = f"[{_WORDS}, {_WORDS}, {_WORDS}], reducer=onmt.layers.SumReducer()"
# kind → its source's inputter, where several run in parallel; ALL shares the tables of all inputters
PARALLEL = {
    "joined inputs": f"[{_WORDS.format(10)}, {_WORDS.format(4)}, {_WORDS.format(2)}], onmt.layers.ConcatReducer()",
    "shared by all": _ADDED.format(UNITS),
}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array called ``name``: random, the same each time."""
    seed = int.from_bytes(sha256(name.encode()).digest()[:8], "little")
    return (np.random.default_rng(seed).standard_normal(shape) * 0.1).astype(np.float32)


def tokens(rows: int) -> list[str]:
    """A vocabulary without ``<unk>``, which OpenNMT-tf puts behind it."""
    return ["<blank>", "<s>", "</s>", *(f"{chr(97 + i % 26)}é{i}" for i in range(rows - 4))]


def description(kind: str) -> str:
    """``model_description.py``."""
    sizes = f"num_layers={LAYERS}, num_units={UNITS}, num_heads={HEADS}, ffn_inner_dim={INNER}"
    source = f"onmt.inputters.ParallelInputter({PARALLEL[kind]})" if kind in PARALLEL else _WORDS.format(UNITS)
    inputters = f"{source}, {_WORDS.format(UNITS)}"
    more = f", {KINDS[kind]}" if KINDS[kind] else ""
    return f"import opennmt as onmt\n\n\ndef model():\n    return onmt.models.Transformer({inputters}, {sizes}{more})\n"


def record(kind: str, folder: Path) -> dict[str, object]:
    space: dict[str, object] = {}
    exec(description(kind), space)
    model = space["model"]()  # type: ignore[operator]
    one = ("all tied", "inputs tied", "shared by all")
    rows = {"source": 28, "target": 28 if kind in one else 24}
    if kind in PARALLEL:
        others = (28, 28) if kind in one else (9, 7)
        rows = {
            "source_1": 28,
            **{f"source_{k + 2}": count for k, count in enumerate(others)},
            "target": rows["target"],
        }
    for side, count in rows.items():
        (folder / f"{side}.txt").write_text("\n".join(tokens(count)) + "\n", "utf-8")
    model.initialize({f"{side}_vocabulary": str(folder / f"{side}.txt") for side in rows})
    return {"rows": rows, "shapes": fill(model, folder), "digests": digests(model, folder)}


def fill(model: Any, folder: Path) -> dict[str, list[int]]:
    """Gives every variable the value of the name that a checkpoint has for it; names and shapes of all."""
    import tensorflow as tf

    model.create_variables()
    variables = [v for v in model.variables if v.dtype.is_floating]
    for number, variable in enumerate(variables):
        variable.assign(tf.fill(variable.shape, float(number)))
    path = tf.train.Checkpoint(model=model).write(str(folder / "ckpt"))
    reader = tf.train.load_checkpoint(path)
    shapes = {
        n: s for n, s in tf.train.list_variables(path) if n.endswith("VARIABLE_VALUE") and "save_counter" not in n
    }
    for name, shape in shapes.items():
        variables[int(reader.get_tensor(name).flat[0])].assign(value(name, tuple(shape)))
    return {n.removesuffix(VALUE): s for n, s in shapes.items()}


def digests(model: Any, folder: Path) -> dict[str, dict[str, str]]:
    """Quantization → file → SHA-256 of what the converter writes."""
    from ctranslate2.converters import OpenNMTTFConverter

    found: dict[str, dict[str, str]] = {}
    for quantization in QUANTIZATIONS:
        output = folder / quantization
        OpenNMTTFConverter(model).convert(str(output), quantization=None if quantization == "none" else quantization)
        config = {**json.loads((output / "config.json").read_text()), "layer_norm_epsilon": 1e-3}  # Keras's own
        (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        found[quantization] = {f.name: sha256(f.read_bytes()).hexdigest() for f in sorted(output.iterdir())}
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for kind in KINDS:
            (Path(place) / kind).mkdir()
            found[kind] = record(kind, Path(place) / kind)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=None, sort_keys=True) + "\n")
