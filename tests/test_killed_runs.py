"""A run that is killed at any moment ends bit-equal to one that never was.

``WARMSTART_KILLS`` sets the number of random moments: 50 by default, 200 in the nightly suite.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from killing import Server, contents, write_task

KILLS = int(os.environ.get("WARMSTART_KILLS", "50"))
GROUPS = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_task(folder)
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    server = Server(place)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def whole(server: Server, place: Path) -> tuple[dict[str, Any], float, int]:
    """What a run that nobody killed holds, the seconds that it took, and its operations on the disk."""
    assert server.train("warm") == 0, (place / "log").read_text()
    began = time.perf_counter()
    assert server.train("whole", operation=-1) == 0
    return contents(place / "whole"), time.perf_counter() - began, int((place / "operations").read_text())


@pytest.mark.parametrize("group", range(GROUPS))
def test_killed_at_random_moments(group: int, server: Server, place: Path, whole: Any) -> None:
    expected, seconds, operations = whole
    chance = random.Random(group)
    for trial in range(KILLS // GROUPS):
        run = f"cut-{group}-{trial}"
        kills = 0
        while True:
            by_time = chance.random() < 0.5
            if kills == 3:  # enough; let it end
                assert server.train(run) == 0
                break
            if by_time:
                pid = server.start(run)
                time.sleep(chance.random() * seconds)
                status = server.kill(pid, signal.SIGKILL)
            else:
                status = server.train(run, operation=chance.randint(1, operations))
            assert status in (0, -signal.SIGKILL), (place / "log").read_text()[-2000:]
            kills += 1
            if status == 0:
                break
        assert contents(place / run) == expected, (run, kills)


def test_asked_to_stop_it_saves_and_says_so(server: Server, place: Path, whole: Any) -> None:
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stops, fresh = 0, 0
        for attempt in range(40):  # on a busy machine the signal may come before the loop or after it
            run = f"asked-{status}-{fresh}"
            pid = server.start(run)
            time.sleep((0.3 + 0.2 * (attempt % 4) + attempt / 10) * whole[1])
            ended = server.kill(pid, number)
            stops += ended == status
            if stops == 3 or (ended == 0 and stops):
                break
            fresh += ended == 0
        server.train(run)
        assert stops, "it was never stopped in its loop"
        # a checkpoint where it stopped may push out another: what was trained is the same
        for name in ("step-00000009/model.safetensors", "step-00000009/optimizer.safetensors"):
            assert (place / run / "checkpoints" / name).read_bytes() == (
                place / "whole/checkpoints" / name
            ).read_bytes()
        assert contents(place / run)["metrics.jsonl"] == whole[0]["metrics.jsonl"]
        assert contents(place / run)["samples.jsonl"] == whole[0]["samples.jsonl"]
