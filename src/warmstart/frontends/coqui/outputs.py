"""What a command would write over: looked at before it works, since a training may take days until then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from warmstart.errors import Problem
from warmstart.frontends.coqui.flags import Flags
from warmstart.sources.uri import is_remote

_EXPORTS = ("conversion.json", "*.tflite", "*.pb", "*.pbmm", "*.onnx", "*.zip")
_LISTS = ("train_files", "dev_files", "test_files", "metrics_files")
_FILES = (
    *("auto_input_dataset", "alphabet_config_path", "scorer_path", "one_shot_infer", "feature_cache"),
    *("checkpoint_dir", "load_checkpoint_dir", "save_checkpoint_dir"),
)


def _named(flags: Flags) -> Iterator[tuple[str, Path]]:
    """(flag, path) of everything that is read, or kept beside an export."""
    for name in (*_LISTS, *_FILES):
        for value in flags[name] if name in _LISTS else [flags[name]]:
            if value and not is_remote(value):
                yield name, Path(value)


def export_problems(flags: Flags) -> Iterator[Problem]:
    """``--export_dir``: it is replaced by ``--remove_export`` only, with everything in it."""
    if not flags["export_dir"]:
        return
    folder = Path(flags["export_dir"])
    inside = [f"--{name} {path}" for name, path in _named(flags) if path.resolve().is_relative_to(folder.resolve())]
    if inside:
        yield Problem("--export_dir would replace what lies in it", found=", ".join(inside), todo="choose another")
    elif folder.exists() and not folder.is_dir():
        yield Problem("--export_dir is a file", found=str(folder), todo="choose another")
    elif folder.is_dir() and any(folder.iterdir()):
        if not flags["remove_export"]:
            todo = "--remove_export true replaces it, with everything in it"
            yield Problem("--export_dir holds something already", found=str(folder), todo=todo)
        elif not any(path for pattern in _EXPORTS for path in folder.glob(pattern)):
            yield Problem(
                "--remove_export true would delete what is no exported model",
                expected=f"one of {', '.join(_EXPORTS)} in --export_dir",
                found=f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir())[:8])}",
                todo="choose another --export_dir",
            )


def report_problems(flags: Flags) -> Iterator[Problem]:
    """``--test_output_file``: it replaces a file, but none that is read."""
    if not flags["test_output_file"]:
        return
    file = Path(flags["test_output_file"])
    if file.is_dir():
        yield Problem("--test_output_file is a directory", found=str(file), todo="name a file")
    read = [f"--{name}" for name, path in _named(flags) if path.resolve() == file.resolve()]
    if read and not file.is_dir():
        yield Problem("--test_output_file would replace what is read", found=f"{read[0]} {file}", todo="choose another")
