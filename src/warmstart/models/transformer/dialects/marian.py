"""How Marian spells the encoder-decoder Transformer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, Problem, VocabularyError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.formats.marian import CONFIG
from warmstart.models.family import Dialect, Facts
from warmstart.models.transformer.config import TransformerConfig
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.ops import Reshape, Transpose
from warmstart.vocabularies.marian_yaml import MarianVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_ROW = Reshape((1, -1), (-1,))
_ATTENTIONS = {"self": "self_attention", "context": "cross_attention"}


def _sides(c: TransformerConfig) -> list[tuple[str, int, tuple[str, ...]]]:
    return [("encoder", c.encoder_layers, ("self",)), ("decoder", c.decoder_layers, ("self", "context"))]


class MarianDialect(Dialect):
    """``.npz`` of Marian: 1-based layers, weights [in, out], biases and norms [1, n]."""

    name = "marian"
    layout = "model.npz"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.format == "marian"

    def says_config(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.metadata.get("config") is not None

    def read_config(self, checkpoint: Checkpoint) -> TransformerConfig:
        options = checkpoint.metadata.get("config")
        if not isinstance(options, Mapping):
            raise DialectError(
                "the file holds no model options (special:model.yml)",
                where=checkpoint.path,
                todo="give the architecture under `model:` in the configuration and say `strict: false`",
            )
        problems = [
            Problem(f"{key}: {options.get(key)!r} is not supported", expected=" or ".join(map(repr, allowed)))
            for key, allowed in _MARIAN_ALLOWED.items()
            if key in options and options[key] not in allowed
        ]
        problems += [
            Problem(f"{key}: {value!r} is not an option of a model that is known here")
            for key, value in options.items()
            if key not in _MARIAN_ALLOWED and key not in _MARIAN_USED and not _irrelevant(str(key))
        ]
        processing = " ".join(str(options.get(key, default) or "-") for key, default in _MARIAN_PROCESSING.items())
        norm: Any = {"- dan -": "post", "n da n": "pre"}.get(processing)
        if norm is None:
            problems.append(
                Problem(
                    f"transformer-preprocess, -postprocess, -postprocess-top are {processing!r}",
                    expected="'- dan -' (post-norm) or 'n da n' (pre-norm)",
                )
            )
        alignment = options.get("transformer-guided-alignment-layer", "last")
        if alignment != "last" and not (str(alignment).isdecimal() and int(alignment) > 0):
            what = "transformer-guided-alignment-layer"
            problems.append(Problem(what, expected="last, or a number from 1", found=repr(alignment)))
        problems += [Problem(f"{key} is missing") for key in _MARIAN_NEEDED if key not in options]
        sizes = options.get("dim-vocabs")
        if not isinstance(sizes, list) or len(sizes) != 2:
            problems.append(Problem("dim-vocabs must hold two sizes", found=repr(sizes)))
        if problems:
            raise DialectError("this Marian model is not supported", where=checkpoint.path, problems=problems)
        training = checkpoint.metadata.get("options") or {}
        learned = checkpoint.entries.get("Wpos")
        tied: Any = "target" if options.get("tied-embeddings") else "none"
        tied = "all" if options.get("tied-embeddings-all") else tied
        try:
            return TransformerConfig(
                source_vocab_size=sizes[0],  # type: ignore[index]
                target_vocab_size=sizes[1],  # type: ignore[index]
                d_model=options["dim-emb"],
                num_heads=options["transformer-heads"],
                d_ff=options["transformer-dim-ffn"],
                decoder_d_ff=options.get("transformer-decoder-dim-ffn") or None,
                encoder_layers=options["enc-depth"],
                decoder_layers=options["dec-depth"],
                activation=options.get("transformer-ffn-activation", "swish"),
                layernorm_embedding="n" in str(options.get("transformer-postprocess-emb", "d")),
                alignment_layer=-1 if alignment == "last" else int(alignment) - 1,
                norm=norm,
                normalize_keys=norm == "post" or _normalizes_keys(options.get("version"), checkpoint.path),
                tied_embeddings=tied,
                output_bias=not options.get("output-omit-bias", False),
                positions="learned" if learned else "sinusoidal",
                max_positions=learned.shape[0] if learned else None,
                scale_embeddings=learned is None,
                dropout=training.get("transformer-dropout", 0.1),
                attention_dropout=training.get("transformer-dropout-attention", 0.0),
                ffn_dropout=training.get("transformer-dropout-ffn", 0.0),
                source_dropout=training.get("dropout-src", 0.0),
                target_dropout=training.get("dropout-trg", 0.0),
            )
        except Invalid as error:
            wrong = validation_problems(error)
            raise DialectError("the model's options are wrong", where=checkpoint.path, problems=wrong) from None

    def approximations(self, config: TransformerConfig) -> Mapping[str, str]:
        found = {}
        if config.positions == "sinusoidal" and config.sinusoids != "marian":
            found["positions"] = "Marian's sinusoids, which the source's formula only comes near"
        if config.layer_norm_epsilon != 1e-6:
            found["layer_norm_epsilon"] = f"Marian's 1e-6, not {config.layer_norm_epsilon:g}"
        return found

    def rules(self, config: TransformerConfig) -> list[Rule]:
        c = config
        _expressible(c)
        rules: list[Rule] = []
        if c.tied_embeddings == "all":
            rules.append(rule("Wemb", "encoder.embedding.weight"))
        else:
            rules.append(rule("encoder_Wemb", "encoder.embedding.weight"))
            rules.append(rule("decoder_Wemb", "decoder.embedding.weight"))
        if c.tied_embeddings in ("none", "inputs"):
            rules.append(rule("decoder_ff_logit_out_Wt", "decoder.output.weight"))
            older = rule("decoder_ff_logit_out_W", "decoder.output.weight", Transpose(), alternative=True)
            rules.append(older)
        if c.output_bias:
            rules.append(rule("decoder_ff_logit_out_b", "decoder.output.bias", _ROW))
        if c.positions == "learned":
            rules.append(rule("Wpos", "positions.weight"))
        suffix = "_pre" if c.norm == "pre" else ""
        for side, layers, attentions in _sides(c):
            each = {"i": layers}
            theirs, ours = f"{side}_l{{i+1}}_", f"{side}.layers.{{i}}."
            for short in attentions:
                a = _ATTENTIONS[short]
                for letter, part in zip("qkvo", ("query", "key", "value", "output"), strict=True):
                    rules.append(rule(f"{theirs}{short}_W{letter}", f"{ours}{a}.{part}.weight", Transpose(), each=each))
                    rules.append(rule(f"{theirs}{short}_b{letter}", f"{ours}{a}.{part}.bias", _ROW, each=each))
                rules += _marian_norm(f"{theirs}{short}_Wo", suffix, f"{ours}{a}_norm", each)
            for number, part in (("1", "up"), ("2", "down")):
                rules.append(rule(f"{theirs}ffn_W{number}", f"{ours}ffn.{part}.weight", Transpose(), each=each))
                rules.append(rule(f"{theirs}ffn_b{number}", f"{ours}ffn.{part}.bias", _ROW, each=each))
            rules += _marian_norm(f"{theirs}ffn_ffn", suffix, f"{ours}ffn_norm", each)
            if c.norm == "pre":
                rules += _marian_norm(f"{side}_top", "", f"{side}.norm", {})
            if c.layernorm_embedding:
                rules += _marian_norm(f"{side}_emb", "_pre", f"{side}.embedding_norm", {})
        return rules

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        from warmstart.vocabularies.load import load_vocabulary

        here = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        paths = [Path(f) for f in files]
        if not paths:
            listed = (checkpoint.metadata.get("decoder") or {}).get("vocabs") or []
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise VocabularyError("decoder.yml does not list vocabularies", where=here, found=f"vocabs: {listed!r}")
            paths = [here / name for name in listed]
        if not paths:
            return {}
        if len(paths) == 1:
            paths = paths * 2
        if len(paths) != 2:
            raise VocabularyError("a translation model has two vocabularies", where=here, found=len(paths))
        loaded = {path: load_vocabulary(path) for path in dict.fromkeys(paths)}
        return dict(zip(("source", "target"), (loaded[path] for path in paths), strict=True))

    def remarks(self, checkpoint: Checkpoint) -> Sequence[str]:
        others = checkpoint.metadata.get("decoder_of")
        if others is None:
            return ()
        named = ", ".join(others) or "no model"
        return [f"decoder.yml names {named}, and {checkpoint.path.name} lies here: its vocabularies are not taken"]

    def header(self, config: TransformerConfig, facts: Facts) -> Mapping[str, str]:
        import yaml

        known = facts.metadata.get("config") if facts.dialect == self.name else None
        options = {**known} if isinstance(known, Mapping) else self.options(config)
        return {CONFIG: yaml.safe_dump(dict(sorted(options.items())), allow_unicode=True)}

    def files(
        self, config: TransformerConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts
    ) -> Mapping[str, bytes]:
        import yaml

        files: dict[str, bytes] = {}
        for side, vocabulary in vocabularies.items():
            suffix, content = _vocabulary_file(vocabulary)
            files[f"vocab.{side}{suffix}"] = content
        known = facts.metadata.get("decoder") if facts.dialect == self.name else None
        search = {k: v for k, v in (known or {}).items() if k not in ("relative-paths", "models", "vocabs")}
        decoder = {
            "relative-paths": True, "models": ["model.npz"], "vocabs": list(files),
            **(search or {"beam-size": 4, "normalize": 0.6}),
        }  # fmt: skip
        files["model.npz.decoder.yml"] = yaml.safe_dump(decoder, sort_keys=False).encode("utf-8")
        return files

    def options(self, config: TransformerConfig) -> dict[str, Any]:
        """Marian's model options for ``special:model.yml``."""
        c = config
        pre = c.norm == "pre"
        version = "v1.12.0" if c.normalize_keys else "v1.9.0"
        return {
            "type": "transformer",
            "dim-vocabs": [c.source_vocab_size, c.target_vocab_size],
            "dim-emb": c.d_model,
            "enc-depth": c.encoder_layers,
            "dec-depth": c.decoder_layers,
            "transformer-heads": c.num_heads,
            "transformer-dim-ffn": c.d_ff,
            "transformer-decoder-dim-ffn": c.decoder_d_ff or 0,
            "transformer-ffn-activation": c.activation,
            "transformer-preprocess": "n" if pre else "",
            "transformer-postprocess": "da" if pre else "dan",
            "transformer-postprocess-emb": "nd" if c.layernorm_embedding else "d",
            "transformer-guided-alignment-layer": _alignment(c),
            "transformer-postprocess-top": "n" if pre else "",
            "transformer-train-position-embeddings": c.positions == "learned",
            "tied-embeddings": c.tied_embeddings == "target",
            "tied-embeddings-all": c.tied_embeddings == "all",
            "tied-embeddings-src": False,
            "output-omit-bias": not c.output_bias,
            **_MARIAN_FIXED,
            "version": version,
        }


