"""TensorFlow checkpoints of a run, as Coqui STT leaves them: ``best_dev-N``, ``train-N``, and what names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from warmstart.bundle.model import Model, open_model, open_run_checkpoint
from warmstart.export.convert import write_in_dialect
from warmstart.formats.tensorflow import write_state
from warmstart.frontends.coqui.flags import Flags
from warmstart.frontends.coqui.places import STATE_FILES
from warmstart.lean import dataclass
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

    Called with each checkpoint that is complete; what a process that was killed did not come to is made up for. A
    TensorFlow checkpoint is complete or has no index; the state files are written last, so that what they named before
    is found until then. What was in the directory before the run began is left there.
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
        latest = [f"train-{number}" for number in kept]
        wanted = dict(zip(latest, kept, strict=True)) | ({} if best is None else {f"best_dev-{best}": best})
        shutil.rmtree(run / _TEMPORARY, ignore_errors=True)  # of a process that was killed
        for name, number in wanted.items():
            if not _is_written(run, name, number):
                self._write(model if number == step else _of_step(model, number), run / name)
        shutil.rmtree(run / _TEMPORARY, ignore_errors=True)
        write_state(run / STATE_FILES["last"], latest[-1], latest[:-1])
        if best is not None:
            write_state(run / STATE_FILES["best"], f"best_dev-{best}")
        for number in mine:
            if number not in kept:
                _remove(run, f"train-{number}")
            if number != best:
                _remove(run, f"best_dev-{number}")

    def _write(self, model: Model, prefix: Path) -> None:
        """The files of ``model`` under the name ``prefix``, and what stands beside them."""
        run, temporary = prefix.parent, prefix.parent / _TEMPORARY / prefix.name
        with atomic.new_directory(temporary) as folder:
            write_in_dialect(model, folder, "coqui", optimizer={"learning_rate": self._rate(model)})
        known: dict[str, Any] = json.loads((temporary / NAME).read_text("utf-8"))
        atomic.write_text(run / NAME, json.dumps({**self.flags.values, **known}, indent=2))
        if (temporary / ALPHABET).is_file():
            atomic.write_text(run / ALPHABET, (temporary / ALPHABET).read_text("utf-8"))
        _remove(run, prefix.name)
        for file in sorted(temporary.glob("*-*.*"), key=lambda file: file.suffix == ".index"):  # the index last
            file.replace(run / f"{prefix.name}.{file.name.partition('.')[2]}")

    def _rate(self, model: Model) -> float:
        """The learning rate after ``model``: each plateau has reduced it."""
        plateaus = model.state.get("plateau", {}).get("plateaus", 0)
        return float(self.flags["learning_rate"] * self.flags["plateau_reduction"] ** plateaus)


def _of_step(model: Model, step: int) -> Model:
    """Another checkpoint of the run."""
    family, config, _ = model.require()
    return open_run_checkpoint(checkpoint_path(model.path, step), family, config, model.vocabularies)


def _is_written(run: Path, name: str, step: int) -> bool:
    """Whether ``name`` is of this run's checkpoint after ``step`` updates: another may have had the name before."""
    index, state = run / f"{name}.index", checkpoint_path(run, step) / "state.json"
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
