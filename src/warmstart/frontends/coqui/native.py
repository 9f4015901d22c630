"""Coqui STT's flags as a native configuration.

What upstream does by accident is not done: the learning rate is ``--learning_rate`` and not the checkpoint's; dropped
layers do not inherit Adam's step; a run that was stopped goes on and drops nothing again; the width of a model is read
from its arrays. Each is said once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmstart.bundle.model import Model, open_model
from warmstart.data.speech.read import read_examples
from warmstart.errors import ConfigError, DataError, Problem, SourceError
from warmstart.frontends.coqui.auto_input import with_dataset
from warmstart.frontends.coqui.flags import Flags
from warmstart.frontends.coqui.going_on import model_of, refused, start_of
from warmstart.frontends.coqui.kept import OF_CHECKPOINT, kept
from warmstart.frontends.coqui.outputs import export_problems, report_problems
from warmstart.frontends.coqui.places import STATE_FILES, Places, find_alphabet, find_places, problems
from warmstart.lean import dataclass
from warmstart.models.deepspeech.parameters import VOCABULARY
from warmstart.sources.uri import local
from warmstart.vocabularies.alphabet import Alphabet
from warmstart.vocabularies.load import difference, load_alphabet

TASK, METRICS = "speech", "metrics"
_LISTS = ("train_files", "dev_files", "test_files", "metrics_files")
DAY = 86_400.0  # seconds: upstream has no longest recording
_DROPOUT = {"dropout_1": "dropout_rate", "dropout_2": "dropout_rate2", "dropout_3": "dropout_rate3",
            "dropout_5": "dropout_rate6"}  # fmt: skip


def check(flags: Flags, command: str, *, training: bool) -> None:
    """Whether the values of ``flags`` can be.

    Raises:
        ConfigError: everything that is wrong with them.
    """
    found = list(problems(flags, training=training))
    if training or command == "export":
        found += export_problems(flags)
    if training or command == "evaluate":
        found += report_problems(flags)
    if found:
        raise ConfigError(f"warmstart stt {command}: these flags do not go", problems=found)


@dataclass(frozen=True)
class Training:
    """A training that flags ask for: its configuration, where it reads and writes, what is to be said, and the flags
    with the lists of recordings that ``--auto_input_dataset`` stands for."""

    config: dict[str, Any]
    places: Places
    said: list[str]
    flags: Flags


def training_config(flags: Flags, command: str = "train") -> Training:
    """The training that ``flags`` ask for.

    Headers and lists of recordings are read, no audio and no weights; ``--auto_input_dataset`` is split.

    Raises:
        ConfigError, SourceError, DataError and what opening the checkpoint raises.
    """
    check(flags, command, training=True)
    places = find_places(flags, training=True)
    assert places.save is not None
    stored = run_in(places.save)
    if stored is None and places.load is None and flags["load_train"] in STATE_FILES:
        raise ConfigError(
            f"--load_train {flags['load_train']} does not say where the checkpoint is",
            todo="give --load_checkpoint_dir or --checkpoint_dir; --load_train init begins afresh",
        )
    keeps_alphabet = stored is not None or (places.source is not None and not flags["drop_source_layers"])
    flags, split = with_dataset(flags, alphabet=not keeps_alphabet)
    count = _recordings(flags)
    said = [*(places.said if stored is None else ()), *flags.notes(), *split]
    source = open_model(places.source) if places.source and stored is None else None
    if stored is None:
        started, lines = _started(flags, places, source)
    else:
        started, lines = _goes_on(flags, places.save, places.load, stored)
    if not flags["dev_files"]:
        lines += _without_validation(flags)
    data = _data(flags)
    per_epoch = max(1, count // flags["train_batch_size"])
    before = 0
    if stored is None and source is not None and started["start"]["mode"] == "continue":
        before = source.checkpoint.step or 0
    steps = before + flags["epochs"] * per_epoch
    if stored is not None:
        before, steps, line = _more(places.save, stored, flags["epochs"], per_epoch)
        lines.append(line)
    config = {
        "run": str(places.save),
        "seed": flags["random_seed"],
        "family": "deepspeech",
        **{key: value for key, value in started.items() if value},
        "data": data,
        "training": _training(flags, before, steps, per_epoch),
    }
    return Training(config, places, said + lines, flags)


def run_in(save: Path) -> dict[str, Any] | None:
    """The configuration of a run that has come to a checkpoint in ``save``."""
    import yaml

    path = save / "config.yaml"
    if not path.is_file() or not any(save.glob("checkpoints/step-*/state.json")):
        return None
    loaded: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return loaded


def _goes_on(flags: Flags, save: Path, load: Path | None, stored: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Model, vocabularies and start of a run that goes on."""
    started: dict[str, Any] = {key: stored[key] for key in ("model", "vocabularies", "start") if key in stored}
    lines = [f"{save} holds a run, which goes on from its last checkpoint; nothing is loaded or dropped again"]
    started["start"], line = start_of(save, stored, load)
    lines += [line] if line else []
    model = model_of(save)
    if model is None or model.config is None:
        return started, lines
    path = flags["alphabet_config_path"]
    if flags["bytes_output_mode"] or path:
        given = {"type": "bytes"} if flags["bytes_output_mode"] else {"type": "alphabet", "path": path}
        check_alphabet(given, model, "transfer to it in another --save_checkpoint_dir")
    return started, [
        *lines,
        *kept(flags, model.config),
        *refused(flags, {"relu_clip": "relu_clip", **_DROPOUT}, model.config),
    ]


