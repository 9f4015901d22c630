"""How ``transformers`` spells the decoder-only Transformer: one table an architecture, one reader for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from warmstart.checked import Invalid
from warmstart.errors import DialectError, validation_problems
from warmstart.formats.checkpoint import Checkpoint
from warmstart.formats.views import View
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.dialects.architectures import ARCHITECTURES, Architecture
from warmstart.models.decoder.dialects.packing import read_packing, write_packing
from warmstart.models.decoder.dialects.tokenizers import numbered, read_vocabulary
from warmstart.models.decoder.parameters import Module, modules
from warmstart.models.family import Facts
from warmstart.models.huggingface import (
    CONFIG,
    HuggingfaceDialect,
    Loaded,
    Options,
    folder_of,
    json_file,
    tokenizer_at,
)
from warmstart.spec.lossy import ExtraRows
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.op import Op
from warmstart.spec.ops import Identity, Transpose
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

_BY_NAME = {a.name: a for a in ARCHITECTURES}
_BY_NAME |= dict.fromkeys(("RefinedWeb", "RefinedWebModel"), _BY_NAME["falcon"])  # Falcon's first name


class TransformersDialect(HuggingfaceDialect):
    """Which of the architectures' tables is read, config.json says."""

    types = tuple(_BY_NAME)

    def view(self, checkpoint: Checkpoint) -> Checkpoint:
        return checkpoint if isinstance(checkpoint, Today) else Today(checkpoint)

    def read_config(self, checkpoint: Checkpoint) -> DecoderConfig:
        values = self._loaded(checkpoint).metadata["config"]
        where = folder_of(checkpoint) / CONFIG
        return read(_BY_NAME[values["model_type"]], values, where)

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        loaded = self._loaded(checkpoint)
        given = tokenizer_at(files)
        if files and not given:
            return {"text": load_vocabulary(Path(files[-1]))}
        config = self.read_config(loaded)
        tokenizer = {path.name: path.read_bytes() for path in given} or dict(loaded.metadata["tokenizer"])
        architecture = _BY_NAME[loaded.metadata["config"]["model_type"]]
        if not tokenizer:
            return {}
        where = folder_of(checkpoint)
        generation = where / "generation_config.json"
        vocabulary = read_vocabulary(tokenizer, where, architecture.name, config.vocab_size, architecture.padding)
        kept = {**tokenizer, generation.name: generation.read_bytes()} if generation.is_file() else tokenizer
        special = {"eos": numbered(loaded.metadata["config"], vocabulary.tokens, "eos"), **vocabulary.special}
        found = SubwordVocabulary(vocabulary.tokens, special, kept)
        found.beside = given
        return {"text": found}

    def _loaded(self, checkpoint: Checkpoint) -> Checkpoint:
        return self.view(checkpoint)

    def left_behind(self, config: DecoderConfig) -> Mapping[str, str]:
        return _BY_NAME[str(config.architecture)].leftovers

    def smoothed(self, config: DecoderConfig) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        a, groups = _BY_NAME[str(config.architecture)], dict[str, tuple[tuple[str, ...], tuple[str, ...]]]()
        if config.norm_place != "pre":
            return groups
        for i in range(config.num_layers):
            for norm, readers in a.smooth.items():
                names = [a.foreign(f"layers.{{i}}.{part}").replace("{i}", str(i)) for part in (norm, *readers)]
                arrays = (f"{names[0]}.weight", f"{names[0]}.bias")
                groups[names[1]] = (arrays, tuple(f"{name}.weight" for name in names[1:]))
        return groups

    def rules(self, config: DecoderConfig) -> list[Rule]:
        return list(_rules(choose(config), config))

    def files(self, config: DecoderConfig, vocabularies: Mapping[str, Vocabulary], facts: Facts) -> Mapping[str, bytes]:
        vocabulary = vocabularies.get("text")
        beside = dict(vocabulary.files) if isinstance(vocabulary, SubwordVocabulary) else {}
        said = write(choose(config), config)
        if said != config.original and vocabulary is not None:
            said.update(_ids(vocabulary))
        return {CONFIG: json_file(said), **beside}


def _ids(vocabulary: Vocabulary) -> dict[str, int | None]:
    """Rows of the special tokens, as config.json says them."""
    special = getattr(vocabulary, "special", {})
    return {f"{role}_token_id": vocabulary.index.get(special.get(role, "")) for role in ("bos", "eos", "pad")}


