"""Attention over packed rows: who may look at whom, and the weighted sum.

`over_rows` chooses how: "splash" or "cudnn", one kernel on a TPU or an NVIDIA GPU whose
memory grows with T, or "xla", products and a softmax that any platform has, whose
memory grows with its square.

B rows, T tokens, Q queries, S keys, N query heads, K key/value heads, G query heads per
key head, H head_dim.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp

from easylm.errors import UserError
from easylm.sharding import alone, constrain, device_kind, platform, ways


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


KERNELS = "auto", "xla", "splash", "cudnn"
OLD = "TPU v2", "TPU v3"  # their kernels do not multiply bfloat16


def over_rows(c, positions, segments):
    """-> attend(q, k, v, layer) over the tokens of each row; c is a model's config."""
    chosen, window = kernel(c, positions.shape[1]), _window(c, positions.shape[1])
    if chosen == "splash":
        from easylm.models import splash

        return lambda q, k, v, layer: splash.attend(q, k, v, segments, window)
    if chosen == "cudnn":
        from easylm.models import cudnn

        runs = cudnn.runs_of(segments)
        return lambda q, k, v, layer: cudnn.attend(q, k, v, runs, window)
    seen = _masks(c, positions, segments, positions, segments)
    return lambda q, k, v, layer: attend(q, k, v, seen(layer))


def kernel(c, time: int) -> str:
    """What attends over rows of so many tokens on the platform in use."""
    # A kernel has one window, and layers are scanned: all of them have the same.
    mixed = _window(c, time) is not None and 0 < c.window_from < c.layers
    if c.attention == "cudnn":
        from easylm.models import cudnn

        why = "its layers differ in what they see" if mixed else cudnn.obstacle(c)
        if why:
            raise UserError(f"attention 'cudnn' cannot be used: {why}; set 'auto'")
    if c.attention != "auto":
        return c.attention
    if mixed or platform() != "tpu" or device_kind() in OLD:
        return "xla"  # cuDNN's is for those who ask: it was never run on a real GPU
    from easylm.models import splash

    return "splash" if splash.fits(time, c.head_dim) else "xla"


def _window(c, time: int) -> int | None:
    """How far back layers see; None where that is the whole row."""
    window, layers = c.sliding_window, c.window_from < c.layers
    return window if layers and window is not None and window < time else None


def cache_masks(c, positions, slots: int):
    """layer index -> bool[B, T, S] over the slots of a cache."""
    one = jnp.ones_like
    where = jnp.broadcast_to(jnp.arange(slots), (positions.shape[0], slots))
    return _masks(c, positions, one(positions), where, one(where))


def _masks(c, *who):
    """layer index -> bool[B, T, T]."""
    everything = visible(*who)
    if c.sliding_window is None:
        return lambda _: everything
    windowed = visible(*who, window=c.sliding_window)
    return lambda index: jnp.where(index >= c.window_from, windowed, everything)


def attend(q, k, v, seen):
    """softmax(q k / sqrt(H)) v among the tokens of a row; softmax in float32.

    `seen` is [B, T, T]. Nobody sees a later column, so a block of queries needs only
    the keys up to its end: half of the work for many blocks.
    """
    rows, time, heads, dim = q.shape
    kv_heads = k.shape[2]
    # Keys and values are whole along time: a context axis gathers them here.
    k = constrain(k, "batch", None, "act_heads", None).transpose(0, 2, 1, 3)
    v = constrain(v, "batch", None, "act_heads", None).transpose(0, 2, 1, 3)
    q = q.reshape(rows, time, kv_heads, heads // kv_heads, dim) * dim**-0.5
    q = q.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]
    # Added, not selected: XLA fuses a sum with the products around it. A finite
    # number, so that a padding query (it sees nothing) stays finite.
    bias = jnp.where(seen, 0.0, -1e30)
    blocks = _blocks(time)
    out, end = [], 0
    for part in jnp.split(q, blocks, axis=3):
        start, end = end, end + time // blocks
        past = (x[:, :, :end] for x in (k, v))
        # Several devices would have to agree on what to skip, in every layer.
        far = end // 2 if start >= time // 2 and alone() else 0
        out.append(_weighted(part, *past, bias[:, start:end, :end], far))
    out = jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, time, heads, dim)


