"""How CTranslate2 spells the decoder-only Transformer (``TransformerDecoderSpec``, revision 8)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from warmstart.errors import DialectError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.decoder.config import DecoderConfig, RotaryScaling
from warmstart.models.decoder.dialects.architectures import ARCHITECTURES, cut
from warmstart.models.decoder.dialects.model_bin import ACTIVATIONS, PACKINGS, SCALINGS, read
from warmstart.models.decoder.dialects.tokenizers import chat_template, numbered
from warmstart.models.decoder.parameters import Module, modules, parameters
from warmstart.models.family import Facts
from warmstart.models.model_bin import Floats, ModelBin, Upgraded, json_file, quantizable, read_vocabularies
from warmstart.models.model_bin_beside import manifest_config
from warmstart.models.model_bin_distances import distance_rules
from warmstart.models.model_bin_shapes import rows_of
from warmstart.spec.attention import Beside, RotaryHalves
from warmstart.spec.generated import WithZeros, constant
from warmstart.spec.mapping import Rule, expand, rule
from warmstart.spec.op import Op
from warmstart.spec.ops import Chain, Identity
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_D = "decoder"
_L = "decoder/layer_{i}"

# In which details CTranslate2's own converters (4.8.5, converters/transformers.py) differ between architectures.
_ROTATES_NUMBER = ("gptj", "codegen", "gpt_neox", "phi", "qwen3", "gemma3_text")  # else 0, which means all of a head
_SAYS_HEAD_DIM = ("mistral", "qwen3", "gemma", "gemma2", "gemma3_text")
_SAYS_DEPTH = ("gemma", "gemma2")  # the factor of the embeddings as a number
_ONMT = ("eole", "opennmt-py")  # (eole_ct2.py and opennmt_py.py)
_SAYS_EPSILON = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", *_ONMT)
_SAYS_KV = ("falcon",)  # even where every head has its own keys
_ALIBI_SWITCHES = ("falcon",)  # even without ALiBi
_SPELT = {"qweight": "weight", "scales": "weight_scale", "qzeros": "weight_zero"}
_SAYS_LENGTHS = ("phi3",)
_SAYS_WINDOW = _ONMT  # 0 where there is none
_DROPS_WINDOW = ("qwen2", "qwen3", "gemma2", "phi3")

_TABLE = 2048  # positions that the engine computes at first


class CTranslate2Dialect(ModelBin):
    """Weights [out, in], Q‖K‖V joined, rotated dimensions as halves."""

    specifications = ("TransformerDecoderSpec",)

    def specification(self, config: DecoderConfig) -> tuple[str, int]:
        return "TransformerDecoderSpec", 8

    def rules(self, config: DecoderConfig) -> list[Rule]:
        return list(_arrays(config)) + [rule(name, (), constant(value)) for name, value in _scalars(config)]

    def approximations(self, config: DecoderConfig) -> Mapping[str, str]:
        c, lost = config, dict[str, str]()
        if c.attention_softcap:
            lost["attention_softcap"] = "the engine does not cap attention's scores"
        if c.logit_softcap:
            lost["logit_softcap"] = "CTranslate2's converters leave it out: scores differ, their order does not"
        if c.sliding_window and _window(c, 0) is None:
            lost["sliding_window"] = f"CTranslate2's converter of {c.architecture} leaves it out: it attends to all"
        if c.rotary_scaling is not None and c.rotary_scaling.kind == "long":
            lost |= _long_rope(c, c.rotary_scaling)
        return lost

    def files(self, config: DecoderConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary = vocabularies["text"]
        told = config.num_kv_heads == config.num_heads and config.architecture in _SAYS_KV
        content: dict[str, Any] = {
            **_tokens(config, vocabulary),
            "layer_norm_epsilon": _epsilon(config),
            "multi_query_attention": not told,
        }
        if config.packing is not None:
            content["quantization_type"] = PACKINGS[config.packing.layout]
            content["quantization_bits"] = config.packing.bits
            content["quantization_group_size"] = config.packing.group_size
        return {
            "config.json": json_file(content),
            "vocabulary.json": json.dumps(list(vocabulary.tokens), indent=2).encode("ascii"),
        }

    def quantizable(self, name: str) -> bool:
        return quantizable(name)

    def config_of(self, stored: Upgraded) -> DecoderConfig:
        found, kept = read(stored), manifest_config(stored.path, "decoder", DecoderConfig)
        names = (None, *(a.name for a in ARCHITECTURES), *_ONMT)
        guesses = [found.model_copy(update={"architecture": name}) for name in names]
        likely = [kept, *guesses] if kept is not None else guesses
        return next((c for c in likely if self._describes(c, found, stored)), found)

    def _describes(self, kept: DecoderConfig, found: DecoderConfig, stored: Upgraded) -> bool:
        """Whether everything that ``kept`` would say stands in the file, and nothing else does."""
        said = {link.foreign[0]: link.op for link in expand(self.rules(kept)) if not link.canonical}
        numbers = {name for name, entry in stored.entries.items() if entry.shape == ()}
        scales = {name for name in numbers if name.endswith("weight_scale")}
        return (
            parameters(kept) == parameters(found)
            and _epsilon(kept) == (stored.metadata.get("config") or {}).get("layer_norm_epsilon")
            and numbers - scales == {name for name, op in said.items() if op.backward_shapes([]) == [()]}
            and all(
                name in stored.entries and np.array_equal(stored.read(name), op.backward([])[0])
                for name, op in said.items()
            )
        )

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        there = self.view(checkpoint) if not isinstance(checkpoint, Floats) else checkpoint
        rows = rows_of(there.entries, "decoder/embeddings/weight")
        found = read_vocabularies(checkpoint, files, {"text": rows})
        special = checkpoint.metadata.get("config") or {}
        text = found.get("text")
        if text is None or isinstance(text, SubwordVocabulary) or files:
            return found
        return {"text": SubwordVocabulary(text.tokens, {r: special.get(f"{r}_token") for r in ("bos", "eos", "unk")})}


def _long_rope(c: DecoderConfig, scaling: RotaryScaling) -> dict[str, str]:
    """Where the engine computes another LongRoPE (``RotaryEmbeddings`` of layers/attention_layer.cc in 4.8.1): its
    tables begin with 2,048 positions, take the long factors as soon as they hold more positions than the model was
    first trained with, and are scaled by √(1 + ln(⌊longest / original⌋) / ln(original))."""
    lost: dict[str, str] = {}
    original, longest = c.original_max_positions or 0, c.max_positions or 0
    if 0 < original < _TABLE:
        lost["original_max_positions"] = (
            f"the engine takes the long factors from the first token on: its tables begin with {_TABLE:,} positions"
        )
    if original > 1:
        computed = math.sqrt(1 + math.log(max(1, longest // original)) / math.log(original))
        ratio = scaling.factor or longest / original
        exact = math.sqrt(1 + math.log(max(1.0, ratio)) / math.log(original))
        meant = scaling.attention_factor or exact
        if not math.isclose(computed, meant, rel_tol=1e-6):
            lost["rotary_scaling.attention_factor"] = f"the engine computes {computed:.6g}, and the model {meant:.6g}"
    return lost


def _tokens(c: DecoderConfig, vocabulary: Vocabulary) -> dict[str, str | None]:
    def token(role: str) -> str | None:
        if isinstance(vocabulary, SubwordVocabulary):
            return vocabulary.special.get(role)
        row = getattr(vocabulary, f"{role}_id", None)
        return None if row is None else vocabulary.tokens[row]

    bos, eos, unk = token("bos"), token("eos"), token("unk")
    if c.architecture == "falcon":
        bos = unk = eos
    if c.architecture in ("qwen2", "qwen3"):
        bos = token("pad") if bos is None else bos
    if c.architecture in ("llama", "qwen2", "qwen3") and unk is None:
        unk = ""
    if (
        c.architecture == "gemma3_text"
        and isinstance(vocabulary, SubwordVocabulary)
        and chat_template(vocabulary.files)
    ):
        eos = "<end_of_turn>"
    # What is None the engine does not open a model without (docs/decisions/0076).
    if eos is None:
        raise DialectError(
            "nothing names the end token, without which CTranslate2's engine does not open a model",
            expected="eos_token in tokenizer_config.json, or eos_token_id in config.json",
        )
    bos = numbered(c.original, vocabulary.tokens, "bos") if bos is None else bos
    return {"bos_token": eos if bos is None else bos, "eos_token": eos, "unk_token": unk or ""}


def _epsilon(c: DecoderConfig) -> float | None:
    """None is the engine's 1e-5, or 1e-6 of RMSNorm."""
    usual = 1e-6 if c.norm == "rms" else 1e-5
    return None if c.norm_epsilon == usual and c.architecture not in _SAYS_EPSILON else c.norm_epsilon


