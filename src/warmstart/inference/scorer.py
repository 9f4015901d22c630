"""What search asks of a model: scores of the next token, and hypotheses in a new order.

Shape letters as in ``inference.prepared``, and: R rows (hypotheses), W rows of a cell at most, G = C·W places in
the grid of cells and their rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from warmstart.inference.batches import runs
from warmstart.inference.cells import Cells, Ints
from warmstart.inference.prepared import VECTOR, Precision, Prepared
from warmstart.models.transformer.module import Transformer

State = TypeVar("State")

CELL_ROWS = 4  # a cell has one sentence, or a few short ones with no more hypotheses than this
CELL_NUMBERS = 864  # sentences are short when their keys of one head are together no more numbers
DENSE = 0.75  # cells that are done leave the caches when no more than this share is left
SMALLEST_PRODUCT = 400  # multiplications: torch's CPU kernels do smaller batched products by plain loops


class Scorer(Protocol[State]):
    """A model as search sees it. A state has one row for each hypothesis; ``step`` and ``select`` use it up."""

    def start(self, source: Tensor, lengths: Tensor, beam_size: int) -> State:
        """State before the first token: one row for each sentence of ``source`` (int64 [B, S], ``lengths`` [B]),
        which will never have more than ``beam_size``."""
        ...

    def step(self, state: State, previous: Tensor | None) -> tuple[Tensor, State]:
        """float32 logits [R, V] (log-probabilities but for a constant in each row) of the token after ``previous``
        (int64 [R]; None at first), and the state that has seen it. The logits hold until the state's next step."""
        ...

    def select(self, state: State, rows: Tensor) -> State:
        """The state of ``rows`` (int64 [R'], repeats allowed), in that order; sentences keep theirs."""
        ...


class Pair(NamedTuple):
    keys: Tensor  # [C, H, K, E]
    values: Tensor  # [C, H, E, K]


