"""From hidden states to token log-probabilities, without ever holding [B, T, V].

Logits exist for a chunk of positions at a time. This file has the only shift by one:
index t of every result is about `tokens[..., t]`.

B rows, T time, D embed, V vocab, N chunks, C positions per chunk.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from easylm.sharding import alone, constrain, constrain_to, current, ways


class TokenStats(NamedTuple):
    """float32[B, T] each; 0 where a segment starts."""

    logps: jax.Array  # log p(tokens[t] | tokens[<t])
    log_z: jax.Array  # log of the softmax denominator
    correct: jax.Array  # 1 where the token is the most likely one


def token_logps(model, params, seqs, hidden=None, temperature=1.0, **kwargs):
    """log p(tokens[t] | tokens[<t]) -> float32[B, T], 0 where a segment starts.

    p is softmax(logits / temperature).
    """
    if hidden is None:
        where = seqs.tokens, seqs.positions, seqs.segments
        hidden, _ = model.forward(params, *where, **kwargs)
    chunk = model.config.logits_chunk
    scale = 1.0 / temperature
    stats = _stats(hidden, model.unembed(params), _next(seqs.tokens), chunk, scale)
    return _align(stats, seqs).logps


def token_entropy(model, params, seqs, hidden, temperature=1.0):
    """Of the distribution that tokens[t] was drawn from, float32[B, T], as above."""
    w = constrain(model.unembed(params), None, "act_vocab")

    @jax.checkpoint
    def step(_, h):
        logps = jax.nn.log_softmax(_logits(h, w) / temperature, axis=-1)
        return None, -jnp.sum(jnp.exp(logps) * logps, axis=-1)

    _, found = jax.lax.scan(step, None, _split(hidden, model.config.logits_chunk))
    return before(_join(found, hidden.shape[1]), seqs)


def before(x, seqs):
    """What position t - 1 says about token t, at index t; 0 where a segment starts."""
    return jnp.where(_starts(seqs), 0.0, jnp.pad(x[:, :-1], ((0, 0), (1, 0))))


def token_collisions(model, params, seqs, hidden):
    """log of the sum over v of p(v | tokens[<t])^2, float32[B, T], as `token_logps`.

    The mean of log p of a token that is sampled there is not far from it.
    """
    w = constrain(model.unembed(params), None, "act_vocab")

    def step(_, h):
        logits = _logits(h, w)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        return None, jax.nn.logsumexp(2 * logits, axis=-1) - 2 * log_z

    _, found = jax.lax.scan(step, None, _split(hidden, model.config.logits_chunk))
    return before(_join(found, hidden.shape[1]), seqs)


def likelihood(model, params, seqs, weights, *, z_loss=0.0, **kwargs):
    """(sum over tokens of weights * (-logp + z_loss log_z^2), TokenStats).

    For losses that are a weighted sum over tokens, weights being constants: the
    gradient of a chunk is taken as soon as its logits exist, so they are computed only
    once. The statistics carry no gradient.
    """
    hidden, _ = model.forward(
        params, seqs.tokens, seqs.positions, seqs.segments, **kwargs
    )
    chunk = model.config.logits_chunk
    scored = jnp.where(_starts(seqs), 0.0, weights)
    targets, scored = _next(seqs.tokens), _next(scored)
    total, stats = _fused(hidden, model.unembed(params), targets, scored, z_loss, chunk)
    return total, _align(stats, seqs)


def _starts(seqs):
    return (seqs.positions == 0) | (seqs.segments == 0)


def _next(x):
    """Entry t + 1 at index t; the last column is filled with zeros."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def _align(stats: TokenStats, seqs) -> TokenStats:
    return TokenStats(*(before(x, seqs) for x in stats))


