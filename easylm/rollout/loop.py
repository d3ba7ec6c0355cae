"""The loop in which rows decode, and take the next prompt when they are done.

All prompts are read first. Then rows decode: each has a prompt's keys and values in its
part of the cache, begins by reading the last token of the prompt again, and goes on at
its own pace. With fewer rows than completions, a row that is done takes the next prompt
at once, inside the compiled loop (continuous batching), so that short answers do not
wait for long ones. Every device has its own prompts and rows: nothing is exchanged.

B prompts, P prompt length, n samples of each, J = B n completions, R rows, N new
tokens.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from easylm import sharding
from easylm.models import decoding
from easylm.models.cache import Cache, add_block, widen
from easylm.rollout.sampling import sample
from easylm.sharding import constrain

BLOCK = 256  # slots of the cache that are read together, or not at all


class Options(NamedTuple):
    """What a program is compiled for, beside shapes."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    samples: int
    rows: int  # R
    length: int  # N


class Completions(NamedTuple):
    """What was sampled. Index t of a row is its t-th new token; after `lengths`, 0."""

    tokens: jax.Array  # int32[J, N]
    logps: jax.Array  # float32[J, N]  of the tokens, see sampling.sample
    lengths: jax.Array  # int32[J]  a stop token counts
    finished: jax.Array  # bool[J]  by a stop, not by the limit
    steps: jax.Array  # int32[]  how many tokens the loop went on for


class _Queue(NamedTuple):
    """What there is to do. On each device: its own prompts, one after the other."""

    tokens: jax.Array  # int32[B, P]
    lengths: jax.Array  # int32[B]
    keys: jax.Array  # [J]
    cache: Cache  # of the prompts: one block of P slots


class _State(NamedTuple):
    """What the loop changes: where every row is, and what is written."""

    step: jax.Array  # int32[]  tokens that every row has been given
    next: jax.Array  # int32[devices]  the first completion that no row has taken
    job: jax.Array  # int32[R]  which completion it is; on each device counted from 0
    key: jax.Array  # [R]  of the completion
    token: jax.Array  # int32[R]  to be read next
    position: jax.Array  # int32[R]  of that token
    found: jax.Array  # int32[R]  state of the stop strings
    done: jax.Array  # bool[R]
    now: Completions  # what the rows are writing: [R, N]
    out: Completions  # what they have handed in: [J, N]
    cache: Cache


def run(model, options, params, tokens, lengths, key, limit, stop_ids, stop_table):
    """-> Completions [J, N]. tokens [B, P] and lengths [B] of the prompts; `limit` new
    tokens at most; stop_table: see stops.py."""
    keys = _sample_keys(key, tokens.shape[0], options.samples)
    queue = _Queue(tokens, lengths, keys, _prefill(model, params, tokens, lengths))
    if decoding.pays():
        params = decoding.rearrange(params, model.config)
        queue = queue._replace(cache=decoding.split_layers(queue.cache))
    state = _start(options, queue)
    refill = options.rows < len(keys)
    exchange = _on_each_device(partial(_exchange, options.samples))

    def advance(state: _State) -> _State:
        """Reads a token of every row, writes the next."""
        token, position = state.token[:, None], state.position[:, None]
        one = jnp.ones_like(token)
        hidden, cache = model.forward(params, token, position, one, state.cache)
        logits = decoding.logits(model, params, hidden[:, 0])
        at = jax.vmap(jax.random.fold_in)(state.key, state.now.lengths)
        token, logp = sample(at, logits, **_truncation(options))
        state = state._replace(cache=cache)
        state = _accept(state, token, logp, limit, stop_ids, stop_table)
        return exchange(state, queue) if refill else state

    state = jax.lax.while_loop(lambda s: ~jnp.all(s.done), advance, state)
    out = _on_each_device(_hand_in_all)(state).out if refill else state.now
    return out._replace(steps=state.step)


def _prefill(model, params, tokens, lengths) -> Cache:
    """The keys and values of the prompts."""
    rows, length = tokens.shape
    tokens = constrain(tokens, "batch", None)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    cache = model.init_cache(rows, length)
    return model.forward(params, tokens, positions, segments, cache)[1]


