"""A setting carried out: trained, or passed on as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import ConfigError, Problem
from warmstart.kinds import kind_of
from warmstart.setting import Setting, changes_of_run, open_setting
from warmstart.sources.uri import shown

if TYPE_CHECKING:
    from warmstart.bundle.model import Model
    from warmstart.training.ranks import Ranks
    from warmstart.training.run import OnCheckpoint
    from warmstart.training.workload import Job


def open_for_run(config: str | Path, overrides: Sequence[str], require_coverage: float) -> Setting:
    """What the configuration names; not another run's directory."""
    setting = open_setting(config, overrides, require_coverage)
    setting.changes = changes_of_run(setting.config)
    return setting


def job_of(setting: Setting) -> Job:
    """What the training loop is given.

    Raises:
        ConfigError: keys that a training needs are missing, or the device that it wants is.
    """
    from warmstart.inference.device import choose_device
    from warmstart.inference.search import SearchConfig

    c = setting.config
    if c.data is None or c.training is None:
        missing = [key for key in ("data", "training") if getattr(c, key) is None]
        raise ConfigError("a training needs more keys", problems=[Problem(f"{key} is missing") for key in missing])
    from warmstart.training.workload import Job

    training = c.training.model_copy(update={"schedule": _schedule(c.training.schedule, setting.models)})
    return Job(
        c.run,
        setting.family,
        setting.model_config,
        setting.vocabularies,
        setting.plan,
        setting.models,
        c.data,
        kind_of(c.data).workload,
        training,
        SearchConfig(beam_size=c.decoding.beam_size, normalize=c.decoding.normalize),
        c.seed,
        choose_device(training.device, "training.device"),
    )


def _schedule(schedule: Any, models: Sequence[Model]) -> Any:
    """The schedule, or the source's where that is the schedule.

    Raises:
        ConfigError: no source says one, or it is one that we lack.
    """
    from warmstart.training.marian import of_options
    from warmstart.training.methods import OfSource

    if not isinstance(schedule, OfSource):
        return schedule
    for model in models:
        if options := model.checkpoint.metadata.get("options"):
            return of_options(options, schedule)
    raise ConfigError(
        "no source says a schedule",
        where="training.schedule",
        expected="a Marian model with its options (model.npz.yml) beside it",
        todo="write the schedule out",
    )


def check_use(setting: Setting) -> None:
    """Whether the source of `mode: use` is what was written, and is asked for as it is.

    Raises:
        BundleError, ConfigError.
    """
    from warmstart.bundle.layout import verify

    model = setting.models[0]
    if (model.path / "warmstart.json").is_file():
        verify(model.path)
    if model.config != setting.model_config:
        raise ConfigError(
            "`mode: use` passes the model on as it is",
            found="keys under `model`",
            todo="remove them, or use `mode: init`",
        )


def pass_on(setting: Setting) -> dict[str, Any]:
    """The source as the run's bundle, verified, with lineage."""
    from warmstart.bundle.layout import describe_files, storages, verify, write_bundle

    run, model = setting.config.run, setting.models[0]
    _, config, reading = model.require()
    lineage = {
        "starts": [
            {
                "mode": "use",
                "source": shown(model.source),
                "files": describe_files(model.checkpoint),
                "ancestor": model.lineage,
            }
        ]
    }
    arrays = (reading.read(e.name) for e in storages(setting.family, config))
    write_bundle(run / "model", setting.family, config, arrays, setting.vocabularies, lineage)
    verify(run / "model")
    _write_configuration(setting)
    return {
        "run": str(run),
        "model": str(run / "model"),
        "steps": 0,
        "best_step": None,
        "metrics": {},
        "seconds": 0.0,
        "notes": ["the source was passed on; nothing was trained"],
    }


def train_setting(
    setting: Setting, job: Job, progress: bool, on_checkpoint: OnCheckpoint | None, ranks: Ranks
) -> dict[str, Any]:
    """Train, or go on; what :func:`api.train` returns. Rank 0 writes."""
    from warmstart.training.resumption import log_change
    from warmstart.training.run import train_run
    from warmstart.training.state import latest, read_state

    run, newest = setting.config.run, latest(setting.config.run)

    def resumed() -> None:
        assert newest is not None
        step = read_state(newest).step
        for change in setting.changes:
            log_change(run, step, change.key, change.old, change.new)
        _write_configuration(setting)

    if newest is None and ranks.first:
        _write_configuration(setting)
    result, notes = train_run(job, progress=progress, on_checkpoint=on_checkpoint, resumed=resumed, ranks=ranks)
    if result.stopped:
        notes = [*notes, f"stopped early: {result.stopped}"]
    if result.best_step == setting.plan.step < result.steps:
        notes = [*notes, "no evaluation was better than that before the first update: the model is as it started"]
    return {
        "run": str(run),
        "model": str(run / "model"),
        "steps": result.steps,
        "best_step": result.best_step,
        "metrics": result.best_metrics,
        "seconds": result.seconds,
        "notes": notes,
    }


def _write_configuration(setting: Setting) -> None:
    """The configuration and the plan, as the run keeps them."""
    import yaml

    from warmstart.storage.atomic import write_text

    c = setting.config
    resolved = yaml.safe_dump(c.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    write_text(c.run / "config.yaml", resolved)
    write_text(c.run / "plan.json", json.dumps(setting.plan.as_json(), indent=1, ensure_ascii=False) + "\n")
