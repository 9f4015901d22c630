"""Search on tables of probabilities that can be worked out by hand, and against exhaustive search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from warmstart.errors import ConfigError, WarmstartError
from warmstart.inference.batches import length_sorted
from warmstart.inference.score import score_ids
from warmstart.inference.scorer import TransformerScorer
from warmstart.inference.search import Hypothesis, SearchConfig, _best_tokens, translate_ids
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer


class Table:
    """A scorer whose next token depends on the previous one: ``rows[previous]`` are probabilities (those of
    ``rows[step][previous]`` where the table is of three axes). The state is (rows, step)."""

    def __init__(self, rows: list[list[float]] | list[list[list[float]]]) -> None:
        self.log_probs = torch.tensor(rows).log()
        self.rows_seen: list[int] = []
        self.selections = 0

    def start(self, source: Tensor, lengths: Tensor, beam_size: int) -> tuple[int, int]:
        return len(source), 0

    def step(self, state: tuple[int, int], previous: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        count, step = state
        previous = torch.zeros(count, dtype=torch.int64) if previous is None else previous
        assert len(previous) == count
        self.rows_seen.append(count)
        table = self.log_probs if self.log_probs.ndim == 2 else self.log_probs[step]
        return table[previous], (count, step + 1)

    def select(self, state: tuple[int, int], rows: Tensor) -> tuple[int, int]:
        self.selections += 1
        return len(rows), state[1]


# </s> <unk> a b: after the start a .5, b .4; after a </s> .4; after b </s> .9
ROWS = [[0.02, 0.08, 0.5, 0.4], [1.0, 0.0, 0.0, 0.0], [0.4, 0.2, 0.2, 0.2], [0.9, 0.04, 0.03, 0.03]]


def search(rows: list[list[float]] = ROWS, length: int = 4, **settings: object) -> list[Hypothesis]:
    config = SearchConfig.model_validate(settings)
    return translate_ids([Table(rows)], [[3] * (length - 1) + [0]], config)[0]


def test_greedy_takes_the_best_token_and_a_beam_the_best_sequence() -> None:
    greedy, beam = search()[0], search(beam_size=2)[0]
    assert (greedy.ids, greedy.log_prob) == ((2,), pytest.approx(math.log(0.5 * 0.4)))
    assert (beam.ids, beam.log_prob) == ((3,), pytest.approx(math.log(0.4 * 0.9)))
    assert beam.token_log_probs == pytest.approx([math.log(0.4), math.log(0.9)])


def test_a_finished_hypothesis_leaves_its_place_empty() -> None:
    """With a beam of 2, both first tokens live, then b ends and only one hypothesis goes on."""
    table = Table(ROWS)
    found = translate_ids([table], [[3, 3, 3, 0]], SearchConfig(beam_size=2, nbest=2))[0]
    assert [h.ids for h in found] == [(3,), (2,)]
    assert table.rows_seen == [1, 2]


def test_the_beam_narrows_one_by_one() -> None:
    """Ends at steps 1, 2 and 3 leave 2, 1 and 0 places of a beam of 3."""
    rows = [[0.3, 0.1, 0.4, 0.2], [1.0, 0.0, 0.0, 0.0], [0.2, 0.1, 0.1, 0.6], [0.7, 0.1, 0.1, 0.1]]
    table = Table(rows)
    found = translate_ids([table], [[3, 3, 3, 0]], SearchConfig(beam_size=3, nbest=3))[0]
    assert table.rows_seen == [1, 2, 1]  # step 2 keeps a·b (.24) and b·</s> (.14)
    assert [h.ids for h in found] == [(), (2, 3), (3,)]
    assert [math.exp(h.log_prob) for h in found] == pytest.approx([0.3, 0.4 * 0.6 * 0.7, 0.2 * 0.7])


def test_score_counts_the_end_token_in_the_length() -> None:
    best = search(beam_size=2, normalize=0.6, word_penalty=0.25)[0]
    assert best.ids == (3,)
    assert best.score == pytest.approx((math.log(0.4 * 0.9) - 0.25 * 2) / 2**0.6)


def test_unknown_is_never_put_out_unless_allowed() -> None:
    rows = [[0.1, 0.8, 0.05, 0.05], [0.9, 0.05, 0.03, 0.02], [1.0, 0, 0, 0], [1.0, 0, 0, 0]]
    assert search(rows)[0].ids == ()
    assert search(rows, allow_unk=True)[0].ids == (1,)


def test_the_limit_of_length_ends_all_hypotheses() -> None:
    rows = [[0.01, 0.01, 0.5, 0.48]] * 4
    for length, factor, tokens in [(2, 3.0, 6), (3, 1.5, 5), (2, 0.25, 1)]:
        found = search(rows, length, max_length_factor=factor, beam_size=2, nbest=2)
        assert [len(h.ids) for h in found] == [tokens, tokens]
        assert len(found[0].token_log_probs) == tokens
        assert found[0].score == pytest.approx(tokens * math.log(0.5), abs=1e-4)


def test_the_limit_is_each_sentences_own() -> None:
    rows = [[0.01, 0.01, 0.5, 0.48]] * 4
    found = translate_ids([Table(rows)], [[2, 0], [2, 2, 2, 0], [2, 2, 0]], SearchConfig())
    assert [len(nbest[0].ids) for nbest in found] == [6, 12, 9]


def by_the_book(
    rows: list[list[list[float]]], limit: int, beam: int, alpha: float
) -> list[tuple[tuple[int, ...], float]]:
    """Marian's search written the plain way: every continuation of every hypothesis, sorted."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    finished = []
    for length in range(1, limit + 1):
        grown = [
            ((*ids, token), total + math.log(p))
            for ids, total in live
            for token, p in enumerate(rows[length - 1][ids[-1] if ids else 0])
            if token != 1
        ]
        grown = sorted(grown, key=lambda pair: -pair[1])[:beam]
        ends = [pair for pair in grown if pair[0][-1] == 0 or length == limit]
        finished += [(tuple(t for t in ids if t), total / length**alpha) for ids, total in ends]
        live = [pair for pair in grown if pair not in ends]
        beam = len(live)
    return sorted(finished, key=lambda pair: -pair[1])


