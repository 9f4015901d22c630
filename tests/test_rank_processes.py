"""Several processes make one training: what a single one would make, also when they are killed or asked to stop."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed import TCPStore

from killing import contents, spawn, write_task
from warmstart.formats.detect import open_checkpoint
from warmstart.storage.locks import holder

TRIALS = max(1, int(os.environ.get("WARMSTART_KILLS", "50")) // 50)
PLAIN = ("model.dropout=0.0", "training.optimizer={type: sgd}", "training.average=null")


class Servant:
    """Trains ``c.yaml`` of the folder ``place`` with several ranks (``rank_server.py``)."""

    def __init__(self, place: Path, poison: int = 0) -> None:
        self.place, self.log = place, (place / "log").open("a")
        self.process = spawn("rank_server.py", place, self.log, poison)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def start(
        self,
        run: str,
        *overrides: str,
        size: int = 2,
        last: Sequence[str] = (),
        port: int | None = None,
        more: Mapping[str, str] | None = None,
    ) -> list[int]:
        """Process numbers; ``last`` are further overrides of the last rank, ``more`` is more of the environment."""
        ranks = [[f"run={run}", *overrides] for _ in range(size)]
        ranks[-1] += last
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        assert self.process.stdin
        self.process.stdin.write(json.dumps([ranks, port, dict(more or {})]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[int]:
        assert self.process.stdout
        return list(json.loads(self.process.stdout.readline()))

    def wait(self) -> list[int]:
        """The statuses of all ranks."""
        return self._answer()

    def train(self, run: str, *overrides: str, **options: Any) -> list[int]:
        self.start(run, *overrides, **options)
        return self.wait()

    def await_start(self, run: str) -> None:
        """Until the ranks have met (then rank 0 holds the run's directory) and have begun to train."""
        until = time.monotonic() + 20.0
        saved = self.place / run / "checkpoints"
        while (holder(self.place / run) is None or not any(saved.glob("step-*"))) and time.monotonic() < until:
            time.sleep(0.005)

    def said(self, since: int = 0) -> str:
        return (self.place / "log").read_text()[since:]


@pytest.fixture(scope="module")
def servant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servant]:
    folder = tmp_path_factory.mktemp("ranks")
    write_task(folder, accumulation=2)
    servant = Servant(folder)
    yield servant
    servant.stop()


@pytest.fixture(scope="module")
def whole(servant: Servant) -> tuple[dict[str, Any], float]:
    """What two ranks write that nobody killed, and the seconds that they took."""
    assert servant.train("warm") == [0, 0], servant.said()
    began = time.perf_counter()
    assert servant.train("whole") == [0, 0]
    return contents(servant.place / "whole"), time.perf_counter() - began


def send(pid: int, number: int) -> None:
    assert pid > 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def test_two_ranks_make_the_updates_of_one_process_that_accumulates(servant: Servant) -> None:
    options = (*PLAIN, "training.accumulation=4")
    assert servant.train("alone", *options, size=1) == [0]
    assert servant.train("together", *options) == [0, 0], servant.said()
    one, two = (
        open_checkpoint(servant.place / run / "checkpoints/step-00000009/model.safetensors")
        for run in ("alone", "together")
    )
    for name in one.entries:
        np.testing.assert_allclose(two.read(name), one.read(name), rtol=1e-5, atol=1e-7)
    alone, together = (contents(servant.place / run)["metrics.jsonl"] for run in ("alone", "together"))
    assert len(alone) == len(together) == 13
    for a, b in zip(alone, together, strict=True):
        assert b.pop("kind") == a.pop("kind")
        assert b == pytest.approx(a, rel=1e-5)


def test_killed_ranks_go_on_bit_for_bit(servant: Servant, whole: Any) -> None:
    expected, seconds = whole
    chance = random.Random(3)
    for trial in range(TRIALS):
        run = f"killed-{trial}"
        killed = 0
        for _ in range(2):
            pids = servant.start(run)
            servant.await_start(run)  # before they have met, whoever started them has to end the others
            time.sleep(0.5 * chance.random() * seconds)
            send(pids[chance.randrange(2)], signal.SIGKILL)  # the other one notices
            statuses = servant.wait()
            killed += -signal.SIGKILL in statuses
            assert set(statuses) <= {0, 1, -signal.SIGKILL}, servant.said()[-2000:]
        assert servant.train(run) == [0, 0]
        assert contents(servant.place / run) == expected, killed