def _blocks(time: int) -> int:
    """In how many blocks queries are taken: of 128 or more, at most 8 of them."""
    if ways("length") > 1:
        return 1  # a device has its own queries, from anywhere in the row
    return next((n for n in (8, 4, 2) if time % n == 0 and time >= 128 * n), 1)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _weighted(q, k, v, bias, far):
    """[B, K, G, Q, H] queries of one block over [B, K, S, H] keys and values.

    The first `far` keys are skipped when no query of the block sees any of them, as in
    rows that are packed with short segments.
    """
    return _weighted_fwd(q, k, v, bias, far)[0]


def _weighted_fwd(q, k, v, bias, far):
    keys, values, biases = (_cut(x, far) for x in (k, v, bias[:, None, None]))
    if not far:
        out, weights, total = _softmax(q, keys, values, biases)
        return out, (q, keys, values, weights, total, out, None)
    whole = lambda: _softmax(q, keys, values, biases)

    def near():
        out, weights, total = _softmax(q, keys[1:], values[1:], biases[1:])
        nothing = jnp.zeros((*weights[0].shape[:-1], far), weights[0].dtype)
        return out, [nothing, *weights], total

    seen = jnp.any(biases[0] == 0)
    out, weights, total = jax.lax.cond(seen, whole, near)
    return out, (q, keys, values, weights, total, out, seen)


def _cut(x, far: int) -> list:
    """The far and the near part of the keys, the axis before the last, or of a bias."""
    axis = -1 if x.ndim == 5 else -2
    return jnp.split(x, [far], axis=axis) if far else [x]


def _softmax(q, keys, values, biases):
    """(weighted sum, weights before division for each part, their sum)."""
    scores = [
        jnp.einsum("bkgqh,bksh->bkgqs", q, k, preferred_element_type=jnp.float32) + b
        for k, b in zip(keys, biases, strict=True)
    ]
    tops = [jnp.max(x, axis=-1, keepdims=True) for x in scores]
    weights = [jnp.exp(x - reduce(jnp.maximum, tops)) for x in scores]
    total = sum(jnp.sum(x, axis=-1, keepdims=True) for x in weights)
    weights = [x.astype(values[0].dtype) for x in weights]
    # Divided after the sum over keys: the numbers are H to a query, not S.
    out = sum(map(partial(jnp.einsum, "bkgqs,bksh->bkgqh"), weights, values)) / total
    return out.astype(values[0].dtype), weights, total


def _weighted_bwd(far, residuals, dout):
    q, keys, values, weights, total, out, seen = residuals
    dout = dout / total
    shift = jnp.sum(dout * out, axis=-1, keepdims=True)
    dout = dout.astype(values[0].dtype)
    pull = lambda *part: _pull(q, dout, shift, *part)
    parts = list(zip(keys, values, weights, strict=True))
    grads = [pull(*parts[-1])]
    if far:
        nothing = lambda *part: jax.tree.map(jnp.zeros_like, (q, *part[:2]))
        grads.insert(0, jax.lax.cond(seen, pull, nothing, *parts[0]))
    dq, dk, dv = zip(*grads, strict=True)
    return sum(dq), jnp.concatenate(dk, axis=2), jnp.concatenate(dv, axis=2), None


def _pull(q, dout, shift, k, v, weights):
    """Written out so that nothing of size Q x S is transposed."""
    dweights = jnp.einsum(
        "bkgqh,bksh->bkgqs", dout, v, preferred_element_type=jnp.float32
    )
    dscores = (weights * (dweights - shift)).astype(v.dtype)
    dq = jnp.einsum("bkgqs,bksh->bkgqh", dscores, k)
    dk = jnp.einsum("bkgqh,bkgqs->bkhs", q, dscores).swapaxes(2, 3)
    dv = jnp.einsum("bkgqh,bkgqs->bkhs", dout, weights).swapaxes(2, 3)
    return dq, dk, dv


_weighted.defvjp(_weighted_fwd, _weighted_bwd)
