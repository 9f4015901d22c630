"""Attention between rows (Vaswani et al. 2017 §3.2): softmax(q·kᵀ / √K)·v for each head of each sentence.

Shape letters: B sentences, R and M rows of queries and of keys, T and S their longest sentences, D all heads
together, H heads, K = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from warmstart.models.layers.device import has_own_functions
from warmstart.models.layers.dropout import Noise, keep_probability
from warmstart.models.layers.rows import Rows

LONG = 1 << 18  # T·S from which the weights of all heads are not kept for the backward pass


def attend(
    queries: Tensor,
    keys_values: Tensor | None,
    own: Rows,
    other: Rows,
    num_heads: int,
    *,
    causal: bool = False,
    rate: float = 0.0,
    noise: Noise | None = None,
) -> Tensor:
    """What each row of ``own`` takes from the rows of ``other`` of its sentence: [R, D], in the type of ``queries``.

    Sequences of a CPU's training are mostly short, where the products themselves cost next to nothing; they are
    computed with few passes over memory, and their softmax in float32. Long ones, and those on other devices, go to
    torch's ``scaled_dot_product_attention``.

    Args:
        queries: [R, D]; without ``keys_values`` [R, 3D], queries, keys and values beside each other.
        keys_values: [M, 2D].
        causal: rows see only those up to themselves; ``own`` is ``other``.
        rate, noise: dropout of the weights.
    """
    if noise is None or not rate:
        rate, noise = 0.0, None
    if not has_own_functions(queries) or own.width * other.width >= LONG:
        return _attend_long(queries, keys_values, own, other, num_heads, causal, rate)
    bias = own.future(queries.dtype, num_heads) if causal else other.padding(queries.dtype, num_heads, own.width)
    kept = None if noise is None else noise.kept(bias.shape, rate)
    result: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        queries, keys_values, own, other, num_heads, bias, kept, 1.0 / keep_probability(rate)
    )
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys_values: Tensor | None,
        own: Rows,
        other: Rows,
        num_heads: int,
        bias: Tensor,
        kept: Tensor | None,
        factor: float,
    ) -> Tensor:
        if keys_values is None:
            q, k, v = own.spread(queries, 3, num_heads)  # [B·H, T, K] each
        else:
            q = own.spread(queries, 1, num_heads)[0]
            k, v = other.spread(keys_values, 2, num_heads)  # [B·H, S, K]
        ctx.scale = q.shape[-1] ** -0.5
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=ctx.scale)  # [B·H, T, S]
        weights = torch.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32))
        dropped = _dropped(weights, kept, factor).to(v.dtype)
        ctx.save_for_backward(q, k, v, weights, dropped, kept)
        ctx.own, ctx.other, ctx.num_heads, ctx.factor, ctx.joined = own, other, num_heads, factor, keys_values is None
        return own.gather(torch.bmm(dropped, v)[None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, dropped, kept = ctx.saved_tensors
        own, other, factor = ctx.own, ctx.other, ctx.factor
        g = own.spread(gradient, 1, ctx.num_heads)[0]
        if ctx.joined:
            back = q.new_empty((3, *q.shape))
            back_q, back_kv = back[:1], back[1:]
        else:
            back_q, back_kv = q.new_empty((1, *q.shape)), k.new_empty((2, *k.shape))
        dq, dk, dv = back_q[0], back_kv[0], back_kv[1]
        torch.bmm(dropped.transpose(1, 2), g, out=dv)
        back_weights = _dropped(torch.bmm(g, v.transpose(1, 2)).to(weights.dtype), kept, factor)
        scores = torch._softmax_backward_data(back_weights, weights, -1, weights.dtype).to(q.dtype)
        torch.baddbmm(dq, scores, k, beta=0, alpha=ctx.scale, out=dq)
        torch.baddbmm(dk, scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=dk)
        rest = (None,) * 6
        if ctx.joined:
            return own.gather(back), None, *rest
        return own.gather(back_q), other.gather(back_kv), *rest


def _dropped(weights: Tensor, kept: Tensor | None, factor: float) -> Tensor:
    return (
        weights if kept is None else torch.addcmul(weights.new_zeros(()), weights, kept.to(weights.dtype), value=factor)
    )


def _attend_long(
    queries: Tensor, keys_values: Tensor | None, own: Rows, other: Rows, num_heads: int, causal: bool, rate: float
) -> Tensor:
    def heads(x: Tensor, rows: Rows) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32) if has_own_functions(x) else x.dtype
        return rows.lay_out(x.to(exact)).view(rows.size, rows.width, num_heads, -1).transpose(1, 2)  # [B, H, T, K]

    q, k, v = queries.chunk(3, -1) if keys_values is None else (queries, *keys_values.chunk(2, -1))
    attended = functional.scaled_dot_product_attention(
        heads(q, own),
        heads(k, other),
        heads(v, other),
        attn_mask=None if causal else other.real[:, None, None],
        is_causal=causal,
        dropout_p=rate,
    )
    return own.take(attended.transpose(1, 2).flatten(2)).to(queries.dtype)