class Today(View):
    """The arrays with the names that today's version gives them: older names renamed, the base model's prefix put
    before the names of a checkpoint that was saved without its head."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        loaded = Loaded(checkpoint)
        architecture = _BY_NAME[loaded.metadata["config"]["model_type"]]
        super().__init__(loaded, {_today(name, architecture, loaded.entries): name for name in loaded.entries})


def _today(name: str, a: Architecture, there: Mapping[str, object]) -> str:
    for old, new in a.older.items():
        if name.startswith(f"{old}."):
            return f"{new}{name.removeprefix(old)}"
    base = a.prefix.split(".", 1)[0]
    whole = any(n.startswith(f"{base}.") for n in there)
    return name if whole or name.startswith(f"{a.top['output']}.") else f"{base}.{name}"


def read(a: Architecture, values: Mapping[str, Any], where: object = CONFIG) -> DecoderConfig:
    """The family's configuration of a config.json.

    Raises:
        DialectError: options that are not known or not supported, all of them.
    """
    options = Options(values, where)
    given: dict[str, Any] = dict(a.always)
    for key in a.keys:
        given[key.field] = key.read(options)
    for name, allowed in a.expect.items():
        options.expect(name, *allowed)
    for name in a.ignored:
        options.get(name, None)
    if a.packs and options.get("quantization_config", None) is not None:
        given["packing"] = read_packing(options)
    if all(isinstance(given.get(k), int) and given[k] > 0 for k in ("d_model", "num_heads", "num_layers")):
        if given.get("head_dim") is None and given["d_model"] % given["num_heads"]:
            options.problem(f"{given['num_heads']} heads do not divide {given['d_model']}")
        given["head_dim"] = given.get("head_dim") or max(1, given["d_model"] // given["num_heads"])
        given["num_kv_heads"] = given.get("num_kv_heads") or given["num_heads"]
        given["d_ff"] = given.get("d_ff") or 4 * given["d_model"]
        if a.rotary is not None:
            given |= a.rotary.read(options, given["head_dim"])
        if a.more is not None:
            given |= a.more(options, given)
    else:
        options.problem("sizes are not positive whole numbers")
    config: DecoderConfig | None = None
    try:
        config = DecoderConfig(architecture=a.name, original=dict(values), **given)
    except Invalid as error:
        if not options.problems:
            options.problems += validation_problems(error)
    options.finish(f"model of type {a.name}")
    assert config is not None
    return config


def write(a: Architecture, c: DecoderConfig) -> dict[str, Any]:
    """config.json of ``c``: as it was found where it still says the same, else from its settings."""
    if c.original and c.architecture == a.name:
        try:
            if read(a, c.original) == c:
                return dict(c.original)
        except DialectError:
            pass
    out: dict[str, Any] = {"architectures": [a.model], "model_type": a.name}
    out.update(key.write(c) for key in a.keys if key.field != "max_positions" or c.max_positions)
    if a.rotary is not None:
        out.update(a.rotary.write(c))
    if a.back is not None:
        out.update(a.back(c))
    return {**out, **write_packing(c)} if a.packs else out


def choose(c: DecoderConfig) -> Architecture:
    """The architecture to write ``c`` as: its own, else the first whose config.json can say all of it.

    Raises:
        DialectError: none can.
    """
    if c.architecture in _BY_NAME and _says(_BY_NAME[c.architecture], c):
        return _BY_NAME[c.architecture]
    for architecture in ARCHITECTURES:
        if _says(architecture, c):
            return architecture
    raise DialectError(
        "no architecture of transformers is like this model",
        expected=", ".join(a.name for a in ARCHITECTURES),
        found=f"{c.positions} positions, {c.norm} norms {c.norm_place}, parallel {c.parallel}"
        + ", scaled embeddings" * c.scale_embeddings,
    )


def _says(a: Architecture, c: DecoderConfig) -> bool:
    """Whether ``a`` can say every setting; how long positions may be is free where there is no table of them."""
    try:
        back = read(a, write(a, c))
    except (DialectError, KeyError, TypeError):
        return False
    free: dict[str, Any] = {"architecture": None, "original": {}, "position_offset": 0, "rotary_pairs": False}
    if c.positions != "learned":
        free["max_positions"] = None
    return back.model_copy(update=free) == c.model_copy(update=free)


def _rules(a: Architecture, c: DecoderConfig) -> Iterator[Rule]:
    layers = {"i": c.num_layers}
    fused = {f"layers.{{i}}.{part}": (name, f) for name, f in a.fused.items() for part in f.parts}
    done: set[str] = set()
    for module in modules(c):
        each = layers if module.layered else None
        if module.name in fused:
            name, how = fused[module.name]
            if name not in done:
                done.add(name)
                for what in module.whats:
                    parts = [f"layers.{{i}}.{part}.{what}" for part in how.parts]
                    yield rule(f"{a.prefix}.{name}.{what}", parts, how.op(c, what), each=each)
            continue
        name = _spelt(a, c, module)
        for what in module.whats:
            tied = module.name == "output" and what == "weight" and c.tied_output
            yield rule(f"{name}.{what}", f"{module.name}.{what}", _op(a, c, module, what), each=each, alternative=tied)


def _spelt(a: Architecture, c: DecoderConfig, module: Module) -> str:
    if a.name == "falcon" and c.parallel == "separate" and module.name.endswith(("attention_norm", "ffn_norm")):
        return f"{a.prefix}.{'ln_attn' if module.name.endswith('attention_norm') else 'ln_mlp'}"
    return a.foreign(module.name)


def _op(a: Architecture, c: DecoderConfig, module: Module, what: str) -> Op:
    if module.name == "positions" and a.always.get("position_offset"):
        return ExtraRows(first=a.always["position_offset"])
    own = a.ops.get(module.name.removeprefix("layers.{i}."))
    if own is not None:
        return own(c, what)
    if a.conv1d and module.layered and module.kind == "linear" and what == "weight":
        return Transpose()
    return Identity()
