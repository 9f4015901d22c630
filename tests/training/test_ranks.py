"""What ranks tell each other, with threads in the place of processes: what is sent is the same, the network is not."""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

from warmstart.errors import ConfigError, StorageError, TrainingError
from warmstart.training import state as checkpoints
from warmstart.training.config import Nonfinite, Patience
from warmstart.training.learner import Learner
from warmstart.training.loop import train
from warmstart.training.ranks import Ranks, alone, buckets, check_share, in_turn, joined
from warmstart.training.terms import Measured

ONE = threading.Lock()


class Network:
    """``torch.distributed`` for one of several threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, sent: dict[int, Any]) -> None:
        self.rank, self.barrier, self.sent = rank, barrier, sent

    def _exchange(self, value: Any) -> list[Any]:
        self.sent[self.rank] = value
        self.barrier.wait()
        values = [self.sent[rank] for rank in range(self.barrier.parties)]
        self.barrier.wait()
        return values

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor.copy_(torch.stack(self._exchange(tensor.clone())).sum(0))

    def broadcast_object_list(self, box: list[Any], source: int, device: Any) -> None:
        box[0] = pickle.loads(pickle.dumps(self._exchange(box[0])[source]))

    def all_gather_object(self, values: list[Any], value: Any) -> None:
        values[:] = pickle.loads(pickle.dumps(self._exchange(value)))


def together(work: Callable[[Ranks], Any], size: int = 2) -> list[Any]:
    """What ``work`` returned on each rank, or the exception that it ended with."""
    barrier, sent, store = threading.Barrier(size, timeout=30), {}, HashStore()  # type: ignore[var-annotated]
    results: list[Any] = [None] * size

    def go(rank: int) -> None:
        ranks = Ranks(rank, size, Network(rank, barrier, sent), store)
        try:
            results[rank] = work(ranks)
        except Exception as error:
            ranks.failed(error)
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_sums_and_values_are_those_of_all_ranks() -> None:
    def work(ranks: Ranks) -> Any:
        r = ranks.rank
        asked = ranks.signal(signal.SIGINT if r == 1 else None), ranks.signal([signal.SIGTERM, signal.SIGINT, None][r])
        return ranks.sum([r, 0.5]), ranks.share(f"of {r}"), ranks.gather({r}), asked, ranks.signal(None)

    asked = (signal.SIGINT, signal.SIGTERM)
    assert together(work, 3) == [([3.0, 1.5], "of 0", [{0}, {1}, {2}], asked, None)] * 3
    one = Ranks()
    assert (one.sum([2.0]), one.share(1), one.gather(1), one.signal(signal.SIGINT)) == ([2.0], 1, [1], signal.SIGINT)


def test_gradients_are_summed_and_one_that_no_rank_has_stays_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.training.ranks.BUCKET", 7)

    def work(ranks: Ranks) -> Any:
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (5,), (1, 2), (3,))]
        parameters[4].requires_grad_(False)
        parameters[0].grad = torch.arange(6.0).view(3, 2).t() * (1 + ranks.rank)  # not contiguous
        if ranks.rank == 1:
            parameters[1].grad = torch.ones(4)
        parameters[3].grad = torch.full((1, 2), float(ranks.rank))
        ranks.sum_gradients(parameters)
        return [None if p.grad is None else p.grad.tolist() for p in parameters]

    expected = (torch.arange(6.0).view(3, 2).t() * 3).tolist()
    assert together(work) == [[expected, [1.0] * 4, None, [[1.0, 1.0]], None]] * 2


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([], []), ([9], [(0, 1)]), ([3, 4, 1, 9, 2], [(0, 2), (2, 3), (3, 4), (4, 5)]), ([1, 1, 1], [(0, 3)])],
)
def test_buckets_hold_whole_gradients(sizes: list[int], expected: list[tuple[int, int]]) -> None:
    assert buckets(sizes, 7) == expected


def test_other_weights_are_noticed_to_the_last_bit() -> None:
    def work(ranks: Ranks, last: float = 1.0) -> None:
        ranks.require_same([torch.ones(3), torch.tensor([1.0, last])], "step 7")

    assert together(work, 3) == [None] * 3
    found = together(lambda ranks: work(ranks, 1.0 if ranks.rank != 2 else 1.0 + 2**-23), 3)
    assert all(isinstance(error, TrainingError) for error in found)
    assert "rank 2 differ from those of rank 0" in str(found[0])


def test_the_first_error_is_said_with_its_rank_and_the_others_are_silent() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise StorageError("no space is left")
        ranks.wait()

    first, second, third = together(work, 3)
    assert (second.rank, second.elsewhere) == (1, False)
    assert isinstance(first, TrainingError)
    assert first.elsewhere
    assert third.elsewhere
    assert "rank 1: no space is left" in str(first)


def test_a_rank_that_ends_without_a_word_is_an_error_of_those_left() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            ranks._network.barrier.abort()
            return
        ranks.wait()

    error, ended = together(work)
    assert ended is None
    assert "ended without saying why" in str(error)
    assert (error.rank, error.elsewhere) == (0, False)


def test_rank_0_makes_first_what_is_kept_on_disk(tmp_path: Path) -> None:
    def make(ranks: Ranks) -> str:
        if ranks.first:
            (tmp_path / "kept").write_text("by 0")
        return (tmp_path / "kept").read_text()

    assert together(lambda ranks: in_turn(ranks, lambda: make(ranks)), 3) == ["by 0"] * 3


def test_what_several_processes_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    check_share(6, 3)
    with pytest.raises(ConfigError, match=r"training\.accumulation=8"):
        check_share(6, 4)
    alone("anything", "nothing")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="MASTER_ADDR, MASTER_PORT, RANK not set"), joined():
        pass
    with pytest.raises(ConfigError, match="takes one process"):
        alone("trying a training", "do it in one")


# --- the loop -------------------------------------------------------------------------------------------------------


def evaluate(model: nn.Module, step: int) -> Measured:
    return Measured({"validation/loss": abs(step - 3.9)}, [{"task": "t", "output": str(step)}])


class Dealing:
    """The stream of these tests, dealt out."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def reordered(self, order: int) -> Dealing:
        return Dealing(self.stream.reordered(order))

    def iterate(self, position: Any) -> Any:
        return self.stream.iterate(position)

    def deal(self, position: Any, rank: int, size: int) -> Any:
        for n, (after, batch) in enumerate(self.stream.iterate(position)):
            yield after, batch if n % size == rank else None


