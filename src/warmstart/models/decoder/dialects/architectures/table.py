"""What a table of an architecture consists of, and how arrays of several modules lie in one.

Names and defaults are those of transformers 5.23 (``models/*/configuration_*.py``, ``modeling_*.py``); paddings of the
vocabulary those of CTranslate2 4.8.5 (``converters/transformers.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from warmstart.lean import dataclass
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.rotary import Rotary
from warmstart.models.decoder.dialects.tokenizers import Padding
from warmstart.models.huggingface import Options
from warmstart.spec.attention import Beside, Cut, RotaryHalves
from warmstart.spec.op import Op
from warmstart.spec.ops import Chain, Identity, PermuteBlocks, Reshape, Transpose

Values = dict[str, Any]
OpOf = Callable[[DecoderConfig, str], Op]

GELU_NEW = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "gelu": "quick_gelu", "relu": "relu", "swish": "silu"}
GELU_TORCH = {**GELU_NEW, "gelu_tanh": "gelu_pytorch_tanh"}
ACTIVATIONS = {
    "gelu": "gelu_erf", "gelu_python": "gelu_erf", "gelu_fast": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "gelu", "relu": "relu", "silu": "swish", "swish": "swish",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key of config.json and the family's setting that it is; ``names`` are spellings, the first today's.

    ``values`` translates (theirs → ours), ``back`` the other way.
    """

    names: str
    field: str
    default: Any
    values: Mapping[Any, Any] | None = None
    back: Mapping[Any, Any] | None = None

    def read(self, options: Options) -> Any:
        names = self.names.split("|")
        name = next((n for n in names if n in options.values), names[0])
        value = options.get(name, self.default)
        for again in names:
            if options.values.get(again) == value:
                options.get(again, None)
        if self.values is None:
            return value
        if value not in self.values:
            options.problem(f"{name}: {value!r} is not supported", expected=", ".join(map(repr, self.values)))
        return self.values.get(value)

    def write(self, config: DecoderConfig) -> tuple[str, Any]:
        value = getattr(config, self.field)
        return self.names.split("|")[0], value if self.back is None else self.back.get(value)


def activation(name: str, default: str, back: Mapping[str, str] = GELU_TORCH) -> Key:
    return Key(name, "activation", default, ACTIVATIONS, back)


@dataclass(frozen=True)
class Fused:
    """Canonical modules of a layer in the order in which one foreign module holds them, and how."""

    parts: tuple[str, ...]
    op: OpOf


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        model: class that ``architectures`` of config.json names.
        top, layer: canonical module → foreign one; of a layer without ``layers.{i}.`` and ``prefix``.
        always: settings of the family that it does not choose.
        expect: key → the only values that are supported, the default first.
        ignored: keys that change nothing here (dropout, ids of special tokens, switches of the computation).
        more, back: settings that take more than a key, read and written.
        conv1d: weights lie [in, out].
        ops: how a module's array lies, where not as the family's.
        leftovers: patterns of arrays that older versions stored → why they are not needed.
        older: older name of a module → today's.
        smooth: norm → modules that read it, where CTranslate2's converter can smooth activations.
        packs: whether CTranslate2's converter takes packed weights (AWQ).
    """

    name: str
    model: str
    prefix: str
    top: Mapping[str, str]
    layer: Mapping[str, str]
    keys: tuple[Key, ...]
    always: Mapping[str, Any]
    expect: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    rotary: Rotary | None = None
    more: Callable[[Options, Values], Values] | None = None
    back: Callable[[DecoderConfig], Values] | None = None
    fused: Mapping[str, Fused] = field(default_factory=dict)
    conv1d: bool = False
    ops: Mapping[str, OpOf] = field(default_factory=dict)
    padding: Padding = "extra"
    leftovers: Mapping[str, str] = field(default_factory=dict)
    older: Mapping[str, str] = field(default_factory=dict)
    packs: bool = False
    smooth: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def foreign(self, module: str) -> str:
        """The foreign name of a canonical module."""
        inner = module.removeprefix("layers.{i}.")
        return self.top[module] if inner == module else f"{self.prefix}.{self.layer[inner]}"


# How arrays lie.


def cut(c: DecoderConfig, what: str, *sizes: int) -> Op:
    """Linear layers whose outputs lie one after another, packed or not."""
    if c.packing is None or what == "bias":
        return Cut(sizes)
    each = 32 // c.packing.bits if what != "scales" else 1
    return Cut(tuple(size // each for size in sizes), 1) if c.packing.layout == "gemm" else Cut(sizes)


def joined(c: DecoderConfig, what: str) -> Op:
    return cut(c, what, c.q_dim, c.kv_dim, c.kv_dim)


def joined_transposed(c: DecoderConfig, what: str) -> Op:
    return Chain((Transpose(), joined(c, what))) if what == "weight" else joined(c, what)


def grouped(c: DecoderConfig, what: str) -> Op:
    """Heads that share a key lie together: their queries, then their key, then their value."""
    per, rest = c.num_heads // c.num_kv_heads, (c.d_model,) if what == "weight" else ()
    apart = Reshape((-1, *rest), (c.num_kv_heads, per + 2, c.head_dim, *rest))
    return Chain((apart, Cut((per, 1, 1), 1), Reshape((c.num_kv_heads, -1, c.head_dim, *rest), (-1, *rest))))


def halves(c: DecoderConfig, what: str) -> Op:
    return RotaryHalves(c.num_heads, c.rotary_dim or 0)


def sharded(c: DecoderConfig, what: str) -> Op:
    """CodeGen's arrays are of several accelerators' parts, each with queries, values and keys."""
    shards = 8 if c.original.get("head_dim") in (128, 256) else 4
    order = tuple(3 * shard + part for part in range(3) for shard in range(shards))
    rotated = Beside((halves(c, what), Identity(), halves(c, what)))
    return Chain((PermuteBlocks(order), Cut((c.q_dim, c.kv_dim, c.kv_dim)), rotated))


def gate_up(c: DecoderConfig, what: str) -> Op:
    return cut(c, what, c.d_ff, c.d_ff)


QKV = ("attention.query", "attention.key", "attention.value")
BUFFERS = {
    "**.attn.bias": "a mask that follows from positions",
    "**.attn.masked_bias": "a constant",
    "**.attn.causal_mask": "a mask that follows from positions",
    "**.attention.bias": "a mask that follows from positions",
    "**.attention.masked_bias": "a constant",
    "**.rotary_emb.inv_freq": "follows from the base of rotary positions",
    "**.embed_positions": "a table of sines",
}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DROPS = (
    *("attention_dropout", "hidden_dropout", "classifier_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"),
    *("attention_probs_dropout_prob", "hidden_dropout_prob"),
)
IGNORED = (*IDS, *DROPS, "is_decoder", "pretraining_tp", "sep_token_id", "decoder_start_token_id")
SUMMARY = ("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
