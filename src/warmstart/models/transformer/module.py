"""The encoder-decoder Transformer in PyTorch, computing what Marian computes.

Source of every formula: marian-dev ``src/models/transformer.h`` and ``src/layers/embedding.cpp``.
Shape letters: B sentences, R rows of a search, S source length, T target length, D ``d_model``,
H heads, K = D / H, V target vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from warmstart.models.transformer.config import TransformerConfig
from warmstart.models.transformer.parameters import parameters

KeysValues = tuple[Tensor, Tensor]  # each [B, H, length, K]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "swish": functional.silu,
    "gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class Memory:
    """What the encoder says of a batch: ``hidden`` [B, S, D] and ``mask`` [B, 1, 1, S], True at real tokens."""

    hidden: Tensor
    mask: Tensor


@dataclass(frozen=True)
class DecoderState:
    """Where step-wise decoding stands: one row for each hypothesis.

    ``own`` holds each layer's keys and values of the ``length`` tokens fed so far (none at first), ``cross``
    those of the source, ``mask`` [R, 1, 1, S] the source's real tokens; ``sentence`` [R] is the row's
    sentence in the batch that ``Transformer.start`` was given.
    """

    own: tuple[KeysValues, ...]
    cross: tuple[KeysValues, ...]
    mask: Tensor
    sentence: Tensor
    length: int

    def select(self, rows: Tensor) -> DecoderState:
        """The state of ``rows`` (int64 [R'], repeats allowed). The source's share moves only where a row's
        sentence changes, so reordering the hypotheses of a sentence copies the target side alone."""
        sentence = self.sentence.index_select(0, rows)
        moved = replace(self, own=tuple(_pick(pair, rows) for pair in self.own), sentence=sentence)
        if torch.equal(sentence, self.sentence):
            return moved
        cross = tuple(_pick(pair, rows) for pair in self.cross)
        return replace(moved, cross=cross, mask=self.mask.index_select(0, rows))


def _pick(pair: KeysValues, rows: Tensor) -> KeysValues:
    return pair[0].index_select(0, rows), pair[1].index_select(0, rows)


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

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], self.num_heads, -1).transpose(1, 2)  # [B, T, D] -> [B, H, T, K]

    def keys_values(self, x_BSD: Tensor) -> KeysValues:
        return self._heads(self.key(x_BSD)), self._heads(self.value(x_BSD))

    def forward(self, x_BTD: Tensor, pair: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        attended = functional.scaled_dot_product_attention(
            self._heads(self.query(x_BTD)),
            *pair,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return cast(Tensor, self.output(attended.transpose(1, 2).flatten(2)))  # [B, H, T, K] -> [B, T, D]


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, d_ff)
        self.down = nn.Linear(d_ff, config.d_model)
        self.activation = _ACTIVATIONS[config.activation]
        self.dropout = config.ffn_dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = functional.dropout(self.activation(self.up(x_BTD)), self.dropout, self.training)
        return cast(Tensor, self.down(hidden))


class Layer(nn.Module):
    """What encoder and decoder layers share: self-attention, feed-forward, and how a residual is normalised."""

    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__()
        self.config = config
        self.self_attention = Attention(config)
        self.self_attention_norm = _norm(config)
        self.ffn = FeedForward(config, d_ff)
        self.ffn_norm = _norm(config)

    def residual(self, x: Tensor, norm: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        if self.config.norm == "pre":
            return x + functional.dropout(function(norm(x)), self.config.dropout, self.training)
        return cast(Tensor, norm(x + functional.dropout(function(x), self.config.dropout, self.training)))

    def own_keys_values(self, x: Tensor, normed: Tensor) -> KeysValues:
        return self.self_attention.keys_values(normed if self.config.normalize_keys else x)


class EncoderLayer(Layer):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def attend(h: Tensor) -> Tensor:
            return cast(Tensor, self.self_attention(h, self.own_keys_values(x, h), mask))

        return self.residual(self.residual(x, self.self_attention_norm, attend), self.ffn_norm, self.ffn)


class DecoderLayer(Layer):
    def __init__(self, config: TransformerConfig, d_ff: int) -> None:
        super().__init__(config, d_ff)
        self.cross_attention = Attention(config)
        self.cross_attention_norm = _norm(config)

    def forward(
        self, x: Tensor, cross: KeysValues, mask: Tensor, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """The layer's output for ``x``, and all keys and values so far. Without ``past``, ``x`` is a whole
        sequence in which nothing sees what follows it."""
        pairs: list[KeysValues] = []

        def attend(h: Tensor) -> Tensor:
            keys, values = self.own_keys_values(x, h)
            if past is not None:
                keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
            pairs.append((keys, values))
            return cast(Tensor, self.self_attention(h, (keys, values), causal=past is None))

        y = self.residual(x, self.self_attention_norm, attend)
        y = self.residual(y, self.cross_attention_norm, lambda h: self.cross_attention(h, cross, mask))
        return self.residual(y, self.ffn_norm, self.ffn), pairs[0]


def _norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)


class Stack(nn.Module):
    """Embedding, layers and (pre-norm only) the norm on top of them."""

    def __init__(self, config: TransformerConfig, vocab_size: int, layers: list[Layer]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(layers)
        self.norm = _norm(config) if config.norm == "pre" else None

    def top(self, x: Tensor) -> Tensor:
        return x if self.norm is None else cast(Tensor, self.norm(x))


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
        self.positions = nn.Embedding(config.max_positions, config.d_model) if config.max_positions else None
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

    def encode(self, source: Tensor, source_lengths: Tensor) -> Memory:
        """Encode ``source`` (int64 [B, S], each row ``source_lengths`` [B] real tokens, end token included)."""
        places = torch.arange(source.shape[1], device=source.device)
        mask = (places < source_lengths[:, None])[:, None, None]  # [B, S] -> [B, 1, 1, S]
        x = self._words(self.encoder.embedding, source, self.config.source_dropout)
        x = self._embed(x, 0)
        for layer in self.encoder.layers:
            x = layer(x, mask)
        return Memory(self.encoder.top(x), mask)

    def decode(self, memory: Memory, target: Tensor) -> Tensor:
        """The decoder's hidden vectors [B, T, D]; position t, which predicts ``target`` [B, T] at t, has seen
        the tokens before t: the input is the embeddings of ``target`` moved right, after a zero vector."""
        x = self._words(self.decoder.embedding, target[:, :-1], self.config.target_dropout)
        x = self._embed(functional.pad(x, (0, 0, 1, 0)), 0)  # [B, T-1, D] -> [B, T, D]
        for layer in self.decoder.layers:
            cross = layer.cross_attention.keys_values(memory.hidden)  # type: ignore[union-attr, operator]
            x, _ = layer(x, cross, memory.mask)
        return self.decoder.top(x)

    def forward(
        self, source: Tensor, source_lengths: Tensor, target: Tensor, target_mask: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits [B, T, V] of ``target`` (int64 [B, T], end token included). With
        ``target_mask`` (bool [B, T]) only those of its True positions, row by row: [N, V]."""
        hidden = self.decode(self.encode(source, source_lengths), target)
        return cast(Tensor, self.decoder.output(hidden if target_mask is None else hidden[target_mask]))

    def start(self, memory: Memory) -> DecoderState:
        """State before the first token, with one row for each sentence."""
        cross = tuple(
            layer.cross_attention.keys_values(memory.hidden)  # type: ignore[union-attr, operator]
            for layer in self.decoder.layers
        )
        rows = torch.arange(len(memory.hidden), device=memory.hidden.device)
        return DecoderState((), cross, memory.mask, rows, 0)

    def decode_step(self, state: DecoderState, previous: Tensor | None) -> tuple[Tensor, DecoderState]:
        """Logits [R, V] of the next token after ``previous`` (int64 [R]; None before the first token), and the
        state that has seen it."""
        if previous is None:
            weight = self.decoder.embedding.weight
            x = torch.zeros(len(state.sentence), 1, self.config.d_model, dtype=weight.dtype, device=weight.device)
        else:
            x = self.decoder.embedding(previous[:, None])
        x = self._embed(x, state.length)
        own: list[KeysValues] = []
        for i, layer in enumerate(self.decoder.layers):
            x, pair = layer(x, state.cross[i], state.mask, state.own[i] if state.own else None)
            own.append(pair)
        logits = self.decoder.output(self.decoder.top(x[:, 0]))
        return logits, replace(state, own=tuple(own), length=state.length + 1)

    def _words(self, embedding: nn.Embedding, ids: Tensor, rate: float) -> Tensor:
        x = embedding(ids)
        if rate and self.training:
            x = x * functional.dropout(x.new_ones(*ids.shape, 1), rate)
        return cast(Tensor, x)

    def _embed(self, x_BTD: Tensor, start: int) -> Tensor:
        if self.config.scale_embeddings:
            x_BTD = x_BTD * math.sqrt(self.config.d_model)
        x_BTD = x_BTD + self._positions(start, start + x_BTD.shape[1], x_BTD.device).to(x_BTD.dtype)
        return functional.dropout(x_BTD, self.config.dropout, self.training)

    def _positions(self, start: int, end: int, device: torch.device) -> Tensor:
        if self.positions is not None:
            places = torch.arange(start, end, device=device).clamp_(max=self.positions.num_embeddings - 1)
            return cast(Tensor, self.positions(places))
        table = self._sinusoids.get(device)
        if table is None or len(table) < end:
            with torch.inference_mode(False):  # a table first needed in inference must serve training too
                table = sinusoids(max(end, 64, 2 * len(table) if table is not None else 0), self.config.d_model)
                table = self._sinusoids[device] = table.to(device)
        return table[start:end]


def sinusoids(length: int, d_model: int) -> Tensor:
    """Position vectors float32 [length, d_model]: sin(p·f) in the first half and cos(p·f) in the second, with
    f = exp(-i·ln(10000) / (d_model/2 - 1)) for i in 0 … d_model/2 - 1."""
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
