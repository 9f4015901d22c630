"""How fairseq spells the encoder-decoder Transformer: ``transformer``, ``transformer_align``, ``bart`` (mBART among
them) and one pair of languages of ``multilingual_transformer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import ConfigError, DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.formats.views import View
from warmstart.lean import dataclass
from warmstart.models.checks import layers_as_said, layers_of, not_tables, require
from warmstart.models.family import Dialect
from warmstart.models.transformer.config import TransformerConfig
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Split
from warmstart.vocabularies.tokens import TokenVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu_erf", "gelu_accurate": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "swish",
}  # fmt: skip
FIRST = ("<s>", "<blank>", "</s>", "<unk>")  # every dictionary begins so; fairseq's own name of the second is <pad>
PADDING = 1  # row of <pad>; positions are counted from the one behind it
_SIDES = {"encoder": "model.encoder.layers.{i}", "decoder": "model.decoder.layers.{i}"}

# Options that must be so; the first value is what a file that does not say it means.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "no_token_positional_embeddings": (False,),
    "lang_tok_replacing_bos_eos": (False,),
    "no_cross_attention": (False,),
    "cross_self_attention": (False,),
    "adaptive_softmax_cutoff": (None, ""),
    "adaptive_input": (False,),
    "character_embeddings": (False,),
    "no_decoder_final_norm": (False,),
    "tie_adaptive_weights": (False,),
    "offload_activations": (False, True),
    "encoder_layers_to_keep": (None, ""),
    "decoder_layers_to_keep": (None, ""),
    "base_layers": (0,),
}


@dataclass(frozen=True)
class FairseqDialect(Dialect):
    """Weights [out, in]; the decoder starts from ``</s>``; tables of learned positions have two rows more.

    ``fairseq-plain`` is the same without ``special_tokens``: the user frames the source and starts the decoder.
    ``languages`` are (``source_lang``, ``target_lang``) where a person says them; "" leaves the file's own.
    """

    name: str = "fairseq"
    special_tokens: bool = True
    languages: tuple[str, str] = ("", "")

    def told(self, what: str) -> FairseqDialect:
        source, comma, target = what.partition(",")
        if not comma or "," in target or not (source or target):
            form = f"--from {self.name}:SOURCE,TARGET"
            raise ConfigError(
                "this does not name two languages", found=what, expected=f"{form}, of which one may be empty"
            )
        return replace(self, languages=(source, target))

    def _options(self, checkpoint: Checkpoint) -> dict[str, Any]:
        keys = zip(("source_lang", "target_lang"), self.languages, strict=True)
        return {**(_args(checkpoint) or {}), **{key: language for key, language in keys if language}}

    def recognise(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.format != "torch" or _args(checkpoint) is None:
            return False
        return any(name.startswith(("model.encoder.", "model.models.")) for name in checkpoint.entries)

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return (
            _Pair(checkpoint, self._options(checkpoint))
            if any(n.startswith("model.models.") for n in checkpoint.entries)
            else checkpoint
        )

    def left_behind(self, config: Any) -> Mapping[str, str]:
        return {
            "model.*.version": "a mark without meaning",
            "model.*.embed_positions._float_tensor": "a mark of the dtype",
            "model.*.embed_positions.weights": "computed positions",
            "model.classification_heads.**": "heads of classifiers",
            "model.models.**": "another pair of languages",
            "last_optimizer_state.**": "the optimizer's",
            "optimizer_history.**": "the optimizer's",
            "extra_state.**": "the training's",
            "criterion.**": "the training's",
        }

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        args = self._options(checkpoint)
        entries = checkpoint.entries
        problems = [
            Problem(f"{key}: {args[key]!r} is not supported", expected=" or ".join(map(repr, values)))
            for key, values in _ALLOWED.items()
            if key in args and args[key] not in values
        ]
        for option in ("normalize_before", "attention_heads", "embed_dim"):
            values = [args.get(f"{side}_{option}") for side in _SIDES]
            if values[0] != values[1]:
                problems.append(Problem(f"encoder_{option} and decoder_{option} differ", found=f"{values}"))
        activation = str(args.get("activation_fn", "relu"))
        if activation not in ACTIVATIONS:
            problems.append(Problem(f"activation_fn: {activation!r} is not supported", expected=", ".join(ACTIVATIONS)))
        problems += [
            Problem(f"{name} is not supported: another width of input or output than of the layers")
            for name in ("model.decoder.project_in_dim.weight", "model.decoder.project_out_dim.weight")
            if name in entries
        ]
        needed = [f"model.{side}.embed_tokens.weight" for side in _SIDES]
        needed += [_SIDES[side].format(i=0) + ".fc1.weight" for side in _SIDES]
        problems += not_tables(entries, needed)
        layers = {side: layers_of(entries, template, problems) for side, template in _SIDES.items()}
        problems += layers_as_said({side: args.get(f"{side}_layers") for side in _SIDES}, layers)
        if problems:
            raise DialectError("this fairseq model is not supported", where=checkpoint.path, problems=problems)
        shapes = [entries[name].shape for name in needed]
        ties = "all" if args.get("share_all_embeddings") else "none"
        if ties == "none" and args.get("share_decoder_input_output_embed"):
            ties = "target"
        try:
            return TransformerConfig.model_validate(
                {
                    "source_vocab_size": shapes[0][0],
                    "target_vocab_size": shapes[1][0],
                    "d_model": shapes[0][1],
                    "num_heads": args.get("encoder_attention_heads", 8),
                    "d_ff": shapes[2][0],
                    "decoder_d_ff": None if shapes[2][0] == shapes[3][0] else shapes[3][0],
                    "encoder_layers": layers["encoder"],
                    "decoder_layers": layers["decoder"],
                    "activation": ACTIVATIONS[activation],
                    "norm": "pre" if args.get("encoder_normalize_before") else "post",
                    "tied_embeddings": ties,
                    "output_bias": False,
                    "layernorm_embedding": bool(args.get("layernorm_embedding", False)),
                    "scale_embeddings": not args.get("no_scale_embedding", False),
                    "decoder_start": "eos" if self.special_tokens else "given",
                    "source_eos": self.special_tokens,
                    "alignment_layer": args.get("alignment_layer", -1),
                    "alignment_heads": args.get("alignment_heads", 0),
                    "layer_norm_epsilon": 1e-5,
                    "dropout": args.get("dropout", 0.1),
                    "attention_dropout": args.get("attention_dropout", 0.0),
                    "ffn_dropout": args.get("activation_dropout") or args.get("relu_dropout") or 0.0,
                    **_positions(checkpoint, args),
                }
            )
        except Invalid as error:
            problems = validation_problems(error)
            raise DialectError("the model's options are wrong", where=checkpoint.path, problems=problems) from None

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        learned = c.positions == "learned"
        require(
            c, "fairseq", normalize_keys=(True,), attention_bias=(True,), ffn_bias=(True,), output_bias=(False,),
            gated=(False,), max_relative_positions=(None,), features=((),), rms_norm=(False,),
            positions_per_side=(learned,), sinusoids=(c.sinusoids,) if learned else ("fairseq",),
        )  # fmt: skip
        rules: list[Rule] = []
        for side, layers in (("encoder", c.encoder_layers), ("decoder", c.decoder_layers)):
            rules.append(rule(f"model.{side}.embed_tokens.weight", f"{side}.embedding.weight"))
            if c.positions == "learned":
                table = f"model.{side}.embed_positions.weight"
                rules.append(rule(table, f"{side}.positions.weight", ExtraRows(first=PADDING + 1)))
            if c.layernorm_embedding:
                rules += _both(f"model.{side}.layernorm_embedding", f"{side}.embedding_norm", {})
            if c.norm == "pre":
                rules += _both(f"model.{side}.layer_norm", f"{side}.norm", {})
            rules += _layer(side, {"i": layers})
        rules.append(rule("model.decoder.output_projection.weight", "decoder.output.weight"))
        rules.append(rule("model.decoder.embed_out", "decoder.output.weight", alternative=True))
        return rules

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        args = self._options(checkpoint)
        paths = _dictionaries(checkpoint, args, files)
        found: dict[str, Vocabulary] = {}
        for side, path in paths.items():
            known = _dictionary(path)
            added = [token for token in dict.fromkeys(_languages(args, path.parent)) if token not in known]
            found[side] = TokenVocabulary([*known, *added], pad="<blank>")
            found[side].path = path
        return found


class _Pair(View):
    """One pair of languages of a ``multilingual_transformer``, under the names of a model of its own."""

    def __init__(self, checkpoint: Checkpoint, args: Mapping[str, Any]) -> None:
        pairs = sorted({n.split(".")[2] for n in checkpoint.entries if n.startswith("model.models.")})
        wanted = f"{args.get('source_lang')}-{args.get('target_lang')}"
        chosen = wanted if wanted in pairs else pairs[0]
        if chosen != wanted and len(pairs) > 1:
            raise DialectError(
                "the file holds several pairs of languages, and does not say which is meant",
                where=checkpoint.path, expected=", ".join(pairs), found=wanted,
                todo=f"say it: --from fairseq:{pairs[0].replace('-', ',', 1)}",
            )  # fmt: skip
        start = f"model.models.{chosen}."
        names = {f"model.{n.removeprefix(start)}" if n.startswith(start) else n: n for n in checkpoint.entries}
        super().__init__(checkpoint, names)


def _args(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The training's arguments: ``args``, or since fairseq 0.10 ``cfg`` with ``model`` and ``task`` in it."""
    args = checkpoint.metadata.get("args")
    if isinstance(args, Mapping) and ("arch" in args or "encoder_layers" in args):
        return dict(args)
    cfg = checkpoint.metadata.get("cfg")
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get("model"), Mapping):
        return None
    task = cfg.get("task")
    return {**(task if isinstance(task, Mapping) else {}), **cfg["model"]}


