"""Writes a tiny model with the ctranslate2 that is installed: how the goldens beside this file were made.

    python write.py DIRECTORY QUANTIZATION      # none, int8, int16, float16

``v4`` int8 and ``v4-int16`` with ctranslate2 1.20.1, ``v5`` int8 with 2.24.0 (both under Python 3.8), ``v6`` int8 with
4.8.5. ``DIRECTORY.npz`` has the variables as the library holds them, ``DIRECTORY.aliases.json`` its aliases. Nothing
that wrote version 3 can be installed still: the tests make that one by hand, and CTranslate2 opens it.
"""

import json
import os
import sys

import numpy as np
from ctranslate2 import specs

D, FFN, TOKENS = 4, 8, ["<unk>", "<s>", "</s>", "a", "б"]
SHAPES = {
    "embeddings": (len(TOKENS), D),
    "embeddings_0": (len(TOKENS), D),
    "projection": (len(TOKENS), D),
    "self_attention/linear_0": (3 * D, D),
    "self_attention/linear_1": (D, D),
    "attention/linear_0": (D, D),
    "attention/linear_1": (2 * D, D),
    "attention/linear_2": (D, D),
    "ffn/linear_0": (FFN, D),
    "ffn/linear_1": (D, FFN),
}


def spec_of(num_layers, num_heads):
    if hasattr(specs.TransformerSpec, "from_config"):
        return specs.TransformerSpec.from_config(num_layers, num_heads)
    return specs.TransformerSpec(num_layers, num_heads)


def fill(spec):
    """Numbers for every variable that is required; what embeds and projects the target is the same array."""
    chance = np.random.RandomState(0)
    shared = chance.standard_normal(SHAPES["embeddings"]).astype(np.float32)
    for name, value in spec.variables(ordered=True):
        if value is not None:
            continue
        scope, leaf = name.rsplit("/", 1)
        layer = specs.model_spec.index_spec(spec, scope)
        kind = next((k for k in sorted(SHAPES, key=len, reverse=True) if scope.endswith(k)), None)
        if "embeddings" in scope or "projection" in scope:
            array = shared.copy()
        elif leaf == "weight":
            array = chance.standard_normal(SHAPES[kind]).astype(np.float32)
        else:
            array = chance.uniform(0.5, 1.5, D).astype(np.float32)
        setattr(layer, leaf, array)


def value_of(value):
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def main(directory, quantization):
    spec = spec_of(1, 2)
    fill(spec)
    if hasattr(spec, "register_source_vocabulary"):
        spec.register_source_vocabulary(TOKENS)
        spec.register_target_vocabulary(TOKENS)
    else:
        spec.register_vocabulary("source", TOKENS)
        spec.register_vocabulary("target", TOKENS)
    spec.validate()
    spec.optimize(None if quantization == "none" else quantization)
    os.makedirs(directory)
    spec.save(directory)
    variables = spec.variables(ordered=True)
    aliases = {name: value for name, value in variables if isinstance(value, str)}
    arrays = {name: value_of(value) for name, value in variables if not isinstance(value, str)}
    np.savez_compressed(directory + ".npz", **arrays)
    with open(directory + ".aliases.json", "w") as file:
        json.dump(aliases, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
