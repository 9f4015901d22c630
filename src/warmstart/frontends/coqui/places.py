"""What Coqui STT's flags name: directories, the checkpoint to start from, the alphabet; and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from warmstart.data.speech.read import read_examples
from warmstart.errors import ConfigError, Problem
from warmstart.frontends.coqui.flags import Flags
from warmstart.lean import dataclass
from warmstart.models.deepspeech.dialects.checkpoint import ALPHABET
from warmstart.sources.uri import is_remote
from warmstart.vocabularies.alphabet import Alphabet

STATE_FILES = {"best": "best_dev_checkpoint", "last": "checkpoint"}
LAYERS = 5
_LEAST = {
    "epochs": 1, "train_batch_size": 1, "dev_batch_size": 1, "test_batch_size": 1, "batch_size": 1,
    "export_beam_width": 1, "n_trials": 1, "limit_test": 0, "report_count": 0, "max_to_keep": 1, "checkpoint_secs": 0,
    "cache_for_epochs": 0, "shuffle_start": 0, "es_epochs": 1, "plateau_epochs": 1, "n_hidden": 1, "cutoff_top_n": 1,
}  # fmt: skip
_Range = tuple[str, Callable[[float], bool]]
_POSITIVE: _Range = ("a finite number above 0", lambda value: 0 < value < math.inf)
_DECAY: _Range = ("0 ≤ decay < 1", lambda value: 0 <= value < 1)
_WEIGHT: _Range = ("a finite number", math.isfinite)
_RANGES: dict[str, _Range] = {
    "learning_rate": _POSITIVE, "epsilon": _POSITIVE, "relu_clip": _POSITIVE, "beta1": _DECAY, "beta2": _DECAY,
    "plateau_reduction": ("0 < factor ≤ 1", lambda value: 0 < value <= 1), "lm_alpha": _WEIGHT, "lm_beta": _WEIGHT,
    "es_min_delta": ("a finite number, 0 or more", lambda value: 0 <= value < math.inf),
    "cutoff_prob": ("a share above 0; 1 cuts off nothing", lambda value: value > 0),
    "lm_alpha_max": _POSITIVE, "lm_beta_max": _POSITIVE,
}  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where a command reads and writes.

    Attributes:
        load: directory of the checkpoint to start from, if one is named.
        save: directory that receives the run.
        source: what is opened there, ``DIRECTORY@best`` for instance; None where a training starts afresh.
        said: about the choice, a line each.
    """

    load: Path | None
    save: Path | None
    source: str | None
    said: tuple[str, ...]

    @property
    def starts_inside(self) -> bool:
        """Whether the run begins with a TensorFlow checkpoint of the directory that receives it."""
        return (
            self.save is not None
            and self.source is not None
            and self.load is not None
            and self.source != str(self.load)
            and self.load.resolve() == self.save.resolve()
        )


def find_places(flags: Flags, *, training: bool) -> Places:
    """Directories and checkpoint of flags in which :func:`problems` finds none.

    ``--checkpoint_dir`` is both directories, as upstream. ``auto`` tries ``best``, then ``last``: the best checkpoint,
    not the latest, as upstream. Without any a training begins afresh, as upstream, but not where the directory to
    load from is not there, and is not the one to write to.

    Raises:
        ConfigError: no directory is named, or the checkpoint that was asked for is not there.
    """
    both = flags["checkpoint_dir"]
    load, save = (
        Path(name) if name else None for name in (both or flags[f"{x}_checkpoint_dir"] for x in ("load", "save"))
    )
    said = []
    if both and {"load_checkpoint_dir", "save_checkpoint_dir"} & flags.given:
        said.append("--checkpoint_dir replaces --load_checkpoint_dir and --save_checkpoint_dir")
    load = load or (None if training else save)
    if not training and load is None:
        raise ConfigError("nothing says which model is meant", todo="give --checkpoint_dir or --load_checkpoint_dir")
    which = flags["load_train" if training else "load_evaluate"]
    own = load is None or (save is not None and load.resolve() == save.resolve())
    source, line = _checkpoint(load, which, training=training, own=own)
    return Places(load, save, source, (*said, line))


def _checkpoint(load: Path | None, which: str, *, training: bool, own: bool) -> tuple[str | None, str]:
    """The checkpoint to be opened, and a line about it. ``own``: the training writes to ``load``, too."""
    afresh = "Initializing all variables: the training begins afresh"
    if which == "init" or (training and load is None):
        return None, afresh
    assert load is not None
    for role, adjective in (("best", "best validating"), ("last", "most recent")):
        if which in ("auto", role) and (load / STATE_FILES[role]).is_file():
            return f"{load}@{role}", f"Loading {adjective} checkpoint from {load}@{role}"
    if which in ("auto", "last") and any((load / name).exists() for name in ("warmstart.json", "model/warmstart.json")):
        return str(load), f"Loading {load}"
    if which == "auto" and training and (own or load.is_dir()):
        return None, f"{afresh}; there is no checkpoint in {load}"
    raise ConfigError(
        "there is no such checkpoint",
        where=load,
        expected=" or ".join(name for role, name in STATE_FILES.items() if which in ("auto", role)),
        found=", ".join(sorted(p.name for p in load.iterdir())[:8]) or "nothing" if load.is_dir() else "no directory",
        todo="check the directory" + ("; --load_train init begins afresh" if training else ""),
    )


