"""DeepSpeech without autograd, for trainings on a CPU whose batches or networks are small.

There all that autograd does around each function takes as long as the functions. The LSTM is oneDNN's, by the two
functions that ``torch.lstm`` and its gradient call.

Shape letters: B utterances, T frames, N = B·T, R rows of a :class:`~warmstart.models.deepspeech.lstm_torch.Grid`,
H units, A labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from warmstart.models.deepspeech.clipped_torch import Layer, draw
from warmstart.models.deepspeech.lstm_torch import LOW_FROM, Grid
from warmstart.models.deepspeech.parameters import GATES
from warmstart.models.layers.dropout import Noise

if TYPE_CHECKING:
    from warmstart.models.deepspeech.module import DeepSpeech

_BELOW = 3  # clipped layers under the LSTM
_LSTM = 2  # oneDNN's number of it
_GAIN = 2**22  # multiplications of a layer and batch, below which bfloat16 gains less than its conversions cost


def is_possible(model: DeepSpeech) -> bool:
    """Whether the model has a form that is computed here, and this torch the functions for it."""
    return not model.config.layer_norm and model.lstm.bias.dtype == torch.float32 and torch._C._has_mkldnn


def has_low_recurrence(units: int) -> bool:
    """Whether the LSTM is computed in bfloat16 where the rest is. From ``LOW_FROM`` recurrent weights on our own is the
    faster one, and from 1,024 units on the gradients of oneDNN 3.12 are wrong on a processor that has AMX."""
    return GATES * units**2 < LOW_FROM and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Recurrence(NamedTuple):
    """An LSTM's outputs, and what its gradients are computed from.

    The cell is float32 always, as sums of products are; their factors are of the type of ``x``.
    """

    x: Tensor  # [T, B, H]
    weights: tuple[Tensor, ...]  # of the input and of what was said before [4·H, H], two biases [4·H]
    before: tuple[Tensor, Tensor]  # output and cell [B, H] before the first frame
    y: Tensor  # [T, B, H]
    after: tuple[Tensor, Tensor]  # and after the last one
    workspace: Tensor

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor) -> _Recurrence:
        """Of ``x`` [T, B, H], with parameters as the model has them."""
        batch, units = x.shape[1:]
        both = x.new_empty(2, len(weight), units).copy_(weight.view(-1, 2, units).transpose(0, 1))
        weights = (*both.unbind(), bias, torch.zeros_like(bias))
        before = (x.new_zeros(batch, units), bias.new_zeros(batch, units))
        with torch.enable_grad():  # without it there is no workspace
            y, h, c, workspace = torch.ops.aten.mkldnn_rnn_layer.default(
                x, *weights, *before, False, [], _LSTM, units, 1, True, False, False, True
            )
        return cls(x, weights, before, y, (h, c), workspace)

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float32, of input, weight and bias, where the outputs have ``gradient`` [T, B, H]."""
        x, weights, before, y, after, workspace = self
        states = (*before, y, *after, gradient.to(x.dtype), *before)  # nothing depends on the last state: zeros
        dx, of_input, of_said, dbias, *_ = torch.ops.aten.mkldnn_rnn_layer_backward.default(
            x, *weights, *states, False, _LSTM, x.shape[-1], 1, True, True, False, [], False, workspace
        )
        return dx, torch.cat([of_input, of_said], 1), dbias


class Whole:
    """Layers 1 to 3, the LSTM, layers 5 and 6 of ``model``, of windows ``x`` [R, W·F], and their gradients.

    Clipped layers with much to multiply are computed in the type of ``x``, the LSTM if :func:`has_low_recurrence`, and
    all else in float32.

    Attributes:
        logits: float32 [T, B, A]; behind the end of an utterance they mean nothing.
    """

    def __init__(self, model: DeepSpeech, x: Tensor, grid: Grid, noise: Noise) -> None:
        c = model.config
        layers = (model.layer_1, model.layer_2, model.layer_3, model.lstm, model.layer_5, model.layer_6)
        self._parameters = [(layer.weight, layer.bias) for layer in layers]
        self._grid, self._steps = grid, list[Layer | _Recurrence]()
        rates = (c.dropout_1, c.dropout_2, c.dropout_3, c.dropout_5)
        kept = draw(noise, grid.count, c.n_hidden, rates)
        with torch.no_grad():
            self._forward(x, c.relu_clip, zip(rates, kept, strict=True))

    def _forward(self, x: Tensor, clip: float, dropped: Iterator[tuple[float, Tensor | None]]) -> None:
        grid, low = self._grid, x.dtype
        *others, (weight, bias) = self._parameters
        for number, own in enumerate(others):
            if number == _BELOW:
                is_low = low != weight.dtype and has_low_recurrence(weight.shape[1])
                x = grid.lay_out(x).to(low if is_low else weight.dtype)
                recurrence = _Recurrence.of(x, *(parameter.detach() for parameter in own))
                self._steps.append(recurrence)
                x = recurrence.y.flatten(0, 1)
            else:
                x = grid.rows(x, low if grid.count * own[0].numel() >= _GAIN else weight.dtype)
                layer = Layer.of(x, *own, clip, *next(dropped))
                self._steps.append(layer)
                x = layer.y
        self._last = grid.rows(x, weight.dtype)
        self.logits = grid.lay_out(torch.addmm(bias, self._last, weight.t()))

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Add to the gradients of parameters that are not frozen, where the logits have ``gradient`` [T, B, A], which
        is zero behind the end of an utterance."""
        grid, (weight, bias), gradient = self._grid, self._parameters[-1], gradient.flatten(0, 1)
        _add(torch.mm(gradient.t(), self._last), weight)
        _add(gradient.sum(0), bias)
        needed = [(w.requires_grad, b.requires_grad) for w, b in self._parameters]
        lowest = next(number for number, pair in enumerate(needed) if any(pair))
        back: Any = torch.mm(gradient, weight)
        for number in reversed(range(lowest, len(self._steps))):  # all below is frozen
            step = self._steps[number]
            if isinstance(step, Layer):
                rows = grid.rows(back, step.y.dtype)
                back, *own = step.gradients(rows, weight.dtype, (number > lowest, *needed[number]))
            else:
                back, *own = step.gradients(grid.lay_out(back))
                back = back.flatten(0, 1)
            for found, parameter in zip(own, self._parameters[number], strict=True):
                _add(found, parameter)


def _add(gradient: Tensor | None, parameter: Tensor) -> None:
    """Add to the gradient of a parameter, or of those that an adapted weight is computed from, if it is not frozen."""
    if gradient is None or not parameter.requires_grad:
        return
    if parameter.is_leaf and parameter.grad is None:
        parameter.grad = gradient
    else:
        torch.autograd.backward(parameter, gradient)
