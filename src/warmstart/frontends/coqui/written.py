"""TensorFlow checkpoints of a run, as Coqui STT leaves them: ``best_dev-N``, ``train-N``, and what names them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.bundle.model import Model, open_model, open_run_checkpoint
from warmstart.export.convert import write_in_dialect
from warmstart.formats.tensorflow import write_state
from warmstart.frontends.coqui.flags import Flags
from warmstart.frontends.coqui.places import STATE_FILES
from warmstart.models.deepspeech.dialects.checkpoint import ALPHABET, folder_of
from warmstart.models.deepspeech.dialects.flags import NAME
from warmstart.storage import atomic
from warmstart.training.state import checkpoint_path, read_state, saved_steps

SOURCE = "source-of-run"
_TEMPORARY = ".coqui"


@dataclass(frozen=True)
class Mirror:
    """Keeps a run's checkpoints also as Coqui's, beside it: the latest ``--max_to_keep`` as ``train-N``, the best as
    ``best_dev-N``, with Adam's state, ``flags.txt`` and ``alphabet.txt``.

    Called with each checkpoint that is complete. A TensorFlow checkpoint is complete or has no index; the state files
    are written last, so that what they named before is found until then. What was in the directory before the run
    began is left there.
    """

    flags: Flags

    def __call__(self, model: Model, start: int) -> None:
        """Take over the checkpoint ``model`` of a run that began at step ``start``.

        Raises:
            WarmstartError: it cannot be written.
        """
        run, step = model.path, int(model.state["step"])
        if step == start:  # Coqui has none before the first update
            return
        mine = [number for number in saved_steps(run) if number != start]
        kept = mine[-self.flags["max_to_keep"] :]
        best = next((int(one["step"]) for one in model.state["best"]), None)
        temporary = run / _TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            self._write(model, run / f"train-{step}", temporary)
            if best is not None and not _is_written(run, best):
                of_best = checkpoint_path(run, best)
                if best != step:
                    family, config, _ = model.require()
                    model = open_run_checkpoint(of_best, family, config, model.vocabularies)
                self._write(model, run / f"best_dev-{best}", temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        named = [f"train-{number}" for number in kept if (run / f"train-{number}.index").is_file()]
        write_state(run / STATE_FILES["last"], named[-1], named[:-1])
        if best is not None:
            write_state(run / STATE_FILES["best"], f"best_dev-{best}")
        for number in mine:
            if number not in kept:
                _remove(run, f"train-{number}")
            if number != best:
                _remove(run, f"best_dev-{number}")

    def _write(self, model: Model, prefix: Path, temporary: Path) -> None:
        """The files of ``model`` under the name ``prefix``, and what stands beside them."""
        temporary.mkdir(exist_ok=True)
        write_in_dialect(model, temporary, "coqui")
        known: dict[str, Any] = json.loads((temporary / NAME).read_text("utf-8"))
        atomic.write_text(prefix.parent / NAME, json.dumps({**self.flags.values, **known}, indent=2))
        if (temporary / ALPHABET).is_file():
            atomic.write_text(prefix.parent / ALPHABET, (temporary / ALPHABET).read_text("utf-8"))
        _remove(prefix.parent, prefix.name)
        files = sorted(temporary.glob("*-*.*"), key=lambda file: file.suffix == ".index")  # the index last
        for file in files:
            file.replace(prefix.parent / f"{prefix.name}.{file.name.partition('.')[2]}")


def _is_written(run: Path, best: int) -> bool:
    """Whether ``best_dev-N`` is of this run's checkpoint: another may have had the name before."""
    index, state = run / f"best_dev-{best}.index", checkpoint_path(run, best) / "state.json"
    return index.is_file() and index.stat().st_mtime_ns >= state.stat().st_mtime_ns


def _remove(folder: Path, prefix: str) -> None:
    """A TensorFlow checkpoint; its index first, without which it is none."""
    for file in sorted(folder.glob(f"{prefix}.*"), key=lambda file: file.suffix != ".index"):
        file.unlink(missing_ok=True)


def describe(run: Path) -> list[str]:
    """A line about each of the checkpoints that are there for Coqui in the end."""
    state = read_state(checkpoint_path(run, saved_steps(run)[-1]))
    found = {"best": f"best_dev-{state.best[0].step}"} if state.best else {}
    found["last"] = f"train-{state.step}"
    return [f"{run / name}: the {role} checkpoint, for TensorFlow" for role, name in found.items()]


def set_aside(source: str, save: Path) -> str:
    """A copy of the checkpoint ``source``, which lies in ``save`` itself, where the run cannot change it.

    Flags and alphabet of the directory will be the run's, but a run that goes on opens its source as it was.
    Raises ``StorageError``.
    """
    checkpoint = open_model(source).checkpoint
    with atomic.new_directory(save / SOURCE, force=True) as folder:
        for file in checkpoint.files:
            shutil.copyfile(folder_of(checkpoint) / file, folder / Path(file).name)
    name = next(Path(file).stem for file in checkpoint.files if Path(file).suffix == ".index")
    return f"{save / SOURCE}@{name}"
