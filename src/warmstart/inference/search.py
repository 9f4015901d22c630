"""Beam search over one model or an ensemble, with Marian's rules.

Source: marian-dev ``src/translator/{beam_search.cpp,history.h}``. Greedy search is a beam of one. Unlike
Marian's, a sentence's limit of length is its own source's, not the longest of the batch, so what else is
in a batch changes no output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from warmstart.errors import ConfigError
from warmstart.inference.batches import length_sorted, pad
from warmstart.inference.beams import Beams, Hypothesis, Scoring
from warmstart.inference.scorer import Scorer

__all__ = ["Hypothesis", "SearchConfig", "translate_ids"]

NUMBERS = 2**18  # log-probabilities that fit a processor's nearer caches
GROUP = 64  # of these, the greatest is found first where a vocabulary is large


class SearchConfig(BaseModel):
    """How to search. A hypothesis of n tokens (end token included) whose log-probabilities sum to p scores
    (p - ``word_penalty``·n) / n^``normalize``; it ends at the latest with ``max_length_factor`` times as many
    tokens as its source (end token included). ``nbest`` hypotheses are returned, fewer if fewer were found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beam_size: Annotated[int, Field(gt=0)] = 1
    normalize: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    word_penalty: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    max_length_factor: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 3.0
    nbest: Annotated[int, Field(gt=0)] = 1
    allow_unk: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nbest > self.beam_size:
            raise ValueError(f"nbest {self.nbest} is more than beam_size {self.beam_size}")
        return self


def translate_ids(
    scorers: Sequence[Scorer[Any]],
    sources: Sequence[Sequence[int]],
    config: SearchConfig | None = None,
    batch_tokens: int = 8192,
    *,
    eos_id: int = 0,
    unk_id: int | None = 1,
) -> list[list[Hypothesis]]:
    """Best outputs for each of ``sources`` (ids with the end token), best first, in the order of ``sources``.

    ``scorers`` share one target vocabulary, in which ``eos_id`` and ``unk_id`` are rows; their log-probabilities
    are added. ``batch_tokens`` bounds sentences × longest source × beam size of a batch. A source of only its
    end token has one empty output with score 0. Raises ``ConfigError`` if the ensemble is empty or its
    vocabularies differ, ``WarmstartError`` if a model gives no finite score.
    """
    if not scorers:
        raise ConfigError("an ensemble needs a model", expected="at least one", found="none")
    config = config or SearchConfig()
    results = [[Hypothesis((), 0.0, 0.0, (0.0,))] for _ in sources]
    spoken = [index for index, source in enumerate(sources) if len(source) > 1]
    lengths = [len(sources[index]) for index in spoken]
    with torch.inference_mode():
        for batch in length_sorted(lengths, batch_tokens // config.beam_size):
            chosen = [spoken[i] for i in batch]
            found = _search(scorers, [sources[i] for i in chosen], config, eos_id, unk_id)
            for index, hypotheses in zip(chosen, found, strict=True):
                results[index] = hypotheses
    return results


def _search(
    scorers: Sequence[Scorer[Any]],
    sources: Sequence[Sequence[int]],
    config: SearchConfig,
    eos_id: int,
    unk_id: int | None,
) -> list[list[Hypothesis]]:
    ids, lengths = pad(sources)
    states = [scorer.start(ids, lengths, config.beam_size) for scorer in scorers]
    scoring = Scoring(config.normalize, config.word_penalty)
    beams = Beams(config.beam_size, config.max_length_factor * lengths.numpy(), scoring, config.nbest, eos_id)
    banned = None if config.allow_unk else unk_id
    previous: Tensor | None = None
    while True:
        logits = _advance(scorers, states, previous)
        parts = zip(*(torch.split(x, _rows(x)) for x in logits), strict=True)
        found = [_best_tokens(part, int(beams.width.max()), banned) for part in parts]
        rows, tokens = beams.extend(*(np.concatenate(column) for column in zip(*found, strict=True)))
        if not len(rows):
            return beams.results()
        if len(rows) != len(logits[0]) or (rows != np.arange(len(rows))).any():
            order = torch.from_numpy(rows)
            states[:] = [scorer.select(state, order) for scorer, state in zip(scorers, states, strict=True)]
        previous = torch.from_numpy(tokens)


def _advance(scorers: Sequence[Scorer[Any]], states: list[Any], previous: Tensor | None) -> list[Tensor]:
    """Logits [R, V] of each of the ensemble; ``states`` move on."""
    all_logits: list[Tensor] = []
    for i, scorer in enumerate(scorers):
        logits, states[i] = scorer.step(states[i], previous)
        all_logits.append(logits)
        if logits.shape != all_logits[0].shape:
            raise ConfigError(
                "the models of an ensemble differ in their target vocabularies",
                expected=f"{all_logits[0].shape[-1]} tokens",
                found=f"{logits.shape[-1]} tokens in model {i + 1}",
            )
    return all_logits


def _rows(logits: Tensor) -> int:
    """How many rows to look at together."""
    return max(1, NUMBERS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)


def _best_tokens(
    logits: Sequence[Tensor], count: int, banned: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``count`` greatest of each row of the log-probabilities that the ensemble's ``logits`` (float32 [R, V])
    add up to, or all V if they are fewer, and their columns, best first; never that of ``banned``."""
    log_probs = torch.log_softmax(logits[0], -1)
    for more in logits[1:]:
        log_probs += torch.log_softmax(more, -1).to(log_probs.device)
    if banned is not None:
        log_probs[:, banned] = -math.inf
    rows, size = log_probs.shape
    count = min(count, size)
    if log_probs.device.type != "cpu":
        values, tokens = log_probs.topk(count)
        return values.cpu().numpy(), tokens.cpu().numpy()
    if count > 1 and size > GROUP**2:
        # The best are in the groups of columns with the greatest maxima, or in the columns that are left over.
        whole = size - size % GROUP
        greatest = log_probs[:, :whole].view(rows, -1, GROUP).amax(-1).topk(count).indices  # [R, N]
        columns = greatest[:, :, None] * GROUP + torch.arange(GROUP)
        columns = torch.cat([columns.flatten(1), torch.arange(whole, size).expand(rows, -1)], 1)
        values, places = log_probs.gather(1, columns).topk(count)
        return values.numpy(), columns.gather(1, places).numpy()
    scores, every = log_probs.numpy(), np.arange(rows)
    best, found = np.empty((rows, count), np.float32), np.empty((rows, count), np.int64)
    for i in range(count):  # torch's argmax and topk take several times as long
        found[:, i] = scores.argmax(1)
        best[:, i] = scores[every, found[:, i]]
        scores[every, found[:, i]] = -math.inf
    return best, found
