"""Which runs there are, how far each is, and where it came from. Nothing of it loads weights or torch."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from warmstart.errors import ConfigError, SourceError, WarmstartError
from warmstart.formats.detect import open_checkpoint
from warmstart.lean import dataclass
from warmstart.reports.text import readable_size
from warmstart.storage.atomic import storage_error
from warmstart.storage.locks import holder
from warmstart.training.config import TrainingConfig
from warmstart.training.metrics import read_metrics

PINNED = "PINNED"
_STEP = re.compile(r"step-(\d{8,})")
_FOLDED = 10  # columns at least of what is folded
_INSIDE = {"checkpoints", "model", "tensorboard"}  # of a run: nothing below is a run


@dataclass(frozen=True)
class Best:
    """The best evaluation: its metric, value and step."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class Run:
    """What is known about a run without opening its weights.

    Attributes:
        path: the directory.
        state: ``training`` now (``holder`` says who), ``finished`` (its model is complete), ``stopped`` (the same
            command goes on) or ``not begun``.
        step, steps: updates done (those that a stopped run goes on from) and wanted.
        starts: ``mode`` and ``source`` of each start; none if from scratch.
        lineage: where the weights came from, back to the first ancestor; None where it is not known.
        checkpoints, pinned: steps whose complete checkpoints are there, and those of them that are never removed.
        size: bytes on disk.
        active: when something was last written, ISO 8601.
        problems: files that cannot be read.
    """

    path: str
    state: Literal["training", "finished", "stopped", "not begun"]
    holder: str | None
    step: int | None
    steps: int | None
    best: Best | None
    starts: tuple[Mapping[str, str], ...]
    lineage: Mapping[str, Any] | None
    checkpoints: tuple[int, ...]
    pinned: tuple[int, ...]
    size: int
    active: str
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def is_run(path: Path) -> bool:
    """Whether ``warmstart train`` has begun a run in this directory."""
    return (path / "config.yaml").is_file() and (path / "plan.json").is_file()


def find_runs(roots: Sequence[Path]) -> Iterator[Path]:
    """Directories of runs at and below ``roots``, each once, by name. Hidden directories are left out, and links
    are not followed.

    Raises:
        SourceError: a root is no directory, or a directory below it cannot be read.
    """
    seen: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise SourceError("this is no directory" if root.exists() else "this does not exist", where=root)
        for folder, below, _ in os.walk(root, onerror=_unreadable):
            path = Path(folder)
            found = is_run(path)
            below[:] = sorted(name for name in below if name[0] != "." and not (found and name in _INSIDE))
            if found and path.resolve() not in seen:
                seen.add(path.resolve())
                yield path


def _unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a training removes directories at any time
        raise SourceError("this directory cannot be read", where=error.filename, found=error.strerror) from error


def describe_run(path: Path) -> Run:
    """Everything about the run in the directory ``path``; a file that cannot be read is one of its problems."""
    problems: list[str] = []
    config = _tree(path / "config.yaml", problems)
    training = config["training"] if isinstance(config.get("training"), dict) else {}
    records: list[dict[str, Any]] = []
    try:
        records = read_metrics(path)
    except (WarmstartError, OSError) as error:
        where = error.where if isinstance(error, WarmstartError) else path / "metrics.jsonl"
        problems.append(f"{where}: {error.what if isinstance(error, WarmstartError) else error}")
    checkpoints = checkpoint_steps(path)
    if checkpoints:
        _tree(_checkpoint(path, checkpoints[-1]) / "state.json", problems)
    for folder in (*(_checkpoint(path, step) for step in checkpoints), path / "model"):
        _check_arrays(folder, problems)
    lineage = (
        _tree(path / "model" / "lineage.json", problems) if (path / "model" / "warmstart.json").is_file() else None
    )
    by = holder(path)
    complete = lineage is not None and max(checkpoints, default=0) <= lineage.get("trained", 2**63)
    step = max(checkpoints, default=None)
    if by:
        step = max([step or 0, *(int(r["step"]) for r in records[-1:])])
    size, active = _usage(path)
    return Run(
        path=str(path),
        state="training" if by else "finished" if complete else "stopped" if checkpoints or records else "not begun",
        holder=by,
        step=step,
        steps=training.get("steps"),
        best=_best(records, training),
        starts=tuple({key: str(start.get(key)) for key in ("mode", "source")} for start in _starts(config)),
        lineage=lineage or _planned_lineage(config),
        checkpoints=tuple(checkpoints),
        pinned=tuple(step for step in checkpoints if (_checkpoint(path, step) / PINNED).exists()),
        size=size,
        active=datetime.fromtimestamp(active, UTC).isoformat(timespec="seconds"),
        problems=tuple(problems),
    )


def _tree(file: Path, problems: list[str]) -> dict[str, Any]:
    """The keys in a YAML or JSON file; none, and a problem, if it cannot be read."""
    import yaml

    try:
        text = file.read_text("utf-8")
        tree = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{file}: cannot be read: {' '.join(str(error).split())}")
        return {}
    if not isinstance(tree, dict):
        problems.append(f"{file}: holds no keys")
        return {}
    return tree


