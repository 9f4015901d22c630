"""What the families' dialects of OpenNMT-py share: its ``.pt`` files, their options and vocabularies.

``opt`` is an ``argparse.Namespace`` and the vocabulary, in older files, objects of torchtext: our reader of torch files
gives both as data, so nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmstart.errors import Problem, VocabularyError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.family import Dialect

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_erf", "fast_gelu": "gelu_tanh", "silu": "swish"}
EPSILON = 1e-6

# Options of any of its models that must be so; the first value is what a file that does not say it means.
ALLOWED: dict[str, tuple[object, ...]] = {
    "self_attn_type": ("scaled-dot", "scaled-dot-flash"),
    "relative_positions_buckets": (0,),
    "pos_ffn_activation_fn": tuple(ACTIVATIONS),
    "copy_attn": (False, None),
    "coverage_attn": (False, None),
    "generator_function": ("softmax", "log_softmax"),
    "layer_norm": ("standard", "rms"),
    "parallel_residual": (False,),
    "shared_layer_norm": (False,),
    "num_experts": (0,),
    "model_type": ("text", None),
    "update_vocab": (False,),
}
_POSITIONS: Mapping[int | None, str] = {0: "learned", -1: "rotary", -2: "alibi"}


class OpenNMTPy(Dialect):
    """A family's dialect says which options it takes and how its arrays are called."""

    name = "opennmt-py"

    def left_behind(self, config: Any) -> Mapping[str, str]:
        return {
            "model.decoder.transformer_layers.*.mask": "the triangle that hides what follows",
            "optim.**": "the optimizer's",
        }


def options_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The options of the training that are kept in ``checkpoint``; none if it is no file of OpenNMT-py."""
    opt = checkpoint.metadata.get("opt")
    return opt if checkpoint.format == "torch" and isinstance(opt, Mapping) else {}


def layers_said(opt: Mapping[str, Any]) -> dict[str, Any]:
    """How many layers the options say of each side: None and -1 say nothing."""
    both = opt.get("layers", -1)
    options = {"encoder": "enc_layers", "decoder": "dec_layers"}
    return {side: opt.get(option) if both == -1 else both for side, option in options.items()}


def positions_of(opt: Mapping[str, Any], allowed: tuple[str, ...], problems: list[Problem]) -> str:
    """``learned`` (a table in the file), ``relative``, ``rotary`` or ``alibi``; one not ``allowed`` is a problem."""
    distance, table = opt.get("max_relative_positions", 0), opt.get("position_encoding", True)
    number = distance if isinstance(distance, int) else None
    kind = "relative" if number is not None and number > 0 else _POSITIONS.get(number, "unknown")
    if kind not in allowed:
        text = f"max_relative_positions: {distance} ({kind} positions) is not supported"
        problems.append(Problem(text, expected=" or ".join(allowed)))
    elif bool(distance) == bool(table):
        text = f"max_relative_positions is {distance} and position_encoding {table}"
        problems.append(Problem(text, expected="one of them"))
    return kind


def tables_of(vocab: Any, where: object) -> dict[str, list[str]]:
    """Tokens by side: plain lists (version 3), fields of torchtext (1 and 2), or its vocabularies (before).

    Raises:
        VocabularyError: a side has none, or what is there is none.
    """
    try:
        found = _tables(vocab)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # of another structure
        found = {}
    wrong = [side for side in dict.fromkeys(("source", "target", *found)) if not _is_table(found.get(side))]
    if wrong:
        raise VocabularyError(f"the file holds no {' and '.join(wrong)} vocabulary", where=where)
    return found


def _tables(vocab: Any) -> dict[str, Any]:
    if isinstance(vocab, list):
        by_name = {name: entry for name, entry in vocab if isinstance(entry, Mapping)}
        return {side: by_name.get(key, {}).get("itos") for side, key in (("source", "src"), ("target", "tgt"))}
    found: dict[str, Any] = {}
    for side, key in (("source", "src"), ("target", "tgt")):
        entry = vocab[key]
        if isinstance(entry, Mapping):
            fields = [field[1].get("vocab", {}).get("itos") for field in entry.get("fields") or [[key, entry]]]
            entry = fields[0]
            found |= {f"{side}_{k + 2}": table for k, table in enumerate(fields[1:])}
        found[side] = entry
    features = vocab.get("src_feats") or {}
    return found | {f"source_{k + 2}": table for k, table in enumerate(features.values())}


def _is_table(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(token, str) for token in found)
