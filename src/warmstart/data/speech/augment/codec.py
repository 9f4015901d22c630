"""Through Opus and back. Source: Coqui STT 1.4.0, ``util/augmentations.py`` and ``util/audio.py``."""

from __future__ import annotations

import io
from typing import Any, ClassVar

import numpy as np

from warmstart.data.speech.audio import libraries, read_audio
from warmstart.data.speech.augment.base import Augmentation, Moment, Values, fitted
from warmstart.data.speech.augment.ranges import Wholes
from warmstart.data.speech.opus import RATES
from warmstart.errors import MissingExtra, Problem
from warmstart.lean import dataclass
from warmstart.models.deepspeech.mfcc import Mfcc

FRAME_MS = 60
OPTIONS = {"application": "audio", "frame_duration": str(FRAME_MS), "vbr": "constrained"}  # libopus's own defaults
BITRATES = (2_400, 256_000)


@dataclass(frozen=True, kw_only=True)
class Codec(Augmentation):
    """Through Opus at ``bitrate`` bits a second and back, in frames of 60 ms as Coqui makes them.

    libopus takes 500 and more, but below 2,400 it makes silence of such frames.
    """

    name: ClassVar[str] = "codec"
    limits: ClassVar = {"bitrate": BITRATES}

    bitrate: Wholes = Wholes(3200, 3200)

    def problems(self, mfcc: Mfcc) -> list[Problem]:
        try:
            encoder()
        except MissingExtra as error:
            return [error.problem]
        return []

    def apply(self, values: Values, moment: Moment) -> Values:
        if not len(values):
            return values
        soxr = libraries()[1]
        rate, bitrate = moment.mfcc.sample_rate, self.bitrate.count(moment.clock, moment.random)
        opus_rate = rate if rate in RATES else RATES[-1]
        samples = values if opus_rate == rate else soxr.resample(values, rate, opus_rate)
        file = ogg_opus(np.clip(samples, -1.0, 1.0), opus_rate, bitrate)
        return fitted(read_audio(file, rate), len(values))


def ogg_opus(samples: Values, rate: int, bitrate: int) -> bytes:
    """(N,) ``samples`` at one of Opus's own rates as an Ogg Opus file, with up to 120 ms of silence after the end.

    Raises ``MissingExtra``.
    """
    av = encoder()
    frame = rate * FRAME_MS // 1000
    padded = fitted(samples, (len(samples) // frame + 2) * frame)  # libsndfile opens no file of one short frame
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=rate, options=OPTIONS)
        stream.layout, stream.format, stream.bit_rate = "mono", "flt", bitrate
        audio = av.AudioFrame.from_ndarray(padded[None], format="flt", layout="mono")
        audio.sample_rate = rate
        for part in (audio, None):  # None: what is left in the encoder
            container.mux(stream.encode(part))
    return file.getvalue()


def encoder() -> Any:
    """PyAV, which carries FFmpeg with libopus. libsndfile's own encoder begins at 6,000 bits a second.

    Raises ``MissingExtra``.
    """
    try:
        import av
    except ImportError:
        raise MissingExtra("av", "codec") from None
    return av