def _positions(checkpoint: Checkpoint, args: Mapping[str, Any]) -> dict[str, Any]:
    tables = [checkpoint.entries.get(f"model.{side}.embed_positions.weight") for side in _SIDES]
    if all(tables):
        source, target = (table.shape[0] - PADDING - 1 for table in tables if table)
        longer = None if source == target else target
        sizes = {"max_positions": source, "decoder_max_positions": longer}
        return {"positions": "learned", "positions_per_side": True, **sizes}
    source, target = args.get("max_source_positions", 1024), args.get("max_target_positions", 1024)
    longer = None if source == target else target
    return {
        "positions": "sinusoidal", "sinusoids": "fairseq", "max_positions": source, "decoder_max_positions": longer,
    }  # fmt: skip


def _layer(side: str, each: Mapping[str, int]) -> list[Rule]:
    theirs, ours = _SIDES[side], f"{side}.layers.{{i}}"
    attentions = {"self_attn": "self_attention"}
    if side == "decoder":
        attentions["encoder_attn"] = "cross_attention"
    rules: list[Rule] = []
    for short, attention in attentions.items():
        for linear, part in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")):
            rules += _both(f"{theirs}.{short}.{linear}", f"{ours}.{attention}.{part}", each)
        for what in ("weight", "bias"):  # joined until fairseq 0.7
            qkv = [f"{ours}.{attention}.{part}.{what}" for part in ("query", "key", "value")]
            rules.append(rule(f"{theirs}.{short}.in_proj_{what}", qkv, Split(3), each=each, alternative=True))
        rules += _both(f"{theirs}.{short}_layer_norm", f"{ours}.{attention}_norm", each)
    rules += _both(f"{theirs}.fc1", f"{ours}.ffn.up", each) + _both(f"{theirs}.fc2", f"{ours}.ffn.down", each)
    return rules + _both(f"{theirs}.final_layer_norm", f"{ours}.ffn_norm", each)


