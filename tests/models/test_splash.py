"""The TPU's attention kernel, interpreted on a CPU: the same numbers as XLA's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm import sharding
from easylm.models import splash
from easylm.models.attention import attend, kernel, visible
from easylm.models.base import config_for

T = 256


def inputs(rows, heads, kv_heads, dim):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, T, n, dim) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def packed(rows):
    """Segments of several lengths in a row, and padding at its end."""
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(1, 5, (rows, T)), axis=1)
    segments[:, 240:] = 0
    first = np.array([[row.tolist().index(s) for s in row] for row in segments])
    return np.int32(np.arange(T) - first), np.int32(segments)


def both(q, k, v, positions, segments, window, layout=None):
    """Of what is no padding: the output, and gradients of a sum of it."""
    seen = visible(positions, segments, positions, segments, window=window)
    ours = partial(splash.attend, segments=segments, window=window, interpret=True)
    weights = (
        jnp.cos(jnp.arange(q.size).reshape(q.shape)) * (segments != 0)[..., None, None]
    )

    def of(function):
        total = lambda *qkv: jnp.sum(weights * function(*qkv))
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)

    return of(lambda *qkv: ours(*qkv)), of(lambda *qkv: attend(*qkv, seen))


def check(found, wanted):
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-4)
    jax.tree.map(close, found, wanted)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window"),
    [(2, 2, 128, None), (4, 2, 64, None), (2, 1, 128, 48)],
)
def test_the_kernel_is_attention(heads, kv_heads, dim, window):
    q, k, v = inputs(2, heads, kv_heads, dim)
    check(*both(q, k, v, *packed(2), window))


def test_split_over_rows_heads_and_time_it_is_the_same():
    q, k, v = inputs(2, 4, 2, 128)
    with sharding.use(sharding.make_layout("fsdp=2,tensor=2,context=2")):
        found, wanted = both(q, k, v, *packed(2), None)
    check(found, wanted)


def test_what_it_cannot_do_is_left_to_xla():
    assert splash.fits(4096, 128) and splash.fits(4096, 64)
    assert not splash.fits(100, 128) and not splash.fits(4096, 96)
    tiny = config_for("llama:1m")
    assert kernel(tiny, 4096) == "xla"  # this is a CPU