def _check_arrays(folder: Path, problems: list[str]) -> None:
    """Whether the files of arrays hold what their headers say; one that was removed meanwhile is no problem."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            open_checkpoint(file)
        except WarmstartError as error:
            if file.exists():
                problems.append(f"{error.where or file}: {error.what}")


def _best(records: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> Best | None:
    name, mode = (training.get(key, TrainingConfig.model_fields[key].default) for key in ("best_metric", "best_mode"))
    measured = [Best(name, r[name], int(r["step"])) for r in records if isinstance(r.get(name), int | float)]
    if not measured:
        return None
    return (min if mode == "min" else max)(measured, key=lambda best: best.value)


def _starts(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    starts = config.get("start")
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def _planned_lineage(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a run without a model will come from: its starts, with the lineages that their sources have."""
    starts = []
    for start in _starts(config):
        source = Path(str(start.get("source")))
        files = [file for file in (source / "lineage.json", source / "model" / "lineage.json") if file.is_file()]
        ancestor = _tree(files[0], []) if files else None
        starts.append({"mode": start.get("mode"), "source": source.name, "ancestor": ancestor})
    return {"starts": starts} if config else None


def _usage(path: Path) -> tuple[int, float]:
    """(bytes, time of the last change) of all files of a run, without what vanishes meanwhile."""
    size, active = 0, 0.0
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not is_run(Path(folder, name))]
        for name in names:
            try:
                facts = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            size, active = size + facts.st_size, max(active, facts.st_mtime)
    return size, active


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    folder = run / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    found = ((_STEP.fullmatch(name), folder / name) for name in names)
    return sorted(int(match[1]) for match, path in found if match and (path / "state.json").is_file())


def _checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def pin_checkpoints(run: Path, pin: Sequence[int], unpin: Sequence[int] = ()) -> None:
    """Keep the checkpoints of the steps ``pin`` for ever, and those of ``unpin`` no longer.

    Raises:
        SourceError: ``run`` is no run.
        ConfigError: it has no such checkpoint; nothing is changed then.
        StorageError: it cannot be written.
    """
    if not is_run(run):
        raise SourceError("this is no run", where=run, todo="name the directory of one run")
    there = checkpoint_steps(run)
    if missing := [step for step in (*pin, *unpin) if step not in there]:
        raise ConfigError(
            f"there is no checkpoint of step {', '.join(map(str, missing))}",
            where=run,
            expected=f"one of {', '.join(map(str, there))}" if there else "a run that has a checkpoint",
        )
    try:
        for step in pin:
            (_checkpoint(run, step) / PINNED).touch()
        for step in unpin:
            (_checkpoint(run, step) / PINNED).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, run) from error


def runs_table(runs: Sequence[Run], *, width: int | None = None, now: datetime | None = None) -> str:
    """A row a run, at most ``width`` columns wide (those of the terminal): long names are folded, and the last columns
    are left out where they do not fit. What all directories have in front is said once, above."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = width or shutil.get_terminal_size((160, 24)).columns
    shared = _shared_folder(runs)
    rows = [("run", "state", "step", "best", "start", "size", "active"), *(_cells(run, shared, now) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    needed = [min(w, _FOLDED) if heading in ("run", "start") else w for heading, w in zip(rows[0], widths, strict=True)]
    while len(needed) > 4 and sum(needed) + 2 * (len(needed) - 1) > width:
        needed.pop()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="", pad_edge=False)
    for heading, _ in zip(rows[0], needed, strict=False):
        justify: Literal["left", "right"] = "right" if heading in ("step", "size") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading not in ("run", "start"), overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row[: len(needed)]))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table)
    lines = [f"in {shared}:", ""] if shared else []
    return "\n".join([*lines, *(line.rstrip() for line in out.getvalue().splitlines())]) + "\n"


def _cells(run: Run, shared: str, now: datetime | None) -> tuple[str, ...]:
    best = f"{run.best.metric.removeprefix('validation/')} {run.best.value:.4g} @{run.best.step:,}" if run.best else ""
    return (
        os.path.relpath(run.path, shared) if shared else run.path,
        run.state,
        "" if run.steps is None else f"{run.step or 0:,}/{run.steps:,}",
        best,
        ", ".join(f"{s['mode']} {Path(s['source']).name}" for s in run.starts) or "from scratch",
        readable_size(run.size),
        _ago(run.active, now),
    )


def _shared_folder(runs: Sequence[Run]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(run.path) for run in runs])
    except ValueError:  # some are absolute and some are not
        return ""


def _ago(moment: str, now: datetime | None) -> str:
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{int(seconds // length)}{unit} ago"
    return "now"


def lineage_text(run: Run) -> str:
    """The tree of models that a run came from."""
    lines = [run.path]
    if run.lineage is None:
        lines.append("└── unknown")
    else:
        _branches(run.lineage, "", lines)
    return "\n".join(lines) + "\n"


def _branches(lineage: Mapping[str, Any], indent: str, lines: list[str]) -> None:
    starts = lineage.get("starts") or []
    if not starts:
        lines.append(f"{indent}└── from scratch")
    for number, start in enumerate(starts):
        last = number + 1 == len(starts)
        ancestor = start.get("ancestor")
        facts = [f"step {ancestor['step']:,}"] if ancestor and ancestor.get("step") is not None else []
        facts += [f"{file['name']} {file['sha256'][:12]}" for file in start.get("files") or ()]
        more = f" ({', '.join(facts)})" if facts else ""
        lines.append(f"{indent}{'└──' if last else '├──'} {start.get('mode')} {start.get('source')}{more}")
        if ancestor:
            _branches(ancestor, indent + ("    " if last else "│   "), lines)
