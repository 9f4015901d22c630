"""Beam search over one model or an ensemble, with Marian's rules.

Source: marian-dev ``src/translator/{beam_search.cpp,history.h}``. Greedy search is a beam of one. Unlike
Marian's, a sentence's limit of length is its own source's, not the longest of the batch, so what else is
in a batch changes no output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from warmstart.errors import ConfigError, WarmstartError
from warmstart.inference.batches import length_sorted, pad
from warmstart.inference.scorer import Scorer


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


@dataclass(frozen=True)
class Hypothesis:
    """One output: ``ids`` without the end token; ``score`` as ``SearchConfig`` defines it; ``log_prob``, the sum
    of ``token_log_probs`` (summed over the ensemble; the end token's last, absent if the limit cut it)."""

    ids: tuple[int, ...]
    score: float
    log_prob: float
    token_log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Node:
    """A token of a partial hypothesis; ``row`` is its row of the state, ``total`` the float32 sum so far."""

    parent: _Node | None
    token: int
    log_prob: float
    total: float
    row: int


@dataclass(slots=True)
class _Sentence:
    """The search for one sentence: its ``live`` hypotheses (at first one start) and how many may follow."""

    index: int
    limit: float
    width: int
    live: list[_Node]
    finished: list[Hypothesis] = field(default_factory=list)


def translate_ids(
    scorers: Sequence[Scorer[Any]],
    sources: Sequence[Sequence[int]],
    config: SearchConfig | None = None,
    batch_tokens: int = 4096,
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
    states = [scorer.start(ids, lengths) for scorer in scorers]
    sentences = [
        _Sentence(i, config.max_length_factor * len(source), config.beam_size, [_Node(None, eos_id, 0.0, 0.0, i)])
        for i, source in enumerate(sources)
    ]
    results: list[list[Hypothesis]] = [[] for _ in sources]
    previous: Tensor | None = None
    active, step = sentences, 0
    while active:
        step += 1
        log_probs = _advance(scorers, states, previous)
        if unk_id is not None and not config.allow_unk:
            log_probs[:, unk_id] = -math.inf
        rows = len(log_probs)
        _expand(active, log_probs)
        for sentence in active:
            _retire(sentence, step, config, eos_id)
            if not sentence.live:
                results[sentence.index] = sorted(sentence.finished, key=lambda h: -h.score)[: config.nbest]
        active = [sentence for sentence in active if sentence.live]
        nodes = [node for sentence in active for node in sentence.live]
        parents = [node.row for node in nodes]
        if nodes and parents != list(range(rows)):
            order = torch.tensor(parents)
            states[:] = [scorer.select(state, order) for scorer, state in zip(scorers, states, strict=True)]
        previous = torch.tensor([node.token for node in nodes])
    return results


def _advance(scorers: Sequence[Scorer[Any]], states: list[Any], previous: Tensor | None) -> Tensor:
    """Sum of the ensemble's log-probabilities [R, V]; ``states`` move on."""
    total: Tensor | None = None
    for i, scorer in enumerate(scorers):
        log_probs, states[i] = scorer.step(states[i], previous)
        if total is not None and log_probs.shape != total.shape:
            raise ConfigError(
                "the models of an ensemble differ in their target vocabularies",
                expected=f"{total.shape[-1]} tokens",
                found=f"{log_probs.shape[-1]} tokens in model {i + 1}",
            )
        total = log_probs if total is None else total + log_probs.to(total.device)
    assert total is not None
    return total


def _expand(sentences: list[_Sentence], log_probs: Tensor) -> None:
    """Give each sentence the best ``width`` continuations of its live hypotheses, best first."""
    width = max(sentence.width for sentence in sentences)
    longest = max(len(sentence.live) for sentence in sentences)
    # The best of a sentence are among the best of each of its rows, so the vocabulary is searched once a row.
    values, tokens = log_probs.topk(min(width, log_probs.shape[-1]), -1)
    values, tokens = values.cpu(), tokens.cpu()
    totals = torch.tensor([node.total for sentence in sentences for node in sentence.live])[:, None] + values
    slots = [i * longest + j for i, sentence in enumerate(sentences) for j in range(len(sentence.live))]
    table = torch.full((len(sentences) * longest, values.shape[-1]), -math.inf)
    table[slots] = totals
    table = table.view(len(sentences), -1)
    best, places = table.topk(min(width, table.shape[-1]), -1)
    step_log_probs, step_tokens, columns = values.tolist(), tokens.tolist(), values.shape[-1]
    row = 0
    for sentence, scores, keys in zip(sentences, best.tolist(), places.tolist(), strict=True):
        parents = sentence.live
        sentence.live = [
            _Node(
                parents[key // columns],
                step_tokens[row + key // columns][key % columns],
                step_log_probs[row + key // columns][key % columns],
                score,
                row + key // columns,
            )
            for score, key in zip(scores[: sentence.width], keys, strict=False)
            if math.isfinite(score)
        ]
        row += len(parents)
        if not sentence.live:
            raise WarmstartError(
                "a model gives no token a finite score",
                expected="finite log-probabilities",
                found="only infinities or not-a-numbers",
                todo="look for damaged weights; a training that diverged leaves such",
            )


def _retire(sentence: _Sentence, step: int, config: SearchConfig, eos_id: int) -> None:
    """Move hypotheses that end, or that are as long as they may be, from ``live`` to ``finished``."""
    last = step >= sentence.limit
    for node in sentence.live:
        if last or node.token == eos_id:
            score = (node.total - config.word_penalty * step) / step**config.normalize
            sentence.finished.append(_hypothesis(node, score, eos_id))
    sentence.live = [] if last else [node for node in sentence.live if node.token != eos_id]
    sentence.width = len(sentence.live)


def _hypothesis(node: _Node, score: float, eos_id: int) -> Hypothesis:
    ids: list[int] = []
    log_probs: list[float] = []
    step: _Node = node
    while step.parent is not None:
        ids.append(step.token)
        log_probs.append(step.log_prob)
        step = step.parent
    ids.reverse()
    return Hypothesis(tuple(ids[:-1] if ids[-1] == eos_id else ids), score, node.total, tuple(reversed(log_probs)))