def problems(flags: Flags, *, training: bool) -> Iterator[Problem]:
    """Everything that is wrong with values, whatever the files hold."""
    known = ("auto", "best", "last", "init") if training else ("auto", "best", "last")
    name = "load_train" if training else "load_evaluate"
    if flags[name] not in known:
        hint = "start from another alphabet's model with --drop_source_layers" if flags[name] == "transfer" else ""
        yield Problem(f"--{name} has no such value", expected=", ".join(known), found=flags[name], todo=hint or None)
    rate = flags["audio_sample_rate"]
    for key in ("feature_win_len", "feature_win_step"):
        if rate <= 0 or flags[key] <= 0 or flags[key] * rate % 1000:
            yield Problem(
                f"--{key} is no whole number of samples",
                expected=f"a multiple of 1000/{rate} ms" if rate > 0 else "a rate and a length above zero",
                found=f"{flags[key]} ms at {rate} Hz",
                todo="8000, 16000 and 48000 Hz go with the usual 32 and 20 ms; audio of other rates is resampled",
            )
    if flags["bytes_output_mode"] and flags["alphabet_config_path"]:
        yield Problem(
            "--bytes_output_mode and --alphabet_config_path exclude each other",
            todo="leave out --alphabet_config_path: the labels are the 255 bytes",
        )
    if training and not 0 <= flags["drop_source_layers"] <= LAYERS:
        yield Problem(
            "--drop_source_layers is out of range",
            expected=f"0 to {LAYERS}: layers 2, 3, LSTM, 5 and 6, from the output; layer 1 cannot be dropped",
            found=flags["drop_source_layers"],
            todo="--load_train init takes nothing from a checkpoint",
        )
    lists = [f"--{name}_files" for name in ("train", "dev", "test") if flags[f"{name}_files"]]
    if training and not flags["train_files"] and not flags["auto_input_dataset"]:
        yield Problem("there is nothing to train on", todo="give --train_files; `warmstart stt evaluate` tests a model")
    if flags["auto_input_dataset"] and lists:
        yield Problem(f"--auto_input_dataset and {', '.join(lists)} exclude each other", todo="leave out one of them")
    if training and not (flags["checkpoint_dir"] or flags["save_checkpoint_dir"]):
        yield Problem("nothing says where the run goes", todo="give --checkpoint_dir or --save_checkpoint_dir")
    for key in ("scorer_path", "one_shot_infer"):
        if flags[key] and not is_remote(flags[key]) and not Path(flags[key]).is_file():
            yield Problem(f"--{key} names no file", found=flags[key])
    for key, least in _LEAST.items():
        if key in flags.values and flags[key] < least:
            yield Problem(f"--{key} must be at least {least}", found=str(flags[key]))
    for key, (expected, holds) in _RANGES.items():
        if not holds(flags[key]):
            yield Problem(f"--{key} is out of range", expected=expected, found=f"{flags[key]:g}")
    for key in ("dropout_rate", "dropout_rate2", "dropout_rate3", "dropout_rate6"):
        if not (0 <= flags[key] < 1 or (flags[key] < 0 and key != "dropout_rate")):
            yield Problem(f"--{key} is no share", expected="0 ≤ rate < 1", found=flags[key])


def find_alphabet(flags: Flags, places: Places) -> tuple[dict[str, Any] | None, str | None]:
    """The vocabulary's piece of a configuration (None: the checkpoint's own), and a line where upstream prints one.

    In this order: bytes; ``--alphabet_config_path``; the alphabet of the checkpoint; an ``alphabet.txt`` in the one
    directory of all CSV files; the characters of all transcripts, sorted.

    Raises:
        ConfigError: none of them is there.
        DataError: a list cannot be read.
    """
    if flags["bytes_output_mode"]:
        return {"type": "bytes"}, None
    if flags["alphabet_config_path"]:
        return {"type": "alphabet", "path": flags["alphabet_config_path"]}, None
    if places.source is not None:
        return None, "--alphabet_config_path not specified: the alphabet is the checkpoint's"
    groups = [flags[key] for key in ("train_files", "dev_files", "test_files")]
    if places.load is not None and (places.load / ALPHABET).is_file():
        return {"type": "alphabet", "path": str(places.load / ALPHABET)}, f"the alphabet is {places.load / ALPHABET}"
    if not all(groups):
        raise ConfigError(
            "nothing says what the alphabet is",
            todo="give --alphabet_config_path, or --train_files, --dev_files and --test_files to make it from",
        )
    folders = {Path(name).parent for group in groups for name in group}
    beside = next(iter(folders)) / ALPHABET
    if len(folders) == 1 and beside.is_file():
        return {"type": "alphabet", "path": str(beside)}, f"the alphabet is {beside}"
    lists = [name for group in groups for name in group]
    made = Alphabet.of(example.transcript or "" for name in lists for example in read_examples(name))
    characters = "".join(made.labels)
    return {"type": "alphabet", "characters": characters}, f"the alphabet is made of all transcripts: {characters!r}"