def _arrays(c: DecoderConfig) -> Iterator[Rule]:
    layers = {"i": c.num_layers}
    fused = ("layers.{i}.attention.query", "layers.{i}.attention.key", "layers.{i}.attention.value")
    sizes = (c.q_dim, c.kv_dim, c.kv_dim)
    names = _names(c)
    if c.positions == "relative":
        keys, values = (f"layers.{{i}}.attention.relative_{what}.weight" for what in ("keys", "values"))
        own = f"{_L}/self_attention"
        yield from distance_rules(own, keys, values, layers, head_dim=c.head_dim, scaled=c.relative_scaled)
    for module in modules(c):
        each = layers if module.layered else None
        if module.name == fused[0]:
            for what in module.whats:
                joined = [f"{name}.{what}" for name in fused]
                name = f"{_L}/self_attention/linear_0/{_SPELT.get(what, what)}"
                yield rule(name, joined, _parted(c, what, sizes), each=each)
        elif module.name in names:
            yield from _module(module, names[module.name], c, each)


def _parted(c: DecoderConfig, what: str, sizes: tuple[int, int, int]) -> Op:
    """Queries, keys and values of what is joined; those that the engine rotates in pairs as halves."""
    parts = cut(c, what, *sizes)
    if not c.rotary_pairs or c.rotary_dim is None:
        return parts
    turned = (RotaryHalves(heads, c.rotary_dim) for heads in (c.num_heads, c.num_kv_heads))
    return Chain((parts, Beside((*turned, Identity()))))


