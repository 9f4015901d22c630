"""Features on disk: computed once for a content and a setting, then memory-mapped.

``FOLDER/KEY/`` holds ``features.f32`` (little-endian float32, the recordings' (T, K) back to back), ``frames.npy``
(T of each) and ``faults.json`` (what is wrong with those that cannot be read). KEY is a hash of every recording's
bytes and of the settings, so nothing can be out of date. A directory is complete or invisible: two processes that
make the same one do the work twice, and the second finds it there. Its time is when it was last used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from warmstart.data.ahead import in_order, processors
from warmstart.data.speech.audio import audio_blocks
from warmstart.data.speech.example import AudioSource
from warmstart.errors import DataError, Problem, StorageError
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc
from warmstart.sources.cache import default_root
from warmstart.storage.atomic import new_directory

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

VERSION = 3  # of what is computed, and of what counts as damaged
CHUNK = 1 << 20
AHEAD = 4  # recordings for each thread that may wait to be written


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Features of recordings: ``store[i]`` is (``frames[i]``, K) float32, a view of the file.

    ``faults`` says what is wrong with the recordings that have no features; ``digests`` are SHA-256 of their bytes.
    """

    frames: Ints
    values: Floats
    digests: tuple[str, ...]
    faults: dict[int, Problem]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_offsets", np.concatenate([[0], np.cumsum(self.frames)]))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> Floats:
        offsets: Ints = self._offsets  # type: ignore[attr-defined]
        return self.values[offsets[i] : offsets[i + 1]]


def shared_folder() -> Path:
    """Where the features of all trainings lie: in the cache, so that ``warmstart cache prune`` clears it up."""
    return default_root() / "features"


def feature_store(
    recordings: Sequence[AudioSource | Problem],
    mfcc: Mfcc,
    folder: Path,
    *,
    resample: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureStore:
    """Features of ``recordings``, from the cache in ``folder`` or put there now, in several threads. What is no
    recording but a ``Problem`` is one of the faults.

    Every recording is read to its end, so that a damaged one is found here and not in the middle of a training.
    ``progress`` is called with 1 after each. Raises ``StorageError`` where the cache cannot be written.
    """
    threads = processors()
    digests = tuple(in_order(digest, recordings, threads, AHEAD * threads))
    settings = {"version": VERSION, "resample": resample, **asdict(mfcc)}
    key = hashlib.sha256(json.dumps([settings, digests], sort_keys=True).encode()).hexdigest()[:32]
    path = folder / key
    store = _open(path, digests, mfcc.n_input)
    if store is not None:
        with contextlib.suppress(OSError):  # of somebody else, or read-only
            os.utime(path)
        return store
    try:
        with new_directory(path, force=path.exists()) as temporary:
            _fill(temporary, recordings, mfcc, resample, progress)
    except StorageError:
        if _open(path, digests, mfcc.n_input) is None:  # not made by another process meanwhile either
            raise
    store = _open(path, digests, mfcc.n_input)
    if store is None:
        raise StorageError("the feature cache cannot be read back", where=path)
    return store


def _fill(
    folder: Path,
    recordings: Sequence[AudioSource | Problem],
    mfcc: Mfcc,
    resample: bool,
    progress: Callable[[int], None],
) -> None:
    def features(recording: AudioSource | Problem) -> Floats | Problem:
        if isinstance(recording, Problem):
            return recording
        try:
            pieces = list(mfcc.stream(audio_blocks(recording, mfcc.sample_rate, resample=resample)))
        except DataError as error:
            return error.problem
        return np.concatenate(pieces) if pieces else np.empty((0, mfcc.n_input), np.float32)

    threads = processors()
    frames = np.zeros(len(recordings), np.int64)
    faults = {}
    with (folder / "features.f32").open("wb") as file:
        for i, result in enumerate(in_order(features, recordings, threads, AHEAD * threads)):
            if isinstance(result, Problem):
                faults[i] = {"what": result.what, "expected": result.expected, "found": result.found}
            else:
                frames[i] = len(result)
                file.write(np.ascontiguousarray(result, "<f4").data)
            progress(1)
    np.save(folder / "frames.npy", frames.astype("<i8"))
    (folder / "faults.json").write_text(json.dumps(faults, ensure_ascii=False), "utf-8")


def _open(path: Path, digests: tuple[str, ...], width: int) -> FeatureStore | None:
    """None where there is none, or a damaged one."""
    try:
        frames = np.load(path / "frames.npy", allow_pickle=False)
        faults = {
            int(i): Problem(**fault) for i, fault in json.loads((path / "faults.json").read_text("utf-8")).items()
        }
        size = (path / "features.f32").stat().st_size
        if frames.shape != (len(digests),) or frames.dtype != np.dtype("<i8") or (len(frames) and frames.min() < 0):
            return None
        total = int(frames.sum())
        if size != total * width * 4 or not all(0 <= i < len(digests) for i in faults):
            return None
        values = np.empty((0, width), np.float32)
        if total:
            values = np.memmap(path / "features.f32", "<f4", "r", shape=(total, width))
    except (OSError, ValueError, TypeError, AttributeError, EOFError):
        return None
    return FeatureStore(frames.astype(np.int64), values, digests, faults)


def digest(recording: AudioSource | Problem) -> str:
    """SHA-256 (hex) of the recording's bytes, or what keeps them from being read."""
    if isinstance(recording, Problem):
        return f"unreadable: {recording.what} {recording.found}"
    sha256 = hashlib.sha256()
    left = recording.length
    try:
        with recording.file().open("rb") as file:
            file.seek(recording.offset)
            while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
                sha256.update(chunk)
                left = None if left is None else left - len(chunk)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    return sha256.hexdigest()
