"""Step-wise decoding with prepared weights computes what the module computes on whole sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from warmstart.inference.batches import pad, runs
from warmstart.inference.cells import Cells
from warmstart.inference.prepared import Linear, Precision
from warmstart.inference.scorer import Caches, TransformerScorer, _longer
from warmstart.inference.search import SearchConfig, translate_ids
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.module import Transformer

SIZES = {
    "source_vocab_size": 17,
    "target_vocab_size": 17,
    "d_model": 24,
    "num_heads": 3,
    "d_ff": 40,
    "encoder_layers": 2,
    "decoder_layers": 3,
}
VARIANTS = [
    {},
    {"norm": "pre"},
    {"norm": "pre", "normalize_keys": False, "tied_embeddings": "all"},
    {"tied_embeddings": "target", "output_bias": False, "activation": "gelu"},
    {"activation": "swish", "scale_embeddings": False, "decoder_d_ff": 20, "target_vocab_size": 31},
    {"positions": "learned", "max_positions": 4},
    {"layer_norm_epsilon": 0.1, "num_heads": 1, "norm": "pre"},
    {"rms_norm": True},
    {"rms_norm": True, "norm": "pre", "layer_norm_epsilon": 0.1},
]
LENGTHS = [2, 2, 3, 3, 3, 4, 5, 5, 6, 9, 14, 40]


def build(**options: object) -> Transformer:
    """A module none of whose parameters is at a value that would hide a mistake."""
    torch.manual_seed(5)
    model = Transformer(TransformerConfig.model_validate({**SIZES, "dropout": 0.3, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def sources(count: int = len(LENGTHS)) -> list[list[int]]:
    generator = np.random.default_rng(2)
    return [[*generator.integers(2, 17, n - 1).tolist(), 0] for n in LENGTHS[:count]]


class Walk:
    """Random hypotheses fed step by step, as a search would: rows repeat, change places and disappear."""

    def __init__(self, model: Transformer, beam_size: int, precision: Precision = "float32") -> None:
        self.model, self.scorer, self.beam_size = model, TransformerScorer(model, precision), beam_size
        self.random = np.random.default_rng(3)
        self.sources = sources()
        self.state: Caches = self.scorer.start(*pad(self.sources), beam_size)
        self.past: list[tuple[int, list[int]]] = [(i, []) for i in range(len(self.sources))]  # of each row

    def step(self, first: bool = False) -> tuple[Tensor, Tensor]:
        """Logits of the next step, and what the module says."""
        previous = None if first else torch.tensor([ids[-1] for _, ids in self.past])
        logits, self.state = self.scorer.step(self.state, previous)
        source, lengths = pad([self.sources[i] for i, _ in self.past])
        target = torch.tensor([[*ids, 0] for _, ids in self.past])
        return logits.clone(), self.model(source, lengths, target)[:, -1]

    def choose(self, share: float) -> None:
        """Up to ``beam_size`` continuations of the rows of each sentence; a sentence goes on by chance ``share``."""
        rows: list[int] = []
        for sentence in sorted({i for i, _ in self.past}):
            mine = [row for row, (i, _) in enumerate(self.past) if i == sentence]
            if self.random.random() < share or sentence in (0, 7):
                rows += self.random.choice(mine, self.random.integers(1, self.beam_size + 1)).tolist()
        self.past = [(self.past[row][0], [*self.past[row][1], int(self.random.integers(0, 17))]) for row in rows]
        self.state = self.scorer.select(self.state, torch.tensor(rows))


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_steps_are_the_modules(options: dict[str, object], beam_size: int) -> None:
    walk = Walk(build(**options), beam_size)
    counts = []
    with torch.inference_mode():
        for step in range(30):
            found, expected = walk.step(first=step == 0)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            counts.append((len({i for i, _ in walk.past}), *walk.state.own[0].values.shape[:3:2]))
            walk.choose(0.9)
    sentences, cells, entries = zip(*counts, strict=True)
    assert sentences[-1] < 4 < sentences[0]
    assert cells[-1] < cells[0]  # caches of what was dropped are gone, and those of the others have grown
    assert entries[-1] > entries[0]


def test_own_entries_in_use_are_looked_at_and_not_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, next_entry = [], Caches.next_entry

    def spy(state: Caches) -> Tensor:
        mask = next_entry(state)
        seen.append((state.used + state.width, mask.shape[3], state.own[0].values.shape[2]))
        return mask

    monkeypatch.setattr(Caches, "next_entry", spy)
    walk = Walk(build(), 3)
    with torch.inference_mode():
        for step in range(30):
            walk.step(first=step == 0)
            walk.choose(0.9)
    assert all(used <= looked_at <= room for used, looked_at, room in seen)
    assert all(looked_at < used + 8 or looked_at == seen[0][1] for used, looked_at, _ in seen)
    assert any(looked_at < room for _, looked_at, room in seen)


@pytest.mark.parametrize("axis", [2, 3])
def test_longer_caches_end_in_zeros(axis: int) -> None:
    cache = torch.full((2, 3, 4, 5), math.nan)  # what is freed here may be what the longer one is given
    longer = _longer(cache, axis, 7)
    ends = longer.narrow(axis, cache.shape[axis], 7)
    assert longer.narrow(axis, 0, cache.shape[axis]).isnan().all()
    assert (ends == 0).all()
    assert ends.shape[axis] == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_added_in_place(dtype: torch.dtype) -> None:
    weight, bias, x = torch.randn(8, 6, dtype=dtype), torch.randn(6, dtype=dtype), torch.randn(5, 8, dtype=dtype)
    sums = torch.randn(5, 6)
    expected, linear = sums + Linear(weight, bias)(x), Linear(weight, bias)
    assert linear.onto(sums, x) is sums
    torch.testing.assert_close(sums, expected)


def test_short_sentences_share_cells_up_to_four_rows() -> None:
    assert Walk(build(), 1).state.cell.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert Walk(build(), 2).state.cell.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert Walk(build(), 4).state.cell.tolist() == list(range(12))
    assert Walk(build(num_heads=1), 1).state.cell.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("beam_size", [1, 3])
def test_what_shares_a_cell_changes_no_output(beam_size: int) -> None:
    model, config = build(), SearchConfig(beam_size=beam_size, nbest=beam_size, normalize=0.7)
    together = translate_ids([TransformerScorer(model)], sources(), config)
    for source, expected in zip(sources(), together, strict=True):
        (alone,) = translate_ids([TransformerScorer(model)], [source], config)
        assert [h.ids for h in alone] == [h.ids for h in expected]
        assert [h.score for h in alone] == pytest.approx([h.score for h in expected], abs=1e-5)


def test_the_order_of_sources_changes_no_output() -> None:
    scorer, lines = TransformerScorer(build(norm="pre")), sources()
    forwards = translate_ids([scorer], lines, batch_tokens=60)
    assert [h[0].ids for h in translate_ids([scorer], lines[::-1], batch_tokens=60)[::-1]] == [
        h[0].ids for h in forwards
    ]


def test_bfloat16_is_near_and_not_the_same() -> None:
    walk = Walk(build(norm="pre"), 2, "bfloat16")
    with torch.inference_mode():
        for step in range(6):
            found, expected = walk.step(first=step == 0)
            assert found.dtype == torch.float32
            difference = (found - expected).abs().max() / expected.std()
            assert 1e-5 < difference < 0.1
            walk.choose(1.0)


class Doubled(nn.Module):
    """A change of a weight that ``weight`` shows and the stored parameter does not, as an adapter is."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_adapted_weights_are_seen_and_the_module_is_left_as_it_is() -> None:
    model = build().train()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Doubled())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = translate_ids([TransformerScorer(model)], sources())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    merged = translate_ids([TransformerScorer(model)], sources())
    assert [h[0].token_log_probs for h in adapted] == [h[0].token_log_probs for h in merged]
    assert [h[0].token_log_probs for h in adapted] != [
        h[0].token_log_probs for h in translate_ids([TransformerScorer(build())], sources())
    ]


