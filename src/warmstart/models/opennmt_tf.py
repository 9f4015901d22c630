"""What the families' dialects of OpenNMT-tf 2 share: names of arrays, what a person says, descriptions read as text.

A TensorFlow checkpoint names arrays by attributes of objects. What no array tells (heads, activation) stands in
``model_description.py`` beside it, which is Python and never run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from warmstart.errors import ConfigError, DialectError, Problem, VocabularyError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.checks import layers_of
from warmstart.models.family import Dialect
from warmstart.models.huggingface import folder_of
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Transpose

DESCRIPTION = "model_description.py"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
EPSILON = 1e-3  # Keras's default, which OpenNMT-tf leaves
ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "swish": "swish", "silu": "swish"}
CONTROLS = ("start", "end", "auto")


@dataclass(frozen=True)
class OpenNMTTF(Dialect):
    """A person may say (``--from opennmt-tf:TransformerBase,end``) what the training's YAML or nothing beside the
    checkpoint does: ``model_type``, a model of the catalogue, where no description lies there; and ``controls``, with
    which special tokens a source begins and ends (``sequence_controls``): ``start``, ``end``, or ``auto``, which is
    what the model's class itself asks for.
    """

    name = "opennmt-tf"
    model_type: str = ""
    controls: frozenset[str] = frozenset()

    def told(self, what: str) -> Self:
        words = what.split(",")
        names = [word for word in words if word not in CONTROLS]
        if len(names) > 1 or "" in words:
            form = f"--from {self.name}:NAME,{','.join(CONTROLS)}, of which any may be left out"
            raise ConfigError("this is not what can be said of a model of OpenNMT-tf", found=what, expected=form)
        return replace(self, model_type="".join(names), controls=frozenset(words) - frozenset(names))

    def left_behind(self, config: Any) -> Mapping[str, str]:
        return {"optimizer/**": "the optimizer's", "save_counter/**": "how often it was saved"}


def read_description(checkpoint: Checkpoint) -> tuple[str, Path] | None:
    """The text of the description beside ``checkpoint`` and where it lies; None where there is none.

    Raises:
        DialectError: it is no text.
    """
    path = folder_of(checkpoint) / DESCRIPTION
    if not path.is_file():
        return None
    try:
        return path.read_text("utf-8"), path
    except (OSError, UnicodeDecodeError) as error:
        raise DialectError("the model's description cannot be read", where=path, found=error) from None


def nothing_says_heads(known: Sequence[str]) -> Problem:
    """That neither a description nor a name of the catalogue was given."""
    return Problem(
        "nothing says how many heads the attention has",
        expected=f"{DESCRIPTION} beside the checkpoint, or the model's name: --from opennmt-tf:NAME",
        found=f"NAME is one of {', '.join(known)}",
    )


def count_layers(names: Iterable[str], side: str, problems: list[Problem]) -> int:
    """How many layers ``model/SIDE`` has; a gap is a problem."""
    start = f"model/{side}/layers/"
    numbers = {name.removeprefix(start).partition("/")[0] for name in names if name.startswith(start)}
    return layers_of([f"{n}.x" for n in numbers], "{i}", problems)


def linear(theirs: str, ours: str, each: Mapping[str, int] | None, bias: bool) -> list[Rule]:
    """The rules of a linear layer, whose kernel is [in, out]."""
    rules = [rule(f"{theirs}/kernel{VALUE}", f"{ours}.weight", Transpose(), each=each)]
    return [*rules, rule(f"{theirs}/bias{VALUE}", f"{ours}.bias", each=each)] if bias else rules


def norm(theirs: str, ours: str, each: Mapping[str, int] | None) -> list[Rule]:
    """The rules of a LayerNorm."""
    return [
        rule(f"{theirs}/{name}{VALUE}", f"{ours}.{part}", each=each)
        for name, part in (("gamma", "weight"), ("beta", "bias"))
    ]


def read_tokens(path: Path) -> list[str]:
    """One token in each line; ``<unk>`` stands behind them where they have none.

    Raises:
        VocabularyError: the file cannot be read.
    """
    try:
        tokens = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError("cannot read the vocabulary", where=path, found=error) from None
    if tokens[-1] == "":
        tokens.pop()
    tokens = [token.removesuffix("\r") for token in tokens]
    return tokens if "<unk>" in tokens else [*tokens, "<unk>"]


def calls_in(text: str, where: object, problems: list[Problem]) -> Iterator[tuple[ast.Call, str]]:
    """Calls in a description and what is called; ``super().__init__`` is the class that the one around it is made of.
    A text that is not Python has none, and is a problem."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        problems.append(Problem(f"{DESCRIPTION} is not Python", where=str(where), found=str(error)))
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                    yield call, last_name(node.bases[0])
        elif isinstance(node, ast.Call):
            yield node, last_name(node.func)


def arguments(call: ast.Call, names: Sequence[str]) -> dict[str, ast.expr]:
    """What ``call`` is given, by name; ``names`` are those of the arguments in their order."""
    return dict(zip(names, call.args, strict=False)) | {str(k.arg): k.value for k in call.keywords}


def last_name(node: ast.AST) -> str:
    """The last part of a dotted name, "" of anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def literal(node: ast.AST) -> Any:
    """A constant, a tuple of them, or the last part of a dotted name; of anything else what it parses to."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.Tuple, ast.List)):
        return tuple(map(literal, node.elts))
    return last_name(node) or ast.dump(node)
