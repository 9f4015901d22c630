"""Arrays of a ``model.bin`` must look like what they are called, before anything is computed from their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from warmstart.errors import DialectError, Problem
from warmstart.formats.checkpoint import Entry

# By the last part of the name; convolutions have three axes.
_AXES: Mapping[str, tuple[int, ...]] = {
    "weight": (2, 3), "bias": (1,), "gamma": (1,), "beta": (1,), "encodings": (2,),
    "relative_attention_bias": (2,), "relative_position_keys": (2,), "relative_position_values": (2,),
    "relative_asymmetric_position_keys": (2,),
}  # fmt: skip
_NUMBERS = (
    "activation", "alibi", "alibi_use_positive_positions", "alignment_heads", "alignment_layer", "embeddings_merge",
    "final_logit_softcapping", "head_dim", "layer_norm_use_residual", "max_position_embeddings",
    "multi_query_attention", "multiply_by_sqrt_depth", "num_heads", "num_heads_kv",
    "original_max_position_embeddings", "pooler_activation", "pre_norm", "queries_scale",
    "relative_attention_max_distance", "relative_left_max_position", "relative_right_max_position", "rotary_base",
    "rotary_dim", "rotary_high_freq_factor", "rotary_interleave", "rotary_low_freq_factor", "rotary_scaling_factor",
    "rotary_scaling_type", "scale_alibi", "scale_embeddings", "scale_outputs", "sliding_window",
    "start_from_zero_embedding", "vocab_size",
)  # fmt: skip

ENGINE_TAKES: Mapping[str, int] = {
    "pre_norm": 1, "scale_embeddings": 1, "alignment_layer": -1, "alignment_heads": 1, "num_heads": 8,
    "rotary_interleave": 1, "rotary_base": 10000,
}  # fmt: skip
"""Where a file does not say a number, the engine (4.8.5) takes these, and 0 for the other switches."""


def check_shapes(entries: Mapping[str, Entry], where: Path) -> None:
    """
    Raises:
        DialectError: arrays of another number of axes than their names say, or without elements; each is named.
    """
    problems = []
    for name, entry in entries.items():
        last = name.rpartition("/")[2]
        axes = (0,) if last in _NUMBERS else _AXES.get(last)
        if axes is None or (
            entry.dtype == "int32" and last == "weight"
        ):  # packed weights are checked with their packing
            continue
        if len(entry.shape) not in axes or 0 in entry.shape:
            expected = "a single number" if axes == (0,) else f"{' or '.join(map(str, axes))} axes, none of them empty"
            problems.append(
                Problem(f"{name} is not what it is called", expected=expected, found=str(list(entry.shape)))
            )
    if problems:
        raise DialectError("arrays of this model.bin are damaged", where=where, problems=problems)


def rows_of(entries: Mapping[str, Entry], name: str) -> int:
    """Rows of a table; 0 where there is none, which is an error of the configuration's reader."""
    entry = entries.get(name)
    return entry.shape[0] if entry is not None and entry.shape else 0
