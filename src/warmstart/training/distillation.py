"""Learning from teachers: from their probabilities token by token, or from their translations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from warmstart.bundle.model import Model, open_model
from warmstart.checked import Config
from warmstart.data.index import EncodedSplit
from warmstart.errors import DataError, Problem, VocabularyError
from warmstart.formats.checkpoint import Array, Entry
from warmstart.formats.detect import open_checkpoint
from warmstart.formats.safetensors import write_safetensors
from warmstart.inference.load import load_module
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import Hypothesis, SearchConfig, translate_ids
from warmstart.inference.translate import require_vocabularies
from warmstart.lean import dataclass
from warmstart.storage.progress import Progress
from warmstart.training.config import Distillation
from warmstart.vocabularies.load import difference
from warmstart.vocabularies.vocabulary import Vocabulary

CHUNK = 1024  # sentences decoded and written at once: what a killed decoding loses at most
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # source [B, S], its lengths [B], target [B, T], where it is real [B, T]


@dataclass(frozen=True, eq=False)
class Teacher:
    """An opened teacher. Its ``module`` is in evaluation mode and has no gradients."""

    source: str
    config: Config
    module: Any

    def __post_init__(self) -> None:
        self.module.eval().requires_grad_(False)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the configuration and of all weights under their canonical names, so that the same model
        has the same one in whatever format it is kept."""
        said = json.dumps(self.config.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
        digest = hashlib.sha256(said.encode())
        for name, parameter in sorted(self.module.named_parameters()):
            digest.update(f"\n{name} {list(parameter.shape)} {parameter.dtype}\n".encode())
            digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def open_teachers(
    config: Distillation, vocabularies: Mapping[str, Vocabulary], device: torch.device
) -> tuple[Teacher, ...]:
    """The teachers that ``config`` names (bundles, runs, Marian directories …), on ``device``, in float32.

    Args:
        vocabularies: the student's, by side.

    Raises:
        VocabularyError: a teacher's vocabularies are not the student's; all differences. No weights have been read.
        SourceError, FormatError, DialectError, BundleError: a teacher cannot be opened.
    """
    models = [open_model(source) for source in config.teachers]
    problems = [problem for model in models for problem in _differences(model, vocabularies)]
    if problems:
        raise VocabularyError(
            "teachers and student do not share their vocabularies",
            where="training.distillation.teachers",
            todo="give the student the teacher's vocabularies (`type: file`, or start from it), or another teacher",
            problems=problems,
        )
    return tuple(Teacher(model.source, model.require()[1], load_module(model, device)) for model in models)


def _differences(model: Model, vocabularies: Mapping[str, Vocabulary]) -> list[Problem]:
    pairs = zip(("source", "target"), require_vocabularies(model), strict=True)
    return [
        Problem(
            f"the teacher has another {side} vocabulary",
            where=model.source,
            found=f"student and teacher: {difference(vocabularies[side], own)}",
        )
        for side, own in pairs
        if own.fingerprint != vocabularies[side].fingerprint
    ]


# --- word level -----------------------------------------------------------------------------------------------------


def mean_probabilities(teachers: Sequence[Teacher], inputs: Inputs, temperature: float) -> Tensor:
    """Mean over the teachers of softmax(logits / temperature): float32 [N, V] at the N real target positions.

    Computes in the precision of the surrounding ``autocast``, without gradients. ``temperature`` is above 0.
    """
    with torch.inference_mode():
        total = _log_softmax(teachers[0].module(*inputs), temperature).exp_()
        for teacher in teachers[1:]:
            total += _log_softmax(teacher.module(*inputs), temperature).exp_()
        return total.div_(len(teachers)) if len(teachers) > 1 else total


def divergence(logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    """T²·Σ over N tokens of KL(p ‖ q) in nats, with q = softmax(logits / T) (Hinton et al. 2015 §2; p ‖ q is the
    direction of Kim and Rush 2016, eq. 4, less the teacher's entropy, which is constant).

    Args:
        logits: the student's, [N, V], any floating type; the result is differentiable in it.
        probabilities: p, the teachers', float32 [N, V].
        temperature: T, above 0. The factor T² keeps the gradient's scale at every temperature.
    """
    result: Tensor = _Divergence.apply(logits, probabilities, temperature)  # type: ignore[no-untyped-call]
    return result


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits.float() / temperature, -1)


class _Divergence(torch.autograd.Function):
    """Its gradient T·(q - p) is computed where it is zero for equal models: a sum over p in floating point is not 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
        log_q = _log_softmax(logits, temperature)
        total = nn.functional.kl_div(log_q, probabilities, reduction="sum")
        ctx.save_for_backward(log_q.exp_().sub_(probabilities))
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return (difference * (gradient * ctx.temperature)).to(ctx.dtype), None, None


# --- sequence level -------------------------------------------------------------------------------------------------


def distilled_split(
    split: EncodedSplit,
    teachers: Sequence[Teacher],
    config: Distillation,
    vocabularies: Mapping[str, Vocabulary],
    cache: Path,
    *,
    max_length: int,
    progress: bool = True,
) -> EncodedSplit:
    """``split`` with the teachers' translations in the place of its targets (Kim and Rush 2016 §3.2).

    The teachers decode as an ensemble, in float32 so that the data do not depend on the machine, with a beam of
    ``config.beam_size``; the best output by the mean log-probability of its tokens is taken. Examples of which it is
    empty or longer than ``max_length`` tokens (end included) are dropped and counted.

    Args:
        vocabularies: the student's and the teachers', by side.
        cache: a directory. Outputs lie below it under a fingerprint of split, teachers and search, in files that are
            complete or invisible; a decoding that was stopped goes on where it was, and a finished one is only read.

    Raises:
        DataError: no example is left.
        StorageError: the outputs cannot be written.
    """
    search = SearchConfig(beam_size=config.beam_size, normalize=1.0)
    folder = cache / _fingerprint(split, teachers, search)
    starts = [*range(0, len(split), CHUNK), len(split)]
    chunks = {folder / f"{a:010}.safetensors": range(a, b) for a, b in pairwise(starts)}
    missing = {path: rows for path, rows in chunks.items() if not path.is_file()}
    scorers = [TransformerScorer(teacher.module) for teacher in teachers]
    target = vocabularies["target"]
    total = sum(map(len, missing.values()))
    with Progress("decoding by the teachers", total, "sentences") if progress and missing else nullcontext() as bar:
        for path, rows in missing.items():
            sources = [split.source[split.source_offsets[i] : split.source_offsets[i + 1]].tolist() for i in rows]
            found = translate_ids(scorers, sources, search, eos_id=target.eos_id, unk_id=target.unk_id)
            _write(path, [best[0] for best in found], target.eos_id)
            if bar is not None:
                bar.update(len(rows))
    opened = [open_checkpoint(path) for path in chunks]
    decoded, lengths = (np.concatenate([chunk.read(name) for chunk in opened]) for name in ("rows", "lengths"))
    return _with_targets(split, decoded, lengths, max_length, vocabularies["source"].unk_id)


def _fingerprint(split: EncodedSplit, teachers: Sequence[Teacher], search: SearchConfig) -> str:
    parts = [split.fingerprint, *(teacher.fingerprint for teacher in teachers), search.model_dump_json(), str(CHUNK)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _write(path: Path, outputs: Sequence[Hypothesis], eos_id: int) -> None:
    ended = [(*output.ids, eos_id) for output in outputs]
    arrays: dict[str, Array] = {
        "rows": np.array([row for ids in ended for row in ids], np.int32),
        "lengths": np.array([len(ids) for ids in ended], np.int64),
    }
    write_safetensors(path, [Entry(name, a.shape, a.dtype.name) for name, a in arrays.items()], arrays.values())


def _with_targets(
    split: EncodedSplit, target: Array, lengths: Array, max_length: int, unk_id: int | None
) -> EncodedSplit:
    """``split`` with other targets, back to back, without the examples whose target is empty or too long."""
    empty, long = lengths == 1, lengths > max_length
    kept = ~(empty | long)
    if not kept.any():
        raise DataError(
            "the teachers' translations leave no example",
            found=f"{empty.sum()} empty and {long.sum()} longer than {max_length} tokens",
            todo="look at what the teachers make of these texts with `warmstart translate`",
        )
    source = split.source[np.repeat(kept, split.source_lengths)]
    example = np.repeat(np.arange(kept.sum()), split.source_lengths[kept])
    counts = replace(
        split.counts,
        kept=int(kept.sum()),
        dropped_empty=split.counts.dropped_empty + int(empty.sum()),
        dropped_long=split.counts.dropped_long + int(long.sum()),
        unknown_source=0 if unk_id is None else len(np.unique(example[source == unk_id])),
    )
    return EncodedSplit(
        source,
        _offsets(split.source_lengths[kept]),
        target[np.repeat(kept, lengths)],
        _offsets(lengths[kept]),
        counts,
        split.vocabularies,
    )


def _offsets(lengths: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