def _both(theirs: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
    return [rule(f"{theirs}.{what}", f"{ours}.{what}", each=each) for what in ("weight", "bias")]


def _dictionaries(checkpoint: Checkpoint, args: Mapping[str, Any], files: Sequence[str]) -> dict[str, Path]:
    """``dict.LANGUAGE.txt`` of both sides: files given, in a directory given, or beside the checkpoint."""
    given = [Path(f) for f in files]
    if given and not given[0].is_dir():
        given = given * 2 if len(given) == 1 else given
        if len(given) != 2:
            raise VocabularyError("a translation model has two dictionaries", found=len(given))
        return dict(zip(("source", "target"), given, strict=True))
    folder = given[0] if given else checkpoint.path.parent
    names = {"source": args.get("source_lang"), "target": args.get("target_lang")}
    paths = {}
    for side, language in names.items():
        choices = [folder / f"dict.{language}.txt", folder / "dict.txt"]
        found = next((path for path in choices if path.is_file()), None)
        if found is None:
            if not given:
                return {}
            raise VocabularyError(f"the {side} dictionary is not there", where=folder, expected=choices[0].name)
        paths[side] = found
    return paths


def _dictionary(path: Path) -> list[str]:
    """``token count`` lines behind the four tokens that every dictionary begins with.

    Raises:
        VocabularyError: another line, or a token twice.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError("cannot read the dictionary", where=path, found=error) from None
    rows = {token: row for row, token in enumerate(FIRST)}
    for number, line in enumerate(lines, 1):
        if not line.strip() and number == len(lines):
            continue
        overwrite = line.endswith(" #fairseq:overwrite")
        token, _, count = line.removesuffix(" #fairseq:overwrite").rstrip("\r").rpartition(" ")
        if not count.lstrip("-").isdigit() or not token:
            raise VocabularyError("not a line of a dictionary", where=f"{path}, line {number}", expected="token count")
        token = FIRST[PADDING] if token == "<pad>" else token
        if token in rows and not overwrite:
            raise VocabularyError(f"token {token!r} appears twice", where=f"{path}, line {number}")
        rows.setdefault(token if token not in rows else f"{token}\x00{number}", len(rows))
    return [token.partition("\x00")[0] for token in rows]


def _languages(args: Mapping[str, Any], folder: Path) -> list[str]:
    """Tokens that a task adds to the dictionary that its files hold (``fairseq/tasks``,
    ``fairseq/data/multilingual/multilingual_data_manager.py``). ``folder`` is where the dictionaries lie.

    Raises:
        VocabularyError: the list of languages lies in a file that is not there.
    """
    task = args.get("task")
    if task == "translation_from_pretrained_bart":
        return [*(f"[{code}]" for code in _listed(args.get("langs"))), "<mask>"]
    pairs = {code for pair in _listed(args.get("lang_pairs")) for code in pair.split("-")}
    if task == "multilingual_translation" and (args.get("encoder_langtok") or args.get("decoder_langtok")):
        return [f"__{code}__" for code in sorted(pairs)]
    if task != "translation_multi_simple_epoch":
        return []
    codes = _listed(args.get("langs")) or _codes_of(args.get("lang_dict"), folder) or sorted(pairs)
    mbart = args.get("lang_tok_style") == "mbart"
    style = "[{}]" if mbart else "__{}__"
    specs = _listed(args.get("langtoks_specs")) or ["main"]
    ends = [next((f"_{end}" for end in ("dae", "lm", "mined") if spec.endswith(end)), "") for spec in specs]
    tokens = [style.format(code + end) for end in ends for code in codes]
    denoised = "mono_dae" in (args.get("extra_data") or ())
    return [*tokens, "<mask>"] if mbart or denoised else tokens


def _listed(value: object) -> list[str]:
    """What an option of several values holds: a list, or a text with commas."""
    return value.split(",") if isinstance(value, str) else list(map(str, value)) if isinstance(value, list) else []


def _codes_of(name: object, folder: Path) -> list[str]:
    """The languages in the file ``--lang-dict``, which is looked for beside the dictionaries.

    Raises:
        VocabularyError: it cannot be read.
    """
    if not name:
        return []
    path = folder / Path(str(name)).name
    try:
        return [code for line in path.read_text("utf-8").split("\n") if (code := line.strip())]
    except (OSError, ValueError) as error:  # of which one is that it is no path at all
        raise VocabularyError("cannot read the list of languages (lang_dict)", where=repr(path), found=error) from None
