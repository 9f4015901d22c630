"""A fixed number of frames of DeepSpeech as a module without loops or shapes that depend on data, to be exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from warmstart.models.deepspeech.module import DeepSpeech
from warmstart.models.deepspeech.parameters import GATES


class StreamingStep(nn.Module):
    """``frames`` frames of one recording; the LSTM's recurrence is written out."""

    def __init__(self, model: DeepSpeech, frames: int) -> None:
        super().__init__()
        self.model, self.frames = model, frames

    def example(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the right shapes. The two of the state are different tensors, which litert-torch tells apart so."""
        c = self.model.config
        features = torch.zeros(1, self.frames + 2 * c.n_context, c.n_input)
        return features, torch.zeros(1, 1, c.n_hidden), torch.zeros(1, 1, c.n_hidden)

    def forward(self, features: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [1, frames, A] and the state after them, [1, 1, H] each, of ``features``
        [1, frames + 2·n_context, F] and the state before."""
        model = self.model
        width = model.config.window
        x = torch.cat([features[0, k : k + self.frames] for k in range(width)], dim=1)
        for layer in (model.layer_1, model.layer_2, model.layer_3):
            x = layer.activate(x, None)
        inputs, recurrent = model.lstm.weight.chunk(2, 1)
        ahead = nn.functional.linear(x, inputs, model.lstm.bias)
        output, cell = h[0], c[0]
        outputs = []
        for k in range(self.frames):
            gates = ahead[k : k + 1] + nn.functional.linear(output, recurrent)
            i, f, candidate, o = gates.chunk(GATES, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * candidate.tanh()
            output = o.sigmoid() * cell.tanh()
            outputs.append(output)
        y = model.layer_6(model.layer_5.activate(torch.cat(outputs), None))
        return y.log_softmax(-1)[None], output[None], cell[None]
