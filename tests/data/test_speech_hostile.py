"""Lists and recordings damaged by the hundred: the examples they hold, or one clear error."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from speech_files import RATE, make_tar, sdb_bytes, tone, wav_bytes
from test_speech_lists import packed_opus

import hostile
from warmstart.data.speech.audio import read_audio
from warmstart.data.speech.read import read_examples
from warmstart.errors import DataError, WarmstartError

TEXTS = ["one, two", "трёх", "ثلاثة"]
CLIPS = [wav_bytes(tone(0.02 + 0.01 * i, 300 + i)) for i in range(3)]
BLOCK = 512  # of a tar file


def examples(path: Path) -> list[tuple[str | None, int, bytes]]:
    """What a list holds; its audio lies where it says, and is read as far as it is sound."""
    found = []
    for example in read_examples(path):
        data = example.audio.read()
        assert example.audio.length in (None, len(data))
        assert example.transcript is not None
        sound(example.audio)
        found.append((example.transcript, example.size, data))
    return found


def sound(audio: Path | object) -> int:
    """The number of samples, which are numbers; 0 where the audio alone is refused."""
    try:
        samples = read_audio(audio, RATE)  # type: ignore[arg-type]
    except WarmstartError:
        return 0
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    return len(samples)


def test_csv(tmp_path: Path) -> None:
    place = tmp_path / "list"
    place.mkdir()
    rows = ["wav_filename,wav_filesize,transcript"]
    for i, (clip, text) in enumerate(zip(CLIPS, TEXTS, strict=True)):
        (place / f"{i}.wav").write_bytes(clip)
        rows.append(f'{i}.wav,{len(clip)},"{text}"')
    path = place / "list.csv"
    path.write_text("\n".join(rows) + "\n", "utf-8")
    hostile.run(path, [path], tmp_path / "work", read=examples)


@pytest.mark.parametrize("packed", [False, True])
def test_sample_databases(packed: bool, tmp_path: Path) -> None:
    clips = [packed_opus(samples=RATE // 10, seconds=0.2)[1]] if packed else CLIPS
    path = tmp_path / "list" / "a.sdb"
    path.parent.mkdir()
    mime = "application/vnd.mozilla.opus" if packed else "audio/wav"
    path.write_bytes(sdb_bytes(list(zip(clips, TEXTS, strict=False)), mime))
    assert all(sound(example.audio) for example in read_examples(path))
    hostile.run(path, [path], tmp_path / "work", read=examples)


def summed(data: bytes) -> bytes:
    """``data`` with the checksum of every block that is, or was, a header of a tar file (POSIX.1, ``ustar``)."""
    blocks = bytearray(data)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        if data[start + 257 : start + 262] == b"ustar":
            others = data[start : start + 148] + b" " * 8 + data[start + 156 : start + BLOCK]
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(others)
    return bytes(blocks)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mend", [bytes, summed], ids=["as it is", "with checksums"])
def test_web_datasets(format: int, mend: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "list" / "a.tar"
    path.parent.mkdir()
    stem = "a" if format == tarfile.USTAR_FORMAT else "имя" * 40  # longer than a header holds
    parts = [(f"{stem}{i}.wav", clip) for i, clip in enumerate(CLIPS)]
    parts += [(f"{stem}{i}.txt", text.encode()) for i, text in enumerate(TEXTS)]
    make_tar(path, parts, format)
    hostile.run(path, [path], tmp_path / "work", read=examples, mend=mend)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")),
        *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    ],
)
def test_recordings(format: str, subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "audio" / f"a.{format.lower()}"
    path.parent.mkdir()
    path.write_bytes(wav_bytes(tone(0.1), format=format, subtype=subtype))
    assert sound(path) >= RATE // 10
    hostile.run(path, [path], tmp_path / "work", read=sound)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"wav_filename,wav_filesize,transcript\n{'a' * 5000}.wav,1,x\nb.wav,1,y\n")
    for example in read_examples(path):
        with pytest.raises(DataError, match="the audio cannot be read"):
            read_audio(example.audio, RATE)


@pytest.mark.parametrize("size", [2**62, 2**63, 2**64 - BLOCK, 2**80])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_sizes_beyond_all_files(size: int, kind: bytes, tmp_path: Path) -> None:
    """As GNU tar writes them: a byte 0x80, then eleven of the number."""
    path = make_tar(tmp_path / "a.tar", [("a.wav", CLIPS[0]), ("a.txt", b"x")])
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + size.to_bytes(11, "big")
    data[156:157] = kind
    path.write_bytes(summed(bytes(data)))
    with hostile.limits(2), pytest.raises(DataError):
        read_examples(path)
