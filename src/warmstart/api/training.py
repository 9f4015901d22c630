"""Plans, trainings and what they left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmstart.errors import ConfigError

if TYPE_CHECKING:
    from warmstart.bootstrap.plan import Plan
    from warmstart.reports.runs import Run
    from warmstart.training.run import OnCheckpoint


def plan(config: str | Path, overrides: Sequence[str] = (), *, require_coverage: float = 0.0) -> Plan:
    """The plan of the run that ``config`` describes. No weights are read.

    Args:
        config: a YAML file; ``docs/configuration.md`` lists its keys.
        overrides: ``key=value``, such as ``training.steps=100``; values are YAML.
        require_coverage: refuse a plan that loads a smaller part of the model's elements, 0 to 1.

    Raises:
        PlanError, ConfigError: every reason why it cannot start so.
    """
    from warmstart.setting import open_setting

    return open_setting(config, overrides, require_coverage).plan


def train(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    require_coverage: float = 0.0,
    progress: bool = True,
    on_checkpoint: OnCheckpoint | None = None,
) -> dict[str, Any]:
    """Train as ``config`` says, or go on where the same run stopped; ``RUN/model`` is the finished bundle.

    With ``mode: use`` nothing is trained: the source is passed on, verified, as a bundle with lineage.

    Processes that ``torchrun`` started make one training: each calls this, and each returns what rank 0 wrote.

    Args:
        config, overrides, require_coverage: as for :func:`plan`.
        progress: draw a bar on stderr.
        on_checkpoint: is given each checkpoint when it is complete (a ``Model``) and the step at which the run began,
            in the thread that writes checkpoints. What it raises ends the training.

    Raises:
        WarmstartError: one clear error; what was there before is as it was.
    """
    from warmstart.sources.policy import using
    from warmstart.storage.locks import directory_lock
    from warmstart.training.ranks import alone, joined
    from warmstart.trainings import check_use, job_of, open_for_run, pass_on, train_setting

    with joined() as ranks:
        setting = open_for_run(config, overrides, require_coverage)
        run = setting.config.run
        if any(s.mode == "use" for s in setting.config.start):
            alone("`mode: use`, which trains nothing,", "run `warmstart train` without torchrun")
            check_use(setting)
            with directory_lock(run):
                return pass_on(setting)
        job = job_of(setting)
        with directory_lock(run) if ranks.first else nullcontext(), using(mirrors=setting.config.sources.mirrors):
            ranks.wait()
            facts = train_setting(setting, job, progress, on_checkpoint, ranks)
        return ranks.share(facts)


def dry_run(
    config: str | Path, overrides: Sequence[str] = (), *, require_coverage: float = 0.0, progress: bool = True
) -> dict[str, Any]:
    """Build everything that :func:`train` would, make a few updates in memory, and say what the training needs.

    The arguments are those of :func:`train`: ``config``, ``overrides``, ``require_coverage``, ``progress``.

    Returns:
        The fields of ``training.rehearsal.Rehearsal``: memory, times, size of a checkpoint. Nothing is written.

    Raises:
        WarmstartError: what would keep the training from starting, as far as it can be known.
    """
    from dataclasses import asdict

    from warmstart.training.ranks import alone
    from warmstart.trainings import job_of, open_for_run

    alone("trying a training", "run `warmstart train --dry-run` without torchrun")
    setting = open_for_run(config, overrides, require_coverage)
    if any(s.mode == "use" for s in setting.config.start):
        raise ConfigError("`mode: use` trains nothing, so there is nothing to try", todo="run `warmstart plan`")
    job = job_of(setting)
    from warmstart.sources.policy import using
    from warmstart.training.run import rehearse_run

    with using(mirrors=setting.config.sources.mirrors):
        return asdict(rehearse_run(job, progress=progress))


def runs(directories: Sequence[str | Path] = (".",)) -> list[Run]:
    """All runs at and below ``directories``: state, steps, best evaluation, lineage, size, last activity.

    Raises:
        SourceError: a directory is not there or cannot be read. What is damaged in a run is one of its ``problems``.
    """
    from warmstart.reports.runs import describe_run, find_runs

    return [describe_run(path) for path in find_runs([Path(directory) for directory in directories])]


def curves(runs: Sequence[str], output: str | Path = "curves.png", metrics: Sequence[str] = ()) -> list[Path]:
    """Draw several runs (``[LABEL=]RUN``; a directory may hold several) on one picture, with the numbers beside it.

    Args:
        output: a file that ends in ``.png``, ``.svg`` or ``.csv`` (the numbers alone).
        metrics: by default the losses of training and validation and everything else that was evaluated.

    Returns:
        The files written.

    Raises:
        SourceError, FormatError: there is no such run, or its metrics are damaged.
        ConfigError: two runs with one label, a metric that no run has, another kind of file.
        MissingExtra, StorageError.
    """
    from warmstart.reports.curves import default_metrics, open_runs, write_curves

    records = open_runs(runs)
    return write_curves(records, metrics or default_metrics(records), Path(output))
