"""A ``Transformer``'s weights laid out for decoding.

They compute what ``models.transformer.module`` computes, in fewer and larger products: projections of one input
are one product, scales are part of weights, and attention needs fewer biases. A key's bias adds the same to all
scores of a query, so it is left out; a value's bias passes attention unchanged, for its weights add up to one, so
it is part of the output's bias.

Shape letters as in ``module``, and: N tokens of all sentences one after the other, C cells (``inference.cells``)
of E entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.inference.cells import Cells, Ints
from warmstart.models.transformer.module import Transformer, sinusoids

Precision = Literal["float32", "bfloat16"]

# Tokens that the encoder takes at once. On a processor their activations should fit its nearer caches.
CHUNK_TOKENS = {"cpu": 512}
MOST_TOKENS = 16384
VECTOR = 16  # floats: torch's CPU kernels do what is left of a softmax's row one by one
CELL_ENTRIES = 2 * VECTOR

# In place: they are given what nothing else needs.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "swish": lambda x: functional.silu(x, inplace=True),
    "gelu": lambda x: x.mul_(torch.sigmoid(1.702 * x)),
}


class Linear(NamedTuple):
    """x [N, in] · ``weight`` [in, out] + ``bias`` [out], in the precision of the weight."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(self._cast(x), self.weight).add_(self.bias)  # addmm writes the bias out first: slower

    def onto(self, sums: Tensor, x: Tensor) -> Tensor:
        """``sums`` float32 [N, out], in place plus what this makes of ``x``: the product is added where it is made."""
        if self.weight.dtype != sums.dtype:
            return sums.add_(self(x))
        return sums.addmm_(x, self.weight).add_(self.bias)

    def _cast(self, x: Tensor) -> Tensor:
        return x if x.dtype == self.weight.dtype else x.to(self.weight.dtype)


