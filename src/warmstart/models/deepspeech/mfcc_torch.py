"""The MFCCs of ``mfcc.py`` for a padded batch, in torch, on any device.

Shapes: B rows, N samples, T frames, W samples of a window, F frequencies, C mel channels, K coefficients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from warmstart.models.deepspeech.mfcc import FLOOR, Mfcc


class MfccBatch(nn.Module):
    """``(samples (B, N), lengths (B,)) -> (features (B, T, K) float32, frames (B,) int64)``.

    Computed in float64, as TensorFlow does. Frames after a row's own are zero. There are no parameters, and nothing
    in the state dict.
    """

    hann: Tensor
    mel_weights: Tensor
    cosines: Tensor

    def __init__(self, mfcc: Mfcc) -> None:
        super().__init__()
        self.mfcc = mfcc
        for name in ("hann", "mel_weights", "cosines"):
            self.register_buffer(name, torch.from_numpy(getattr(mfcc, name)), persistent=False)

    def forward(self, samples_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        mfcc = self.mfcc
        frames_B = torch.clamp(1 + (lengths_B.long() - mfcc.window).div(mfcc.step, rounding_mode="floor"), min=0)
        longest = mfcc.frames(samples_BN.shape[1])
        if longest == 0:
            return samples_BN.new_zeros(len(samples_BN), 0, mfcc.n_input, dtype=torch.float32), frames_B
        frames_BTW = samples_BN.double().unfold(1, mfcc.window, mfcc.step) * self.hann
        spectrum_BTF = torch.fft.rfft(frames_BTW, mfcc.fft_length)
        power_BTF = (spectrum_BTF.real**2 + spectrum_BTF.imag**2).float()
        mel_BTC = power_BTF.double().sqrt() @ self.mel_weights
        features_BTK = (mel_BTC.clamp(min=FLOOR).log() @ self.cosines).float()
        own_BT = torch.arange(longest, device=samples_BN.device) < frames_B[:, None]
        return features_BTK * own_BT[..., None], frames_B