def test_a_scorer_sees_the_weights_of_its_making() -> None:
    model = build()
    old = translate_ids([TransformerScorer(model)], sources())
    with torch.no_grad():
        model.decoder.layers[1].ffn.up.weight.mul_(-1.0)
    new = translate_ids([TransformerScorer(model)], sources())
    assert [h[0].log_prob for h in old] != [h[0].log_prob for h in new]


def test_an_ensemble_may_hold_a_scorer_twice() -> None:
    """The logits of one state are not those of another: here the second state is of other rows' order."""
    model, other = TransformerScorer(build()), TransformerScorer(build(norm="pre"))
    one = translate_ids([model, other, model], sources(), SearchConfig(beam_size=2))
    two = translate_ids([model, model, other], sources(), SearchConfig(beam_size=2))
    for a, b in zip(one, two, strict=True):
        assert a[0].ids == b[0].ids
        assert a[0].token_log_probs == pytest.approx(b[0].token_log_probs, abs=1e-5)


@pytest.mark.parametrize(("room", "most"), [(1, 1), (12, 3), (30, 100), (7, 0)])
def test_cells_hold_every_token_once(room: int, most: int) -> None:
    sizes = np.array([3, 4, 2, 9, 1, 1, 1, 5, 20, 2])
    cells = Cells.pack(sizes, room, most)
    owners, tokens = cells.owners(32), cells.tokens(32)
    assert sorted(tokens[tokens >= 0].tolist()) == list(range(sizes.sum()))
    assert ((owners >= 0) == (tokens >= 0)).all()
    assert (np.repeat(np.arange(len(sizes)), sizes)[tokens[tokens >= 0]] == owners[owners >= 0]).all()
    for cell in range(cells.count):
        inside = np.flatnonzero(cells.cell == cell)
        assert len(inside) == 1 or (len(inside) <= most and sizes[inside].sum() <= room)
    parts = list(cells.split(10))
    assert np.concatenate([part.sizes for part in parts]).tolist() == sizes.tolist()
    assert all(part.first[0] == 0 and (part.sizes.sum() <= 10 or part.count == 1) for part in parts)


def test_runs_number_equal_neighbours() -> None:
    values, number, place = runs(np.array([2, 2, 5, 7, 7, 7]))
    assert (values.tolist(), number.tolist(), place.tolist()) == ([2, 5, 7], [0, 0, 1, 2, 2, 2], [0, 1, 0, 0, 1, 2])
