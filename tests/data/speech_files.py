"""Recordings made of noise and tones, and lists of them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16000


def tone(
    seconds: float, hertz: float = 440.0, rate: int = RATE, seed: int = 0, peak: float = 0.5
) -> NDArray[np.float32]:
    """A tone with a little noise."""
    n = round(seconds * rate)
    noise = np.random.default_rng(seed).uniform(-0.05, 0.05, n)
    return (peak * (0.9 * np.sin(2 * np.pi * hertz * np.arange(n) / rate) + noise)).astype(np.float32)


def wav_bytes(samples: NDArray[np.float32], rate: int = RATE, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", "subtype": "PCM_16", **options})
    return file.getvalue()


def make_csv(folder: Path, clips: Sequence[tuple[float, str]], name: str = "train.csv") -> Path:
    """One wav of ``seconds`` for each (seconds, transcript), and the list of them."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(name).stem
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["wav_filename", "wav_filesize", "transcript"])
        for i, (seconds, transcript) in enumerate(clips):
            data = wav_bytes(tone(seconds, 200 + 10 * i, seed=i))
            (folder / f"{stem}-{i}.wav").write_bytes(data)
            writer.writerow([f"{stem}-{i}.wav", len(data), transcript])
    return folder / name


def make_tar(path: Path, parts: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in parts:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def sdb_bytes(samples: Sequence[tuple[bytes, str]], mime: str = "audio/wav") -> bytes:
    """A sample database as Coqui's ``DirectSDBWriter`` lays it out."""
    schema = [{"content": "speech", "mime-type": mime}, {"content": "transcript", "mime-type": "text/plain"}]
    meta = json.dumps({"schema": schema}).encode()
    head = b"SAMPLEDB" + len(meta).to_bytes(8, "big") + meta
    body, offsets = b"", []
    for audio, text in samples:
        offsets.append(len(head) + 16 + len(body))
        columns = b"".join(len(part).to_bytes(4, "big") + part for part in (audio, text.encode()))
        body += len(columns).to_bytes(4, "big") + columns
    index = len(samples).to_bytes(8, "big") + b"".join(offset.to_bytes(8, "big") for offset in offsets)
    counts = (len(body) + 8).to_bytes(8, "big") + len(samples).to_bytes(8, "big")
    return head + counts + body + len(index).to_bytes(8, "big") + index
