"""What flags say of a model that is there already: it keeps what its checkpoint has, and that is said once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from warmstart.bundle.model import Model
from warmstart.errors import ConfigError
from warmstart.frontends.coqui.flags import Flags
from warmstart.models.deepspeech.parameters import VOCABULARY
from warmstart.vocabularies.alphabet import Alphabet

OF_CHECKPOINT = {
    "n_hidden": "n_hidden", "layer_norm": "layer_norm", "sample_rate": "audio_sample_rate",
    "win_ms": "feature_win_len", "step_ms": "feature_win_step",
}  # fmt: skip
"""Keys of a model and the flags that say them of a new one."""


def kept(flags: Flags, config: Any) -> Iterator[str]:
    """A line for each flag that was given and says something else than the model's ``config``."""
    for key, name in OF_CHECKPOINT.items():
        theirs = getattr(config, key)
        if name in flags.given and flags[name] != theirs:
            yield f"--{name} {flags[name]} is not the checkpoint's {theirs}, which is taken"


def check_outputs(flags: Flags, model: Model) -> None:
    """Raises ``ConfigError`` where ``--bytes_output_mode`` is given for a model that spells with an alphabet."""
    held = model.vocabularies.get(VOCABULARY)
    if flags["bytes_output_mode"] and isinstance(held, Alphabet) and not held.utf8:
        raise ConfigError(
            "--bytes_output_mode is not the checkpoint's",
            where=model.path,
            expected=f"the alphabet of {len(held.labels)} labels that it was trained with",
            found="--bytes_output_mode true",
            todo="leave it out",
        )