class Caches:
    """The state of a ``TransformerScorer``.

    The rows of a cell share its caches: an entry is a token of one of them, and masks say who hears it, so rows
    change places without a copy. Each layer has a pair of the source's tokens (``cross``), and one of the
    target's (``own``), with ``used`` entries and room for more. ``heard`` [R, E] is 0 at the source's entries that
    are of a row's sentence and -inf elsewhere, ``seen`` [R, E] the same of the own entries in a row's past.

    ``cell`` [R] is each row's cell, ``place`` [R] its place in the grid of ``width`` places a cell, and ``row`` [G]
    the row of each place (any row where there is none); both are None where they are equal.
    """

    def __init__(self, own: list[Pair], cross: list[Pair], heard: Tensor, cell: Ints, rows: int) -> None:
        self.own, self.cross, self.heard, self.cell = own, cross, heard, cell
        self.seen = heard.new_full((len(cell), own[0].keys.shape[3]), -math.inf)
        self.length, self.used, self.rows = 0, 0, rows
        self.logits = heard.new_empty(0)  # kept, because fresh memory of this size costs as much as what fills it
        self._arrange()

    def next_entry(self) -> Tensor:
        """Take each row's next own entry into its past; the mask [C, 1, W, E] of what is seen of the first E entries,
        in which all that are used stand."""
        numbers = self.rows * self.own[0].keys.shape[2]
        room, needed = self.seen.shape[1], self.used + self.width
        if needed > room:
            more = _enough(needed + needed // 2, numbers) - room
            self.own = [Pair(_longer(keys, 3, more), _longer(values, 2, more)) for keys, values in self.own]
            self.seen = functional.pad(self.seen, (0, more), value=-math.inf)
        self.seen.scatter_(1, self.slot + self.used, 0.0)
        return self._mask(self.seen[:, : _enough(needed, numbers)])

    def in_grid(self, rows: Tensor) -> Tensor:
        """Rows [R, …] at their places [G, …]."""
        return rows if self.row is None else rows.index_select(0, self.row)

    def in_rows(self, grid: Tensor) -> Tensor:
        """What is at the places [G, …] of the rows [R, …]."""
        return grid if self.place is None else grid.index_select(0, self.place)

    def select(self, rows: Tensor) -> None:
        self.cell = self.cell[rows.cpu().numpy()]
        self.seen, self.heard = self.seen.index_select(0, rows), self.heard.index_select(0, rows)
        present, number, _ = runs(self.cell)
        if len(present) <= DENSE * len(self.own[0].keys):
            cells = torch.from_numpy(present).to(rows.device)
            for pairs in (self.own, self.cross):
                pairs[:] = [
                    Pair(pair.keys.index_select(0, cells), pair.values.index_select(0, cells)) for pair in pairs
                ]
            self.cell = number
        self._arrange()

    def _arrange(self) -> None:
        """Make the grid follow ``cell``."""
        _, _, slot = runs(self.cell)
        self.width, device = int(slot.max()) + 1, self.seen.device
        self.slot = torch.from_numpy(slot[:, None]).to(device)
        self.place = self.row = None
        places = self.cell * self.width + slot
        size = len(self.own[0].keys) * self.width
        if len(places) < size:
            row = np.zeros(size, np.int64)
            row[places] = np.arange(len(places))
            self.place, self.row = torch.from_numpy(places).to(device), torch.from_numpy(row).to(device)
        self.cross_mask = self._mask(self.heard)

    def _mask(self, rows: Tensor) -> Tensor:
        return self.in_grid(rows).view(-1, 1, self.width, rows.shape[1])


class TransformerScorer:
    """``Scorer`` of the weights that ``model`` has now, on its device, with matrix products in ``precision``."""

    def __init__(self, model: Transformer, precision: Precision = "float32") -> None:
        self.weights = Prepared(model, precision)

    def start(self, source: Tensor, lengths: Tensor, beam_size: int) -> Caches:
        w, sizes = self.weights, lengths.cpu().numpy()
        k = w.config.d_model // w.num_heads
        cells = Cells.pack(sizes, max(int(sizes.max()), CELL_NUMBERS // k), CELL_ROWS // beam_size)
        rows = max(beam_size, int(np.bincount(cells.cell).max()))
        entries = max(cells.entries, _enough(1, rows * k))
        real = torch.arange(source.shape[1], device=source.device) < lengths[:, None]
        hidden = w.encode(source[real].to(w.device), sizes)
        cross = self._cross(hidden, w.move(cells.tokens(entries).clip(min=0)))
        shape, room = cross[0].keys.shape[:3], _enough(rows, rows * k)
        own = [Pair(hidden.new_zeros(*shape, room), hidden.new_zeros(*shape[:2], room, k)) for _ in cross]
        heard = cells.owners(entries)[cells.cell] == np.arange(len(sizes))[:, None]  # [B, E]
        return Caches(own, cross, w.mask(w.move(heard)), cells.cell, rows)

    def step(self, state: Caches, previous: Tensor | None) -> tuple[Tensor, Caches]:
        w = self.weights
        position = w.positions(state.length + 1)[-1:]
        if previous is None:
            x = position.repeat(len(state.cell), 1)
        else:
            x = w.embed(w.target_embedding, previous.to(w.device), position)
        past = state.next_entry()
        shape = len(state.own[0].keys), state.width, -1, w.num_heads, w.config.d_model // w.num_heads
        for (layer, cross), own_pair, cross_pair in zip(w.decoder, state.own, state.cross, strict=True):
            projected = state.in_grid(w.project(layer, w.before(x, layer.norm), x)).view(shape)
            query, keys, values = projected.permute(2, 0, 3, 1, 4).unbind()  # each [C, H, W, K]
            own_pair.keys.narrow(3, state.used, state.width).copy_(keys.transpose(2, 3))
            own_pair.values.narrow(2, state.used, state.width).copy_(values)
            used = Pair(own_pair.keys[..., : past.shape[3]], own_pair.values[:, :, : past.shape[3]])
            x = w.after(x, layer.output, self._attend(state, query, used, past), layer.norm)
            query = state.in_grid(cross.query(w.before(x, cross.norm))).view(shape)[:, :, 0].transpose(1, 2)
            x = w.after(x, cross.output, self._attend(state, query, cross_pair, state.cross_mask), cross.norm)
            x = w.feed_forward(layer, x)
        state.used += state.width
        state.length += 1
        if len(state.logits) < len(x):
            state.logits = w.output.new_empty(len(x), len(w.output))
        return w.logits(x, state.logits[: len(x)]), state

    def select(self, state: Caches, rows: Tensor) -> Caches:
        state.select(rows.to(self.weights.device))
        return state

    def _cross(self, hidden: Tensor, token: Tensor) -> list[Pair]:
        """Each layer's keys and values of the source, whose ``hidden`` [N, D] stand as ``token`` [C, E] says."""
        w, (c, e) = self.weights, token.shape
        n, h, k = len(w.decoder), w.num_heads, w.config.d_model // w.num_heads
        keys, values = hidden.new_empty(n, c, h, k, e), hidden.new_empty(n, c, h, e, k)
        size = -(-w.chunk_tokens // e)
        for start in range(0, c, size):
            span = slice(start, start + size)
            pairs = hidden.index_select(0, token[span].flatten()).to(w.dtype) @ w.cross
            keys_values = pairs.view(-1, e, n, 2, h, k).permute(3, 2, 0, 4, 1, 5)  # [2, L, C', H, E, K]
            keys[:, span], values[:, span] = keys_values[0].transpose(3, 4), keys_values[1]
        return [Pair(*pair) for pair in zip(keys, values, strict=True)]

    def _attend(self, state: Caches, query: Tensor, pair: Pair, mask: Tensor) -> Tensor:
        """What the rows [R, D] find in a pair; ``query`` [C, H, W, K] is in the grid, as is ``mask`` [C, 1, W, E]."""
        c, h, w, k = query.shape
        scores = torch.bmm(query.reshape(c * h, w, k).to(pair.keys.dtype), pair.keys.flatten(0, 1))
        scores.view(c, h, w, -1).add_(mask)
        found = torch.bmm(scores.softmax(-1), pair.values.flatten(0, 1)).view(c, h, w, k)
        return state.in_rows(found.transpose(1, 2).reshape(c * w, h * k))


def _enough(entries: int, numbers: int) -> int:
    """How many entries to keep where ``entries`` are needed, for kernels to be at their best with queries of as
    many ``numbers`` for each head."""
    return -(-max(entries, VECTOR, -(-SMALLEST_PRODUCT // numbers)) // 8) * 8


def _longer(cache: Tensor, axis: int, more: int) -> Tensor:
    """``cache`` with ``more`` zeros at the end of ``axis``. Where they stand is cleared alone, ``pad`` clears all."""
    size = list(cache.shape)
    size[axis] += more
    longer = cache.new_empty(size)
    longer.narrow(axis, 0, cache.shape[axis]).copy_(cache)
    longer.narrow(axis, cache.shape[axis], more).zero_()
    return longer
