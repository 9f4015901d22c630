"""As much of fairseq as ``ct2-fairseq-converter`` asks for, for a test that cannot install it: modules that hold the
arrays of a state dict under fairseq's names, and the dictionaries. Positions are computed as fairseq does."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

import torch_models


def sinusoids(rows: int, width: int) -> torch.Tensor:
    """``SinusoidalPositionalEmbedding.get_embedding``; row 1 is that of the padding."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(rows, dtype=torch.float).unsqueeze(1) * frequencies.unsqueeze(0)
    table = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    table[1] = 0
    return table


def model(args: Any, arrays: dict[str, torch.Tensor]) -> Any:
    """The model as the converter walks over it."""
    separate = {}
    for name, array in arrays.items():
        at, dot, kind = name.rpartition(".in_proj_")
        if dot:  # what fairseq does when it loads an older file
            for part, piece in zip("qkv", array.chunk(3), strict=True):
                separate[f"{at}.{part}_proj.{kind}"] = piece
        else:
            separate[name.replace("decoder.embed_out", "decoder.output_projection.weight")] = array

    def tree(prefix: str) -> Any:
        names = {n[len(prefix) :] for n in separate if n.startswith(prefix)}
        found: dict[str, Any] = {n: separate[prefix + n] for n in names if "." not in n}
        for head in {n.partition(".")[0] for n in names if "." in n}:
            found[head] = tree(f"{prefix}{head}.")
        if set(found) == {str(i) for i in range(len(found))} and found:
            return [found[str(i)] for i in range(len(found))]
        if "weight" in found:
            found.setdefault("bias", None)
        return SimpleNamespace(**found)

    whole = tree("")
    for side, limit in ((whole.encoder, args.max_source_positions), (whole.decoder, args.max_target_positions)):
        for name in ("layer_norm", "layernorm_embedding", "project_in_dim", "project_out_dim"):
            setattr(side, name, getattr(side, name, None))
        side.embed_scale = 1.0 if args.no_scale_embedding else math.sqrt(args.encoder_embed_dim)
        learned = getattr(side.embed_positions, "weight", None)
        if learned is None:
            side.embed_positions = SimpleNamespace(weights=sinusoids(limit + 2, args.encoder_embed_dim), padding_idx=1)
        else:
            table = torch.nn.Embedding(*learned.shape, _weight=learned)
            table.weight.requires_grad_(False)
            table.padding_idx = 1
            side.embed_positions = table
    whole.eval = lambda: None
    whole.load_state_dict = lambda state: None
    return whole


@contextmanager
def installed(kind: str):
    """A module ``fairseq`` for models of ``torch_models.write_fairseq`` of ``kind``."""
    names = ("fairseq", "fairseq.models", "fairseq.tasks", "fairseq.checkpoint_utils", "fairseq.utils")
    modules = {name: ModuleType(name) for name in names}
    fairseq = modules["fairseq"]
    for name in names[1:]:
        setattr(fairseq, name.rpartition(".")[2], modules[name])
    archs = {"bart_base": "bart", "multilingual_transformer": "multilingual_transformer"}
    archs |= {"transformer_align": "transformer_align", "transformer_iwslt_de_en": "transformer"}
    fairseq.models.ARCH_MODEL_NAME_REGISTRY = archs
    fairseq.models.build_model = lambda args, task: model(args, torch_models.fairseq_arrays(kind))
    fairseq.tasks.setup_task = _task
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _task(args: Any) -> Any:
    def dictionary(language: str) -> Any:
        lines = (Path(args.data) / f"dict.{language}.txt").read_text("utf-8").splitlines()
        return SimpleNamespace(symbols=["<s>", "<pad>", "</s>", "<unk>", *(line.rpartition(" ")[0] for line in lines)])

    return SimpleNamespace(
        source_dictionary=dictionary(args.source_lang or "de"), target_dictionary=dictionary(args.target_lang or "en")
    )
