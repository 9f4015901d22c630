"""Rotary positions in config.json, as today's ``transformers`` says them (``rope_parameters``) and as it used to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, validation_problems
from warmstart.lean import dataclass
from warmstart.models.decoder.config import DecoderConfig, RotaryScaling
from warmstart.models.huggingface import Options

KINDS = {"linear": "linear", "llama3": "llama3", "su": "long", "longrope": "long"}
_SPELT = {"linear": "linear", "llama3": "llama3", "long": "longrope"}
_FIELDS = {
    "factor": "factor",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "short_factor": "short_factors",
    "long_factor": "long_factors",
    "attention_factor": "attention_factor",
}
_FIRST = "original_max_position_embeddings"
_ELSEWHERE = ("rope_type", "type", "rope_theta", "partial_rotary_factor", _FIRST)


@dataclass(frozen=True)
class Rotary:
    """What one architecture calls the base and the rotated part of a head, and what it takes where nothing is said."""

    base: str = "rope_theta"
    default_base: float = 10000.0
    part: str | None = None
    default_part: float = 1.0

    def read(self, options: Options, head_dim: int) -> dict[str, Any]:
        """The family's settings. Problems are left in ``options``."""
        old = options.get("rope_scaling", None)
        given = options.get("rope_parameters", None) or old or {}
        if not isinstance(given, Mapping):
            options.problem("rope_parameters is not an object", found=repr(given))
            given = {}
        base = options.get(self.base, self.default_base)
        part = options.get(self.part, self.default_part) if self.part else None
        return one(options, given, head_dim, base, part)

    def write(self, c: DecoderConfig) -> dict[str, Any]:
        """``rope_parameters`` of ``c``."""
        if c.rotary_dim is None:
            return {}
        said = {"rope_theta": c.rotary_base, **scaling(c)}
        if self.part is not None:
            said["partial_rotary_factor"] = c.rotary_dim / c.head_dim
        return {"rope_parameters": said}


def one(options: Options, given: Mapping[str, Any], head_dim: int, base: Any, part: Any) -> dict[str, Any]:
    """The settings of one ``rope_parameters``; ``base`` and ``part`` where it does not say them. Without a ``part`` the
    library rotates whole heads, whatever is said."""
    base, said = given.get("rope_theta", base), given.get("partial_rotary_factor", 1.0 if part is None else part)
    if part is None and said != 1.0:
        options.problem(f"partial_rotary_factor: {said!r} is not supported", expected="1.0, as this class computes")
    part = 1.0 if part is None else said
    for what, value in (("rope_theta", base), ("partial_rotary_factor", part)):
        if not isinstance(value, int | float) or value <= 0:
            options.problem(f"{what} is not a positive number", found=repr(value))
            return {}
    kind = given.get("rope_type", given.get("type", "default"))
    found: dict[str, Any] = {"rotary_base": float(base), "rotary_dim": int(head_dim * part), "rotary_scaling": None}
    if given.get(_FIRST) is not None:
        found["original_max_positions"] = given[_FIRST]
    if kind in (None, "default"):
        return found
    if kind not in KINDS:
        options.problem(f"rotary positions of type {kind!r} are not supported", expected=", ".join(KINDS))
        return found
    unknown = sorted(set(given) - set(_FIELDS) - set(_ELSEWHERE))
    if unknown:
        options.problem(f"rope_parameters: {', '.join(unknown)} is not known here")
    values = {ours: given[theirs] for theirs, ours in _FIELDS.items() if given.get(theirs) is not None}
    try:
        found["rotary_scaling"] = RotaryScaling.model_validate({"kind": KINDS[kind], **values})
    except Invalid as error:
        options.problems += validation_problems(error, "rope_parameters: ")
    if kind != "linear":  # transformers' `standardize_rope_params`
        first = (options.values.get(_FIRST), given.get(_FIRST), options.values.get("max_position_embeddings"))
        found["original_max_positions"] = next((length for length in first if length is not None), None)
    return found


def scaling(c: DecoderConfig) -> dict[str, Any]:
    """``rope_type`` and what goes with it."""
    first = {_FIRST: c.original_max_positions} if c.original_max_positions else {}
    if c.rotary_scaling is None:
        return {"rope_type": "default", **first}
    if c.rotary_scaling.factor is None and c.rotary_scaling.kind != "long":
        raise DialectError(
            "the factor of rotary positions is not known", todo="CTranslate2's converter leaves it out for llama3"
        )
    values = c.rotary_scaling.model_dump(mode="json", exclude={"kind"})
    return {
        "rope_type": _SPELT[c.rotary_scaling.kind],
        **first,
        **{theirs: values[ours] for theirs, ours in _FIELDS.items() if values[ours] not in (None, [])},
    }
