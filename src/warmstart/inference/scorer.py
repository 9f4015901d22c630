"""What search asks of a model: the next token's log-probabilities, and hypotheses in a new order."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import Tensor

from warmstart.models.transformer.module import DecoderState, Transformer

State = TypeVar("State")


class Scorer(Protocol[State]):
    """A model as search sees it. A state has one row for each hypothesis, and is never changed in place."""

    def start(self, source: Tensor, lengths: Tensor) -> State:
        """State before the first token: one row for each sentence of ``source`` (int64 [B, S], ``lengths`` [B])."""
        ...

    def step(self, state: State, previous: Tensor | None) -> tuple[Tensor, State]:
        """float32 log-probabilities [R, V] of the token after ``previous`` (int64 [R]; None at first), and
        the state that has seen it. Search may overwrite the log-probabilities."""
        ...

    def select(self, state: State, rows: Tensor) -> State:
        """The state of ``rows`` (int64 [R'], repeats allowed), in that order."""
        ...


class TransformerScorer:
    """``Scorer`` of a ``Transformer``, on the model's device; it puts the model in evaluation mode."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def start(self, source: Tensor, lengths: Tensor) -> DecoderState:
        self.model.eval()
        device = self._device
        return self.model.start(self.model.encode(source.to(device), lengths.to(device)))

    def step(self, state: DecoderState, previous: Tensor | None) -> tuple[Tensor, DecoderState]:
        logits, state = self.model.decode_step(state, None if previous is None else previous.to(self._device))
        return torch.log_softmax(logits.float(), -1), state

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        return state.select(rows.to(self._device))

    @property
    def _device(self) -> torch.device:
        return self.model.decoder.embedding.weight.device
