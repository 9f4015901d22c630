"""What the families' dialects of EOLE share: config.json, which has parts in parts, and vocab.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.errors import DialectError, Problem, VocabularyError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.checks import not_allowed
from warmstart.models.huggingface import CONFIG, folder_of, read_json

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_erf", "fast_gelu": "gelu_tanh", "gated-silu": "swish"}
VOCABULARY = "vocab.json"
DISTANCES = "self_attn.relative_positions_embeddings"

# What the model's part of config.json, or its encoder's and decoder's, must say in any family; the first value is
# EOLE's default.
ALLOWED: dict[str, tuple[object, ...]] = {
    "mlp_activation_fn": tuple(ACTIVATIONS),
    "layer_norm": ("standard", "standardFP32", "rms"),
    "encoder_layer_style": ("standard",),
    "final_encoder_layer_norm": (True,),
    "embedding_type": ("standard",),
    "embedding_layer_norm": (False,),
    "normalize": (False, None),
    "token_type_vocab_size": (0,),
    "relative_positions_buckets": (0,),
    "parallel_residual": (False,),
    "shared_layer_norm": (False,),
    "ffn_layernorm": (False,),
    "query_norm": (False,),
    "key_norm": (False,),
    "value_norm": (False,),
    "q_gating": (False,),
    "num_experts": (0,),
    "coverage_attn": (False,),
    "attn_scaling": (None,),
}


def is_eole(checkpoint: Checkpoint) -> bool:
    """Whether ``checkpoint`` lies in a directory as EOLE writes them."""
    folder = folder_of(checkpoint)
    return checkpoint.format == "safetensors" and all((folder / name).is_file() for name in (CONFIG, VOCABULARY))


class EoleOptions:
    """What config.json in ``folder`` says of a model, in its part ``model`` and the parts in that.

    ``problems`` begins with every option that has none of the values of ``allowed``.
    """

    def __init__(self, folder: Path, allowed: Mapping[str, tuple[object, ...]]) -> None:
        self.where = folder / CONFIG
        model = read_json(self.where).get("model")
        if not isinstance(model, Mapping):
            raise DialectError("config.json describes no model", where=self.where, expected="a part `model`")
        inner = {k: model.get(k) or {} for k in ("encoder", "decoder", "embeddings")}
        wrong = [
            Problem(f"model.{k} is no part", found=repr(v)) for k, v in inner.items() if not isinstance(v, Mapping)
        ]
        if wrong:
            raise DialectError("config.json describes no model", where=self.where, problems=wrong)
        self.parts = {"model": model, **inner}
        self.problems = [p for place, part in self.parts.items() for p in not_allowed(part, allowed, f"{place}.")]

    def said(self, key: str, default: Any, place: str = "decoder") -> Any:
        """An option of ``place``, which may stand in the whole model's part, too."""
        return self.parts[place].get(key, self.parts["model"].get(key, default))

    def positions(self) -> object:
        """The type of positions; that the parts say several is a problem."""
        key = "position_encoding_type"
        kinds = {repr(part[key]): part[key] for part in self.parts.values() if key in part}
        if len(kinds) > 1:
            self.problems.append(Problem(f"{key} differs: {', '.join(sorted(kinds))}"))
        return next(iter(kinds.values()), "SinusoidalInterleaved")


def special_tokens(folder: Path) -> dict[str, str]:
    """Role → token, as vocab.json says or EOLE takes them.

    Raises:
        VocabularyError: they are no tokens.
    """
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<blank>"}
    said = read_json(folder / VOCABULARY).get("specials") or {}
    if not isinstance(said, Mapping) or not all(isinstance(token, str) for token in said.values()):
        raise VocabularyError("the special tokens are no tokens", where=folder / VOCABULARY, found=repr(said)[:200])
    special |= said
    return {role: special[f"{role}_token"] for role in ("bos", "eos", "unk", "pad")}


def tokens_of(folder: Path, side: str) -> list[str]:
    """The table ``src`` or ``tgt`` of vocab.json."""
    tokens = read_json(folder / VOCABULARY).get(side)
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        name = {"src": "source", "tgt": "target"}[side]
        raise VocabularyError(f"{VOCABULARY} holds no {name} vocabulary", where=folder)
    return tokens
