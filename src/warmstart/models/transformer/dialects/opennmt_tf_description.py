"""``model_description.py``, in which OpenNMT-tf says what a model is. It is Python, read as text and never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.errors import Problem

DESCRIPTION = "model_description.py"
# Models of the catalogue → heads. Source: OpenNMT-tf 2.32, ``opennmt/models/catalog.py``.
CATALOG = {
    "Transformer": 8, "TransformerBase": 8, "TransformerBaseSharedEmbeddings": 8, "TransformerBig": 16,
    "TransformerBigSharedEmbeddings": 16, "TransformerTiny": 2, "ScalingNmtEnDe": 16, "ScalingNmtEnFr": 16,
}  # fmt: skip
_LITERALS = {
    "num_heads", "ffn_activation", "attention_reduction", "position_encoder_class", "maximum_relative_position",
    "num_layers", "num_units", "ffn_inner_dim", "dropout", "attention_dropout", "ffn_dropout", "pre_norm",
    "share_embeddings", "output_layer_bias", "mha_bias", "share_encoders", "embedding_size",
}  # fmt: skip
_REDUCERS = {"ConcatReducer": "concat", "SumReducer": "sum"}


def describe(text: str, where: object, problems: list[Problem]) -> dict[str, Any]:
    """What ``model_description.py`` says, read as text: literals, and the last part of dotted names."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        problems.append(Problem(f"{DESCRIPTION} is not Python", where=str(where), found=str(error)))
        return {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _last(node.func)
        if called == "get_model_from_catalog" and node.args and isinstance(node.args[0], ast.Constant):
            called = str(node.args[0].value)
            if called not in CATALOG:
                problems.append(Problem(f"{called} is not a model that is known here", expected=", ".join(CATALOG)))
            return {"num_heads": CATALOG.get(called, 8)}
        if called in CATALOG:
            said: dict[str, Any] = {"num_heads": CATALOG[called]}
            for keyword in node.keywords:
                if keyword.arg in _LITERALS:
                    said[keyword.arg] = _literal(keyword.value)
            inputters = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "source_inputter")]
            said["source_inputter"] = inputters[0] if inputters else None
            if not isinstance(said["num_heads"], int):
                problems.append(Problem("num_heads is not a number that stands in the text", where=str(where)))
            return said
    problems.append(
        Problem(f"{DESCRIPTION} calls no Transformer", where=str(where), todo="name it: --from opennmt-tf:NAME")
    )
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
    kind = _last(node.func) if isinstance(node, ast.Call) else None
    if encoders:
        todo = "ParallelInputter(..., reducer=...) has one encoder for all, and is converted"
        problems.append(Problem("a ParallelInputter without a reducer, with an encoder for each input", todo=todo))
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
    given = dict(zip(("inputters", "reducer", "share_parameters"), node.args, strict=False))
    given |= {str(k.arg): k.value for k in node.keywords}
    reducer = _last(getattr(given.get("reducer"), "func", ast.Name("None")))
    if reducer not in _REDUCERS:
        problems.append(Problem(f"reducer: {reducer} is not supported", expected=" or ".join(_REDUCERS)))
    embedders = [_last(getattr(item, "func", item)) for item in getattr(given.get("inputters"), "elts", ())]
    if other := sorted({embedder or "?" for embedder in embedders} - {"WordEmbedder"}):
        problems.append(Problem(f"inputters: {', '.join(other)} is not supported", expected="WordEmbedder(...) each"))
    if tables not in (0, 1, len(embedders)):
        problems.append(Problem(f"{len(embedders)} inputters are described", found=f"{tables} tables in the file"))
    return Inputs(len(embedders), _REDUCERS.get(reducer, "concat"))


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literal(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    return _last(node) or ast.dump(node)
