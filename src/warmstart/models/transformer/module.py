"""The encoder-decoder Transformer in PyTorch, computing what Marian computes.

Source of every formula: marian-dev ``src/models/transformer.h`` and ``src/layers/embedding.cpp``.
Shape letters: B sentences, S source length, T target length, D ``d_model``, V target vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.layers.attention import attend
from warmstart.models.layers.device import has_own_functions
from warmstart.models.layers.dropout import Noise, add_dropout, dropout
from warmstart.models.layers.linear import linear
from warmstart.models.layers.norm import Norm, normalise
from warmstart.models.layers.rows import Rows
from warmstart.models.transformer import positions
from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.parameters import parameters

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": functional.silu,
    "gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_erf": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


class Attention(nn.Module):
    """Multi-head attention, scaled by 1/√K."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        self.query = nn.Linear(config.d_model, config.d_model)
        self.key = nn.Linear(config.d_model, config.d_model)
        self.value = nn.Linear(config.d_model, config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        x: Tensor,
        seen: Tensor,
        own: Rows,
        other: Rows,
        noise: Noise | None,
        causal: bool = False,
    ) -> Tensor:
        """What the rows ``x`` [rows, D] take from ``seen`` [rows of other, D]."""
        if x is seen:
            queries, keys_values = linear(x, self.query, self.key, self.value), None
        else:
            queries, keys_values = linear(x, self.query), linear(seen, self.key, self.value)
        attended = attend(
            queries, keys_values, own, other, self.num_heads, causal=causal, rate=self.dropout, noise=noise
        )
        return linear(attended, self.output)


def _learned(config: TransformerConfig) -> nn.Embedding | None:
    if config.positions != "learned" or config.max_positions is None:
        return None
    return nn.Embedding(config.max_positions, config.d_model)


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, d_ff)
        self.down = nn.Linear(d_ff, config.d_model)
        self.relu = config.activation == "relu"
        self.activation = None if self.relu else _ACTIVATIONS[config.activation]
        self.dropout = config.ffn_dropout

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        hidden = linear(x, self.up, relu=self.relu)
        if self.activation is not None:
            hidden = self.activation(hidden)
        return linear(dropout(hidden, self.dropout, noise), self.down)


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, feed-forward, and how a residual is normalised."""

    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.config = config
        self.self_attention = Attention(config)
        self.self_attention_norm = _norm(config)
        self.ffn = FeedForward(config, d_ff)
        self.ffn_norm = _norm(config)

    def residual(self, x: Tensor, norm: Norm, function: Callable[[Tensor], Tensor], noise: Noise | None) -> Tensor:
        if self.config.norm == "pre":
            return add_dropout(x, function(normalise(x, norm)), self.config.dropout, noise)
        return normalise(add_dropout(x, function(x), self.config.dropout, noise), norm)

    def attend_to_self(self, x: Tensor, rows: Rows, noise: Noise | None, causal: bool = False) -> Tensor:
        def attend(h: Tensor) -> Tensor:
            seen = h if self.config.normalize_keys else x
            return cast(Tensor, self.self_attention(h, seen, rows, rows, noise, causal))

        return self.residual(x, self.self_attention_norm, attend, noise)

    def feed_forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        return self.residual(x, self.ffn_norm, lambda h: cast(Tensor, self.ffn(h, noise)), noise)


class EncoderLayer(Layer):
    def forward(self, x: Tensor, rows: Rows, noise: Noise | None) -> Tensor:
        """The layer's output for the rows ``x`` [rows, D]."""
        return self.feed_forward(self.attend_to_self(x, rows, noise), noise)


class DecoderLayer(Layer):
    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__(config, d_ff)
        self.cross_attention = Attention(config)
        self.cross_attention_norm = _norm(config)

    def forward(self, x: Tensor, rows: Rows, memory: Tensor, source: Rows, noise: Noise | None) -> Tensor:
        """The layer's output for the rows ``x`` [rows, D], which see nothing that follows them, and ``memory``
        [rows of source, D]."""
        y = self.attend_to_self(x, rows, noise, causal=True)

        def attend(h: Tensor) -> Tensor:
            return cast(Tensor, self.cross_attention(h, memory, rows, source, noise))

        return self.feed_forward(self.residual(y, self.cross_attention_norm, attend, noise), noise)


def _norm(config: TransformerConfig) -> Norm:
    kind = nn.RMSNorm if config.rms_norm else nn.LayerNorm
    return kind(config.d_model, eps=config.layer_norm_epsilon)