def _module(module: Module, name: str, c: DecoderConfig, each: Mapping[str, int] | None) -> Iterator[Rule]:
    ours, spelt = f"{module.name}.weight", _SPELT
    if module.kind == "norm":
        spelt = {"weight": "gamma", "bias": "beta"}
        if c.norm == "layer" and not module.bias:  # the engine would take it for RMSNorm
            yield rule((f"{name}/gamma", f"{name}/beta"), ours, WithZeros(), each=each)
            return
        if c.norm_offset:
            yield rule(f"{name}/layer_norm_use_residual", (), constant(np.int8(1)), each=each)
    if module.name == "positions":
        spelt = {"weight": "encodings"}
    for what in module.whats:
        yield rule(f"{name}/{spelt.get(what, what)}", f"{module.name}.{what}", each=each)


def _names(c: DecoderConfig) -> dict[str, str]:
    apart = c.parallel == "separate" or c.norm_place == "both"
    own, ffn = f"{_L}/self_attention", f"{_L}/ffn"
    attention_norm = f"{_L}/input_layer_norm" if apart else f"{own}/layer_norm"
    ffn_norm = f"{_L}/post_attention_layer_norm" if c.parallel == "separate" else f"{ffn}/layer_norm"
    return {
        "embedding": f"{_D}/embeddings",
        "project_in": f"{_D}/project_in",
        "positions": f"{_D}/position_encodings",
        "embedding_norm": f"{_D}/layernorm_embedding",
        "norm": f"{_D}/layer_norm",
        "project_out": f"{_D}/project_out",
        "output": f"{_D}/projection",
        "layers.{i}.attention_norm": f"{_L}/shared_layer_norm" if c.parallel == "shared" else attention_norm,
        "layers.{i}.attention.query_norm": f"{own}/q_norm",
        "layers.{i}.attention.key_norm": f"{own}/k_norm",
        "layers.{i}.attention.output": f"{own}/linear_1",
        "layers.{i}.attention_post_norm": f"{_L}/post_attention_layer_norm",
        "layers.{i}.ffn_norm": f"{_L}/pre_feedforward_layer_norm" if c.norm_place == "both" else ffn_norm,
        "layers.{i}.ffn.gate": f"{ffn}/linear_0",
        "layers.{i}.ffn.up": f"{ffn}/linear_0_noact" if c.gated else f"{ffn}/linear_0",
        "layers.{i}.ffn.down": f"{ffn}/linear_1",
        "layers.{i}.ffn_post_norm": f"{_L}/post_feedforward_layer_norm",
    }