def go(run: Path, build: Any, stream: Any, config: Any, ranks: Ranks, objective: Any = None) -> Any:
    with ONE:  # threads share torch's random numbers, and so this model has no dropout
        learner = Learner(build(dropout=0.0), config, 5, ranks=ranks)
    if objective is not None:
        learner.objective = objective(learner.objective)
    result = train(run, learner, Dealing(stream()), seed=5, evaluate=evaluate, describe=describe, progress=False)
    return result, learner


def describe(batch: Any) -> list[dict[str, Any]]:
    return [{"index": int(i)} for i in batch.indices]


class Poisoned:
    """An objective that is no number on batches with a sum of ids in ``bad``."""

    def __init__(self, objective: Any, bad: set[int]) -> None:
        self.objective, self.bad = objective, bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        loss = self.objective(model, batch)
        if int(batch.source.sum()) * 1000 + int(batch.target.sum()) in self.bad:
            object.__setattr__(loss, "loss", loss.loss * float("nan"))
        return loss


@pytest.mark.parametrize("action", ["skip", "rewind"])
def test_not_finite_on_one_rank_is_decided_by_all_as_one_process_would(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config, action: Any
) -> None:
    batch = next(b for n, (_, b) in enumerate(stream().iterate(checkpoints.Position())) if n == 5)
    bad = {int(batch.source.sum()) * 1000 + int(batch.target.sum())}  # of rank 1
    config = config.model_copy(
        update={"nonfinite": Nonfinite(action=action, limit=3), "log_every": 1, "accumulation": 4}
    )

    def poisoned(objective: Any) -> Poisoned:
        return Poisoned(objective, bad)

    alone, one = go(tmp_path / "one", build, stream, config, Ranks(), poisoned)
    found = together(lambda ranks: go(tmp_path / "two", build, stream, config, ranks, poisoned))
    for result, learner in found:
        assert result.steps == alone.steps
        for a, b in zip(learner.model.parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for record, expected in zip(found[1][0].history, alone.history, strict=True):
        assert record["kind"] == expected["kind"]
        assert record.get("train/skipped") == expected.get("train/skipped")
    names = sorted(p.name for p in (tmp_path / "one/nonfinite").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two/nonfinite").iterdir())
    texts = [(tmp_path / run / "nonfinite" / names[0]).read_text() for run in ("one", "two")]
    assert texts[0] == texts[1]  # all four batches, in their order
    states = [checkpoints.latest(tmp_path / run) for run in ("one", "two")]
    one_state, two_state = (checkpoints.read_state(path) for path in states if path)
    assert (one_state.skipped, one_state.order) == (two_state.skipped, two_state.order) != (0, 0)


def test_early_stopping_is_agreed_and_rank_0_alone_evaluates_and_writes(  # type: ignore[no-untyped-def]
    tmp_path: Path, build, stream, config
) -> None:
    config = config.model_copy(update={"early_stopping": Patience(patience=1), "evaluate_every": 1, "steps": 9})
    found = together(lambda ranks: go(tmp_path / "run", build, stream, config, ranks))
    assert [result.stopped for result, _ in found] == ["validation/loss has not improved for 1 evaluations"] * 2
    assert [result.steps for result, _ in found] == [5, 5]
    assert found[0][0].history == found[1][0].history
    assert len((tmp_path / "run/samples.jsonl").read_text().splitlines()) == 6
