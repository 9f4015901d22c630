"""``transcribe``: which recordings are meant, where they are cut, and the ``.tlog`` files that are written of them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.data.speech.audio import FULL_SCALE, read_audio
from warmstart.data.speech.example import AudioSource
from warmstart.errors import ConfigError, DataError, MissingExtra, Problem, SourceError
from warmstart.frontends.coqui.flags import Flags
from warmstart.inference.speech.transcriber import Transcriber
from warmstart.sources.uri import is_remote
from warmstart.storage import atomic

ENDINGS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
DETECTED = (8_000, 16_000, 32_000, 48_000)  # rates that WebRTC's detector hears
FRAME_MS, FRAMES, SHARE = 30, 10, 0.9  # of Coqui's ``vad_split``: 300 ms that are nine tenths speech, or silence


def recordings(flags: Flags) -> list[tuple[AudioSource, Path]]:
    """(recording, transcript) of everything that ``--src`` names.

    Raises:
        ConfigError, SourceError, DataError: there is nothing to be transcribed, or transcripts are there already.
    """
    if is_remote(flags["src"]):
        if not flags["dst"]:
            raise ConfigError("nothing says where the transcript of a URL goes", todo="give --dst FILE.tlog")
        return _unwritten([(AudioSource(flags["src"]), Path(flags["dst"]))], flags)
    source = Path(flags["src"]) if flags["src"] else None
    if source is None or not source.exists():
        raise SourceError(
            "nothing says what to transcribe" if source is None else "this does not exist",
            where=source,
            todo="give an audio file, a directory or a .catalog file with --src",
        )
    if flags["dst"] and (source.is_dir() or source.suffix == ".catalog"):
        raise ConfigError("--dst is for one recording", found=f"--src {source}", todo="leave it out")
    if source.is_dir():
        found = sorted(source.rglob("*") if flags["recursive"] else source.glob("*"))
        jobs = [
            (path, path.with_suffix(".tlog")) for path in found if path.suffix.lower() in ENDINGS and path.is_file()
        ]
    elif source.suffix == ".catalog":
        jobs = _catalog(source)
    else:
        jobs = [(source, Path(flags["dst"]) if flags["dst"] else source.with_suffix(".tlog"))]
    if not jobs:
        raise SourceError(
            "there are no recordings here",
            where=source,
            expected=", ".join(f"*{e}" for e in ENDINGS),
            todo=None if flags["recursive"] else "--recursive true also looks into directories of the directory",
        )
    return _unwritten([(AudioSource(audio), tlog) for audio, tlog in jobs], flags)


def _unwritten(jobs: list[tuple[AudioSource, Path]], flags: Flags) -> list[tuple[AudioSource, Path]]:
    """The jobs, where every transcript has a place of its own.

    Raises:
        ConfigError: transcripts are there already, would replace a recording, or each other.
    """
    heard = {Path(str(audio.path)).resolve(): audio for audio, _ in jobs if not is_remote(str(audio.path))}
    first: dict[Path, AudioSource] = {}
    clashes: list[Problem] = []
    for audio, tlog in jobs:
        place = tlog.resolve()
        if place in heard:
            clashes.append(Problem("a transcript would replace a recording", str(audio), found=str(heard[place])))
        elif first.setdefault(place, audio) is not audio:
            clashes.append(Problem("two recordings have one transcript", str(audio), found=f"{first[place]}: {tlog}"))
    if clashes:
        raise ConfigError(
            "transcripts need names of their own",
            todo="name them with --dst, one recording at a time, or in a .catalog file",
            problems=clashes[:20],
        )
    there = [] if flags["force"] else [tlog for _, tlog in jobs if tlog.exists()]
    if there:
        raise ConfigError(
            "transcripts are there already",
            todo="--force true replaces them",
            problems=[Problem(str(path)) for path in there[:20]],
        )
    return jobs


def _catalog(path: Path) -> list[tuple[Path, Path]]:
    """``[{"audio": …, "tlog": …}]``, relative to the file."""
    try:
        return [(path.parent / entry["audio"], path.parent / entry["tlog"]) for entry in json.loads(path.read_bytes())]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            "this is no catalog of recordings", where=path, found=f"{type(error).__name__}: {error}"
        ) from None


def write_tlog(transcriber: Transcriber, audio: AudioSource, tlog: Path, flags: Flags) -> None:
    """Write ``[{"start", "end", "transcript"}]`` (milliseconds) of a recording's utterances.

    Raises:
        DataError: the recording cannot be read.
        MissingExtra: webrtcvad is not installed.
    """
    mfcc = transcriber.acoustic.mfcc
    samples, rate = read_audio(audio, mfcc.sample_rate), mfcc.sample_rate
    if rate not in DETECTED:
        rate = DETECTED[-1]
    sound = samples if rate == mfcc.sample_rate else read_audio(audio, rate)
    spans = [
        (first * mfcc.sample_rate // rate, min(end * mfcc.sample_rate // rate, len(samples)))
        for first, end in utterances(sound, rate, flags["vad_aggressiveness"])
    ]
    rows: list[dict[str, Any]] = []
    for first in range(0, len(spans), flags["batch_size"]):
        some = spans[first : first + flags["batch_size"]]
        heard = transcriber.transcripts([mfcc(samples[a:b]) for a, b in some])
        for (a, b), transcript in zip(some, heard, strict=True):
            start, end = (round(1000 * at / mfcc.sample_rate) for at in (a, b))
            rows.append({"start": start, "end": end, "transcript": transcript.text})
    atomic.write_text(tlog, json.dumps(rows, ensure_ascii=False))


def utterances(samples: NDArray[np.float32], rate: int, aggressiveness: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each stretch of speech, in samples. It begins with 300 ms that are mostly speech, and ends after
    300 ms that are mostly silence, as WebRTC's detector tells them apart.

    Args:
        rate: 8, 16, 32 or 48 kHz.
        aggressiveness: 0 to 3, how readily something is taken for silence.
    """
    try:
        import webrtcvad
    except ImportError:
        raise MissingExtra("webrtcvad", "vad") from None
    if aggressiveness not in (0, 1, 2, 3):
        raise ConfigError("--vad_aggressiveness is out of range", expected="0 to 3", found=aggressiveness)
    detector = webrtcvad.Vad(aggressiveness)
    size = rate * FRAME_MS // 1000
    values = np.clip(np.round(samples * FULL_SCALE), -32768, 32767).astype("<i2")
    seen: deque[bool] = deque(maxlen=FRAMES)
    begun: int | None = None
    for number in range(len(values) // size):
        seen.append(detector.is_speech(values[number * size : (number + 1) * size].tobytes(), rate))
        if begun is None and sum(seen) > SHARE * FRAMES:
            begun = max(0, number + 1 - FRAMES) * size
            seen.clear()
        elif begun is not None and len(seen) - sum(seen) > SHARE * FRAMES:
            yield begun, (number + 1) * size
            begun = None
            seen.clear()
    if begun is not None:
        yield begun, len(values)