class Norm(NamedTuple):
    """Of float32 [N, D]; without ``bias`` an RMS norm."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Layer(NamedTuple):
    """``projections`` are queries (scaled by 1/√K), keys and values, D columns each."""

    projections: Linear
    output: Linear
    norm: Norm
    up: Linear
    down: Linear
    ffn_norm: Norm


class Cross(NamedTuple):
    """Attention to the source; its keys and values are in ``Prepared.cross``."""

    query: Linear
    output: Linear
    norm: Norm


class Prepared:
    """The weights that ``model`` has now; later changes of the model are not seen. In ``bfloat16`` the matrix
    products are, sums and norms are float32."""

    def __init__(self, model: Transformer, precision: Precision = "float32") -> None:
        self.config = model.config
        self.dtype: torch.dtype = getattr(torch, precision)
        self.num_heads = model.config.num_heads
        self.activation = _ACTIVATIONS[model.config.activation]
        self.scale = math.sqrt(model.config.d_model) if model.config.scale_embeddings else 1.0
        encoder: Any = model.encoder
        decoder: Any = model.decoder
        with torch.no_grad():
            self.source_embedding, self.target_embedding = (x.embedding.weight.detach() for x in (encoder, decoder))
            self.learned_positions = None if model.positions is None else model.positions.weight.detach()
            self.encoder = [self._layer(layer) for layer in encoder.layers]
            self.decoder = [
                (self._layer(layer), Cross(*self._ends(layer.cross_attention), _norm(layer.cross_attention_norm)))
                for layer in decoder.layers
            ]
            self.encoder_norm = None if encoder.norm is None else _norm(encoder.norm)
            self.decoder_norm = None if decoder.norm is None else _norm(decoder.norm)
            crosses = [layer.cross_attention for layer in decoder.layers]
            # Keys and values of all layers [D, L·2·D]; the output [V, D] as it is, for a copy may be large.
            self.cross = self._weight(*(part.weight for cross in crosses for part in (cross.key, cross.value)))
            self.output = self._cast(decoder.output.weight)
            self.output_bias = None if decoder.output.bias is None else self._cast(decoder.output.bias)
        self._sinusoids = torch.empty(0)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.target_embedding.device
        return device

    @property
    def chunk_tokens(self) -> int:
        """How many tokens to take at once."""
        return CHUNK_TOKENS.get(self.device.type, MOST_TOKENS)

    def encode(self, ids: Tensor, sizes: Ints) -> Tensor:
        """float32 hidden vectors [N, D] of the tokens ``ids`` (int64 [N]) of sentences of ``sizes`` [B]."""
        parts = list(Cells.pack(sizes, CELL_ENTRIES, CELL_ENTRIES).split(self.chunk_tokens))
        chunks = torch.split(ids, [len(part.positions) for part in parts])
        return torch.cat([self._encode(chunk, part) for chunk, part in zip(chunks, parts, strict=True)])

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """float32 [N, V] of decoder outputs ``x`` [N, D]; ``out`` [N, V] is memory to compute them in."""
        x = (x if self.decoder_norm is None else self.decoder_norm(x)).to(self.dtype)
        if self.output_bias is None:
            return torch.mm(x, self.output.T, out=out).float()
        return torch.addmm(self.output_bias, x, self.output.T, out=out).float()

    def embed(self, table: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        """float32 embeddings [N, D] of ``ids`` [N] with vectors ``positions`` [N or 1, D]."""
        return torch.add(positions, functional.embedding(ids, table), alpha=self.scale)

    def positions(self, end: int) -> Tensor:
        """float32 vectors [end, D] of the positions before ``end``."""
        if self.learned_positions is not None:
            last = len(self.learned_positions) - 1
            return self.learned_positions[torch.arange(end, device=self.device).clamp_(max=last)]
        if len(self._sinusoids) < end:
            self._sinusoids = sinusoids(max(2 * end, 256), self.config.d_model).to(self.device)
        return self._sinusoids[:end]

    def before(self, x: Tensor, norm: Norm) -> Tensor:
        """What a part of a layer with ``norm`` is given of ``x`` [N, D]."""
        return norm(x) if self.config.norm == "pre" else x

    def after(self, x: Tensor, output: Linear, found: Tensor, norm: Norm) -> Tensor:
        """``x``, which is used up, with what ``output`` makes of what the part has ``found``."""
        x = output.onto(x, found)
        return x if self.config.norm == "pre" else norm(x)

    def project(self, layer: Layer, normed: Tensor, x: Tensor) -> Tensor:
        """Queries, keys and values [N, 3D] of self-attention."""
        if self.config.normalize_keys:
            return layer.projections(normed)
        d, (weight, bias) = x.shape[1], layer.projections
        parts = Linear(weight[:, :d], bias[:d])(normed), Linear(weight[:, d:], bias[d:])(x)
        return torch.cat(parts, 1)

    def feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        found = self.activation(layer.up(self.before(x, layer.ffn_norm)))
        return self.after(x, layer.down, found, layer.ffn_norm)

    def mask(self, heard: Tensor) -> Tensor:
        """What is added to scores: 0 where ``heard``, -inf elsewhere."""
        return torch.zeros(heard.shape, device=self.device).masked_fill_(~heard, -math.inf)

    def move(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _encode(self, ids: Tensor, cells: Cells) -> Tensor:
        entries = -(-cells.entries // VECTOR) * VECTOR
        owner, standing = cells.owners(entries), cells.tokens(entries).ravel()
        mask = self.mask(self.move(owner[:, None, :, None] == owner[:, None, None, :]))  # [C, 1, E, E]
        place, token = self.move(np.flatnonzero(standing >= 0)), self.move(standing.clip(min=0))
        x = self.embed(self.source_embedding, ids, self.positions(int(cells.sizes.max()))[self.move(cells.positions)])
        for layer in self.encoder:
            projected = self.project(layer, self.before(x, layer.norm), x).float().index_select(0, token)
            projected = projected.view(-1, entries, 3, self.num_heads, x.shape[1] // self.num_heads)
            query, keys, values = projected.permute(2, 0, 3, 1, 4).unbind()  # each [C, H, E, K]
            found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)
            found = found.transpose(1, 2).flatten(0, 1).index_select(0, place).flatten(1)  # [N, D]
            x = self.feed_forward(layer, self.after(x, layer.output, found, layer.norm))
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def _layer(self, layer: Any) -> Layer:
        query, output = self._ends(layer.self_attention)
        keys_values = self._weight(layer.self_attention.key.weight, layer.self_attention.value.weight)
        return Layer(
            Linear(torch.cat([query.weight, keys_values], 1), functional.pad(query.bias, (0, keys_values.shape[1]))),
            output,
            _norm(layer.self_attention_norm),
            Linear(self._weight(layer.ffn.up.weight), self._cast(layer.ffn.up.bias)),
            Linear(self._weight(layer.ffn.down.weight), self._cast(layer.ffn.down.bias)),
            _norm(layer.ffn_norm),
        )

    def _ends(self, attention: Any) -> tuple[Linear, Linear]:
        """Projections before and after attention."""
        query, output, scale = attention.query, attention.output, (self.config.d_model // self.num_heads) ** -0.5
        bias = output.bias + output.weight @ attention.value.bias
        return (
            Linear(self._weight(query.weight * scale), self._cast(query.bias * scale)),
            Linear(self._weight(output.weight), self._cast(bias)),
        )

    def _weight(self, *weights: Tensor) -> Tensor:
        """[in, sum of out] of weights [out, in]."""
        return self._cast(torch.cat(weights).T.contiguous())

    def _cast(self, value: Tensor) -> Tensor:
        return value.detach().to(self.dtype)


def _norm(norm: nn.LayerNorm | nn.RMSNorm) -> Norm:
    bias = None if isinstance(norm, nn.RMSNorm) else norm.bias.detach()
    return Norm(norm.weight.detach(), bias, cast(float, norm.eps))