@pytest.mark.parametrize("seed", range(20))
def test_search_is_the_one_by_the_book(seed: int) -> None:
    """Random tables, another at each step so that no products tie; one batch of several lengths; beams
    up to and beyond the vocabulary."""
    torch.manual_seed(seed)
    rows = torch.softmax(2 * torch.randn(10, 6, 6, dtype=torch.float64), -1).tolist()
    beam, alpha, lengths = 1 + seed % 8, 0.3 * (seed % 4), [2, 3, 5]
    config = SearchConfig(beam_size=beam, nbest=beam, normalize=alpha, max_length_factor=2.0)
    found = translate_ids([Table(rows)], [[3] * (length - 1) + [0] for length in lengths], config)
    for length, nbest in zip(lengths, found, strict=True):
        expected = by_the_book(rows, 2 * length, beam, alpha)
        assert [h.ids for h in nbest] == [ids for ids, _ in expected]
        assert [h.score for h in nbest] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("penalty", [0.0, 0.4, -0.4])
def test_stopping_early_loses_no_output(seed: int, penalty: float) -> None:
    """The best of a beam are those of the beam searched to its end, which is what as many as it is wide need."""
    torch.manual_seed(seed)
    rows = torch.softmax(2 * torch.randn(10, 6, 6, dtype=torch.float64), -1).tolist()
    steps = []
    for nbest in (1, 2, 4):
        table = Table(rows)
        config = SearchConfig(
            beam_size=4, nbest=nbest, normalize=0.4 * (seed % 4), word_penalty=penalty, max_length_factor=2.0
        )
        found = translate_ids([table], [[3] * (length - 1) + [0] for length in (2, 3, 5)], config)
        steps.append((len(table.rows_seen), [[(h.ids, h.score, h.token_log_probs) for h in best] for best in found]))
    (_, one), (_, two), (_, four) = steps
    assert one == [best[:1] for best in four]
    assert two == [best[:2] for best in four]
    assert steps[0][0] <= steps[1][0] <= steps[2][0]


def test_search_stops_when_no_hypothesis_can_win() -> None:
    """Without normalisation, what is worse than an ended hypothesis stays so; with it, it may be better per token."""
    rows = [[0.6, 0.0, 0.4, 0.0], [0.0] * 4, [0.01, 0.0, 0.99, 0.0], [0.25] * 4]
    for normalize, steps, ids in [(0.0, 1, ()), (1.0, 12, (2,) * 12)]:
        table = Table(rows)
        found = translate_ids([table], [[3, 3, 3, 0]], SearchConfig(beam_size=2, normalize=normalize))
        assert len(table.rows_seen) == steps
        assert found[0][0].ids == ids