def _alignment(c: TransformerConfig) -> str:
    """Marian counts decoder layers from 1."""
    return "last" if c.alignment_layer == -1 else str(c.alignment_layer % c.decoder_layers + 1)


def _expressible(c: TransformerConfig) -> None:
    """
    Raises:
        DialectError: Marian does not compute what ``c`` says.
    """
    problems = [
        Problem(f"{key}: {getattr(c, key)!r} is not what Marian computes", expected=" or ".join(map(repr, value)))
        for key, value in _MARIAN_ONLY.items()
        if getattr(c, key) not in value
    ]
    if c.activation not in _MARIAN_ALLOWED["transformer-ffn-activation"]:
        problems.append(Problem(f"activation: {c.activation!r} is not one of Marian's"))
    if c.scale_embeddings == (c.positions == "learned"):
        problems.append(Problem("Marian scales embeddings where positions are sinusoids, and only there"))
    if problems:
        raise DialectError("Marian cannot express this model", problems=problems)


_MARIAN_FIXED: dict[str, Any] = {
    "transformer-decoder-autoreg": "self-attention",
    "transformer-ffn-depth": 2,
    "transformer-decoder-ffn-depth": 0,
    "transformer-no-projection": False,
    "transformer-no-bias": False,
    "transformer-no-affine": False,
    "transformer-pool": False,
    "transformer-tied-layers": [],
    "transformer-attention-mask": "default",
    "transformer-disable-position-embeddings": False,
    "input-types": [],
    "lemma-dim-emb": 0,
    "factors-dim-emb": 0,
    "factors-combine": "sum",
    "layer-normalization": False,
    "right-left": False,
    "skip": False,
    "ulr": False,
}

