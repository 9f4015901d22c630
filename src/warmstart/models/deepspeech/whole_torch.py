"""DeepSpeech without autograd, for trainings on a CPU whose batches or networks are small.

There all that autograd does around each function takes as long as the functions, so most is computed in torch's
inference mode; but not the gradients of parameters, which are tensors as any. The LSTM is oneDNN's, by the two
functions that ``torch.lstm`` and its gradient call.

Shape letters: B utterances, T frames, N = B·T, R rows of a :class:`~warmstart.models.deepspeech.lstm_torch.Grid`,
H units, A labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from warmstart.models.deepspeech.clipped_torch import Gradients, Layer, draw, of_parameters
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


@lru_cache(maxsize=128)
def _zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """For reading only: the same ones every time."""
    return torch.zeros(shape, dtype=dtype)


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
        both = weight.view(-1, 2, units).transpose(0, 1).to(x.dtype).contiguous()
        weights = (*both.unbind(), bias, _zeros(len(bias), dtype=bias.dtype))
        before = (_zeros(batch, units, dtype=x.dtype), _zeros(batch, units, dtype=bias.dtype))
        arguments: Any = (x, *weights, *before, False, [], _LSTM, units, 1, True, False, False, True)
        with torch.enable_grad():  # without it there is no workspace
            y, h, c, workspace = torch.mkldnn_rnn_layer(*arguments)
        return cls(x, weights, before, y, (h, c), workspace)

    def slopes(self, gradient: Tensor) -> tuple[Tensor, ...]:
        """Float32, of the input, both weights and the bias, where the outputs have ``gradient`` [T, B, H]."""
        x, weights, before, y, after, workspace = self
        states = (*before, y, *after, gradient.to(x.dtype), *before)  # nothing depends on the last state: zeros
        found: tuple[Tensor, ...] = torch.ops.aten.mkldnn_rnn_layer_backward.default(
            x, *weights, *states, False, _LSTM, x.shape[-1], 1, True, True, False, [], False, workspace
        )
        return found[:4]


class Whole:
    """Layers 1 to 3, the LSTM, layers 5 and 6 of ``model``, of windows ``x`` [R, W·F], and their gradients.

    Clipped layers with much to multiply are computed in the type of ``x``, the LSTM if :func:`has_low_recurrence`, and
    all else in float32.

    Attributes:
        logits: float32 [T, B, A]; behind the end of an utterance they mean nothing.
    """

    def __init__(self, model: DeepSpeech, x: Tensor, grid: Grid) -> None:
        c = model.config
        layers = (model.layer_1, model.layer_2, model.layer_3, model.lstm, model.layer_5, model.layer_6)
        self._parameters = [(layer.weight, layer.bias) for layer in layers]
        self._grid, self._steps = grid, list[Layer | _Recurrence]()
        rates = (c.dropout_1, c.dropout_2, c.dropout_3, c.dropout_5)
        with torch.inference_mode():
            kept = draw(Noise(), grid.count, c.n_hidden, rates)
            self._forward(x, c.relu_clip, zip(rates, kept, strict=True))

    def _forward(self, x: Tensor, clip: float, dropped: Iterator[tuple[float, Tensor | None]]) -> None:
        grid, low = self._grid, x.dtype
        *others, (weight, bias) = self._parameters
        for number, own in enumerate(others):
            if number == _BELOW:
                is_low = low != weight.dtype and has_low_recurrence(weight.shape[1])
                x = grid.lay_out(x).to(low if is_low else weight.dtype)
                recurrence = _Recurrence.of(x, *own)
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
        needed = [(w.requires_grad, b.requires_grad) for w, b in self._parameters]
        lowest = next(number for number, pair in enumerate(needed) if any(pair))  # all below is frozen
        with torch.inference_mode():
            slopes = self._slopes(gradient.flatten(0, 1), lowest)
        for number, found in slopes.items():  # outside of that mode: gradients may be changed wherever they are
            parameters = self._parameters[number]
            own: Gradients
            if number == _BELOW:
                *weights, bias = found
                own = torch.cat(weights, 1), bias.clone()
            else:
                x, of_sum = found
                own = of_parameters(of_sum, x, parameters[0].dtype, needed[number])
            for value, parameter in zip(own, parameters, strict=True):
                _add(value, parameter)

    def _slopes(self, gradient: Tensor, lowest: int) -> dict[int, tuple[Tensor, ...]]:
        """What the gradients of the parameters of layers from ``lowest`` on are computed from: of the LSTM both
        weights' and the bias's, of others x and that of x·Wᵀ + b."""
        last = len(self._steps)
        slopes: dict[int, tuple[Tensor, ...]] = {last: (self._last, gradient)}
        back = torch.mm(gradient, self._parameters[last][0])
        for number in reversed(range(lowest, last)):
            step = self._steps[number]
            if isinstance(step, Layer):
                of_sum = step.slopes(self._grid.rows(back, step.y.dtype))
                slopes[number] = step.x, of_sum
                if number > lowest:
                    back = torch.mm(of_sum, step.weight)
            else:
                back, *own = step.slopes(self._grid.lay_out(back))
                slopes[number], back = tuple(own), back.flatten(0, 1)
        return slopes


def _add(gradient: Tensor | None, parameter: Tensor) -> None:
    """Add to the gradient of a parameter, or of those that an adapted weight is computed from, if it is not frozen."""
    if gradient is None or not parameter.requires_grad:
        return
    if parameter.is_leaf and parameter.grad is None:
        parameter.grad = gradient
    else:
        torch.autograd.backward(parameter, gradient)
