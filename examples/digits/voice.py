"""Words spoken by eSpeak NG, whose library the package ``espeakng-loader`` brings.

Nothing is random: the same word, voice, speed and pitch are the same samples.
"""

from __future__ import annotations

import ctypes
import wave
from pathlib import Path

RETRIEVAL = 1  # espeak_AUDIO_OUTPUT: samples go to the callback
RATE, PITCH = 1, 3  # espeak_PARAMETER
UTF8 = 1  # espeakCHARS_UTF8


class Voice:
    """``Voice().speak("zero", "en+f2", speed=160, pitch=50)`` is int16 samples at ``sample_rate``.

    The library holds one state for the whole process: make one.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate: int = self._library.espeak_Initialize(RETRIEVAL, 500, data, 0)
        if self.sample_rate < 0:
            raise RuntimeError("eSpeak NG cannot be initialised")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)  # kept: the library calls it later
        self._library.espeak_SetSynthCallback(self._callback)
        self._samples = bytearray()

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            self._samples += ctypes.string_at(samples, 2 * count)
        return 0

    def speak(self, text: str, voice: str, *, speed: int, pitch: int) -> bytes:
        """int16 samples of ``text``; ``speed`` in words a minute (80 to 450), ``pitch`` 0 to 99."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        self._library.espeak_SetParameter(RATE, speed, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        self._samples.clear()
        data = text.encode() + b"\0"
        if self._library.espeak_Synth(data, len(data), 0, 1, 0, UTF8, None, None) != 0:
            raise RuntimeError(f"eSpeak NG cannot say {text!r}")
        self._library.espeak_Synchronize()
        return bytes(self._samples)

    def write(self, path: Path, text: str, voice: str, *, speed: int, pitch: int) -> None:
        """Speak into a wav file."""
        samples = self.speak(text, voice, speed=speed, pitch=pitch)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.sample_rate)
            file.writeframes(samples)