@pytest.mark.parametrize("size", [5, 4096, 4097, 9000])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_best_tokens_are_those_of_the_sorted_sum(size: int, count: int) -> None:
    torch.manual_seed(size)
    logits = [3 * torch.randn(7, size), torch.randn(7, size)]
    logits[0][:, -1] = 20.0  # the last columns stand beside the groups
    logits[1][3] -= 5.0
    total = sum(torch.log_softmax(x.double(), -1) for x in logits)
    total[:, 2] = -math.inf
    values, tokens = total.sort(-1, descending=True)
    best, found = _best_tokens(logits, count, 2)
    assert best.shape == found.shape == (7, min(count, size))
    real = np.isfinite(best)
    assert real.sum() == 7 * min(count, size - 1)
    assert (found[real] == tokens[:, : best.shape[1]].numpy()[real]).all()
    np.testing.assert_allclose(best[real], values[:, : best.shape[1]].numpy()[real], rtol=1e-5)


def test_greedy_reorders_nothing_and_drops_finished_sentences() -> None:
    table = Table([[0.01, 0.01, 0.5, 0.48]] * 4)
    translate_ids([table], [[2, 0], [2, 0]], SearchConfig())
    assert table.selections == 0
    table = Table([[0.01, 0.01, 0.5, 0.48]] * 4)
    translate_ids([table], [[2, 0], [2, 2, 0]], SearchConfig(max_length_factor=1.0))
    assert table.rows_seen == [2, 2, 1]
    assert table.selections == 1


def test_an_empty_source_has_one_empty_output() -> None:
    found = translate_ids([Table(ROWS)], [[0], [3, 0], [0]], SearchConfig(beam_size=2))
    assert found[0] == found[2] == [Hypothesis((), 0.0, 0.0, (0.0,))]
    assert found[1][0].ids == (3,)
    assert translate_ids([Table(ROWS)], []) == []


def test_bad_ensembles_are_said() -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        translate_ids([], [[3, 0]])
    smaller = Table([[0.5, 0.2, 0.3]] * 3)
    with pytest.raises(ConfigError, match="target vocabularies") as error:
        translate_ids([Table(ROWS), smaller], [[3, 0]])
    assert (error.value.expected, error.value.found) == ("4 tokens", "3 tokens in model 2")


def test_weights_that_are_not_numbers_are_said() -> None:
    with pytest.raises(WarmstartError, match="no token a finite score"):
        search([[math.nan] * 4] * 4, beam_size=2)


def test_nbest_beyond_the_beam_is_refused() -> None:
    with pytest.raises(ValueError, match="more than beam_size"):
        SearchConfig(beam_size=2, nbest=3)


def test_batches_hold_every_index_once_within_the_budget() -> None:
    lengths = [5, 1, 9, 3, 3, 40, 2]
    batches = list(length_sorted(lengths, 12))
    assert sorted(itertools.chain(*batches)) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 12 for b in batches)
    assert batches[0] == [5]  # the longest, so that what is left over is short


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(3)
    sizes = {"source_vocab_size": 11, "target_vocab_size": 13, "d_model": 16, "num_heads": 4, "d_ff": 24}
    return Transformer(TransformerConfig.model_validate({**sizes, "encoder_layers": 2, "decoder_layers": 2}))


SOURCES = [[3, 4, 5, 0], [6, 0], [2, 9, 8, 7, 5, 0], [10, 3, 0]]


def test_search_and_scoring_agree(model: Transformer) -> None:
    """What search says of its outputs is what teacher forcing says: the caches follow the hypotheses."""
    found = translate_ids([TransformerScorer(model)], SOURCES, SearchConfig(beam_size=5, nbest=5))
    pairs = [(source, h) for source, nbest in zip(SOURCES, found, strict=True) for h in nbest]
    assert len(pairs) == 20
    targets = [[*h.ids, 0][: len(h.token_log_probs)] for _, h in pairs]
    scores = score_ids(model, [source for source, _ in pairs], targets, batch_tokens=30)
    for (_, hypothesis), score in zip(pairs, scores, strict=True):
        assert hypothesis.token_log_probs == pytest.approx(score, abs=1e-5)
        assert hypothesis.log_prob == pytest.approx(sum(score), abs=1e-4)


def test_scoring_uses_no_dropout_and_keeps_the_mode(model: Transformer) -> None:
    targets = [[4, 0], [5, 6, 7, 0], [0], [2, 3, 0]]
    model.train()
    first = score_ids(model, SOURCES, targets)
    assert model.training
    model.eval()
    assert score_ids(model, SOURCES, targets) == first
    assert not model.training
    assert [len(score) for score in first] == [2, 4, 1, 3]


def test_scores_depend_on_no_batch(model: Transformer) -> None:
    targets = [[4, 0], [5, 6, 7, 0], [0], [2, 3, 0]]
    together = score_ids(model, SOURCES, targets)
    for source, target, score in zip(SOURCES, targets, together, strict=True):
        assert score_ids(model, [source], [target])[0] == pytest.approx(score, abs=1e-5)