_MARIAN_ALLOWED: dict[str, tuple[object, ...]] = {
    "type": ("transformer",),
    "transformer-decoder-autoreg": ("self-attention",),
    "transformer-ffn-activation": ("relu", "swish", "gelu"),
    "transformer-ffn-depth": (2,),
    "transformer-decoder-ffn-depth": (0, 2),
    "transformer-no-projection": (False,),
    "transformer-no-bias": (False,),
    "transformer-no-affine": (False,),
    "transformer-pool": (False,),
    "transformer-tied-layers": ([], None),
    "transformer-postprocess-emb": ("d", "", "n", "nd", None),
    "transformer-attention-mask": ("default",),
    "transformer-disable-position-embeddings": (False,),
    "tied-embeddings-src": (False,),
    "input-types": ([], None),
    "lemma-dim-emb": (0,),
    "factors-dim-emb": (0,),
    "right-left": (False,),
    "ulr": (False,),
    "layer-normalization": (False,),
    "original-type": ("transformer", None, ""),
}

_MARIAN_PROCESSING = {"transformer-preprocess": "", "transformer-postprocess": "dan", "transformer-postprocess-top": ""}

_MARIAN_NEEDED = ("dim-emb", "enc-depth", "dec-depth", "transformer-heads", "transformer-dim-ffn")
_MARIAN_USED = {
    *_MARIAN_PROCESSING,
    *_MARIAN_NEEDED,
    *("dim-vocabs", "version"),
    *("transformer-decoder-dim-ffn", "transformer-guided-alignment-layer", "transformer-train-position-embeddings"),
    *("tied-embeddings", "tied-embeddings-all", "output-omit-bias"),
}

