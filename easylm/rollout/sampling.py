"""From logits to a token: temperature, then top-k, then top-p, then min-p.

The vocabulary is never sorted, and a token costs two random numbers: it is found by its
place in the cumulative distribution.

B rows, V vocab, N blocks of C tokens.
"""

import jax
import jax.numpy as jnp

from easylm.errors import UserError

_BLOCK = 128  # tokens that are summed before the cumulative sum
_NEAR = 512  # tokens among which top-p is looked for first


def sample(
    keys, logits, *, temperature=1.0, top_k: int = 0, top_p=1.0, min_p=0.0
) -> tuple[jax.Array, jax.Array]:
    """keys [B], logits float32[B, V] -> (tokens int32[B], logps float32[B]).

    `logps` are of softmax(logits / temperature) over the whole vocabulary, before
    anything is truncated: what `heads.token_logps` computes again, for temperature 1.
    Temperature 0 takes the most likely token, and its logp is of softmax(logits).

    top_k keeps the k most likely tokens (0: all); top_p, of these, the fewest that hold
    a share top_p of the probability; min_p, of these, those at least min_p times as
    likely as the best. Tokens that tie with the last one kept are kept.
    Row b depends on keys[b] and logits[b] alone.
    """
    scaled = logits / temperature if temperature else logits
    top = jnp.max(scaled, axis=-1, keepdims=True)
    weights = jnp.exp(scaled - top)
    log_z = jnp.log(_sum(weights)[:, 0]) + top[:, 0]
    if temperature:
        floor = _floor(scaled, top, top_k, top_p, min_p)
        kept = weights if floor is None else jnp.where(scaled >= floor, weights, 0.0)
        tokens = _draw(keys, kept)
    else:
        tokens = _first(scaled >= top)
    picked = jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0]
    return tokens, picked - log_z


def check(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> None:
    """An error for options that mean nothing."""
    ranges = {
        "temperature": (temperature, temperature >= 0, "0 (the likeliest) or more"),
        "top_k": (top_k, top_k >= 0, "0 (all) or more"),
        "top_p": (top_p, 0 < top_p <= 1, "above 0, at most 1 (all)"),
        "min_p": (min_p, 0 <= min_p <= 1, "from 0 (all) to 1"),
    }
    for name, (value, fine, text) in ranges.items():
        if not fine:
            raise UserError(f"{name} is {value}; it must be {text}")


def _floor(scaled, top, top_k, top_p, min_p):
    """The least logit that may be drawn, [B, 1]; None if all may be."""
    floors, values = [], scaled
    if 0 < top_k < scaled.shape[-1]:
        values = _best(scaled, top_k)
        floors.append(values[:, -1:])
    if top_p < 1.0:
        floors.append(top - _nucleus(top - values, top_p))
    if min_p > 0.0:
        floors.append(top + jnp.log(jnp.float32(min_p)))
    return None if not floors else jnp.max(jnp.stack(floors), axis=0)


def _nucleus(gaps, top_p):
    """[B, 1]: the least g for which the tokens with gap <= g hold the share top_p."""
    target = top_p * _sum(jnp.exp(-gaps))
    if gaps.shape[1] <= _NEAR:
        return _least(gaps, target)
    near = -_best(-gaps, _NEAR)
    enough = _sum(jnp.exp(-near)) >= target
    found = _least(near, target)
    # Whether other rows need the long way must not change what this row finds.
    far = jax.lax.cond(jnp.all(enough), lambda: found, lambda: _least(gaps, target))
    return jnp.where(enough, found, far)


def _least(gaps, target):
    """Bit by bit, since non-negative floats are ordered like their bits."""
    weights, bits = jnp.exp(-gaps), jax.lax.bitcast_convert_type(gaps, jnp.int32)

    def halve(_, between):
        low, high = between
        middle = low + (high - low) // 2
        enough = _sum(jnp.where(bits <= middle, weights, 0.0)) >= target
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    none = jnp.full_like(bits[:, :1], -1)
    infinite = jnp.full_like(none, 0x7F800000)
    _, found = jax.lax.fori_loop(0, 31, halve, (none, infinite))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def _best(values, count: int):
    """The largest values, in order. Without the barrier, XLA sorts all of them."""
    return jax.lax.optimization_barrier(jax.lax.top_k(values, count))[0]


def _draw(keys, weights):
    """A token of each row, in proportion to its weight: first a block, then in it."""
    where = jax.vmap(lambda key: jax.random.uniform(key, (2, 1)))(keys)  # [B, 2, 1]
    blocks = _blocks(weights)  # [B, N, C]
    block = _pick(where[:, 0], jnp.sum(blocks, axis=-1))
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + _pick(where[:, 1], inside)


def _pick(share, weights):
    """The index where the cumulative weight passes `share`; never one of weight 0."""
    total, possible = jnp.cumsum(weights, axis=-1), weights > 0
    first = _first(possible & (total > share * total[:, -1:]))
    # Rounding in the sum can leave none behind: then the last one.
    places = jax.lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    return jnp.minimum(first, jnp.max(jnp.where(possible, places, 0), axis=-1))


def _first(hits):
    """The first index that is true, [B]. (argmax is slow on a CPU.)"""
    places = jax.lax.broadcasted_iota(jnp.int32, hits.shape, 1)
    last = hits.shape[1] - 1
    return jnp.min(jnp.where(hits, places, last), axis=-1)


def _sum(x):
    """[B, 1]; in blocks, which is more exact than one long sum."""
    return jnp.sum(jnp.sum(_blocks(x), axis=-1), axis=-1, keepdims=True)


def _blocks(x):
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)))
    return x.reshape(x.shape[0], -1, _BLOCK)
