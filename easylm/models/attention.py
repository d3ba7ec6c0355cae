"""Attention over packed rows: who may look at whom, and the weighted sum.

B rows, T queries, S keys, N query heads, K key/value heads, G query heads per key head,
H head_dim.
"""

import jax
import jax.numpy as jnp

from easylm.sharding import constrain


def visible(q_positions, q_segments, k_positions, k_segments, window=None):
    """bool[B, T, S]: the same segment, not the future, not further back than `window`.

    Built from positions and segments, so that packed rows, padded rows and a cache
    with holes all follow the one rule. Padding (segment 0) is seen by nobody.
    """
    distance = q_positions[:, :, None] - k_positions[:, None, :]
    same = (q_segments[:, :, None] == k_segments[:, None, :]) & (
        k_segments[:, None, :] != 0
    )
    seen = same & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def attend(q, k, v, seen):
    """softmax(q k / sqrt(H)) v with the mask `seen` [B, T, S]; softmax in float32."""
    rows, time, heads, dim = q.shape
    kv_heads = k.shape[2]
    # Keys and values are whole along time: a context axis gathers them here.
    k = constrain(k, "batch", None, "act_heads", None)
    v = constrain(v, "batch", None, "act_heads", None)
    q = q.reshape(rows, time, kv_heads, heads // kv_heads, dim) * dim**-0.5
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    # A large finite number, so that a padding query (it sees nothing) stays finite.
    scores = jnp.where(seen[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v)
    return out.reshape(rows, time, heads, dim)


def attend_cache(q, k, v, seen):
    """`attend` over a cache: k [B, K, H, S] and v [B, K, S, H] are read as they lie."""
    rows, time, heads, dim = q.shape
    kv_heads = k.shape[1]
    q = q.reshape(rows, time, kv_heads, heads // kv_heads, dim) * dim**-0.5
    q = q.transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, dim)  # [B, K, GT, H]
    scores = jnp.einsum("bkqh,bkhs->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, kv_heads, heads // kv_heads, time, -1)
    scores = jnp.where(seen[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(rows, kv_heads, -1, k.shape[3])
    out = jnp.einsum("bkqs,bksh->bkqh", weights, v)
    out = out.reshape(rows, kv_heads, heads // kv_heads, time, dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, time, heads, dim)