def _more(save: Path, stored: dict[str, Any], epochs: int, per_epoch: int) -> tuple[int, int, str]:
    """The step from which a run that goes on counts its epochs, its last step, and a line about it."""
    from warmstart.training.state import latest, read_state

    newest = latest(save)
    assert newest is not None
    state, planned = read_state(newest), int(stored["training"]["steps"])
    if not _is_finished(save, state.step):
        begun = int(stored["training"].get("intervals_from", 0))
        line = f"it was stopped at step {state.step} of {planned}"
        asked = begun + epochs * per_epoch
        known = begun or all(start["mode"] != "continue" for start in stored.get("start") or ())  # else of an old run
        if asked == planned or not known:
            return begun, planned, line
        if asked > state.step:
            return begun, asked, f"{line}, and goes on to {asked}, as --epochs {epochs} says"
        return begun, planned, f"{line}; --epochs {epochs} are over, and not followed"
    line = f"it was finished, and goes on for {epochs} epoch{'s' * (epochs != 1)}"
    return state.step, state.step + epochs * per_epoch, line


def _is_finished(save: Path, step: int) -> bool:
    """Whether the run's model was written when its last checkpoint was: at the last step, or stopped early."""
    try:
        lineage = json.loads((save / "model" / "lineage.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(lineage.get("trained") == step)


def _started(flags: Flags, places: Places, source: Model | None) -> tuple[dict[str, Any], list[str]]:
    """Model, vocabularies and start of a new run."""
    lines = []
    alphabet, line = find_alphabet(flags, places)
    if line:
        lines.append(line)
    drop = flags["drop_source_layers"]
    start: dict[str, Any] = {}
    if source is not None and not drop:
        check_alphabet(alphabet, source)
    if source is not None:
        start = {"source": places.source, "mode": "transfer", "drop_last": drop}
        if drop:
            lines.append(
                "the optimizer begins afresh: upstream's keeps Adam's step, and takes a first step three times as large"
            )
        elif source.checkpoint.slots:
            start = {"source": places.source, "mode": "continue", "data": "start"}
        else:
            start = {"source": places.source, "mode": "init"}
            lines.append(f"{places.source} holds no state of Adam's, which begins afresh")
    elif drop and flags["load_train"] == "init":
        lines.append("--drop_source_layers changes nothing: --load_train init takes nothing from a checkpoint")
    elif drop:
        raise ConfigError(
            "--drop_source_layers needs a checkpoint to drop layers of",
            found="a training that begins afresh",
            todo="give --load_checkpoint_dir, or leave it out",
        )
    if source is not None and not flags["force_initialize_learning_rate"]:
        lines.append(f"the learning rate is {flags['learning_rate']:g}: upstream would take the checkpoint's")
    model, more = _model(flags, source)
    vocabularies = {} if alphabet is None else {"text": alphabet}
    return {"model": model, "vocabularies": vocabularies, "start": start}, [*lines, *more]


_DROP = "add --drop_source_layers 1, which begins only the output layer afresh"


def check_alphabet(given: Mapping[str, Any] | None, source: Model, way: str = _DROP) -> None:
    """Whether the alphabet that flags name, if any, is that of a checkpoint of which nothing is dropped.

    Raises:
        ConfigError: it is another.
    """
    held = source.vocabularies.get(VOCABULARY)
    if given is None or held is None:
        return
    wanted = Alphabet.of_bytes() if given["type"] == "bytes" else load_alphabet(local(given["path"]))
    if wanted.fingerprint != held.fingerprint:
        flag = "--bytes_output_mode" if given["type"] == "bytes" else "--alphabet_config_path"
        raise ConfigError(
            "the alphabet is not the checkpoint's",
            where=source.path,
            found=difference(wanted, held),
            todo=f"{way}, or leave out {flag}",
        )


def _model(flags: Flags, source: Model | None) -> tuple[dict[str, Any], list[str]]:
    """Keys that are not the source's."""
    rates = {key: flags[name] for key, name in _DROPOUT.items()}
    rates = {key: rates["dropout_1"] if rate < 0 else rate for key, rate in rates.items()}
    wanted = {"relu_clip": flags["relu_clip"], **rates}
    if source is None or source.config is None:
        return {**{key: flags[name] for key, name in OF_CHECKPOINT.items()}, **wanted}, []
    changed = {key: value for key, value in wanted.items() if getattr(source.config, key) != value}
    return changed, list(kept(flags, source.config))


def _without_validation(flags: Flags) -> list[str]:
    """What is to be said of a training without ``--dev_files``."""
    idle = [f"--{name}" for name in ("early_stop", "reduce_lr_on_plateau") if flags[name]]
    lines = ["there are no --dev_files: no checkpoint is the best, and the last one is tested and exported"]
    return lines + [f"{name} changes nothing without --dev_files" for name in idle]


def _data(flags: Flags) -> dict[str, Any]:
    from warmstart.data.speech.augment.augmenter import Augmentations

    splits = {"train": {"files": flags["train_files"]}}
    if flags["dev_files"]:
        splits["validation"] = {"files": flags["dev_files"]}
    tasks = {TASK: {"splits": splits}}
    if flags["metrics_files"]:
        tasks[METRICS] = {"splits": {"validation": {"files": flags["metrics_files"]}}}
    data: dict[str, Any] = {
        "type": "speech",
        "tasks": tasks,
        "order": "sorted",
        "batch_size": flags["train_batch_size"],
        "shuffle_from": flags["shuffle_start"] if flags["shuffle_batches"] else None,
        "max_seconds": DAY,
    }
    if flags["feature_cache"]:
        data["feature_cache"] = flags["feature_cache"]
    if flags["augment"]:
        data["augment"] = flags["augment"]
        if Augmentations.of(flags["augment"]).has_ranges:
            data["augment_epochs"] = float(flags["epochs"])
    return data


def _recordings(flags: Flags) -> int:
    """How many recordings the lists of the training name. Those that are needed later are read, too: a training that
    took days shall not end with a test list that is not there.

    Raises ``DataError`` with everything that is wrong with any list.
    """
    found: dict[str, int] = dict.fromkeys(_LISTS, 0)
    wrong: list[Problem] = []
    for name in _LISTS:
        for file in flags[name]:
            try:
                found[name] += len(read_examples(file))
            except (DataError, SourceError) as error:
                wrong += [error.problem, *error.problems]
    if wrong:
        raise DataError("lists of recordings cannot be used", problems=wrong)
    return found["train_files"]


def _training(flags: Flags, before: int, steps: int, per_epoch: int) -> dict[str, Any]:
    training: dict[str, Any] = {
        "steps": steps,
        "learning_rate": flags["learning_rate"],
        "schedule": {"type": "constant"},
        "optimizer": {
            "type": "adam",
            "betas": [flags["beta1"], flags["beta2"]],
            "epsilon": flags["epsilon"],
            "epsilon_rule": "tensorflow",
        },
        "clip_norm": None,
        "precision": "bfloat16" if flags["automatic_mixed_precision"] else "float32",
        "evaluate_every": per_epoch if flags["dev_files"] or flags["metrics_files"] else None,
        "evaluate_first": False,
        "checkpoint_every": per_epoch,
        "checkpoint_minutes": flags["checkpoint_secs"] / 60 or None,
        "keep_last": flags["max_to_keep"],
        "log_every": min(50, per_epoch),
        **({"intervals_from": before} if before else {}),
    }
    if not flags["dev_files"]:
        return training | ({"best_metric": None} if flags["metrics_files"] else {})
    loss = f"validation/{TASK}/loss" if flags["metrics_files"] else "validation/loss"
    training["best_metric"] = loss
    if flags["early_stop"]:
        change = {"patience": flags["es_epochs"], "min_change": flags["es_min_delta"]}
        training["early_stopping"] = {"metric": loss, **change}
    if flags["reduce_lr_on_plateau"]:
        training["plateau"] = {
            "metric": loss,
            "patience": flags["plateau_epochs"],
            "min_change": flags["es_min_delta"],
            "factor": flags["plateau_reduction"],
            "reload_best": True,
        }
    return training
