"""What T5X and mesh-tensorflow have in common: checkpoints without a configuration, but for gin files beside them.

Shapes say nearly everything. What they cannot say is what both frameworks have in their code: 32 buckets up to a
distance of 128, ε of the norms 1e-6, and an output scaled by 1/√d_model where it is the embedding. The activation is
said by a gin file; without one it is that of every published model: relu where the inner layer is not gated, else
gelu in the tanh approximation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.t5.config import T5Config
from warmstart.models.t5.vocabulary import vocabulary_of
from warmstart.spec.templates import match
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {"relu": "relu", "gelu": "gelu_tanh", "swish": "swish", "silu": "swish"}
MAX_DISTANCE = 128
VOCABULARY_FILES = ("sentencepiece.model", "spiece.model", "vocabulary.json")


@dataclass
class Shapes:
    """The configuration of a checkpoint from the shapes of its arrays. Problems are collected.

    Attributes:
        shapes: array name → shape with layers apart and heads joined.
        layers: side → number of layers.
    """

    where: Path
    shapes: Mapping[str, tuple[int, ...]]
    layers: Mapping[str, int]
    problems: list[Problem] = field(default_factory=list)

    def of(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of ``name``; ones stand in for what is reported."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != rank:
            found = None if shape is None else str(list(shape))
            self.problems.append(Problem(f"{name} is missing" if shape is None else f"{name} has no {rank} axes",
                                         found=found))  # fmt: skip
            return (1,) * rank
        return shape

    def raise_problems(self, framework: str) -> None:
        """
        Raises:
            DialectError: there are problems.
        """
        if self.problems:
            raise DialectError(f"this {framework} model is not supported", where=self.where, problems=self.problems)

    def config(
        self,
        framework: str,
        *,
        embedding: str,
        output: str,
        biases: Sequence[str],
        query: str,
        inner: Sequence[str],
        position_bias: str,
        activation: object,
        dropout: object,
    ) -> T5Config:
        """The configuration; arguments are names of arrays, ``inner`` the first layer of the FFN, gated or not.

        Raises:
            DialectError: arrays are missing or contradict each other; all are named.
        """
        rows, d_model = self.of(embedding, 2)
        bias = [self.of(name, 2) for name in biases]
        if len(set(bias)) > 1:
            self.problems.append(Problem(f"{' and '.join(biases)} have different shapes", found=str(sorted(set(bias)))))
        heads, buckets = bias[0]
        joined = self.of(query, 2)[1]
        if joined % heads:
            self.problems.append(Problem(f"{query}: {joined} is not a multiple of {heads} heads ({biases[0]})"))
        there = [name for name in inner if name in self.shapes]
        gated = inner[1:] == there
        if not there or (len(there) > 1 and not gated):
            self.problems.append(Problem(f"neither {inner[0]} nor {' and '.join(inner[1:])} is there"))
        d_ff = self.of(there[0], 2)[1] if there else 1
        values = {
            "vocab_size": rows,
            "d_model": d_model,
            "d_kv": max(1, joined // heads),
            "num_heads": heads,
            "d_ff": d_ff,
            "encoder_layers": self.layers["encoder"],
            "decoder_layers": self.layers["decoder"],
            "activation": self._activation(activation, gated),
            "gated": gated,
            "tied_output": output not in self.shapes,
            "scale_outputs": output not in self.shapes,
            "position_bias": position_bias,
            "num_buckets": buckets,
            "max_distance": MAX_DISTANCE,
            **({"dropout": dropout} if isinstance(dropout, (int, float)) else {}),
        }
        self.raise_problems(framework)
        try:
            return T5Config.model_validate(values)
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the shapes make no model", where=self.where, problems=problems) from None

    def _activation(self, said: object, gated: bool) -> str:
        usual = ("gelu", "linear") if gated else ("relu",)
        names: tuple[object, ...] = usual
        if said is not None:
            names = tuple(said) if isinstance(said, (list, tuple)) else (said,)
        fits = len(names) == len(usual) and names[1:] == usual[1:] and str(names[0]) in ACTIVATIONS
        if not fits:
            expected = f"one of {', '.join(ACTIVATIONS)}, {'times a linear layer' if gated else 'alone'}"
            self.problems.append(Problem(f"activations {names!r} are not supported", expected=expected))
        return ACTIVATIONS[str(names[0])] if fits else "relu"


def has_output(config: T5Config) -> bool:
    """Whether the output layer is an array of its own: also where it is the embedding, but not scaled as that is."""
    return not (config.tied_output and config.scale_outputs)


def count_layers(names: Sequence[str], template: str) -> int:
    """1 + the highest {i} of names that begin as ``template``."""
    found = [values[0]["i"] for name in names if (values := match(f"{template}/**", name))]
    return max(found, default=-1) + 1


def activations_of(config: T5Config, framework: str) -> tuple[str, ...]:
    """What both frameworks call the activation.

    Raises:
        DialectError: they cannot express the configuration; all at once.
    """
    fixed = {"max_distance": MAX_DISTANCE, "num_buckets": 32, "layer_norm_epsilon": 1e-6}
    if not config.tied_output:
        fixed["scale_outputs"] = False
    problems = [
        Problem(f"{key}: {getattr(config, key)!r} is not what {framework} computes", expected=repr(value))
        for key, value in fixed.items()
        if getattr(config, key) != value
    ]
    name = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation), None)
    if name is None:
        problems.append(Problem(f"activation: {config.activation!r} is not one of {framework}'s"))
    if problems:
        raise DialectError(f"{framework} cannot express this model", problems=problems)
    return (str(name), "linear") if config.gated else (str(name),)


def read_vocabulary(checkpoint: Checkpoint, files: Sequence[str], rows: int) -> dict[str, Vocabulary]:
    """The vocabulary from ``files``, or from what our own writer left beside the checkpoint."""
    paths = [Path(file) for file in files]
    if not paths:
        here = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        folders = (here, here.parent) if checkpoint.path.is_dir() else (here,)
        paths = [folder / name for folder in folders for name in VOCABULARY_FILES if (folder / name).is_file()][:1]
    return vocabulary_of(paths, rows, checkpoint.path)


def vocabulary_files(vocabularies: Mapping[str, Vocabulary]) -> dict[str, bytes]:
    """The vocabulary as a file beside a checkpoint that has no place for one."""
    return {f"vocabulary{suffix}": content for suffix, content in (v.file() for v in vocabularies.values())}


def as_dict(gin: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Bindings of ``kind``, by argument."""
    return {name.removeprefix(f"{kind}."): value for name, value in gin.items() if name.startswith(f"{kind}.")}
