"""How ``transformers`` spells wav2vec 2.0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from warmstart.formats.checkpoint import Array, Checkpoint
from warmstart.models.ctc import CtcDialect
from warmstart.models.family import Facts
from warmstart.models.pretrained import Renamed, both, options_of
from warmstart.models.wav2vec2.config import POSITION_GROUPS, POSITION_WIDTH, Wav2Vec2Config
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.vocabulary import Vocabulary

_W = "wav2vec2"
_POSITIONS = f"{_W}.encoder.pos_conv_embed.conv"
_TOP = ("lm_head.", "quantizer.", "project_hid.", "project_q.", "projector.", "classifier.")
_NORMED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
_KEYS = {
    "vocab_size": ("vocab_size", 32), "d_model": ("hidden_size", 768), "num_heads": ("num_attention_heads", 12),
    "num_layers": ("num_hidden_layers", 12), "d_ff": ("intermediate_size", 3072),
}  # fmt: skip
_CONV_DIM, _CONV_KERNEL = [512] * 7, [10, 3, 3, 3, 3, 2, 2]
_USUAL: dict[str, Any] = {
    "hidden_act": "gelu", "feat_extract_activation": "gelu", "feat_extract_norm": "layer", "conv_bias": True,
    "do_stable_layer_norm": True, "num_conv_pos_embeddings": POSITION_WIDTH,
    "num_conv_pos_embedding_groups": POSITION_GROUPS, "layer_norm_eps": 1e-5, "add_adapter": False,
}  # fmt: skip
_LIBRARY: dict[str, Any] = {"feat_extract_norm": "group", "conv_bias": False, "do_stable_layer_norm": False}
_LAYER = {
    "attention.q_proj": "self_attention.query", "attention.k_proj": "self_attention.key",
    "attention.v_proj": "self_attention.value", "attention.out_proj": "self_attention.output",
    "layer_norm": "self_attention_norm", "feed_forward.intermediate_dense": "ffn.up",
    "feed_forward.output_dense": "ffn.down", "final_layer_norm": "ffn_norm",
}  # fmt: skip


class Wide(Renamed):
    """The convolution of positions in float32, whatever the others are in: its weight is computed."""

    def __init__(self, checkpoint: Checkpoint, dialect: TransformersDialect) -> None:
        super().__init__(checkpoint, dialect.today)
        for name, entry in self.entries.items():
            if name.startswith(_POSITIONS) and entry.dtype in ("float16", "bfloat16"):
                self.entries = {**self.entries, name: replace(entry, dtype="float32")}

    def seen(self, name: str, read: Callable[[str], Array]) -> Array:
        array = super().seen(name, read)
        return np.asarray(array, np.float32) if name.startswith(_POSITIONS) else array


class TransformersDialect(CtcDialect):
    """Names of fairseq, mostly."""

    types = ("wav2vec2",)
    prefix, top, architecture = _W, _TOP, "Wav2Vec2ForCTC"
    others = "of pretraining or of a classifier"

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint if isinstance(checkpoint, Wide) else Wide(checkpoint, self)

    def today(self, name: str) -> str:
        name = super().today(name)
        for old, new in _NORMED.items():
            if name == f"{_POSITIONS}.{old}":
                return f"{_POSITIONS}.{new}"
        return name

    def read_config(self, checkpoint: Checkpoint) -> Wav2Vec2Config:
        loaded = self.view(checkpoint)
        options = options_of(loaded)
        options.expect("model_type", *self.types)
        values: dict[str, Any] = {ours: options.whole(*theirs) for ours, theirs in _KEYS.items()}
        values["conv_dim"] = options.get("conv_dim", _CONV_DIM)
        values["conv_kernel"] = options.get("conv_kernel", _CONV_KERNEL)
        layers = len(values["conv_dim"]) if isinstance(values["conv_dim"], list) else 0
        options.expect("num_feat_extract_layers", layers)
        strides = options.get("conv_stride", [5] + [2] * 6)
        if strides != [5] + [2] * (layers - 1):
            options.problem("conv_stride is not supported", expected="5 and then 2", found=repr(strides))
        for key, value in _USUAL.items():
            if options.get(key, _LIBRARY.get(key, value)) != value:
                found = repr(options.get(key, _LIBRARY.get(key)))
                options.problem(f"{key} is not supported", expected=repr(value), found=found)
        options.expect("adapter_attn_dim", None)
        for key in ("adapter_kernel_size", "adapter_stride", "num_adapter_layers"):
            options.get(key, None)  # of an adapter, which is refused
        return self.read_values(Wav2Vec2Config, values, options, loaded)

    def rules(self, config: Wav2Vec2Config) -> list[Rule]:
        each, convolutions = {"i": config.num_layers}, {"i": len(config.conv_dim)}
        extractor = f"{_W}.feature_extractor.conv_layers.{{i}}"
        rules = [
            *both(f"{extractor}.conv", "features.{i}.conv", convolutions),
            *both(f"{extractor}.layer_norm", "features.{i}.norm", convolutions),
            *both(f"{_W}.feature_projection.layer_norm", "projection_norm"),
            *both(f"{_W}.feature_projection.projection", "projection"),
            rule(f"{_POSITIONS}.{_NORMED['weight_g']}", "positions.scale"),
            rule(f"{_POSITIONS}.{_NORMED['weight_v']}", "positions.direction"),
            rule(f"{_POSITIONS}.bias", "positions.bias"),
            *both(f"{_W}.encoder.layer_norm", "norm"),
        ]
        for theirs, ours in _LAYER.items():
            rules += both(f"{_W}.encoder.layers.{{i}}.{theirs}", f"layers.{{i}}.{ours}", each)
        return rules + (both("lm_head", "output") if config.head else [])

    def files(
        self, config: Wav2Vec2Config, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        implied = {**dict(_KEYS.values()), "conv_dim": _CONV_DIM, "conv_kernel": _CONV_KERNEL}
        values = {key: getattr(config, ours) for ours, (key, _) in _KEYS.items()}
        values |= {"conv_dim": list(config.conv_dim), "conv_kernel": list(config.conv_kernel)}
        fresh = {"conv_stride": [5] + [2] * (len(config.conv_dim) - 1), **_USUAL}
        return self.files_of(config, vocabularies, facts, values, implied, fresh)
