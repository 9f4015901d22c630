"""How ``transformers`` spells wav2vec2-BERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.ctc import CtcDialect
from warmstart.models.family import Facts
from warmstart.models.pretrained import both, options_of
from warmstart.models.wav2vec2_bert.config import Wav2Vec2BertConfig
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.vocabulary import Vocabulary

_W = "wav2vec2_bert"
_TOP = ("lm_head.", "projector.", "classifier.")
_KEYS = {
    "vocab_size": ("vocab_size", 0), "input_size": ("feature_projection_input_dim", 160),
    "d_model": ("hidden_size", 1024), "num_heads": ("num_attention_heads", 16),
    "num_layers": ("num_hidden_layers", 24), "d_ff": ("intermediate_size", 4096),
    "conv_kernel": ("conv_depthwise_kernel_size", 31), "left_positions": ("left_max_position_embeddings", 64),
    "right_positions": ("right_max_position_embeddings", 8), "adapter_kernel": ("adapter_kernel_size", 3),
}  # fmt: skip
_USUAL: dict[str, Any] = {
    "hidden_act": "swish", "position_embeddings_type": "relative_key", "layer_norm_eps": 1e-5, "adapter_act": "relu",
    "adapter_stride": 2, "use_intermediate_ffn_before_adapter": False,
}  # fmt: skip
_ATTENTION = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_out": "output"}
_LAYER = {
    "ffn1_layer_norm": "ffn1_norm", "ffn1.intermediate_dense": "ffn1.up", "ffn1.output_dense": "ffn1.down",
    "self_attn_layer_norm": "self_attention_norm", "conv_module.layer_norm": "convolution.norm",
    "conv_module.depthwise_layer_norm": "convolution.depthwise_norm", "ffn2_layer_norm": "ffn2_norm",
    "ffn2.intermediate_dense": "ffn2.up", "ffn2.output_dense": "ffn2.down", "final_layer_norm": "norm",
}  # fmt: skip
_WEIGHTS = {
    "self_attn.distance_embedding": "self_attention.distances", "conv_module.pointwise_conv1": "convolution.expand",
    "conv_module.depthwise_conv": "convolution.depthwise", "conv_module.pointwise_conv2": "convolution.project",
}  # fmt: skip
_ADAPTER = {
    "residual_layer_norm": "residual_norm", "residual_conv": "residual_convolution",
    "self_attn_layer_norm": "self_attention_norm", "self_attn_conv": "self_attention_convolution",
    "ffn_layer_norm": "ffn_norm", "ffn.intermediate_dense": "ffn.up", "ffn.output_dense": "ffn.down",
}  # fmt: skip


class TransformersDialect(CtcDialect):
    """Weights [out, in]; convolutions [out, in, width]."""

    types = ("wav2vec2-bert",)
    prefix, top, architecture = _W, _TOP, "Wav2Vec2BertForCTC"

    def read_config(self, checkpoint: Checkpoint) -> Wav2Vec2BertConfig:
        loaded = self.view(checkpoint)
        options = options_of(loaded)
        options.expect("model_type", *self.types)
        values: dict[str, Any] = {}
        for ours, (key, usual) in _KEYS.items():
            read = options.get if ours.endswith("_positions") else options.whole
            values[ours] = read(key, usual)
        adapters = options.whole("num_adapter_layers", 1)
        values["num_adapter_layers"] = adapters if options.get("add_adapter", False) else 0
        for key, value in _USUAL.items():
            options.expect(key, value, *(["silu"] if value == "swish" else []))
        for key in ("rotary_embedding_base", "max_source_positions"):
            options.get(key, None)  # of other embeddings of positions, which are refused
        return self.read_values(Wav2Vec2BertConfig, values, options, loaded)

    def rules(self, config: Wav2Vec2BertConfig) -> list[Rule]:
        layers, adapters = {"i": config.num_layers}, {"i": config.num_adapter_layers}
        theirs, adapter = f"{_W}.encoder.layers.{{i}}", f"{_W}.adapter.layers.{{i}}"
        rules = [
            *both(f"{_W}.feature_projection.layer_norm", "projection_norm"),
            *both(f"{_W}.feature_projection.projection", "projection"),
        ]
        for name, ours in _LAYER.items():
            rules += both(f"{theirs}.{name}", f"layers.{{i}}.{ours}", layers)
        for name, ours in _ATTENTION.items():
            rules += both(f"{theirs}.self_attn.{name}", f"layers.{{i}}.self_attention.{ours}", layers)
            rules += both(f"{adapter}.self_attn.{name}", f"adapters.{{i}}.self_attention.{ours}", adapters)
        for name, ours in _WEIGHTS.items():
            rules.append(rule(f"{theirs}.{name}.weight", f"layers.{{i}}.{ours}.weight", each=layers))
        for name, ours in _ADAPTER.items():
            rules += both(f"{adapter}.{name}", f"adapters.{{i}}.{ours}", adapters)
        return rules + (both("lm_head", "output") if config.head else [])

    def files(
        self, config: Wav2Vec2BertConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        values: dict[str, Any] = {key: getattr(config, ours) for ours, (key, _) in _KEYS.items()}
        values |= {"add_adapter": config.num_adapter_layers > 0}
        values |= {"num_adapter_layers": config.num_adapter_layers} if config.num_adapter_layers else {}
        implied: dict[str, Any] = {**dict(_KEYS.values()), "add_adapter": False, "num_adapter_layers": 1}
        return self.files_of(config, vocabularies, facts, values, implied, _USUAL)
