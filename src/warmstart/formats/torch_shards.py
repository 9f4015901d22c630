"""Several torch files that are one checkpoint: an index with ``weight_map``, and DeepSpeed's directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from warmstart.formats.checkpoint import Candidate
from warmstart.formats.mapped import head
from warmstart.formats.shards import MAX_INDEX, is_plain, named

_ENDINGS = (".bin", ".pt", ".pth")


def recognise(path: Path, start: bytes, is_torch: Callable[[Path], bool]) -> bool:
    """Whether ``path`` is an index of torch files: the first shard that is there is one, or one is named so."""
    if start.lstrip()[:1] != b"{" or b'"weight_map"' not in (text := head(path, MAX_INDEX)):
        return False
    files = [path.with_name(file) for file in named(path) if is_plain(file) and not file.endswith(".json")]
    there = next((shard for shard in files if shard.is_file()), None)
    return is_torch(there) if there else any(f'{ending}"'.encode() in text for ending in _ENDINGS)


def deepspeed(directory: Path) -> list[Candidate]:
    """The model of the step that ``latest`` names, in a directory of DeepSpeed's; its optimizer is in other files."""
    latest = directory / "latest"
    if not latest.is_file():
        return []
    step = head(latest, 256).decode("utf-8", "replace").strip()
    if not is_plain(step):
        return []
    model = directory / step / "mp_rank_00_model_states.pt"
    return (
        [Candidate(model, step, ("last",))]
        if model.is_file() and model.resolve().is_relative_to(directory.resolve())
        else []
    )
