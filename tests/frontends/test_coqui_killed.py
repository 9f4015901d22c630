"""``warmstart stt train``, killed at any operation on the disk, leaves what Coqui could load, and goes on exactly."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import coqui_models
import tone_speech
from killing import Server, contents
from warmstart.bundle.model import open_model
from warmstart.formats.tensorflow.states import named

pytest.importorskip("torch")
pytest.importorskip("soundfile")

KILLS = max(10, int(os.environ.get("WARMSTART_KILLS", "50")) // 5)
FLAGS = "--train_files train.csv --dev_files dev.csv --train_batch_size 4 --epochs 4 --max_to_keep 2 "
FLAGS += "--skip_batch_test true --show_progressbar false --dropout_rate 0.2"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for number, (name, count) in enumerate({"train": 12, "dev": 4}.items()):
        tone_speech.write_list(tmp_path, name, tone_speech.words("abcdef", count, number), number)
    server = Server(tmp_path)
    yield server
    server.stop()


def prepared(folder: Path) -> list[str]:
    """Flags of a training that begins and ends in ``folder``."""
    coqui_models.trained(folder)
    return [*FLAGS.split(), "--checkpoint_dir", folder.name]


def train(server: Server, flags: list[str], operation: int = 0) -> int:
    server.ask("stt", flags, operation)
    return server.wait()


def for_coqui(folder: Path) -> dict[str, bytes]:
    """What Coqui itself would look at."""
    flags = json.loads((folder / "flags.txt").read_text())
    places = {"checkpoint_dir", "load_checkpoint_dir", "save_checkpoint_dir"}
    names = [f for pattern in ("train-*", "best_dev*", "checkpoint", "alphabet.txt") for f in folder.glob(pattern)]
    found = {file.name: file.read_bytes() for file in names}
    return found | {"flags": json.dumps({k: v for k, v in flags.items() if k not in places}).encode()}


def check_whole(folder: Path) -> None:
    """Every checkpoint that is visible is complete, and so is every one that a state file names."""
    for state in ("checkpoint", "best_dev_checkpoint"):
        if (folder / state).is_file():
            assert named(folder / state).with_name(f"{named(folder / state).name}.index").is_file()
    for index in folder.glob("*-*.index"):
        model = open_model(f"{folder}@{index.stem}")
        for name in model.checkpoint.entries:
            model.checkpoint.verify(name)


def test_killed_at_any_operation(server: Server, tmp_path: Path) -> None:
    whole = prepared(tmp_path / "whole")
    assert train(server, whole, operation=-1) == 0, (tmp_path / "log").read_text()
    operations = int((tmp_path / "operations").read_text())
    expected, expected_of_coqui = contents(tmp_path / "whole"), for_coqui(tmp_path / "whole")
    assert {file.stem for file in (tmp_path / "whole").glob("*-*.index")} >= {"train-21", "train-24", "best_dev-12"}
    chance = random.Random(1)
    killed, left = 0, set[str]()
    for trial in range(KILLS):
        folder = tmp_path / f"cut-{trial}"
        flags = prepared(folder)
        status = train(server, flags, operation=chance.randint(1, operations))
        check_whole(folder)
        killed += status == -signal.SIGKILL
        left |= {file.stem for file in folder.glob("train-*.index") if not (folder / "model").exists()}
        if status:
            assert train(server, flags) == 0, (tmp_path / "log").read_text()[-2000:]
        check_whole(folder)
        assert contents(folder) == expected, folder
        assert for_coqui(folder) == expected_of_coqui, folder
        assert list(folder.glob(".coqui*")) == []
        shutil.rmtree(folder)
    assert killed > KILLS // 2
    assert {"train-15", "train-18"} <= left