class Stack(nn.Module):
    """Embedding, layers and (pre-norm only) the norm on top of them."""

    def __init__(self, config: TransformerConfig, vocab_size: int, layers: list[Layer]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = _norm(config) if config.norm == "pre" else None

    def top(self, x: Tensor) -> Tensor:
        return x if self.norm is None else normalise(x, self.norm)


class Decoder(Stack):
    def __init__(self, config: TransformerConfig, vocab_size: int, layers: list[Layer]) -> None:
        super().__init__(config, vocab_size, layers)
        self.output = nn.Linear(config.d_model, vocab_size, bias=config.output_bias)


class Transformer(nn.Module):
    """Encoder-decoder Transformer. Padding stands at the end of a row and may be any valid id.

    Built on the ``meta`` device it takes no memory; ``load_state_dict(..., assign=True)`` then fills it, and
    tied embeddings stay one parameter, of which the state dict need hold only the name that others share.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        d_ff = config.d_ff
        encoder: list[Layer] = [EncoderLayer(config, d_ff) for _ in range(config.encoder_layers)]
        decoder: list[Layer] = [DecoderLayer(config, config.decoder_d_ff or d_ff) for _ in range(config.decoder_layers)]
        self.encoder = Stack(config, config.source_vocab_size, encoder)
        self.decoder = Decoder(config, config.target_vocab_size, decoder)
        self.positions = _learned(config)
        self._sinusoids: dict[torch.device, Tensor] = {}
        self.tie()
        self.register_load_state_dict_post_hook(_tie_loaded)  # type: ignore[no-untyped-call]

    def ties(self) -> dict[str, str]:
        """name → name of the parameter that it shares."""
        return {p.name: p.storage for p in parameters(self.config) if p.storage != p.name}

    def tie(self) -> None:
        """Make tied embeddings one parameter again; the one shared stays, what stood in its place is dropped."""
        for name, shared in self.ties().items():
            self.get_submodule(name.removesuffix(".weight")).weight = self.get_parameter(shared)

    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, target_mask: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits [B, T, V] of ``target`` (int64 [B, T], end token included): those at t have seen the
        tokens before t. With ``target_mask`` (bool [B, T], True at each row's real tokens, which come first) only
        theirs, row by row: [N, V].

        On a CPU, inside ``torch.autocast``, its type is that of everything between embeddings and logits but the
        weights of attention, which are float32.
        """
        kind = source.device.type
        if has_own_functions(source) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._logits(source, source_lengths, target, target_mask, torch.get_autocast_dtype(kind))
        return self._logits(source, source_lengths, target, target_mask, self.decoder.embedding.weight.dtype)

    def _logits(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target: Tensor,
        target_mask: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        rounded, noise = dtype == torch.bfloat16, self._noise()
        own = Rows(source_lengths, source.shape[1], rounded=rounded)
        lengths = target.new_full((len(target),), target.shape[1]) if target_mask is None else target_mask.sum(1)
        rows = Rows(lengths, target.shape[1], rounded=rounded)
        before = target.flatten().index_select(0, (rows.place - 1).clamp_(min=0))
        source_words, words = self._words(own.take(source), before)
        memory = self._encode(source_words, own, noise, dtype)
        words = words.index_fill(0, (rows.step == 0).nonzero()[:, 0], 0.0)
        x = self._embed(self._drop_words(words, self.config.target_dropout, noise), rows.step, noise).to(dtype)
        for layer in self.decoder.layers:
            x = layer(x, rows, memory, own, noise)
        logits = linear(self.decoder.top(x[: rows.count]), self.decoder.output)
        return logits if target_mask is not None else logits.view(*target.shape, -1)

    def _words(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings of both; a table that they share is read once, and so gets one gradient."""
        if self.encoder.embedding.weight is not self.decoder.embedding.weight:
            return self.encoder.embedding(source), self.decoder.embedding(target)
        both: Tensor = self.encoder.embedding(torch.cat([source, target]))
        source_words, target_words = torch.split(both, [len(source), len(target)])
        return source_words, target_words

    def _encode(self, words: Tensor, rows: Rows, noise: Noise | None, dtype: torch.dtype) -> Tensor:
        words = self._drop_words(words, self.config.source_dropout, noise)
        x = self._embed(words, rows.step, noise).to(dtype)
        for layer in self.encoder.layers:
            x = layer(x, rows, noise)
        return self.encoder.top(x)

    def _noise(self) -> Noise | None:
        return Noise() if self.training else None

    def _drop_words(self, x: Tensor, rate: float, noise: Noise | None) -> Tensor:
        return x if noise is None or not rate else x * dropout(x.new_ones(len(x), 1), rate, noise)

    def _embed(self, words: Tensor, steps: Tensor, noise: Noise | None) -> Tensor:
        """``words`` [..., D] at ``steps`` [...] of their sentences."""
        scale = math.sqrt(self.config.d_model) if self.config.scale_embeddings else 1.0
        positions = self._positions(steps).to(words.dtype)
        return dropout(torch.add(positions, words, alpha=scale), self.config.dropout, noise)

    def _positions(self, steps: Tensor) -> Tensor:
        if self.positions is not None:
            return cast(Tensor, self.positions(steps.clamp(max=self.positions.num_embeddings - 1)))
        end = int(steps.max()) + 1
        table = self._sinusoids.get(steps.device)
        if table is None or len(table) < end:
            with torch.inference_mode(False):  # a table first needed in inference must serve training too
                length = max(end, 64, 2 * len(table) if table is not None else 0)
                table = sinusoids(length, self.config.d_model, self.config.sinusoids)
                table = self._sinusoids[steps.device] = table.to(steps.device)
        return functional.embedding(steps, table)


def sinusoids(length: int, d_model: int, formula: str = "marian") -> Tensor:
    """Position vectors float32 [length, d_model]: sin(p·f) in the first half and cos(p·f) in the second; Marian's
    f = exp(-i·ln(10000) / (d_model/2 - 1)) for i in 0 … d_model/2 - 1."""
    if formula != "marian":
        return torch.tensor(positions.sinusoids(length, d_model, formula))
    half = d_model // 2
    with torch.device("cpu"):
        frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / max(half - 1, 1)))
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1).float()


def _tie_loaded(module: nn.Module, incompatible: Any) -> None:
    assert isinstance(module, Transformer)
    ties = module.ties()
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if name not in ties or ties[name] in missing]
    module.tie()
