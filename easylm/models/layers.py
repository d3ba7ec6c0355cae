"""The parts of a decoder: projection, norm, rotary positions, dropout.

B rows, T time, D embed, N heads, H head_dim.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from easylm.sharding import alone


@flax.struct.dataclass
class Rows:
    """A weight stored transposed, [out, in], for few tokens at a time (decoding.py)."""

    w: jax.Array
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)  # of one output


def project(x, weight, *, dims: int = 1, dtype, lora_scale: float = 0.0):
    """x times a weight whose first `dims` axes are contracted, in the compute dtype.

    A weight that carries adapters is {"w", "lora_a", "lora_b"} (see lora.py):
    y = x w + scale (x a) b, never forming w + a b.
    """
    x = x.astype(dtype)
    if isinstance(weight, Rows):
        out = times_rows(x.reshape(-1, weight.w.shape[1]), weight.w)
        return out.reshape(*x.shape[: x.ndim - dims], *weight.shape)
    if not isinstance(weight, dict):
        return _contract(x, weight, dims, dtype)
    low = _contract(x, weight["lora_a"], dims, dtype)
    delta = _contract(low, weight["lora_b"], 1, dtype)
    return _contract(x, weight["w"], dims, dtype) + lora_scale * delta


def times_rows(x, w):
    """[B, in] times the transpose of [out, in], as [out, in] times [in, B].

    The barrier keeps XLA from turning it round again: on a CPU it is twice as fast.
    """
    return jax.lax.optimization_barrier(w @ x.T).T


def rms_norm(x, scale, eps: float):
    """x / rms(x) * scale, in float32 and back."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling=None):
    """Angular frequency of each half-dimension; `scaling` as Llama 3.1 or linear."""
    freqs = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return freqs
    if scaling.kind == "linear":
        return freqs / scaling.factor
    # Llama 3.1: long wavelengths are stretched, short ones kept, a ramp in between.
    turns = scaling.original_len * freqs / (2 * math.pi)  # over the original context
    keep = (turns - scaling.low) / (scaling.high - scaling.low)
    keep = jnp.clip(keep, 0.0, 1.0)
    return freqs * (keep + (1 - keep) / scaling.factor)


def rope_tables(positions, freqs, dtype=jnp.float32):
    """cos and sin [..., T, 1, H/2] of every position.

    `dtype=bfloat16` rounds the angles as the code of the Tulu 2 runs did: wrong by
    radians past a few hundred positions, kept only to reproduce those runs.
    """
    angles = positions.astype(dtype)[..., None] * freqs.astype(dtype)
    angles = angles.astype(jnp.float32)[..., None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x, tables):
    """Rotary embedding in the half-split layout of Hugging Face, in float32."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def dropout(x, rate: float, key):
    """Zero a share `rate` of x and scale up the rest; the identity without a key."""
    if rate == 0.0 or key is None:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def _contract(x, weight, dims: int, dtype):
    """One matrix product over all tokens, in one line where no mesh splits them.

    In one line the gradient of the weight is a plain product as well: on a CPU half as
    fast again as one that is summed over rows and time.
    """
    weight = weight.astype(dtype)
    if not alone():
        axes = tuple(range(x.ndim - dims, x.ndim)), tuple(range(dims))
        return jax.lax.dot_general(x, weight, (axes, ((), ())))
    tokens, out = x.shape[: x.ndim - dims], weight.shape[dims:]
    width = math.prod(weight.shape[:dims])
    flat = x.reshape(-1, width) @ weight.reshape(width, -1)
    return flat.reshape(*tokens, *out)
