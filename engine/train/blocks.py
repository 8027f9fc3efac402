"""One pass over many blocks: the target's taps, the draft over several anchors of each sequence, and the loss.

A block is [anchor, mask, …] at positions anchor, anchor + 1, …; it sees the clean context before its anchor and itself,
never another block, which is exactly what it would see when decoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...kernels.fused.rotary import Norms, split
from ..drafting.dflash import STOCK_OPERATIONS, DFlashDraft
from ..drafting.dspark import DSparkDraft
from ..drafting.markov import MarkovHead
from ..models.targets.transformer import Transformer


def compiled(function: Callable[..., Any], **state: Any) -> Callable[..., Any]:
    """`mx.compile`, but not on a CPU, where compiling takes longer than it saves."""
    return function if mx.default_device() == mx.cpu else mx.compile(function, **state)


def target_taps(target: Transformer, tokens: mx.array, layer_ids: tuple[int, ...]) -> mx.array:
    """Hidden states [B, S, taps * hidden] after the tapped layers, of tokens [B, S]."""
    return mx.concatenate(_after(target, tokens, layer_ids), axis=-1)


def target_states(target: Transformer, tokens: mx.array, layer_ids: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    """As `target_taps`; and the states [B, S, hidden] that the target's head reads."""
    *taps, last = _after(target, tokens, (*layer_ids, len(target.layers) - 1))
    return mx.concatenate(taps, axis=-1), target.norm(last)


def _after(target: Transformer, tokens: mx.array, layer_ids: tuple[int, ...]) -> list[mx.array]:
    """The residual stream [B, S, hidden] after each of these layers, of tokens [B, S]."""
    hidden = target.enter(tokens)
    found: dict[int, mx.array] = {}
    for index, layer in enumerate(target.layers[: max(layer_ids) + 1]):
        attends = index in target.attending  # other layers see only what is before a token anyway
        mask = causal_mask(tokens.shape[1], target.window(index)) if attends else None
        hidden = layer(hidden, mask=mask)
        found[index] = hidden
    return [found[index] for index in layer_ids]


def causal_mask(length: int, window: int | None) -> Any:
    if window is None or length <= window:
        return "causal"
    at = mx.arange(length)
    return (at <= at[:, None]) & (at[:, None] - at < window)


def block_mask(anchors: mx.array, length: int, block: int, causal: bool, window: int | None) -> mx.array:
    """What each block query sees of context and blocks: [B, A * block, length + A * block] boolean.

    `anchors` [B, A] are positions; the window counts from the query and bounds the context only.
    """
    count = anchors.shape[1] * block
    queries = (anchors[..., None] + mx.arange(block)).reshape(-1, count, 1)
    context = mx.arange(length)
    visible = context < mx.repeat(anchors, block, axis=1)[..., None]
    if window is not None:
        visible = visible & (queries - context < window)
    slot = mx.arange(count)
    own = slot[:, None] // block == slot // block
    if causal:
        own = own & (slot <= slot[:, None])
    return mx.concatenate([visible, mx.broadcast_to(own, (anchors.shape[0], count, count))], axis=-1)


def block_hidden(
    target: Transformer, draft: DFlashDraft, taps: mx.array, tokens: mx.array, anchors: mx.array
) -> mx.array:
    """Hidden states [B, A, block - 1, hidden] of the mask slots of blocks at `anchors` [B, A] in `tokens` [B, S]."""
    (batch, length), block = tokens.shape, draft.config.block_size
    count = anchors.shape[1] * block
    places = mx.broadcast_to(mx.arange(length, dtype=mx.int32), (batch, length)).reshape(-1)
    context = draft.context(taps.reshape(batch * length, -1), places)
    filled = mx.take_along_axis(tokens, anchors, axis=1)[..., None]
    masks = mx.full((*anchors.shape, block - 1), draft.config.mask_token_id, tokens.dtype)
    inputs = mx.concatenate([filled, masks], axis=-1).reshape(-1)
    positions = (anchors[..., None] + mx.arange(block, dtype=mx.int32)).reshape(-1)
    visible: dict[tuple[bool, int | None], mx.array] = {}

    def attend(layer: int, projected: mx.array, turns: mx.array, norms: Norms) -> mx.array:
        queries, *own = split(projected, turns, norms, draft.layout)
        kind = (draft.causal(layer), draft.window(layer))
        if kind not in visible:
            visible[kind] = block_mask(anchors, length, block, *kind)[:, None]
        heads = [
            mx.concatenate([_rows(before, batch, length), _rows(fresh, batch, count)], axis=2)
            for before, fresh in zip(context[layer], own, strict=True)
        ]
        mixed = mx.fast.scaled_dot_product_attention(
            _rows(queries, batch, count), *heads, scale=draft.layers[layer].self_attn.scale, mask=visible[kind]
        )
        return mixed.transpose(0, 2, 1, 3).reshape(batch * count, -1)

    hidden = draft(target.embed_drafts(inputs), positions, attend)
    return hidden.reshape(*anchors.shape, block, -1)[:, :, 1:]


