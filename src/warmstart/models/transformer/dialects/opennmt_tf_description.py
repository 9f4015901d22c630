"""``model_description.py``, in which OpenNMT-tf says what a model is. It is Python, read as text and never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from warmstart.errors import Problem
from warmstart.lean import dataclass
from warmstart.models.opennmt_tf import DESCRIPTION, arguments, calls_in, last_name, literal

# Models of the catalogue → heads, and layers where they are not 6. Source: OpenNMT-tf 2.32,
# ``opennmt/models/catalog.py`` and ``transformer.py``.
CATALOG = {
    "Transformer": 8, "TransformerBase": 8, "TransformerBaseSharedEmbeddings": 8, "TransformerBig": 16,
    "TransformerBigSharedEmbeddings": 16, "TransformerTiny": 2, "ScalingNmtEnDe": 16, "ScalingNmtEnFr": 16,
}  # fmt: skip
_LAYERS = {"TransformerTiny": 2}
# Arguments of the class Transformer in their order, and those that are read as they stand.
_ARGUMENTS = (
    "source_inputter", "target_inputter", "num_layers", "num_units", "num_heads", "ffn_inner_dim", "dropout",
    "attention_dropout", "ffn_dropout", "ffn_activation", "mha_bias", "position_encoder_class", "share_embeddings",
    "share_encoders", "maximum_relative_position", "attention_reduction", "pre_norm", "output_layer_bias",
)  # fmt: skip
_INPUTTERS = ("source_inputter", "target_inputter")
_REDUCERS = {"ConcatReducer": "concat", "SumReducer": "sum"}


def of_catalog(name: str) -> dict[str, Any]:
    """What the class ``name`` says where its call does not, and whether its own configuration ends sources with
    ``</s>`` (``auto_config``)."""
    sizes = {"num_heads": CATALOG.get(name, 8), "num_layers": _LAYERS.get(name, 6)}
    return {**sizes, "source_end": name.startswith("ScalingNmt")}


def layers_said(said: Mapping[str, Any]) -> dict[str, object]:
    """Side → number of layers, None where it is no number that stands in the text."""
    number = said.get("num_layers")
    pair = number if isinstance(number, (tuple, list)) and len(number) == 2 else (number, number)
    return {side: n if isinstance(n, int) else None for side, n in zip(("encoder", "decoder"), pair, strict=True)}


def describe(text: str, where: object, problems: list[Problem]) -> dict[str, Any]:
    """What ``model_description.py`` says, read as text: literals, and the last part of dotted names."""
    before = len(problems)
    for node, called in calls_in(text, where, problems):
        if called == "get_model_from_catalog" and node.args and isinstance(node.args[0], ast.Constant):
            name = str(node.args[0].value)
            if name not in CATALOG:
                problems.append(Problem(f"{name} is not a model that is known here", expected=", ".join(CATALOG)))
            return of_catalog(name)
        if called in CATALOG:
            given = arguments(node, _ARGUMENTS)
            said = of_catalog(called) | {k: literal(v) for k, v in given.items() if k not in _INPUTTERS}
            said["source_inputter"] = given.get("source_inputter")
            if not isinstance(said["num_heads"], int):
                problems.append(Problem("num_heads is not a number that stands in the text", where=str(where)))
            return said
    if len(problems) == before:
        todo = "name it: --from opennmt-tf:NAME"
        problems.append(Problem(f"{DESCRIPTION} calls no Transformer", where=str(where), todo=todo))
    return {}


@dataclass(frozen=True)
class Inputs:
    """``count`` inputs in parallel, or none, and how they are one."""

    count: int = 0
    merge: str = "concat"


def parallel_inputs(said: Mapping[str, Any], tables: int | None, encoders: bool, problems: list[Problem]) -> Inputs:
    """What the source's inputter is. ``tables`` is how many tables the file has for the inputs, None where there is the
    one of a single input; ``encoders`` whether it has an encoder for each."""
    node = said.get("source_inputter")
    kind = last_name(node.func) if isinstance(node, ast.Call) else None
    if encoders:
        todo = "ParallelInputter(..., reducer=...) has one encoder for all, and is converted"
        what = "a ParallelInputter without a reducer, with an encoder for each input; CTranslate2 has no such models"
        problems.append(Problem(what, todo=todo))
        return Inputs()
    if tables is None:
        if kind not in (None, "WordEmbedder"):
            problems.append(Problem(f"source_inputter: {kind} is not supported", expected="a WordEmbedder"))
        return Inputs()
    if not isinstance(node, ast.Call) or kind != "ParallelInputter":
        found = f"source_inputter: {kind}" if kind else "nothing says how several inputs of the source are one"
        todo = f"{DESCRIPTION} beside the checkpoint should call ParallelInputter([...], reducer=...)"
        problems.append(Problem(found, todo=todo))
        return Inputs()
    given: dict[str, ast.AST] = {**arguments(node, ("inputters", "reducer", "share_parameters"))}
    reducer = last_name(getattr(given.get("reducer"), "func", ast.Name("None")))
    if reducer not in _REDUCERS:
        problems.append(Problem(f"reducer: {reducer} is not supported", expected=" or ".join(_REDUCERS)))
    embedders = [last_name(getattr(item, "func", item)) for item in getattr(given.get("inputters"), "elts", ())]
    if other := sorted({embedder or "?" for embedder in embedders} - {"WordEmbedder"}):
        problems.append(Problem(f"inputters: {', '.join(other)} is not supported", expected="WordEmbedder(...) each"))
    if tables not in (0, 1, len(embedders)):
        problems.append(Problem(f"{len(embedders)} inputters are described", found=f"{tables} tables in the file"))
    return Inputs(len(embedders), _REDUCERS.get(reducer, "concat"))
