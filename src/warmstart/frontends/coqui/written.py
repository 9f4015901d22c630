"""TensorFlow checkpoints of a run, as Coqui STT leaves them: ``best_dev-N``, ``train-N``, and what names them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from warmstart.bundle.model import open_run_state
from warmstart.export.convert import convert_model
from warmstart.formats.tensorflow import write_state
from warmstart.frontends.coqui.flags import Flags
from warmstart.frontends.coqui.places import STATE_FILES
from warmstart.models.deepspeech.dialects.checkpoint import ALPHABET
from warmstart.models.deepspeech.dialects.flags import NAME
from warmstart.storage import atomic
from warmstart.training.state import best_checkpoint, latest, read_state

_PREFIX = {"best": "best_dev", "last": "train"}


def write_checkpoints(run: Path, flags: Flags) -> list[str]:
    """Write the best and the last checkpoint of ``run`` beside it, with Adam's state, ``flags.txt`` and
    ``alphabet.txt``; a line about each. State files are written last: what was there before is found until then.

    Raises:
        WarmstartError: it cannot be written.
    """
    newest = latest(run)
    assert newest is not None
    paths = {"best": best_checkpoint(run) or newest, "last": newest}
    lines = []
    with tempfile.TemporaryDirectory(dir=run, prefix=".coqui-") as folder:
        for role, path in paths.items():
            step = read_state(path).step
            made = Path(folder) / role
            convert_model(open_run_state(str(run), run, step), made, "coqui")
            for file in sorted(made.glob("*-*.*")):
                file.replace(run / f"{_PREFIX[role]}-{step}.{file.name.partition('.')[2]}")
            lines.append(f"{run / f'{_PREFIX[role]}-{step}'}: the {role} checkpoint, for TensorFlow")
        known = json.loads((Path(folder) / "last" / NAME).read_text("utf-8"))
        atomic.write_text(run / NAME, json.dumps({**flags.values, **known}, indent=2))
        alphabet = Path(folder) / "last" / ALPHABET
        if alphabet.is_file():
            atomic.write_text(run / ALPHABET, alphabet.read_text("utf-8"))
    for role, path in paths.items():
        write_state(run / STATE_FILES[role], f"{_PREFIX[role]}-{read_state(path).step}")
    return lines
