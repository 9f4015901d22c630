"""DeepSpeech in PyTorch, computing what Coqui STT 1.4 computes.

Source of every formula: Coqui STT 1.4.0, ``training/coqui_stt_training/train.py`` (``create_model``), and TensorFlow's
``BlockLSTM`` (version 1, forget bias 0).
Shape letters: B utterances, T frames, K frames of one step, F ``n_input``, W ``window``, H ``n_hidden``,
A ``vocab_size``, N real frames of a batch (and at least one more).
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.lstm_torch import Frames, recur
from warmstart.models.deepspeech.parameters import GATES
from warmstart.models.layers.device import has_own_functions
from warmstart.models.layers.dropout import Noise, dropout, keep_probability
from warmstart.models.layers.linear import product

_LARGE = 4096  # numbers in the state of one time, from which on torch's LSTM, all float32, is the slower one
_SMALL = 32768  # activations of a layer and batch, below which bfloat16 gains less than its conversions cost
_NORM_EPSILON = 1e-12  # of tf.contrib.layers.layer_norm

State = tuple[Tensor, Tensor]
"""Output and cell of the LSTM after the last frame, each [B, H]."""


class Dense(nn.Linear):
    """min(relu(x·Wᵀ + b), clip), normalised where the model is, and in training partly dropped."""

    def __init__(self, inputs: int, config: DeepSpeechConfig, rate: float) -> None:
        super().__init__(inputs, config.n_hidden)
        self.norm = nn.LayerNorm(config.n_hidden, eps=_NORM_EPSILON) if config.layer_norm else None
        self.clip, self.rate = config.relu_clip, rate

    def activate(self, x: Tensor, noise: Noise | None) -> Tensor:
        """What the layer makes of ``x``: [..., inputs], or [N, inputs] with ``noise``, which is for training."""
        if noise is None or not has_own_functions(x):
            y = functional.linear(x, self.weight, self.bias).clamp(0.0, self.clip)
            return dropout(y if self.norm is None else self.norm(y), self.rate, noise)
        if self.norm is None:
            return clipped(x, self.weight, self.bias, self.clip, self.rate, noise)
        y = self.norm(clipped(x, self.weight, self.bias, self.clip, 0.0, noise).to(self.norm.weight.dtype))
        return dropout(y, self.rate, noise).to(x.dtype)


def clipped(x: Tensor, weight: Tensor, bias: Tensor, clip: float, rate: float, noise: Noise) -> Tensor:
    """dropout(min(relu(x·Wᵀ + b), clip)) [N, H] of ``x`` [N, inputs], computed in its type."""
    kept = noise.kept((len(x), len(weight)), rate) if rate else None
    result: Tensor = _Clipped.apply(x, weight, bias, clip, kept, 1.0 / keep_probability(rate))  # type: ignore[no-untyped-call]
    return result


class _Clipped(torch.autograd.Function):
    """min(relu(x·Wᵀ + b), clip)·kept·factor. What the clip lets through is read off the result."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, clip: float, kept: Tensor | None, factor: float
    ) -> Tensor:
        own = weight.to(x.dtype)
        y = torch.ops.aten.hardtanh_(product(x, own, bias.to(x.dtype)), 0.0, clip)
        if kept is not None:
            torch.addcmul(y.new_zeros(()), y, kept.to(y.dtype), value=factor, out=y)
        ctx.save_for_backward(x, own, y)
        ctx.clip, ctx.factor, ctx.dtype = clip, factor, weight.dtype
        return cast(Tensor, y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        back = torch.ops.aten.hardtanh_backward(gradient, y, 0.0, _rounded(ctx.clip, ctx.factor, y.dtype))
        if ctx.factor != 1.0:
            back.mul_(ctx.factor)
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        return (
            torch.mm(back, weight) if needs_x else None,
            torch.mm(back.t(), x).to(ctx.dtype) if needs_weight else None,
            back.sum(0).to(ctx.dtype) if needs_bias else None,
            None,
            None,
            None,
        )


@cache
def _rounded(clip: float, factor: float, dtype: torch.dtype) -> float:
    """clip·factor as it stands in a result of ``dtype``."""
    return float(torch.tensor(clip, dtype=dtype).mul_(factor))


class Lstm(nn.Module):
    """One LSTM layer with one bias, in the type of its weights also under autocast: errors of a recurrence add up."""

    def __init__(self, n_hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(GATES * n_hidden, 2 * n_hidden))
        self.bias = nn.Parameter(torch.empty(GATES * n_hidden))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Outputs [T, B, H] for ``x`` [T, B, H], and the state after the last frame. Time is outside because the LSTM
        is computed so: the other way it takes an eighth longer, to turn everything there and back."""
        parts = [*self.weight.chunk(2, 1), self.bias, torch.zeros_like(self.bias)]
        if x.device.type == "cpu":
            weights = [part.contiguous() for part in parts]
        else:  # behind each other, as cuDNN wants them
            flat = torch.cat([part.flatten() for part in parts])
            pieces = torch.split(flat, [part.numel() for part in parts])
            weights = [own.view(part.shape) for own, part in zip(pieces, parts, strict=True)]
        with torch.autocast(x.device.type, enabled=False):
            y, h, c = torch.lstm(
                x.to(self.bias.dtype),
                [s[None] for s in state],
                weights,
                True,
                1,
                0.0,
                self.training,
                False,
                False,
            )
        return y, (h[0], c[0])


class DeepSpeech(nn.Module):
    """DeepSpeech: features to logits, of whole utterances or step by step.

    Built on the ``meta`` device it takes no memory; ``load_state_dict(..., assign=True)`` then fills it.
    """

    def __init__(self, config: DeepSpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.layer_1 = Dense(config.window * config.n_input, config, config.dropout_1)
        self.layer_2 = Dense(config.n_hidden, config, config.dropout_2)
        self.layer_3 = Dense(config.n_hidden, config, config.dropout_3)
        self.lstm = Lstm(config.n_hidden)
        self.layer_5 = Dense(config.n_hidden, config, config.dropout_5)
        self.layer_6 = nn.Linear(config.n_hidden, config.vocab_size)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits float32 [B, T, A] of ``features`` float32 [B, T, F], of which the first ``lengths`` (int64 [B],
        1 ≤ length ≤ T) frames of each utterance are real; what stands behind them does not matter.

        Logits behind the end are those of an LSTM that says zero, as TensorFlow's are. On a CPU, inside
        ``torch.autocast``, everything but the LSTM and the logits is computed in its type, if the batch is large
        enough to gain by it.
        """
        kind = features.device.type
        if has_own_functions(features) and torch.is_autocast_enabled(kind):
            small = features.shape[0] * features.shape[1] * self.config.n_hidden < _SMALL
            with torch.autocast(kind, enabled=False):
                return self._logits(features, lengths, self._dtype if small else torch.get_autocast_dtype(kind))
        return self._logits(features, lengths, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.lstm.bias.dtype

    def _logits(self, features: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        noise = Noise() if self.training else None
        frames = Frames(lengths, features.shape[1], rounded=dtype == torch.bfloat16)
        x = self._below(self._windows(features, frames, lengths, dtype), noise)
        large = frames.count * self.config.n_hidden >= _LARGE * len(frames.sizes)
        if noise is not None and dtype == torch.bfloat16 and large:
            said = recur(x, self.lstm.weight, self.lstm.bias, frames)
        else:
            said = frames.take(self.lstm(frames.lay_out(x), self.initial_state(len(features)))[0])
        return frames.filled(self._above(said.to(dtype), noise))

    def initial_state(self, batch: int) -> State:
        """The state before the first frame of ``batch`` utterances."""
        zeros = self.lstm.bias.new_zeros(batch, self.config.n_hidden)
        return zeros, zeros

    def step(self, windows: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, K, A] of the next K frames, each in its ``windows`` float32 [B, K, W, F], and the state after
        them. Frames before the beginning and after the end are zeros in the windows."""
        y, state = self.lstm(self._below(windows.flatten(2), None).transpose(0, 1), state)
        return self._above(y.transpose(0, 1), None), state

    def _windows(self, features: Tensor, frames: Frames, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        """[R, W·F] in ``dtype``: the frame of each row with its neighbours in the order of time."""
        c, (batch, width, f) = self.config.n_context, features.shape
        padded = features.new_zeros(batch, width + 2 * c, f, dtype=dtype)
        inner = padded[:, c : c + width].copy_(features)
        if frames.count < batch * width:
            behind = torch.arange(width, device=features.device) >= lengths[:, None]
            inner.masked_fill_(behind[:, :, None], 0.0)
        first = frames.place + frames.place // width * (2 * c)  # of the frames that each sees
        return padded.flatten().unfold(0, self.config.window * f, f).index_select(0, first)

    def _below(self, x: Tensor, noise: Noise | None) -> Tensor:
        for layer in (self.layer_1, self.layer_2, self.layer_3):
            x = layer.activate(x, noise)
        return x

    def _above(self, x: Tensor, noise: Noise | None) -> Tensor:
        y, out = self.layer_5.activate(x, noise), self.layer_6
        return cast(Tensor, out(y.to(out.weight.dtype)))
