"""How OpenNMT-tf 2 spells language models (``LanguageModel`` with a ``SelfAttentionDecoder``): TensorFlow checkpoints
with ``model_description.py`` beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.lean import dataclass
from warmstart.models.checks import layers_as_said, require
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.opennmt_tf_description import CATALOG, Said, describe, of_catalog
from warmstart.models.decoder.parameters import modules
from warmstart.models.opennmt_tf import (
    EPSILON,
    VALUE,
    OpenNMTTF,
    count_layers,
    linear,
    norm,
    nothing_says_heads,
    read_description,
    read_tokens,
)
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import Rule, rule
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_TABLE = "model/examples_inputter/embedding"
_POSITIONS = "model/decoder/position_encoder/position_embedding"
_LAYER = "model/decoder/layers/{i}"
_ATTENTION = f"{_LAYER}/self_attention/layer"
_FIRST = f"{_ATTENTION}/linear_queries/kernel".format(i=0)
_OUTPUT = "model/decoder/output_layer"
_SPECIAL = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


@dataclass(frozen=True)
class OpenNMTTFDialect(OpenNMTTF):
    """Read only. Kernels [in, out]; a table of learned positions has one row more.

    How sequences begin and end (``sequence_controls``) has no place in a language model: who asks it writes the
    prompt's tokens, ``<s>`` too.
    """

    def recognise(self, checkpoint: Checkpoint) -> bool:
        with_source = f"{_LAYER}/attention/0/layer/linear_queries/kernel".format(i=0)
        there = checkpoint.entries
        return (
            checkpoint.format == "tensorflow"
            and all(name + VALUE in there for name in (_TABLE, _FIRST))
            and with_source + VALUE not in there
        )

    def remarks(self, checkpoint: Checkpoint) -> Sequence[str]:
        if "start" not in self.controls:
            return ()
        return ("it was trained on sequences that begin with <s>: prompts must begin with it, nothing adds it",)

    def read_config(self, checkpoint: Checkpoint) -> DecoderConfig:
        problems: list[Problem] = []
        said = self._said(checkpoint, problems)
        shapes = {n.removesuffix(VALUE): e.shape for n, e in checkpoint.entries.items() if n.endswith(VALUE)}
        inner = f"{_LAYER}/ffn/layer/inner".format(i=0)
        matrices = (_TABLE, _FIRST, f"{inner}/kernel", *({_POSITIONS} & shapes.keys()))
        problems += [Problem(f"{n} is no matrix in the file") for n in matrices if len(shapes.get(n, ())) != 2]
        _refuse(checkpoint, problems)
        layers = count_layers(shapes, "decoder", problems)
        problems += layers_as_said({"decoder": said.num_layers}, {"decoder": layers})
        vocab, width = shapes[_TABLE]
        into, units = shapes[_FIRST]
        if not width == into == units:
            problems.append(
                Problem(f"embedding_size {width} is not num_units {units}", expected="embeddings as wide as the layers")
            )
        if units % said.num_heads:
            problems.append(Problem(f"{said.num_heads} heads do not divide {units}"))
        positions, longest = _positions(said, shapes, problems)
        _refuse(checkpoint, problems)
        try:
            return DecoderConfig.model_validate(
                {
                    "vocab_size": vocab, "d_model": units, "num_layers": layers, "d_ff": shapes[f"{inner}/kernel"][1],
                    "num_heads": said.num_heads, "num_kv_heads": said.num_heads, "head_dim": units // said.num_heads,
                    "activation": said.activation,
                    "norm_place": "pre" if "model/decoder/layer_norm/gamma" in shapes else "post",
                    "final_norm": "model/decoder/layer_norm/gamma" in shapes,
                    "norm_epsilon": EPSILON,
                    "attention_bias": f"{_ATTENTION}/linear_queries/bias".format(i=0) in shapes,
                    "attention_output_bias": f"{_ATTENTION}/linear_output/bias".format(i=0) in shapes,
                    "ffn_bias": f"{inner}/bias" in shapes,
                    "output_bias": f"{_OUTPUT}/bias" in shapes,
                    "tied_output": f"{_OUTPUT}/kernel" not in shapes,
                    "scale_embeddings": True,
                    "positions": positions, "max_positions": longest,
                }
            )  # fmt: skip
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=checkpoint.path, problems=problems) from None

    def _said(self, checkpoint: Checkpoint, problems: list[Problem]) -> Said:
        if self.model_type:
            return of_catalog(self.model_type, problems)
        found = read_description(checkpoint)
        if found is not None:
            return describe(*found, problems)
        problems.append(nothing_says_heads(list(CATALOG)))
        return Said()

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if not files:
            return {}
        if len({*files}) > 1:
            raise VocabularyError("a language model has one vocabulary", where=checkpoint.path, found=", ".join(files))
        path = Path(files[0])
        found = SubwordVocabulary(read_tokens(path), _SPECIAL)
        found.path = path
        return {"text": found}

    def rules(self, config: DecoderConfig) -> list[Rule]:
        c = config
        require(
            c, "OpenNMT-tf", positions=("learned", "sinusoidal"), norm=("layer",), norm_bias=(True,),
            norm_place=("pre", "post"), final_norm=(c.norm_place == "pre",), gated=(False,), parallel=("none",),
            scale_embeddings=(True,), embedding_norm=(False,), embedding_size=(None,), query_key_norm=(False,),
            num_kv_heads=(c.num_heads,), attention_output_bias=(c.attention_bias,), position_offset=(0,),
            query_scale=(None,), attention_softcap=(None,), logit_softcap=(None,), packing=(None,),
            sliding_window=(None,), norm_epsilon=(EPSILON,), activation=("relu", "gelu_tanh", "swish"),
        )  # fmt: skip
        return list(_rules(c))


def _refuse(checkpoint: Checkpoint, problems: list[Problem]) -> None:
    if problems:
        raise DialectError("this language model is not supported", where=checkpoint.path, problems=problems)


def _positions(said: Said, shapes: dict[str, tuple[int, ...]], problems: list[Problem]) -> tuple[str, int | None]:
    """Which they are, and how many where they lie in a table."""
    table = shapes.get(_POSITIONS)
    if any(name.endswith("/relative_position_keys") for name in shapes):
        problems.append(
            Problem("vectors of distances (maximum_relative_position) are not supported in language models")
        )
    elif said.positions == "none":
        what = "a model without positions (position_encoder_class=None) is not supported"
        problems.append(Problem(what, found="CTranslate2's engine would add sinusoids"))
    elif (said.positions == "learned") != (table is not None):
        found = "a table of positions" if table is not None else "no table of positions"
        problems.append(Problem(f"the description says {said.positions} positions", found=f"{found} in the file"))
    return ("sinusoidal", None) if table is None else ("learned", table[0] - 1)


def _rules(c: DecoderConfig) -> Iterator[Rule]:
    side = "input" if c.norm_place == "pre" else "output"
    names = {
        "norm": "model/decoder/layer_norm",
        "output": _OUTPUT,
        "layers.{i}.attention_norm": f"{_LAYER}/self_attention/{side}_layer_norm",
        "layers.{i}.attention.query": f"{_ATTENTION}/linear_queries",
        "layers.{i}.attention.key": f"{_ATTENTION}/linear_keys",
        "layers.{i}.attention.value": f"{_ATTENTION}/linear_values",
        "layers.{i}.attention.output": f"{_ATTENTION}/linear_output",
        "layers.{i}.ffn_norm": f"{_LAYER}/ffn/{side}_layer_norm",
        "layers.{i}.ffn.up": f"{_LAYER}/ffn/layer/inner",
        "layers.{i}.ffn.down": f"{_LAYER}/ffn/layer/outer",
    }
    yield rule(_TABLE + VALUE, "embedding.weight")
    if c.positions == "learned":
        yield rule(_POSITIONS + VALUE, "positions.weight", ExtraRows(first=1))
    for module in modules(c):
        each = {"i": c.num_layers} if module.layered else None
        if module.kind == "norm":
            yield from norm(names[module.name], module.name, each)
        elif module.name == "output" and c.tied_output:
            yield from linear(names[module.name], module.name, each, module.bias)[1:]  # its weight is the table
        elif module.kind == "linear":
            yield from linear(names[module.name], module.name, each, module.bias)
