"""What EOLE and OpenNMT-py, from which it grew, share in language models: the arrays of a decoder and their layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, validation_problems
from warmstart.formats.checkpoint import Entry
from warmstart.lean import dataclass
from warmstart.models.checks import layers_as_said, layers_of, not_tables, require
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.parameters import Module, modules
from warmstart.spec.attention import RotaryHalves
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.op import Op
from warmstart.spec.ops import Identity, Reshape

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Spelling:
    """How a framework calls the modules of a decoder.

    Attributes:
        architecture: what ``DecoderConfig.architecture`` says of its models.
        names: canonical module → its names, of which one is in a file, or none if its weight is another's; ``{i}`` is
            the layer.
        layer: the name of a layer.
        gate: of the linear layer to which the activation is applied, gated or not.
        whats: ``weight`` and ``bias`` of a norm → further names that they have.
        relative_scaled: whether it divides by √head_dim what vectors of distances add to scores.
        scalings: kinds of ``RotaryScaling`` that it computes.
    """

    framework: str
    architecture: str
    names: Mapping[str, tuple[str, ...]]
    layer: str
    gate: str
    whats: Mapping[str, tuple[str, ...]]
    relative_scaled: bool
    scalings: tuple[str, ...]

    def of(self, module: str, gated: bool = True) -> tuple[str, ...]:
        return (self.gate,) if module == "layers.{i}.ffn.up" and not gated else self.names[module]

    def array(self, module: str, what: str = "weight", gated: bool = True) -> str:
        """The usual name of an array, in layer 0."""
        name = self.of(module, gated)[0].format(i=0)
        return name if module == "positions" else f"{name}.{what}"


def read_config(spelling: Spelling, entries: Mapping[str, Entry], said: Options, problems: list[Problem]) -> Options:
    """Settings of ``DecoderConfig``, by the shapes of the arrays and by what the options say.

    Args:
        said: ``heads``, ``kv_heads`` and ``head_dim`` (None or 0: as many as heads, and their share of the width),
            ``layers`` (None: nothing), ``gated``, ``tied``, ``positions``, ``distances`` (of positions: relative, how
            far they reach; None: as the table says), ``rotary_dim`` (0: all) and ``rotary_pairs``, and settings that
            are passed on as they are.
        problems: of the options; more are added.
    """
    gated, heads, kv_heads = bool(said["gated"]), said["heads"], said["kv_heads"] or said["heads"]
    embedding, up = spelling.array("embedding"), spelling.array("layers.{i}.ffn.up", gated=gated)
    queries = spelling.array("layers.{i}.attention.query")
    tables = {"learned": "positions", "relative": "layers.{i}.attention.relative_keys"}
    table = tables.get(said["positions"])
    needed = [embedding, up, queries, *([spelling.array(table)] if table else [])]
    problems += not_tables(entries, needed)
    if any(type(n) is not int or n < 1 for n in (heads, kv_heads)):
        problems.append(Problem("heads and those of keys are not positive whole numbers", found=f"{heads}, {kv_heads}"))
    layers = layers_of(entries, spelling.layer, problems)
    problems += layers_as_said({"decoder": said["layers"]}, {"decoder": layers})
    if problems:
        return {}
    d_model, width = entries[embedding].shape[1], entries[queries].shape[0]
    head_dim = width // heads
    if width % heads:
        problems.append(Problem(f"{heads} heads do not divide the {width} rows of {queries}"))
    if said["head_dim"] not in (None, 0, head_dim):
        problems.append(Problem(f"head_dim: {said['head_dim']} is not that of {queries}", expected=str(head_dim)))
    biases = {what: _bias(spelling, entries, gated, parts, problems) for what, parts in _BIASED.items()}
    rows = entries[spelling.array(table)].shape[0] if table else 0
    passed = {key: said[key] for key in ("activation", "gated", "norm", "norm_epsilon", "positions", "sliding_window")}
    return {
        **passed, **biases,
        "architecture": spelling.architecture,
        "vocab_size": entries[embedding].shape[0],
        "d_model": d_model,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "d_ff": entries[up].shape[0],
        "norm_bias": said["norm"] == "layer",
        **_positions(spelling, said, rows, head_dim),
        "tied_output": said["tied"],
    }  # fmt: skip


def _positions(spelling: Spelling, said: Options, rows: int, head_dim: int) -> Options:
    """Settings of positions; ``rows`` are those of their table, where they have one."""
    kind = said["positions"]
    if kind == "learned":
        return {"max_positions": rows, "scale_embeddings": True}
    if kind == "relative":
        return {
            "max_relative_positions": (rows - 1) // 2 if said["distances"] is None else said["distances"],
            "relative_tables": "one",
            "relative_scaled": spelling.relative_scaled,
        }
    if kind == "rotary":
        passed = ("rotary_base", "rotary_scaling", "original_max_positions")
        settings = {key: said[key] for key in passed if key in said}
        return {**settings, "rotary_dim": said["rotary_dim"] or head_dim, "rotary_pairs": bool(said["rotary_pairs"])}
    return {}


_BIASED = {
    "attention_bias": tuple(f"layers.{{i}}.attention.{part}" for part in ("query", "key", "value")),
    "attention_output_bias": ("layers.{i}.attention.output",),
    "ffn_bias": ("layers.{i}.ffn.up", "layers.{i}.ffn.down"),
    "output_bias": ("output",),
}


def _bias(
    spelling: Spelling, entries: Mapping[str, Entry], gated: bool, parts: tuple[str, ...], problems: list[Problem]
) -> bool:
    """Whether all of ``parts`` have a bias; that some do and some do not is a problem."""
    names = [[f"{name.format(i=0)}.bias" for name in spelling.of(part, gated)] for part in parts]
    there = [any(name in entries for name in spellings) for spellings in names]
    if len(set(there)) > 1:
        with_bias = ", ".join(n[0] for n, has in zip(names, there, strict=True) if has)
        problems.append(Problem("some of the linear layers that belong together have biases", found=with_bias))
    return there[0]


def finish(spelling: Spelling, settings: Options, problems: list[Problem], where: object) -> DecoderConfig:
    """
    Raises:
        DialectError: ``problems``, or ``settings`` that contradict each other.
    """
    if not problems:
        try:
            return DecoderConfig.model_validate(settings)
        except Invalid as error:
            problems = validation_problems(error)
    raise DialectError(f"this language model of {spelling.framework} is not supported", where=where, problems=problems)


def rules_of(spelling: Spelling, c: DecoderConfig) -> Iterator[Rule]:
    """
    Raises:
        DialectError: ``c`` says what the framework's plain decoder does not compute.
    """
    learned, scaling = c.positions == "learned", c.rotary_scaling.kind if c.rotary_scaling else None
    require(
        c, spelling.framework, positions=("learned", "rotary", "alibi", "relative"), norm_place=("pre",),
        norm_bias=(c.norm == "layer",), norm_offset=(False,),
        final_norm=(True,), embedding_norm=(False,), embedding_size=(None,), parallel=("none",),
        query_key_norm=(False,), position_offset=(0,), alibi_positive=(False,), alibi_scaled=(False,),
        rotary_scaling=(c.rotary_scaling,) if scaling in spelling.scalings else (None,), local_rotary_base=(None,),
        sliding_layers=(None,), query_scale=(None,),
        relative_tables=("one",) if c.positions == "relative" else ("two",),
        attention_softcap=(None,), logit_softcap=(None,), scale_embeddings=(learned,), packing=(None,),
    )  # fmt: skip
    for module in modules(c):
        each = {"i": c.num_layers} if module.layered else None
        tied = module.name == "output" and c.tied_output
        for k, name in enumerate(spelling.of(module.name, c.gated)):
            for what in module.whats:
                spelt = (what, *spelling.whats.get(what, ())) if module.kind == "norm" else (what,)
                for j, last in enumerate(spelt):
                    foreign = name if module.name == "positions" else f"{name}.{last}"
                    other = k > 0 or j > 0 or (tied and what == "weight")
                    ours = f"{module.name}.{what}"
                    yield rule(foreign, ours, _op(module, c), each=each, alternative=other)


def _op(module: Module, c: DecoderConfig) -> Op:
    if module.name == "positions":
        return Reshape((-1, 1, c.d_model), (-1, c.d_model))
    if c.rotary_pairs and c.rotary_dim is not None:
        heads = {"query": c.num_heads, "key": c.num_kv_heads}.get(module.name.rpartition("attention.")[2])
        if heads is not None:
            return RotaryHalves(heads, c.rotary_dim)
    return Identity()
