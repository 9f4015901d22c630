"""What ``model_description.py`` of OpenNMT-tf says of a language model."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from warmstart.errors import Problem
from warmstart.lean import dataclass
from warmstart.models.opennmt_tf import ACTIVATIONS, DESCRIPTION, arguments, calls_in, last_name, literal

# Arguments of LanguageModel and SelfAttentionDecoder in their order. Source: OpenNMT-tf 2.32,
# ``opennmt/models/language_model.py`` and ``opennmt/decoders/self_attention_decoder.py``.
_MODEL = ("decoder", "embedding_size", "reuse_embedding")
_DECODER = (
    "num_layers", "num_units", "num_heads", "ffn_inner_dim", "dropout", "attention_dropout", "ffn_dropout",
    "ffn_activation", "mha_bias", "position_encoder_class", "num_sources", "maximum_relative_position",
    "attention_reduction", "pre_norm",
)  # fmt: skip
_OF_LAYERS = ("output_layer_bias", "vocab_size", "name", "dtype", "trainable")  # arrays say what matters of them
_ENCODERS = {"SinusoidalPositionEncoder": "sinusoidal", "PositionEmbedder": "learned"}


@dataclass(frozen=True)
class Said:
    """What the arrays do not say, and what they must agree with (None: nothing is said).

    ``positions`` is ``sinusoidal``, ``learned``, or ``none`` where a token does not know where it stands.
    """

    num_heads: int = 8
    num_layers: int | None = None
    activation: str = "relu"
    positions: str = "sinusoidal"


# Source: ``opennmt/models/catalog.py``.
CATALOG = {"GPT2Small": Said(num_heads=12, num_layers=12, activation="gelu_tanh", positions="learned")}


def of_catalog(name: str, problems: list[Problem]) -> Said:
    """The model of the catalogue called ``name``."""
    if name not in CATALOG:
        problems.append(Problem(f"{name} is not a language model that is known here", expected=", ".join(CATALOG)))
    return CATALOG.get(name, Said())


def describe(text: str, where: object, problems: list[Problem]) -> Said:
    """What the description ``text`` says; what is not understood goes to ``problems``."""
    before = len(problems)
    for call, called in calls_in(text, where, problems):
        if called in CATALOG:
            if call.args or call.keywords:
                problems.append(Problem(f"{called} takes no arguments", where=str(where)))
            return CATALOG[called]
        if called == "get_model_from_catalog" and call.args and isinstance(call.args[0], ast.Constant):
            return of_catalog(str(call.args[0].value), problems)
        if called == "LanguageModel":
            return _language_model(call, where, problems)
    if len(problems) == before:
        todo = f"name it: --from opennmt-tf:NAME, one of {', '.join(CATALOG)}"
        problems.append(Problem(f"{DESCRIPTION} calls no LanguageModel", where=str(where), todo=todo))
    return Said()


def _language_model(call: ast.Call, where: object, problems: list[Problem]) -> Said:
    given = arguments(call, _MODEL)
    problems += _unknown("LanguageModel", given, _MODEL, where)
    decoder = given.get("decoder")
    kind = last_name(decoder.func) if isinstance(decoder, ast.Call) else last_name(decoder or ast.Pass())
    if not isinstance(decoder, ast.Call) or kind != "SelfAttentionDecoder":
        todo = "call SelfAttentionDecoder(...) where LanguageModel is called"
        problems.append(Problem(f"decoder: {kind or '?'} is not supported", where=str(where), todo=todo))
        return Said()
    options = arguments(decoder, _DECODER)
    problems += _unknown("SelfAttentionDecoder", options, (*_DECODER, *_OF_LAYERS), where)
    said = {name: literal(value) for name, value in options.items()}
    heads, layers = said.get("num_heads", 8), said.get("num_layers")
    if type(heads) is not int or heads < 1:
        problems.append(Problem("num_heads is not a positive number that stands in the text", where=str(where)))
        heads = 1
    activation = str(said.get("ffn_activation", "relu"))
    if activation not in ACTIVATIONS:
        problems.append(Problem(f"ffn_activation: {activation!r} is not supported", expected=", ".join(ACTIVATIONS)))
    return Said(
        num_heads=heads,
        num_layers=layers if isinstance(layers, int) else None,
        activation=ACTIVATIONS.get(activation, "relu"),
        positions=_positions(options.get("position_encoder_class"), problems),
    )


def _unknown(called: str, given: Mapping[str, Any], known: tuple[str, ...], where: object) -> list[Problem]:
    return [Problem(f"{called} has an argument {n} that is not known", where=str(where)) for n in {*given} - {*known}]


def _positions(node: ast.expr | None, problems: list[Problem]) -> str:
    """Of a class, or of a ``lambda`` that makes one."""
    if node is None:
        return "sinusoidal"
    if isinstance(node, ast.Constant) and node.value is None:
        return "none"
    made = node.body if isinstance(node, ast.Lambda) else node
    kind = last_name(made.func) if isinstance(made, ast.Call) else last_name(made)
    reduced = isinstance(made, ast.Call) and any(k.arg == "reducer" for k in made.keywords)
    if kind not in _ENCODERS or reduced:
        found = f"position_encoder_class: {kind or ast.unparse(node)}{' with a reducer' if reduced else ''}"
        problems.append(Problem(f"{found} is not supported", expected=" or ".join(_ENCODERS)))
    return _ENCODERS.get(kind, "sinusoidal")