# What changes nothing in a Transformer: options of other types, of training, and of initialisation.
_MARIAN_IRRELEVANT = (
    *("bert-", "char-", "enc-cell", "dec-cell", "ulr-", "transformer-aan-", "transformer-alibi-", "lemma-dependency"),
    *("transformer-rnn-projection", "transformer-depth-scaling", "transformer-dim-aan", "transformer-dropout"),
    *("dim-rnn", "enc-type", "skip", "factors-combine", "separator-symbol", "max-length", "dropout-", "input-reorder"),
    *("transformer-flat", "enc-depth-", "precision", "cost-scaling", "output-sampling", "no-reload", "model-mmap"),
)

_MARIAN_ONLY: dict[str, tuple[object, ...]] = {
    "decoder_start": ("zero",), "sinusoids": ("marian", "transformers"), "positions_per_side": (False,),
    "source_bos": (False,), "source_eos": (True,), "attention_bias": (True,), "ffn_bias": (True,), "gated": (False,),
    "max_relative_positions": (None,), "features": ((),), "rms_norm": (False,),
}  # fmt: skip


def _irrelevant(option: str) -> bool:
    return option.startswith(_MARIAN_IRRELEVANT)


def _normalizes_keys(version: object, where: Path) -> bool:
    """Whether a pre-norm model was trained with normalised keys and values: by Marian since February 2022
    (marian-dev commit 8da539e8, inside version 1.10.28)."""
    text = str(version or "")
    date = re.search(r"(\d{4})-(\d{2})-(\d{2})", text)
    number = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
    if date:
        return date.groups() >= ("2022", "02", "06")
    if number and tuple(map(int, number.groups())) != (1, 10, 28):
        return tuple(map(int, number.groups())) > (1, 10, 28)
    raise DialectError(
        "a pre-norm model does not say which Marian trained it; since February 2022 keys and values are normalised",
        where=where,
        found=f"version {version!r}",
        todo="put `version: v1.9.0` (older) or `version: v1.12.0` (newer) into special:model.yml",
    )


def _vocabulary_file(vocabulary: Vocabulary) -> tuple[str, bytes]:
    """Marian reads SentencePiece models and YAML tables; other tables become YAML over text cut into tokens."""
    if vocabulary.kind == "sentencepiece":
        return ".spm", vocabulary.file()[1]
    if vocabulary.kind == "marian-yaml":
        return vocabulary.file()
    return MarianVocabulary(vocabulary.tokens).file()


def _marian_norm(theirs: str, suffix: str, ours: str, each: Mapping[str, int]) -> list[Rule]:
    other = "" if suffix else "_pre"
    return [
        rule(f"{theirs}_ln_{what}{end}", f"{ours}.{part}", _ROW, each=each, alternative=end != suffix)
        for what, part in (("scale", "weight"), ("bias", "bias"))
        for end in (suffix, other)
    ]