def block_logits(
    target: Transformer, draft: DFlashDraft, taps: mx.array, tokens: mx.array, anchors: mx.array
) -> mx.array:
    """Logits [B, A, block - 1, vocabulary] of the mask slots of blocks at `anchors` [B, A] in `tokens` [B, S].

    A Markov head is told the true tokens before each slot. While a walk is right, these are the drafted ones.
    """
    hidden = block_hidden(target, draft, taps, tokens, anchors)
    logits = draft.score(hidden.reshape(-1, hidden.shape[-1]), target).reshape(*hidden.shape[:3], -1)
    if not isinstance(draft, DSparkDraft):
        return logits
    before = tokens_before(tokens, anchors, draft.config.block_size).reshape(-1, hidden.shape[2])
    features = block_codes(draft.markov_head, before, hidden.reshape(-1, *hidden.shape[2:]))
    return logits + draft.markov_head.markov_w2(features).reshape(logits.shape)


def block_codes(head: MarkovHead, before: mx.array, hidden: mx.array) -> mx.array:
    """What a Markov head multiplies by W2 [M, D, rank] in blocks of D slots with hidden states [M, D, hidden], after
    the tokens `before` each slot [M, D].
    """
    state, found = None, []
    for slot in range(before.shape[1]):
        code, x = head.markov_w1(before[:, slot]).astype(hidden.dtype), hidden[:, slot]
        feature, state = head.feature(code, x, state, STOCK_OPERATIONS)
        found.append(feature)
    return mx.stack(found, axis=1)


def _rows(states: mx.array, batch: int, count: int) -> mx.array:
    """Packed states [batch * count, heads, D] as [batch, heads, count, D]."""
    return states.reshape(batch, count, *states.shape[1:]).transpose(0, 2, 1, 3)


def block_labels(tokens: mx.array, lengths: mx.array, anchors: mx.array, block: int) -> tuple[mx.array, mx.array]:
    """The true tokens of the mask slots [B, A, block - 1], and which of them lie inside the sequence."""
    at = anchors[..., None] + mx.arange(1, block)
    return _tokens_at(tokens, at), at < lengths[:, None, None]


def tokens_before(tokens: mx.array, anchors: mx.array, block: int) -> mx.array:
    """The true tokens before the mask slots [B, A, block - 1]: the anchor, and all labels but the last."""
    return _tokens_at(tokens, anchors[..., None] + mx.arange(block - 1))


def _tokens_at(tokens: mx.array, at: mx.array) -> mx.array:
    """Of tokens [B, S] those at places [B, A, slots]; behind the end, the last one."""
    flat = mx.minimum(at, tokens.shape[1] - 1).reshape(at.shape[0], -1)
    return mx.take_along_axis(tokens, flat, axis=1).reshape(at.shape)


def block_loss(logits: mx.array, labels: mx.array, valid: mx.array, gamma: float) -> tuple[mx.array, mx.array]:
    """Cross-entropy weighted by exp(-(i - 1) / gamma) over block slots i = 1, 2, …; and hits [2, block - 1].

    Hits are per slot: how often the likeliest token is the true one, and how often there is a true one.
    """
    weights = mx.exp(-mx.arange(labels.shape[-1]) / gamma) * valid
    losses = nn.losses.cross_entropy(logits.astype(mx.float32), labels)
    hits = (mx.argmax(logits, axis=-1) == labels) & valid
    return (losses * weights).sum() / weights.sum(), mx.stack([hits.sum(axis=(0, 1)), valid.sum(axis=(0, 1))])


def matches(logits: mx.array, labels: mx.array, valid: mx.array) -> mx.array:
    """How many leading slots of each block [B, A] are right."""
    hits = (mx.argmax(logits, axis=-1) == labels) & valid
    return mx.cumprod(hits.astype(mx.int32), axis=-1).sum(axis=-1)
