"""Attention as one kernel on TPUs: JAX's splash attention over packed rows.

Scores stay in the fast memory of the core, so that what is kept grows with T and not
with its square. B rows, T time, N query heads, K key/value heads, H head_dim.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from easylm.sharding import alone, constrain, current, ways

LANES = 128  # of a vector register
BLOCKS = 512, 256, LANES  # queries, or keys, that are in fast memory together


def fits(time: int, head_dim: int) -> bool:
    """Whether rows of this length and heads of this size can be cut into blocks."""
    return time % LANES == 0 and (head_dim % LANES == 0 or LANES % head_dim == 0)


def attend(q, k, v, segments, window=None, *, interpret=False):
    """softmax(q k / sqrt(H)) v within segments [B, T], over the past of each token.

    interpret: slowly, on any platform, for tests.
    """
    dim, layout = q.shape[-1], current()
    # Of the keys of a row every device makes its own; they are gathered as they are,
    # before they are filled up.
    for length in ("length", None):
        k, v = (constrain(x, "batch", length, "act_heads", None) for x in (k, v))
    q, k, v = (_wide(x).swapaxes(1, 2) for x in (q * dim**-0.5, k, v))  # [B, N, T, H]
    heads = q.shape[1] // ways("act_heads")
    kernel = _kernel(q.shape[2], ways("length"), heads, window, interpret)

    def rows(kernel, q, k, v, mine, theirs):
        row = lambda q, k, v, *ids: kernel(q, k, v, splash.SegmentIds(*ids))
        return jax.vmap(row)(q, k, v, mine, theirs)

    if not alone():  # a device has its own queries, and all the keys of their rows
        spec = lambda *names: layout.sharding(*names).spec
        q_spec = spec("batch", "act_heads", "length", None)
        k_spec = spec("batch", "act_heads", None, None)
        of_kernel = kernel.manual_sharding_spec(layout.sharding(None, "length"))
        ids = spec("batch", "length"), spec("batch", None)
        rows = jax.shard_map(
            rows,
            mesh=layout.mesh,
            in_specs=(of_kernel, q_spec, k_spec, k_spec, *ids),
            out_specs=q_spec,
            check_vma=False,
        )
    out = rows(kernel, q, k, v, segments, segments)
    return out.swapaxes(1, 2)[..., :dim]


def _wide(x):
    """Heads of fewer numbers than there are lanes, filled up with zeros."""
    missing = -x.shape[-1] % LANES
    return jnp.pad(x, ((0, 0),) * 3 + ((0, missing),)) if missing else x


def _kernel(time: int, parts: int, heads: int, window: int | None, interpret: bool):
    """For rows whose queries are split into so many parts."""
    mask = masks.CausalMask((time, time), shard_count=parts)
    if window is not None:
        near = window - 1, 0
        mask = masks.LocalMask((time, time), near, 0, shard_count=parts)
    q, kv = (next(b for b in BLOCKS if n % b == 0) for n in (time // parts, time))
    names = "block_q", "block_q_dkv", "block_q_dq"
    blocks = dict.fromkeys(names, q)
    names = "block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute"
    blocks |= dict.fromkeys((*names, "block_kv_dq"), kv)
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        # The fused backward pass keeps a gradient of q for each block of keys.
        block_sizes=splash.BlockSizes(**blocks, use_fused_bwd_kernel=False),
        head_shards=1,
        q_seq_shards=parts,
        interpret=interpret,
    )
