"""The configuration of a decoder-only ``model.bin``, from its attributes, the shapes of its arrays and config.json."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.models.decoder.config import DecoderConfig, Packing, RotaryScaling
from warmstart.models.model_bin import Upgraded
from warmstart.models.model_bin_distances import distances_in, read_distances
from warmstart.models.model_bin_rules import layers_of

ACTIVATIONS = {"relu": 0, "gelu_tanh": 1, "swish": 2, "gelu_erf": 3, "gelu": 4}
PACKINGS = {"gemm": 1, "gemv": 2}
SCALINGS = {"linear": 0, "long": 1, "llama3": 2}
_L = "decoder/layer_0"
_NEEDED = (
    "decoder/embeddings/weight", "decoder/projection/weight", "decoder/num_heads",
    f"{_L}/self_attention/linear_0/weight", f"{_L}/self_attention/linear_1/weight", f"{_L}/ffn/linear_0/weight",
    f"{_L}/ffn/linear_1/weight",
)  # fmt: skip
_REFUSED = {
    "decoder/start_from_zero_embedding": 0,
    "decoder/alignment_layer": -1,
    "decoder/alignment_heads": 1,
}

_PER_LAYER = ("num_heads_kv", "head_dim", "queries_scale", "rotary_dim", "rotary_interleave", "max_position_embeddings")


def read(stored: Upgraded) -> DecoderConfig:
    """The configuration that ``stored`` says.

    Raises:
        DialectError: what the family cannot express; all of it at once.
    """
    return _Reader(stored).config()


class _Reader:
    def __init__(self, stored: Upgraded) -> None:
        self.stored, self.entries = stored, stored.entries
        self.problems: list[Problem] = []
        self.layers = 0

    def config(self) -> DecoderConfig:
        self.layers = layers_of(self.stored, "decoder", self.problems)
        self._check()
        e, first = self.entries, f"{_L}/self_attention"
        vocab, narrow = e["decoder/embeddings/weight"].shape
        joined, d_model = self._linear(f"{first}/linear_0")
        heads = int(self.stored.attribute("decoder/num_heads"))
        kv_heads = int(self.stored.attribute(f"{first}/num_heads_kv", heads))
        head_dim = int(self.stored.attribute(f"{first}/head_dim", d_model // heads if heads else 0))
        rows = (heads + 2 * kv_heads) * head_dim
        if joined != rows or heads < 1:
            what = f"{first}/linear_0/weight does not fit decoder/num_heads {heads}"
            expected = f"{heads} + 2 · {kv_heads} heads of {head_dim}: {rows} rows" if heads > 0 else "heads from 1"
            self.problems.append(Problem(what, expected=expected, found=f"{joined} rows"))
        given: dict[str, Any] = {
            "vocab_size": vocab, "d_model": d_model, "num_layers": self.layers, "num_heads": heads,
            "num_kv_heads": kv_heads, "head_dim": head_dim, "d_ff": self._linear(f"{_L}/ffn/linear_0")[0],
            "embedding_size": narrow if "decoder/project_in/weight" in e else None,
            "activation": self._name(ACTIVATIONS, int(self.stored.attribute("decoder/activation", 0)), "activation"),
            "gated": self._has("ffn/linear_0_noact/weight"),
            "final_norm": "decoder/layer_norm/gamma" in e,
            "embedding_norm": "decoder/layernorm_embedding/gamma" in e,
            "query_key_norm": self._has("self_attention/q_norm/gamma"),
            "attention_bias": self._has("self_attention/linear_0/bias"),
            "attention_output_bias": self._has("self_attention/linear_1/bias"),
            "ffn_bias": self._has("ffn/linear_0/bias"),
            "output_bias": "decoder/projection/bias" in e,
            "scale_embeddings": bool(self.stored.attribute("decoder/scale_embeddings", 1)),
            "logit_softcap": self.stored.attribute("decoder/final_logit_softcapping"),
            "query_scale": _scale(self.stored.attribute(f"{first}/queries_scale")),
            "tied_output": self._tied(),
            "packing": self._packing(),
            **self._norms(), **self._positions(head_dim),
        }  # fmt: skip
        try:
            config = DecoderConfig(**given)
        except Invalid as error:
            self.problems += validation_problems(error)
        self._raise()
        return config

    def _check(self) -> None:
        absent = [name for name in _NEEDED if name not in self.entries]
        self._expect(not absent, f"arrays are missing: {', '.join(absent)}")
        self._expect("decoder/layer_0/attention/linear_0/weight" not in self.entries, "this decoder has an encoder")
        for name in _PER_LAYER:
            values = {self.stored.attribute(f"decoder/layer_{i}/self_attention/{name}") for i in range(self.layers)}
            self._expect(len(values) < 2, f"layers differ in {name}: {', '.join(sorted(map(str, values)))}")
        for name, value in _REFUSED.items():
            found = self.stored.number(name)
            self._expect(found == value, f"{name}: {found} is not supported")
        self._raise()

    def _raise(self) -> None:
        if self.problems:
            where = self.stored.path
            raise DialectError("this CTranslate2 model is not supported", where=where, problems=self.problems)

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.problems.append(Problem(what))

    def _has(self, name: str) -> bool:
        return f"{_L}/{name}" in self.entries

    def _name(self, table: dict[str, int], number: int, what: str) -> str | None:
        name = next((n for n, k in table.items() if k == number), None)
        self._expect(name is not None, f"{what} {number} is not supported")
        return name

    def _packing(self) -> Packing | None:
        said = self.stored.metadata.get("config") or {}
        kind = said.get("quantization_type")
        if kind is None:
            return None
        layout: Any = self._name(PACKINGS, kind, "quantization_type")
        try:
            return Packing(layout=layout, bits=said["quantization_bits"], group_size=said["quantization_group_size"])
        except (KeyError, ValueError) as error:
            self._expect(False, f"quantization of type {kind} cannot be understood: {error}")
            return None

    def _linear(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of a linear layer, packed or not."""
        rows, columns = self.entries[f"{name}/weight"].shape
        packing = self._packing() if f"{name}/weight_zero" in self.entries else None
        if packing is None:
            return rows, columns
        each = 32 // packing.bits
        return (columns * each, rows) if packing.layout == "gemm" else (rows, columns * each)

    def _tied(self) -> bool:
        names = ("decoder/embeddings/weight", "decoder/projection/weight")
        return len({self.stored.ties.get(name, name) for name in names}) == 1

    def _norms(self) -> dict[str, Any]:
        gammas = [n for n in self.entries if n.startswith(_L) and n.endswith("/gamma")]
        layer = any(n.replace("/gamma", "/beta") in self.entries for n in gammas)
        bias = layer and not self._no_bias_anywhere()
        shared, sandwich = self._has("shared_layer_norm/gamma"), self._has("pre_feedforward_layer_norm/gamma")
        separate = self._has("input_layer_norm/gamma") and not sandwich
        place = "both" if sandwich else "pre" if self.stored.attribute("decoder/pre_norm", 1) else "post"
        epsilon = (self.stored.metadata.get("config") or {}).get("layer_norm_epsilon")
        return {
            "norm": "layer" if layer else "rms",
            "norm_bias": bias,
            "norm_offset": any(n.endswith("/layer_norm_use_residual") for n in self.entries),
            "norm_place": place,
            "norm_epsilon": (1e-5 if layer else 1e-6) if epsilon is None else epsilon,
            "parallel": "shared" if shared else "separate" if separate else "none",
        }

    def _no_bias_anywhere(self) -> bool:
        """Whether the biases of LayerNorm are there for the engine only, which takes a norm without for RMSNorm."""
        biases = [n for n in self.entries if n.endswith(("/bias", "/beta"))]
        return all(n.endswith("/beta") for n in biases) and not any(np.any(self.stored.read(n)) for n in biases)

    def _positions(self, head_dim: int) -> dict[str, Any]:
        own = f"{_L}/self_attention"
        distances = distances_in(self.stored)
        if distances:
            return {**read_distances(self.stored, distances), **self._windows()}
        table = self.entries.get("decoder/position_encodings/encodings")
        if table is not None:
            return {"positions": "learned", "max_positions": table.shape[0], **self._windows()}
        if self.stored.attribute("decoder/alibi", 0):
            switches = {"alibi_positive": "alibi_use_positive_positions", "alibi_scaled": "scale_alibi"}
            values = {key: bool(self.stored.attribute(f"decoder/{name}", 0)) for key, name in switches.items()}
            return {"positions": "alibi", **values, **self._windows()}
        rotary = self.stored.attribute(f"{own}/rotary_dim")
        if rotary is None:
            relative = [n for n in self.entries if n.startswith(f"{own}/relative_")]
            self._expect(not relative, f"positions as {', '.join(relative)} say them are not understood")
            return {"positions": "sinusoidal"}
        longest = self.stored.attribute(f"{own}/max_position_embeddings")
        return {
            "positions": "rotary", "rotary_dim": (rotary or head_dim), "max_positions": longest, **self._windows(),
            "rotary_scaling": self._scaling(),
            "rotary_pairs": bool(self.stored.attribute(f"{own}/rotary_interleave", 1)),
            "original_max_positions": self._first("original_max_position_embeddings"),
        }  # fmt: skip

    def _first(self, name: str) -> Any:
        """What the first layer says that says it: those with a window may have other positions."""
        values = (self.stored.attribute(f"decoder/layer_{i}/self_attention/{name}") for i in range(self.layers))
        return next((value for value in values if value is not None), None)

    def _windows(self) -> dict[str, Any]:
        """Layers differ in window and base: those that attend to all have the base, the others the local one."""
        layers = range(self.layers)
        own = [f"decoder/layer_{i}/self_attention" for i in layers]
        windows = [int(self.stored.attribute(f"{o}/sliding_window", 0)) for o in own]
        bases = [float(self.stored.attribute(f"{o}/rotary_base", 10000.0)) for o in own]
        widths = sorted({w for w in windows if w})
        self._expect(len(widths) <= 1, f"windows of several lengths: {widths}")
        full, local = ({b for b, w in zip(bases, windows, strict=True) if bool(w) is s} for s in (False, True))
        self._expect(len(full) <= 1 and len(local) <= 1, f"rotary bases of several kinds: {sorted(set(bases))}")
        base = next(iter(full or local))
        other = next(iter(local)) if full and local and full != local else None
        each = None if all(windows) or not widths else tuple(bool(w) for w in windows)
        return {
            "rotary_base": _decimal(base),
            "local_rotary_base": None if other is None else _decimal(other),
            "sliding_window": widths[0] if widths else None,
            "sliding_layers": each,
        }

    def _scaling(self) -> RotaryScaling | None:
        found = [self._one_scaling(i) for i in range(self.layers)]
        kinds = [f for f in found if f is not None]
        self._expect(all(k == kinds[0] for k in kinds), "layers differ in the scaling of rotary angles")
        return kinds[0] if kinds else None

    def _one_scaling(self, i: int) -> RotaryScaling | None:
        own = f"decoder/layer_{i}/self_attention"
        number = self.stored.attribute(f"{own}/rotary_scaling_type")
        if number is None:
            return None
        kind: Any = self._name(SCALINGS, int(number), "rotary_scaling_type")
        if kind == "long":
            long, short = (self._factors(f"{own}/rotary_scaling_{which}_factor") for which in ("long", "short"))
            return RotaryScaling(kind="long", long_factors=long, short_factors=short)
        low, high = (self.stored.attribute(f"{own}/rotary_{which}_freq_factor") for which in ("low", "high"))
        factor = self.stored.attribute(f"{own}/rotary_scaling_factor")
        return RotaryScaling(kind=kind, factor=factor, low_frequency_factor=low, high_frequency_factor=high)

    def _factors(self, name: str) -> tuple[float, ...]:
        if name not in self.entries:
            self._expect(False, f"{name} is missing")
            return ()
        return tuple(float(v) for v in np.asarray(self.stored.read(name), np.float64))


def _scale(value: float | None) -> float | None:
    """1/√n of a whole n, where that rounds to the float32 ``value``: configurations say n."""
    whole = round(value**-2) if value and math.isfinite(value) else 0
    return whole**-0.5 if whole > 0 and np.float32(whole**-0.5) == value else value


def _decimal(value: float) -> float:
    """The shortest decimal that rounds to the float32 ``value``."""
    return value if not math.isfinite(value) else float(str(np.float32(value)))
