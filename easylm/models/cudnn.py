"""Attention as one kernel on NVIDIA GPUs: cuDNN's, over the segments of packed rows.

cuDNN is told where the segments of a row begin and how long they are, and looks at
nothing else: what is kept grows with T, and the work with the squares of the segments'
lengths. Places for `AT_ONCE` segments of a row are part of the program; the segments
of fuller rows take their turns. JAX has this below `jax.nn.dot_product_attention`,
which cannot name segments.

B rows, T time, N query heads, K key/value heads, H head_dim, P places of one turn.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from easylm.errors import UserError
from easylm.sharding import alone, current, ways

AT_ONCE = 32  # segments of a row; each has its softmax sums [N, T] in memory
ALIKE = jax.__version_info__ < (0, 11, 1)  # only finds keys of as many heads as queries


class Runs(NamedTuple):
    """The segments of rows in the order of columns, P to a turn; none is -1."""

    starts: jax.Array  # int32[turns, B, P] the first column of each
    lengths: jax.Array  # int32[turns, B, P]
    turn: jax.Array  # int32[B, T] in which turn a column is looked at


def obstacle(c) -> str:
    """Why a model of this config cannot use the kernel here; empty if it can."""
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return "it needs an NVIDIA GPU"
    if float(device.compute_capability) < 9:
        return "it needs a GPU of the Hopper generation (H100, H200) or a newer one"
    if c.dtype not in ("bfloat16", "float16"):
        return f"it multiplies bfloat16 or float16, not {c.dtype}"
    if c.head_dim % 8 or c.head_dim > 128:
        return f"head_dim {c.head_dim} is not a multiple of 8 up to 128"
    if ways("length") > 1:
        return "it cannot split rows over the context axis of the mesh"
    return ""


def attend(q, k, v, runs: Runs, window: int | None = None):
    """softmax(q k / sqrt(H)) v within segments, over the past of each token.

    q [B, T, N, H]; k and v [B, T, K, H]. Padding gives 0, and takes no gradient.
    """
    rows, layout = partial(_rows, window), current()
    if alone():
        return rows(q, k, v, runs)
    spec = lambda *names: layout.sharding(*names).spec
    heads, places = spec("batch", None, "act_heads", None), spec(None, "batch", None)
    rows = jax.shard_map(
        rows,
        mesh=layout.mesh,
        in_specs=(*3 * (heads,), Runs(places, places, spec("batch", None))),
        out_specs=heads,
        check_vma=False,
    )
    return rows(q, k, v, runs)


def runs_of(segments, places: int = AT_ONCE) -> Runs:
    """Where the segments [B, T] of each row begin and how long they are."""
    rows, time = segments.shape
    real, column = segments != 0, jnp.arange(time, dtype=jnp.int32)
    beside = jnp.pad(segments, ((0, 0), (1, 1)))
    begins = real & (segments != beside[:, :-2])
    ends = real & (segments != beside[:, 2:])

    def in_turns(here):
        """The columns that are marked, and after them T."""
        found = jnp.sort(jnp.where(here, column, time), axis=1)
        found = jnp.pad(found, ((0, 0), (0, -time % places)), constant_values=time)
        return found.reshape(rows, -1, places).swapaxes(0, 1)

    starts = in_turns(begins)
    none, lengths = starts == time, in_turns(ends) + 1 - starts
    turn = (jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1) // places
    return Runs(
        jnp.where(none, -1, starts),
        jnp.where(none, -1, lengths),
        jnp.where(real, turn, -1),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rows(window, q, k, v, runs):
    first = _one_turn(window, runs, 0, q, k, v)
    return _other_turns(window, q, k, v, runs, first)


def _rows_fwd(window, q, k, v, runs):
    first, pull = jax.vjp(partial(_one_turn, window, runs, 0), q, k, v)
    out = _other_turns(window, q, k, v, runs, first)
    return out, (pull, q, k, v, runs)


def _rows_bwd(window, saved, dout):
    pull, q, k, v, runs = saved

    def turn(number, grads):  # rare: computed anew
        _, pull = jax.vjp(partial(_one_turn, window, runs, number), q, k, v)
        return _merged(runs, number, pull(dout), grads)

    grads = _merged(runs, 0, pull(dout), jax.tree.map(jnp.zeros_like, (q, k, v)))
    grads = jax.lax.fori_loop(1, jnp.max(runs.turn) + 1, turn, grads)
    return *grads, None


_rows.defvjp(_rows_fwd, _rows_bwd)


def _other_turns(window, q, k, v, runs, first):
    """[B, T, N, H]: what the first turn gave, and the other ones, if there are any."""

    def turn(number, out):
        new = _one_turn(window, runs, number, q, k, v)
        return _merged(runs, number, new, out)

    out = _merged(runs, 0, first, jnp.zeros_like(first))
    return jax.lax.fori_loop(1, jnp.max(runs.turn) + 1, turn, out)


def _merged(runs, number, new, old):
    """`new` at the columns of this turn, `old` elsewhere: there the kernel writes
    nothing, so that `new` may hold anything."""
    mine = (runs.turn == number)[:, :, None, None]
    return jax.tree.map(lambda a, b: jnp.where(mine, a, b), new, old)


def _one_turn(window, runs, number, q, k, v):
    """[B, T, N, H], of which the columns of the segments of this turn are written."""
    if q.size >= 2**31:
        raise UserError(
            f"cuDNN counts the numbers of the queries in 31 bits, and {q.shape} are"
            " more: use smaller batches, or attention='xla'"
        )
    lengths = runs.lengths[number]
    offsets = jnp.pad(runs.starts[number], ((0, 0), (0, 1)), constant_values=-1)
    if ALIKE:
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    return cudnn.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
        sliding_window_length=window,
    )