def _split(x, chunk: int):
    """[B, T, ...] -> [N, B, C, ...], no chunk crossing a shard of B or of T."""
    rows, parts = ways("batch"), ways("length")
    b, t = x.shape[:2]
    local = t // parts
    size = max(1, min(local, chunk // max(1, b // rows)))
    while local % size:
        size -= 1
    x = x.reshape(b, parts, local // size, size, *x.shape[2:])
    x = jnp.moveaxis(x, 2, 0)
    return x.reshape(local // size, b, parts * size, *x.shape[4:])


def _join(x, t: int):
    """Undo `_split` on [N, B, C]."""
    parts = ways("length")
    n, b, c = x.shape
    return jnp.moveaxis(x.reshape(n, b, parts, c // parts), 0, 2).reshape(b, t)


def _logits(h, w):
    out = jnp.einsum("btd,dv->btv", h, w, preferred_element_type=jnp.float32)
    return constrain(out, "batch", "length", "act_vocab")


def _chunk_stats(logits, targets):
    top = jnp.max(logits, axis=-1, keepdims=True)
    log_z = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
    if ways("act_vocab") == 1:
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    else:  # a gather would collect the vocabulary on every device
        picked = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    correct = (picked >= top[..., 0]).astype(jnp.float32)
    return TokenStats(picked - log_z, log_z, correct), hit


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _stats(hidden, w, targets, chunk, scale):
    return _stats_fwd(hidden, w, targets, chunk, scale)[0]


def _stats_fwd(hidden, w, targets, chunk, scale):
    w = constrain(w, None, "act_vocab")

    def step(_, at):
        h, y = at
        return None, _chunk_stats(_logits(h, w) * scale, y)[0]

    _, stats = jax.lax.scan(step, None, (_split(hidden, chunk), _split(targets, chunk)))
    stats = TokenStats(*(_join(x, hidden.shape[1]) for x in stats))
    return stats, (hidden, w, targets, stats.log_z)


def _stats_bwd(chunk, scale, residuals, cotangents):
    hidden, w, targets, log_z = residuals
    xs = (hidden, targets, log_z, cotangents.logps, cotangents.log_z)

    def step(dw, at):
        h, y, z, dlogp, dz = at
        logits = _logits(h, w) * scale
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == y[..., None]
        soft = jnp.exp(logits - z[..., None]) * (dz - dlogp)[..., None]
        dlogits = (soft + jnp.where(hit, dlogp[..., None], 0.0)) * scale
        dh, dw = _pull(h, w, dlogits, dw)
        return dw, dh

    xs = tuple(_split(x, chunk) for x in xs)
    dw, dh = jax.lax.scan(step, _no_gradient(w), xs)
    return _join_hidden(dh, hidden), _all_parts(dw, w), None


_stats.defvjp(_stats_fwd, _stats_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _fused(hidden, w, targets, weights, z_loss, chunk):
    stats = _stats_fwd(hidden, w, targets, chunk, 1.0)[0]
    return _weighted(stats, weights, z_loss), stats


def _weighted(stats, weights, z_loss):
    return jnp.sum(weights * (z_loss * stats.log_z**2 - stats.logps))


def _fused_fwd(hidden, w, targets, weights, z_loss, chunk):
    w = constrain(w, None, "act_vocab")

    def step(dw, at):
        h, y, weight = at
        logits = _logits(h, w)
        stats, hit = _chunk_stats(logits, y)
        scale = weight * (1 + 2 * z_loss * stats.log_z)
        soft = jnp.exp(logits - stats.log_z[..., None]) * scale[..., None]
        dh, dw = _pull(h, w, soft - jnp.where(hit, weight[..., None], 0.0), dw)
        return dw, (dh, stats)

    xs = tuple(_split(x, chunk) for x in (hidden, targets, weights))
    dw, (dh, stats) = jax.lax.scan(step, _no_gradient(w), xs)
    stats = TokenStats(*(_join(x, hidden.shape[1]) for x in stats))
    out = _weighted(stats, weights, z_loss), stats
    return out, (_join_hidden(dh, hidden), _all_parts(dw, w))


def _fused_bwd(z_loss, chunk, residuals, cotangents):
    dh, dw = residuals
    scale = cotangents[0]
    return (dh * scale).astype(dh.dtype), (dw * scale).astype(dw.dtype), None, None


_fused.defvjp(_fused_fwd, _fused_bwd)


def _pull(h, w, dlogits, dw):
    """Gradients of one chunk of logits: to the hidden states, and added to dw."""
    dlogits = dlogits.astype(h.dtype)
    dh = jnp.einsum("btv,dv->btd", dlogits, w)
    mine = _by_device(h), _by_device(dlogits)
    more = jnp.einsum("...btd,...btv->...dv", *mine, preferred_element_type=jnp.float32)
    return dh, dw + _laid_out(more, _token_axes())


def _no_gradient(w):
    """Of w [D, V], a sum for every part of the tokens: devices add theirs up over all
    chunks, and exchange them once, in `_all_parts`."""
    axes = _token_axes()
    sizes = [current().mesh.shape[axis] for axis in axes]
    return _laid_out(jnp.zeros((*sizes, *w.shape), jnp.float32), axes)


def _all_parts(dw, w):
    """The sum over all parts. First over the devices among which w is split, so that
    each receives no more than its own piece, then over the others."""
    axes, layout = _token_axes(), current()
    if not axes:
        return dw.astype(w.dtype)
    split = tuple(axis for axis in axes if axis in layout.rules["embed"])
    others = tuple(axis for axis in axes if axis not in split)

    def add(dw):
        dw = dw.reshape(dw.shape[-2:])
        if split:
            dw = jax.lax.psum_scatter(dw, split, scatter_dimension=0, tiled=True)
        return jax.lax.psum(dw, others).astype(w.dtype)

    rest = layout.sharding(None, "act_vocab").spec
    run = jax.shard_map(
        add,
        mesh=layout.mesh,
        in_specs=PartitionSpec(*axes, *rest),
        out_specs=PartitionSpec(split or None, *rest[1:]),
        check_vma=False,
    )
    return constrain(run(dw), "embed", "vocab")


def _laid_out(dw, axes):
    """[size of each axis, D, V], every one on its axis of the mesh."""
    if not axes:
        return dw
    return constrain_to(dw, *axes, *current().sharding(None, "act_vocab").spec)


def _token_axes() -> list[str]:
    """Of the mesh, along which tokens are split: first rows, then time."""
    if alone():
        return []
    rules = current().rules
    return [*rules["batch"], *rules["length"]]


def _by_device(x):
    """[B, C, ...] -> [size of each axis of tokens, B and C of a device, ...]."""
    axes, layout = _token_axes(), current()
    if not axes:
        return x
    rows = [layout.mesh.shape[axis] for axis in layout.rules["batch"]]
    times = [layout.mesh.shape[axis] for axis in layout.rules["length"]]
    b, c = x.shape[0] // ways("batch"), x.shape[1] // ways("length")
    x = x.reshape(*rows, b, *times, c, *x.shape[2:])
    return jnp.moveaxis(x, len(rows), len(axes))


def _join_hidden(dh, hidden):
    parts = ways("length")
    n, b, c, d = dh.shape
    dh = jnp.moveaxis(dh.reshape(n, b, parts, c // parts, d), 0, 2)
    return dh.reshape(hidden.shape).astype(hidden.dtype)
