"""Audio of any format that libsndfile knows (wav, flac, ogg Vorbis, ogg Opus, mp3 …) as mono samples of one rate.

An hour of audio is 230 MB at 16 kHz: everything here goes block by block, and what needs no more than a block at
a time (features) never holds the whole.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from errno import EISDIR
from pathlib import Path
from stat import S_ISDIR, S_ISFIFO, S_ISREG
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.data.speech.example import AudioSource, unreadable
from warmstart.data.speech.opus import ogg_of_packed
from warmstart.data.speech.unread import HEAD, unread
from warmstart.data.speech.whole import check_whole
from warmstart.errors import DataError, MissingExtra

Samples = NDArray[np.float32]

BLOCK_VALUES = 1 << 17  # samples of all channels that are decoded at a time
RATES = (1_000, 768_000)  # a header that says another rate is damaged, or would make a small file a huge one
LOUDEST = 16.0  # of floating-point samples, 24 dB above full scale: more are integers in disguise
FULL_SCALE = 32767  # what Coqui's training divides 16-bit samples by (its C++ client by 32768)


def read_audio(audio: AudioSource | Path | bytes, sample_rate: int, *, resample: bool = True) -> Samples:
    """(N,) float32 samples in [-1, 1] at ``sample_rate``; channels are averaged.

    Raises ``DataError`` where :func:`audio_blocks` does.
    """
    blocks = list(audio_blocks(audio, sample_rate, resample=resample))
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def audio_blocks(
    audio: AudioSource | Path | bytes, sample_rate: int, *, resample: bool = True, start: float = 0.0
) -> Iterator[Samples]:
    """The samples of :func:`read_audio` in consecutive blocks, from the share ``start`` in [0, 1) of the file on.

    16-bit samples, and all that libsndfile makes 16-bit samples of, are divided by 32767; those of float files are
    taken as they are. Another rate is resampled by soxr (HQ): n samples become round(n · sample_rate / rate).

    Raises:
        DataError: the file is missing, no audio, damaged or shorter than it says, of another rate where ``resample``
            is false, or holds samples that are not finite or far above full scale.
        MissingExtra: soundfile or soxr is not installed.
    """
    soundfile, soxr = libraries()
    where = "audio in memory" if isinstance(audio, bytes) else audio
    try:
        opened = _opened(audio)
        try:
            file = soundfile.SoundFile(opened)
        except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError) as error:
            found, todo = unread(_head(opened), _reason(error))
            raise DataError("this is no audio file that can be read", where=where, found=found, todo=todo) from error
    except OSError as error:
        raise unreadable(error, where) from error
    with file:
        rate = file.samplerate
        if not RATES[0] <= rate <= RATES[1]:
            raise DataError(
                "the audio has an impossible sample rate", where=where, expected="1 to 768 kHz", found=f"{rate} Hz"
            )
        if rate != sample_rate and not resample:
            raise DataError(
                "the audio has another sample rate",
                where=where,
                expected=f"{sample_rate} Hz",
                found=f"{rate} Hz",
                todo="convert the file, or set resample: true",
            )
        blocks = _decoded(soundfile, file, where, start)
        if rate == sample_rate:
            yield from blocks
            return
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        for block in blocks:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _decoded(soundfile: Any, file: Any, where: object, start: float) -> Iterator[Samples]:
    as_float = file.subtype in ("FLOAT", "DOUBLE")  # libsndfile does not scale these to integers
    frames = max(1, BLOCK_VALUES // file.channels)
    remaining = file.frames
    try:
        if start:
            remaining -= file.seek(int(start * file.frames))
        while True:
            block_NC = file.read(frames, dtype="float32" if as_float else "int16", always_2d=True)
            if not len(block_NC):
                break
            remaining -= len(block_NC)
            values_N = block_NC[:, 0] if file.channels == 1 else block_NC.mean(axis=1)
            samples_N = np.asarray(values_N if as_float else values_N / FULL_SCALE, np.float32)
            if as_float:
                _check_floats(samples_N, where)
            yield samples_N
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError("the audio is damaged", where=where, found=_reason(error)) from error
    if remaining > 0:
        raise DataError(
            "the audio is damaged or cut off",
            where=where,
            expected=f"{file.frames} samples, as the file says",
            found=file.frames - remaining,
        )


def _check_floats(samples_N: Samples, where: object) -> None:
    peak = float(np.abs(samples_N).max())
    if not np.isfinite(peak):
        raise DataError("the audio holds samples that are not finite", where=where)
    if peak > LOUDEST:
        raise DataError(
            "the audio's floating-point samples are out of range",
            where=where,
            expected="about -1 to 1",
            found=f"{peak:g}",
            todo="divide them: integers of 16 bits by 32768",
        )


def _opened(audio: AudioSource | Path | bytes) -> bytes | io.BytesIO:
    """What libsndfile opens. Raises ``OSError``, and ``DataError`` where the file is cut off or cannot be fetched."""
    if isinstance(audio, AudioSource):
        if audio.length is not None:
            data = audio.read()
            return _in_memory(ogg_of_packed(data, audio) if audio.packed else data, audio)
        audio = audio.file()
    if isinstance(audio, bytes):
        return _in_memory(audio, "audio in memory")
    status = os.stat(audio)
    if S_ISDIR(status.st_mode):
        raise IsADirectoryError(EISDIR, "a directory, not a file", str(audio))
    if S_ISFIFO(status.st_mode):  # can be read once only, and libsndfile goes back in all but wav
        return _in_memory(Path(audio).read_bytes(), audio)
    if S_ISREG(status.st_mode):
        opened = os.open(audio, os.O_RDONLY)
        try:
            check_whole(lambda at, count: os.pread(opened, count, at), status.st_size, audio)
        finally:
            os.close(opened)
    return os.fsencode(audio)  # as bytes, whatever its name is: soundfile encodes text as UTF-8


def _head(opened: bytes | io.BytesIO) -> bytes:
    if isinstance(opened, io.BytesIO):
        return opened.getvalue()[:HEAD]
    with open(opened, "rb") as file:
        return file.read(HEAD)


def _in_memory(data: bytes, where: object) -> io.BytesIO:
    check_whole(lambda at, count: data[at : at + count], len(data), where)
    return io.BytesIO(data)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", None) or error).removeprefix("Error : ")


def libraries() -> tuple[Any, Any]:
    """(soundfile, soxr). Raises ``MissingExtra``."""
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise MissingExtra(error.name or "soundfile", "speech") from error
    except OSError as error:  # soundfile without libsndfile
        raise MissingExtra("libsndfile", "speech") from error
    return soundfile, soxr
