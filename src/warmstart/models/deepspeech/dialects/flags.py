"""``flags.txt`` beside a checkpoint: the options of the training that wrote it.

Coqui STT writes JSON, DeepSpeech one flag a line (``--name=value``, ``--name``, ``--noname``). Only what says how the
model computes is read here. The others of a JSON file return when a checkpoint is written back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warmstart.errors import DialectError, validation_problems
from warmstart.models.deepspeech.config import DeepSpeechConfig, Positive

NAME = "flags.txt"
DIRECTORIES = ("checkpoint_dir", "load_checkpoint_dir", "save_checkpoint_dir", "summary_dir")
_LIMIT = 2**20

Rate = Annotated[float, Field(lt=1.0)]


class Flags(BaseModel):
    """What the flags say of the model, with Coqui's defaults. A rate below zero means ``dropout_rate``.

    ``n_hidden`` and ``layer_norm`` are None where nothing is said: the arrays show them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    n_hidden: Positive | None = None
    layer_norm: bool | None = None
    audio_sample_rate: Positive = 16_000
    feature_win_len: Positive = 32
    feature_win_step: Positive = 20
    relu_clip: Annotated[float, Field(gt=0.0)] = 20.0
    dropout_rate: Rate = 0.05
    dropout_rate2: Rate = -1.0
    dropout_rate3: Rate = -1.0
    dropout_rate6: Rate = -1.0
    bytes_output_mode: bool = False

    def model(self) -> dict[str, Any]:
        """Keys of the family's configuration that do not follow from arrays."""
        rates = {1: self.dropout_rate, 2: self.dropout_rate2, 3: self.dropout_rate3, 5: self.dropout_rate6}
        return {
            "sample_rate": self.audio_sample_rate,
            "win_ms": self.feature_win_len,
            "step_ms": self.feature_win_step,
            "relu_clip": self.relu_clip,
            **{f"dropout_{n}": self.dropout_rate if rate < 0 else rate for n, rate in rates.items()},
        }


_NAMES = {*Flags.model_fields, "utf8"}


def flags_of(config: DeepSpeechConfig, utf8: bool) -> dict[str, Any]:
    """The flags that describe a model: what :class:`Flags` reads back."""
    return {
        "n_hidden": config.n_hidden,
        "layer_norm": config.layer_norm,
        "audio_sample_rate": config.sample_rate,
        "feature_win_len": config.win_ms,
        "feature_win_step": config.step_ms,
        "relu_clip": config.relu_clip,
        "dropout_rate": config.dropout_1,
        "dropout_rate2": config.dropout_2,
        "dropout_rate3": config.dropout_3,
        "dropout_rate6": config.dropout_5,
        "bytes_output_mode": utf8,
    }


def read_flags(folder: Path) -> dict[str, Any] | None:
    """Every flag in the folder's ``flags.txt``, by name; None where there is no such file.

    Raises:
        DialectError: it cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            if len(data := file.read(_LIMIT + 1)) > _LIMIT:
                raise ValueError(f"more than {_LIMIT:,} bytes")
        text = data.decode("utf-8")
        content = json.loads(text) if text.lstrip().startswith("{") else _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DialectError(
            "the flags cannot be read", where=path, found=error, todo="mend or remove the file"
        ) from None
    if "utf8" in content:  # as it was called before DeepSpeech 0.8
        content.setdefault("bytes_output_mode", content["utf8"])
    return dict(content)


def parse_flags(flags: Mapping[str, Any], where: object) -> Flags:
    """``flags`` as far as they say something of the model.

    Raises:
        DialectError: values that cannot be; all of them.
    """
    try:
        return Flags.model_validate(flags)
    except ValidationError as error:
        problems = validation_problems(error)
        raise DialectError("the flags say what no model has", where=where, problems=problems) from None


def _lines(text: str) -> dict[str, Any]:
    """Flags of the model as absl writes them: ``--no`` before a name is false, a name alone true."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("--").partition("=")
        if name in _NAMES:
            found[name] = value if equals else True
        elif name.removeprefix("no") in _NAMES:
            found[name.removeprefix("no")] = False
    return found
