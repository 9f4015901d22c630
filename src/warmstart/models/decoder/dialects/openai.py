"""How OpenAI spells GPT-2: a TensorFlow checkpoint with ``hparams.json``, ``encoder.json`` and ``vocab.bpe``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from warmstart.errors import DialectError
from warmstart.formats.checkpoint import Checkpoint
from warmstart.models.decoder.config import DecoderConfig
from warmstart.models.decoder.parameters import Module, modules
from warmstart.models.family import Dialect
from warmstart.models.huggingface import Options, folder_of, json_file, read_json
from warmstart.models.huggingface_tokenizer import read_tokenizer
from warmstart.spec.attention import Cut
from warmstart.spec.mapping import Rule, rule
from warmstart.spec.op import Op
from warmstart.spec.ops import Chain, Identity, Reshape, Transpose
from warmstart.vocabularies.load import load_vocabulary
from warmstart.vocabularies.subwords import SubwordVocabulary
from warmstart.vocabularies.vocabulary import Vocabulary

HPARAMS, ENCODER, MERGES = "hparams.json", "encoder.json", "vocab.bpe"
_END = "<|endoftext|>"
_NAMES = {
    "embedding": "model/wte",
    "positions": "model/wpe",
    "norm": "model/ln_f",
    "layers.{i}.attention_norm": "model/h{i}/ln_1",
    "layers.{i}.attention.output": "model/h{i}/attn/c_proj",
    "layers.{i}.ffn_norm": "model/h{i}/ln_2",
    "layers.{i}.ffn.up": "model/h{i}/mlp/c_fc",
    "layers.{i}.ffn.down": "model/h{i}/mlp/c_proj",
}
_QKV = tuple(f"layers.{{i}}.attention.{part}" for part in ("query", "key", "value"))


class OpenAIDialect(Dialect):
    """Read only. Linear weights lie [1, in, out]; the output is the table of embeddings."""

    name = "openai-gpt2"

    def recognise(self, checkpoint: Checkpoint) -> bool:
        return "model/wte" in checkpoint.entries and (folder_of(checkpoint) / HPARAMS).is_file()

    def read_config(self, checkpoint: Checkpoint) -> DecoderConfig:
        where = folder_of(checkpoint) / HPARAMS
        options = Options(read_json(where), where)
        vocab, length, width = (options.whole(key) for key in ("n_vocab", "n_ctx", "n_embd"))
        heads, layers = options.whole("n_head"), options.whole("n_layer")
        if width % heads:
            options.problem(f"{heads} heads do not divide {width}")
        options.finish("GPT-2 of OpenAI")
        return DecoderConfig(
            architecture="gpt2", vocab_size=vocab, d_model=width, num_layers=layers, num_heads=heads,
            num_kv_heads=heads, head_dim=width // heads, d_ff=4 * width, max_positions=length,
        )  # fmt: skip

    def read_vocabularies(self, checkpoint: Checkpoint, files: Sequence[str] = ()) -> dict[str, Vocabulary]:
        if files:
            return {"text": load_vocabulary(Path(files[-1]))}
        folder = folder_of(checkpoint)
        spelt = {"vocab.json": ENCODER, "merges.txt": MERGES}  # as transformers calls them
        found = {new: (folder / old).read_bytes() for new, old in spelt.items() if (folder / old).is_file()}
        if "vocab.json" not in found:
            return {}
        ends: dict[str, Any] = {f"{role}_token": _END for role in ("bos", "eos", "unk")}
        found["tokenizer_config.json"] = json_file({"tokenizer_class": "GPT2Tokenizer", **ends})
        tokenizer = read_tokenizer(found, folder, {})
        return {"text": SubwordVocabulary(tokenizer.tokens, dict.fromkeys(("bos", "eos", "unk"), _END), found)}

    def rules(self, config: DecoderConfig) -> list[Rule]:
        if config.architecture != "gpt2":
            raise DialectError(f"OpenAI's GPT-2 is no {config.architecture}")
        return list(_rules(config))


def _rules(c: DecoderConfig) -> Iterator[Rule]:
    each = {"i": c.num_layers}
    for module in modules(c):
        if module.name == "output":
            continue
        for what in module.whats:
            if module.name == _QKV[0]:
                sizes = (c.q_dim, c.kv_dim, c.kv_dim)
                op: Op = Cut(sizes)
                if what == "weight":
                    op = Chain((*_turned(c.d_model, sum(sizes)), Cut(sizes)))
                parts = [f"{part}.{what}" for part in _QKV]
                yield rule(f"model/h{{i}}/attn/c_attn/{what[0]}", parts, op, each=each)
            elif module.name not in _QKV:
                layers = each if module.layered else None
                yield rule(_spelt(module, what), f"{module.name}.{what}", _op(module, what), each=layers)


def _spelt(module: Module, what: str) -> str:
    name = _NAMES[module.name]
    if module.kind == "table":
        return name
    return f"{name}/{ {'norm': 'g', 'linear': 'w'}[module.kind] if what == 'weight' else 'b' }"


def _op(module: Module, what: str) -> Op:
    if module.kind != "linear" or what == "bias":
        return Identity()
    out, into = module.shape
    return Chain(_turned(into, out))


def _turned(into: int, out: int) -> tuple[Op, Op]:
    """From [1, in, out] to [out, in]."""
    return Reshape((1, into, out), (into, out)), Transpose()