def _start(options: Options, queue: _Queue) -> _State:
    """Every row with its first completion."""
    rows, jobs, new = options.rows, len(queue.keys), options.length
    ways = sharding.ways("batch")
    here = rows // ways
    job = jnp.tile(jnp.arange(here), ways)
    mine = jnp.repeat(jnp.arange(ways), here) * (jobs // ways) + job  # of all
    prompt = mine // options.samples
    cache = queue.cache
    if (rows, options.samples) != (len(queue.lengths), 1):
        take = partial(_take_rows, options.samples, here)
        cache = _on_each_device(take)(cache)
    first, *others = _sizes(new)
    cache = widen(cache, first)
    for size in others:
        cache = add_block(cache, size)
    names = lambda x: (None, "batch", "act_heads", None, None)[5 - x.ndim :]
    cache = jax.tree.map(lambda x: constrain(x, *names(x)), cache)
    last = jnp.maximum(queue.lengths - 1, 0)
    token = jnp.take_along_axis(queue.tokens, last[:, None], axis=1)[:, 0]
    return _State(
        step=jnp.int32(0),
        next=jnp.full(ways, here),
        job=job,
        key=queue.keys[mine],
        token=token[prompt],
        position=last[prompt],
        found=jnp.zeros(rows, jnp.int32),
        done=queue.lengths[prompt] == 0,
        now=_nothing(rows, new),
        out=_nothing(jobs, new) if rows < jobs else None,
        cache=cache,
    )


def _accept(state: _State, token, logp, limit, stop_ids, stop_table) -> _State:
    """Writes a token into each row that is not done, and sees which rows now are."""
    now, done, found = state.now, state.done, state.found
    rows = jnp.arange(len(token))
    at = jnp.where(done, now.tokens.shape[1], now.lengths)  # outside: dropped
    if stop_table.shape[1] > 1:
        found = jnp.where(done, found, stop_table[found, token])
    stop = jnp.any(token[:, None] == stop_ids, axis=1)
    stop = ~done & (stop | (found == stop_table.shape[0] - 1))
    now = now._replace(
        tokens=now.tokens.at[rows, at].set(token, mode="drop"),
        logps=now.logps.at[rows, at].set(logp, mode="drop"),
        lengths=now.lengths + ~done,
        finished=now.finished | stop,
    )
    return state._replace(
        step=state.step + 1,
        token=jnp.where(done, state.token, token),
        position=jnp.where(done, state.position, state.position + 1),
        found=found,
        done=done | stop | (now.lengths >= limit),
        now=now,
    )


def _exchange(samples: int, state: _State, queue: _Queue) -> _State:
    """Rows that are done hand in what they wrote and take the next prompt."""

    def waiting(state):
        return jnp.any(state.done) & (state.next[0] < len(queue.keys))

    def one(state):
        row, job = jnp.argmax(state.done), state.next[0]
        prompt = job // samples
        last = jnp.maximum(queue.lengths[prompt] - 1, 0)
        news = {
            "job": job,
            "key": queue.keys[job],
            "token": queue.tokens[prompt, last],
            "position": last,
            "found": 0,
            "done": queue.lengths[prompt] == 0,
        }
        blank = jax.tree.map(lambda x: x.at[row].set(jnp.zeros((), x.dtype)), state.now)
        return state._replace(
            next=state.next + 1,
            now=blank,
            out=_hand_in(state.out, state.now, state.job, row),
            cache=_copy_prompt(state.cache, queue.cache, row, prompt),
            **{name: getattr(state, name).at[row].set(x) for name, x in news.items()},
        )

    return jax.lax.while_loop(waiting, one, state)


def _hand_in(out, now, job, row) -> Completions:
    """What the row, or rows, have written becomes their completion."""
    put = lambda all, mine: all.at[job[row]].set(mine[row])
    return jax.tree.map(put, out, now)


def _hand_in_all(state: _State) -> _State:
    rows = jnp.arange(len(state.job))
    return state._replace(out=_hand_in(state.out, state.now, state.job, rows))


def _copy_prompt(cache: Cache, prompts: Cache, row, prompt) -> Cache:
    """The first slots of the row become those of the prompt."""

    def copy(old, new):
        axis = old.ndim - 4
        one = jax.lax.dynamic_index_in_dim(new, prompt, axis)
        return jax.lax.dynamic_update_slice_in_dim(old, one, row, axis)

    both = zip(cache, prompts, strict=True)
    return Cache(*((jax.tree.map(copy, old[0], new[0]), *old[1:]) for old, new in both))


def _take_rows(samples: int, rows: int, cache: Cache) -> Cache:
    """Of the cache of prompts, those of the first `rows` completions."""
    which = jnp.arange(rows) // samples
    return jax.tree.map(lambda x: jnp.take(x, which, axis=x.ndim - 4), cache)


def _on_each_device(f):
    """f on the rows that a device holds, whatever the others do."""
    if sharding.alone():
        return f
    layout = sharding.current()

    def mapped(*args):
        ways, heads = layout.ways("batch"), layout.ways("act_heads")
        if any(x.ndim == 5 and x.shape[2] % heads for x in jax.tree.leaves(args)):
            heads = 1  # they do not divide, so they are whole
        of_cache = (None, "batch", "act_heads" if heads > 1 else None)

        def spec(x):
            names = of_cache if x.ndim == 5 else ("batch",)[: x.ndim]
            return layout.sharding(*names).spec

        part = lambda x: jax.ShapeDtypeStruct(_cut(x.shape, ways, heads), x.dtype)
        out = jax.eval_shape(f, *jax.tree.map(part, args))
        ins, outs = (jax.tree.map(spec, x) for x in (args, out))
        run = partial(jax.shard_map, mesh=layout.mesh, check_vma=False)
        return run(f, in_specs=ins, out_specs=outs)(*args)

    return mapped


def _cut(shape: tuple, ways: int, heads: int) -> tuple:
    """The part of an array that a device holds."""
    if len(shape) == 5:
        return shape[0], shape[1] // ways, shape[2] // heads, *shape[3:]
    return (shape[0] // ways, *shape[1:]) if shape else shape


def _nothing(rows: int, length: int) -> Completions:
    tokens, logps = (jnp.zeros((rows, length), t) for t in (jnp.int32, jnp.float32))
    lengths, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    return Completions(tokens, logps, lengths, no, None)


def _sizes(new: int) -> list[int]:
    """Of the blocks for new tokens."""
    return [min(BLOCK, new - first) for first in range(0, new, BLOCK)]


def _sample_keys(key, prompts: int, samples: int):
    """One key per completion: that of the prompt, folded with the sample's number."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    if key.ndim == 0:
        key = fold(key, jnp.arange(prompts))
    return jax.vmap(fold, (0, None))(key, jnp.arange(samples)).reshape(-1)


def _truncation(options: Options) -> dict:
    return {k: getattr(options, k) for k in ("temperature", "top_k", "top_p", "min_p")}
