"""DeepSpeech in PyTorch, computing what Coqui STT 1.4 computes.

Source of every formula: Coqui STT 1.4.0, ``training/coqui_stt_training/train.py`` (``create_model``), and TensorFlow's
``BlockLSTM`` (version 1, forget bias 0).
Shape letters: B utterances, T frames, K frames of one step, F ``n_input``, W ``window``, H ``n_hidden``,
A ``vocab_size``, N real frames of a batch (and at least one more).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.deepspeech import whole_torch
from warmstart.models.deepspeech.clipped_torch import clipped
from warmstart.models.deepspeech.config import DeepSpeechConfig
from warmstart.models.deepspeech.lstm_torch import Frames, Grid, recur
from warmstart.models.deepspeech.parameters import GATES
from warmstart.models.deepspeech.whole_torch import Whole
from warmstart.models.layers.device import has_own_functions
from warmstart.models.layers.dropout import Noise, dropout

_LARGE = 4096  # numbers in the state of one time, from which on an LSTM all in float32 is slower than ours
_SMALL = 16384  # activations of a layer and batch, below which bfloat16 gains less than its conversions cost
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
        ``torch.autocast``, what gains by it is multiplied in its type, if the batch is large enough; the LSTM's cell
        and the logits stay as they are, and outside of training all of the LSTM.
        """
        dtype, context = self._computing(features)
        with context:
            return self._logits(features, lengths, dtype)

    def whole(self, features: Tensor, lengths: Tensor) -> Whole | None:
        """The same in training, with gradients that autograd has no part in; None where it has to. Behind the end of
        an utterance ``features`` are zeros, and the logits mean nothing."""
        if not (self.training and has_own_functions(self.lstm.bias) and whole_torch.is_possible(self)):
            return None
        dtype, context = self._computing(features)
        width, units = features.shape[1], self.config.n_hidden
        if self._is_large(lengths, width, dtype) and not whole_torch.has_low_recurrence(units):
            return None
        grid = Grid(lengths, width, rounded=dtype == torch.bfloat16)
        with context:
            with torch.inference_mode():
                x = self._windows(features, grid, None, dtype)
            return Whole(self, x, grid)

    def _computing(self, features: Tensor) -> tuple[torch.dtype, AbstractContextManager[object]]:
        """The type in which much is multiplied, and the context for it: our own functions choose for themselves."""
        kind = features.device.type
        if not (has_own_functions(features) and torch.is_autocast_enabled(kind)):
            return self._dtype, nullcontext()
        small = features.shape[0] * features.shape[1] * self.config.n_hidden < _SMALL
        return self._dtype if small else torch.get_autocast_dtype(kind), torch.autocast(kind, enabled=False)

    def _is_large(self, lengths: Tensor, width: int, dtype: torch.dtype) -> bool:
        """Whether the LSTM's products are worth bfloat16."""
        return dtype == torch.bfloat16 and int(lengths.sum()) * self.config.n_hidden >= _LARGE * width

    @property
    def _dtype(self) -> torch.dtype:
        return self.lstm.bias.dtype

    def _logits(self, features: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
        noise = Noise() if self.training else None
        width = features.shape[1]
        if noise is not None and self._is_large(lengths, width, dtype):
            frames = Frames(lengths, width, rounded=True)
            x = self._below(self._windows(features, frames, lengths, dtype), noise)
            said = recur(x, self.lstm.weight, self.lstm.bias, frames)
            return frames.filled(self._above(said.to(dtype), noise))
        grid = Grid(lengths, width, rounded=dtype == torch.bfloat16)
        x = self._windows(features, grid, None if grid.real is None else lengths, dtype)
        said, _ = self.lstm(grid.lay_out(self._below(x, noise)), self.initial_state(len(lengths)))
        return grid.filled(self._above(grid.rows(grid.masked(said).flatten(0, 1), dtype), noise))

    def initial_state(self, batch: int) -> State:
        """The state before the first frame of ``batch`` utterances."""
        zeros = self.lstm.bias.new_zeros(batch, self.config.n_hidden)
        return zeros, zeros

    def step(self, windows: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, K, A] of the next K frames, each in its ``windows`` float32 [B, K, W, F], and the state after
        them. Frames before the beginning and after the end are zeros in the windows."""
        y, state = self.lstm(self._below(windows.flatten(2), None).transpose(0, 1), state)
        return self._above(y.transpose(0, 1), None), state

    def _windows(self, features: Tensor, rows: Frames | Grid, lengths: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[R, W·F] in ``dtype``: the frame of each row with its neighbours in the order of time; no frame behind its
        recording's length, if there are ``lengths``, is seen."""
        c, (_, width, f) = self.config.n_context, features.shape
        padded = functional.pad(features.to(dtype), (0, 0, c, c))
        if lengths is not None:
            behind = torch.arange(width, device=features.device) >= lengths[:, None]
            padded[:, c : c + width].masked_fill_(behind[:, :, None], 0.0)
        return padded.flatten().unfold(0, self.config.window * f, f).index_select(0, rows.windows(c))

    def _below(self, x: Tensor, noise: Noise | None) -> Tensor:
        for layer in (self.layer_1, self.layer_2, self.layer_3):
            x = layer.activate(x, noise)
        return x

    def _above(self, x: Tensor, noise: Noise | None) -> Tensor:
        y, out = self.layer_5.activate(x, noise), self.layer_6
        return cast(Tensor, out(y.to(out.weight.dtype)))
