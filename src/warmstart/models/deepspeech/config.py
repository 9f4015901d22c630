"""Configuration of DeepSpeech, with what its features are."""

from __future__ import annotations

from typing import Annotated

from warmstart.checked import Config, Limits

Rate = Annotated[float, Limits(ge=0.0, lt=1.0)]
Positive = Annotated[int, Limits(gt=0)]


class DeepSpeechConfig(Config):
    """DeepSpeech (Hannun et al. 2014) with one forward LSTM, as Coqui STT 1.4 computes it.

    ``vocab_size`` counts the labels and the blank, which is the last. A frame is seen with ``n_context`` frames on
    each side, zeros beyond the ends; it has ``n_input`` cepstral coefficients of ``win_ms`` milliseconds of audio at
    ``sample_rate``, taken every ``step_ms``. Activations are cut at ``relu_clip``; ``layer_norm`` normalises those of
    layers 1, 2, 3 and 5. ``dropout_N`` is what layer N loses in training.

    Coqui calls ``dropout_1`` ``dropout_rate``, and ``dropout_5`` ``dropout_rate6``; its rates 4 and 5 do nothing.
    """

    vocab_size: Annotated[int, Limits(gt=1)]
    n_hidden: Positive = 2048
    n_input: Annotated[int, Limits(gt=0, le=40)] = 26
    n_context: Annotated[int, Limits(ge=0)] = 9
    layer_norm: bool = False
    relu_clip: Annotated[float, Limits(gt=0.0)] = 20.0
    sample_rate: Positive = 16_000
    win_ms: Positive = 32
    step_ms: Positive = 20
    dropout_1: Rate = 0.05
    dropout_2: Rate = 0.05
    dropout_3: Rate = 0.05
    dropout_5: Rate = 0.05

    @property
    def window(self) -> int:
        """Frames that layer 1 sees at once."""
        return 2 * self.n_context + 1

    def check(self) -> None:
        wrong = [key for key in ("win_ms", "step_ms") if getattr(self, key) * self.sample_rate % 1000]
        if wrong:
            said = " and ".join(f"{key} {getattr(self, key)}" for key in wrong)
            raise ValueError(f"{said}: not a whole number of samples at {self.sample_rate} Hz")