def test_ranks_that_torchrun_starts_again_meet_again(servant: Servant, whole: Any) -> None:
    """``--max-restarts``: torchrun keeps the store where they meet, with what those before have said there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1"}
    for attempt in range(3):
        more = {**agent, "TORCHELASTIC_RESTART_COUNT": str(attempt)}
        pids = servant.start("again", port=store.port, more=more)
        if attempt < 2:
            servant.await_start("again")
            send(pids[attempt], signal.SIGKILL)
        statuses = servant.wait()
    assert statuses == [0, 0], servant.said()[-2000:]
    assert contents(servant.place / "again") == whole[0]


FEATURES = {
    "back and on in another order, one teacher, adapters": {
        "training.nonfinite": {"action": "rewind", "limit": 60},
        "training.distillation": {"teachers": ["whole/model"], "weight": 0.5},
        "training.lora": {"modules": ["**.query", "**.value"], "rank": 2},
    },
    "translations of two teachers, releases at plateaus, back to the best": {
        "training.nonfinite": {"action": "skip", "limit": 60},
        "training.distillation": {"teachers": ["whole/model", "warm/model"], "level": "sequence", "beam_size": 2},
        "training.plateau": {"metric": "validation/loss", "patience": 1, "min_change": 0.3, "reload_best": True},
        "training.groups": [{"stages": ["encoder"], "freeze": {"plateaus": 1}}],
        "training.early_stopping": {"metric": "validation/loss", "patience": 3, "min_change": 0.3},
        "training.steps": 40,
    },
}


@pytest.mark.parametrize("name", FEATURES)
def test_killed_ranks_with_more_features_go_on_bit_for_bit(name: str, servant: Servant, whole: Any) -> None:
    overrides = [f"{key}={json.dumps(value)}" for key, value in FEATURES[name].items()]
    poisoned = Servant(servant.place, poison=5)
    try:
        began = time.perf_counter()
        assert poisoned.train(f"whole {name}", *overrides) == [0, 0], poisoned.said()[-2000:]
        seconds = time.perf_counter() - began
        expected = contents(servant.place / f"whole {name}")
        assert any(file.startswith("nonfinite/") for file in expected)
        chance = random.Random(name)
        for trial in range(TRIALS):
            run = f"killed {trial} {name}"
            for _ in range(2):
                pids = poisoned.start(run, *overrides)
                poisoned.await_start(run)
                time.sleep(0.5 * chance.random() * seconds)
                for rank in chance.choice([(0,), (1,), (0, 1)]):
                    send(pids[rank], signal.SIGKILL)
                assert set(poisoned.wait()) <= {0, 1, -signal.SIGKILL}, poisoned.said()[-2000:]
            assert poisoned.train(run, *overrides) == [0, 0], poisoned.said()[-2000:]
            assert contents(servant.place / run) == expected
    finally:
        poisoned.stop()


def test_a_signal_to_one_rank_stops_all_at_one_step(servant: Servant, whole: Any) -> None:
    for attempt in range(6):  # on a busy machine it may come before the loop or after it
        run, since = f"asked-{attempt}", len(servant.said())
        pids = servant.start(run)
        servant.await_start(run)
        time.sleep(0.01 * attempt)
        send(pids[1], signal.SIGTERM)
        statuses = servant.wait()
        if statuses == [143, 143]:
            assert servant.said(since).count("stopped by SIGTERM") == 1
            break
    assert statuses == [143, 143], servant.said()[-2000:]
    assert servant.train(run) == [0, 0]
    assert contents(servant.place / run)["metrics.jsonl"] == whole[0]["metrics.jsonl"]
    last = "checkpoints/step-00000009/model.safetensors"
    assert contents(servant.place / run)[last] == whole[0][last]


def test_an_error_of_one_rank_ends_all_and_is_said_once(servant: Servant) -> None:
    since = len(servant.said())
    assert servant.train("failing", last=("data.max_length=1",)) == [1, 1]
    said = servant.said(since)
    assert said.count("error") == 1
    assert "error on rank 1: " in said


def test_another_number_of_ranks_is_said_and_marks_the_run(servant: Servant, whole: Any) -> None:
    shutil.copytree(servant.place / "whole", servant.place / "counted")
    since = len(servant.said())
    assert servant.train("counted", "training.steps=10", size=1) == [0]
    assert servant.said(since).count("ranks was 2, is 1") == 1
    state = json.loads((servant.place / "counted/checkpoints/step-00000010/state.json").read_text())
    assert (state["environment"]["ranks"], state["exact"]) == (1, False)
    since = len(servant.said())
    assert servant.train("counted", "training.steps=11", size=3) == [1, 1, 1]
    assert "training.accumulation=3" in servant.said(since)