def _scalars(c: DecoderConfig) -> Iterator[tuple[str, Any]]:
    switches = c.architecture in _ALIBI_SWITCHES
    yield f"{_D}/num_heads", np.int16(c.num_heads)
    yield f"{_D}/pre_norm", np.int8(c.norm_place != "post")
    yield f"{_D}/activation", np.int8(ACTIVATIONS[c.activation])
    yield f"{_D}/alignment_layer", np.int16(-1)
    yield f"{_D}/alignment_heads", np.int16(1)
    yield f"{_D}/scale_embeddings", np.int8(c.scale_embeddings)
    yield f"{_D}/start_from_zero_embedding", np.int8(0)
    yield f"{_D}/alibi", np.int8(c.positions == "alibi")
    yield f"{_D}/alibi_use_positive_positions", np.int8(c.alibi_positive or switches)
    yield f"{_D}/scale_alibi", np.int8(c.alibi_scaled or switches)
    if c.scale_embeddings and c.architecture in _SAYS_DEPTH:
        yield f"{_D}/embeddings/multiply_by_sqrt_depth", np.float32(c.d_model**0.5)
    if _window(c, 0) is not None:
        yield f"{_D}/sliding_window", np.int32(c.sliding_window or 0)
    for i in range(c.num_layers):
        for name, value in _attention(c, i):
            yield f"{_D}/layer_{i}/self_attention/{name}", value


def _attention(c: DecoderConfig, i: int) -> Iterator[tuple[str, Any]]:
    if c.num_kv_heads != c.num_heads or c.architecture in _SAYS_KV:
        yield "num_heads_kv", np.int32(c.num_kv_heads)
    if c.head_dim * c.num_heads != c.d_model or c.architecture in _SAYS_HEAD_DIM:
        yield "head_dim", np.int32(c.head_dim)
    if c.query_scale is not None and not math.isclose(c.query_scale, c.head_dim**-0.5):
        yield "queries_scale", np.float32(c.query_scale)
    window = _window(c, i)
    if window is not None:
        yield "sliding_window", np.int32(window)
    if c.rotary_dim is not None:
        local = c.local_rotary_base is not None and _slides(c, i)
        whole = c.rotary_dim == c.head_dim and c.architecture not in _ROTATES_NUMBER
        yield "rotary_dim", np.int32(0 if whole else c.rotary_dim)
        yield "rotary_interleave", np.int8(c.rotary_pairs)
        yield "rotary_base", np.float32(c.local_rotary_base if local else c.rotary_base)
        kind = None if c.rotary_scaling is None else c.rotary_scaling.kind
        both = c.architecture in _SAYS_LENGTHS or kind == "long"
        if c.original_max_positions and (both or (kind == "llama3" and not local)):
            yield "original_max_position_embeddings", np.int32(c.original_max_positions)
        # By their quotient the engine scales every angle's sine and cosine, stretched or not.
        if c.max_positions and both and (kind == "long" or c.max_positions < 2 * (c.original_max_positions or 1)):
            yield "max_position_embeddings", np.int32(c.max_positions)
        if c.rotary_scaling is not None and not local:
            yield from _scaling(c.rotary_scaling)


def _scaling(s: RotaryScaling) -> Iterator[tuple[str, Any]]:
    yield "rotary_scaling_type", np.int8(SCALINGS[s.kind])
    if s.factor is not None and s.kind != "long":  # CTranslate2's converter leaves it out for llama3: nothing is scaled
        yield "rotary_scaling_factor", np.float32(s.factor)
    if s.kind == "llama3":
        yield "rotary_low_freq_factor", np.float32(s.low_frequency_factor or 1.0)
        yield "rotary_high_freq_factor", np.float32(s.high_frequency_factor or 1.0)
    elif s.kind == "long":
        yield "rotary_scaling_long_factor", np.asarray(s.long_factors, np.float32)
        yield "rotary_scaling_short_factor", np.asarray(s.short_factors, np.float32)


def _slides(c: DecoderConfig, i: int) -> bool:
    return c.sliding_window is not None and (c.sliding_layers is None or c.sliding_layers[i])


def _window(c: DecoderConfig, i: int) -> int | None:
    """Of layer ``i``: 0 says that it attends to all, None that nothing is said."""
    if c.sliding_window is None and c.architecture in _SAYS_WINDOW:
        return 0
    if c.sliding_window is None or c.architecture in _DROPS_WINDOW:
        return None
    return c.sliding_window if _slides(c, i) else 0
