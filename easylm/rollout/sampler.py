"""Prompts to completions: prefill, then decode, in one compiled program.

The cache has slots for the prompt and for what is written after it. Rows of one batch
share the slots; a shorter prompt leaves some of its slots empty, and its positions go
on from its own length.

B prompts, P prompt length, n samples of each, R = B n rows, N new tokens, V vocab.
"""

import contextlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from easylm import sharding
from easylm.errors import UserError
from easylm.models import decoding
from easylm.models.base import Model
from easylm.models.transformer import Cache
from easylm.rollout import stops
from easylm.rollout.sampling import check, sample
from easylm.sharding import constrain

BUCKET = 64  # lengths are rounded up to it, so that few programs are compiled


class Prompts(NamedTuple):
    """Rows that begin with a prompt; a row of length 0 stays empty."""

    tokens: jax.Array  # int32[B, P]
    lengths: jax.Array  # int32[B]


class Completions(NamedTuple):
    """What was sampled. Index t of a row is its t-th new token; after `lengths`, 0."""

    tokens: jax.Array  # int32[R, N]
    logps: jax.Array  # float32[R, N]  of the tokens, see sampling.sample
    lengths: jax.Array  # int32[R]  a stop token counts
    finished: jax.Array  # bool[R]  by a stop, not by the limit
    steps: jax.Array  # int32[]  how many tokens the loop went on for


def generate(
    model: Model,
    params,
    prompts: Prompts,
    key,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_ids: Sequence[int] = (),
    stop_table=None,
    samples: int = 1,
) -> Completions:
    """Samples `samples` completions of each prompt; those of one prompt are adjacent.

    `key` is one key, or one per prompt: then a prompt gets the same samples in any
    batch. `stop_table` comes from `stops.stop_table`; `sampling.sample` explains the
    other options. Runs on the mesh of `sharding.use`, however params are laid out.
    """
    tokens, lengths = prompts
    options = Options(temperature, top_k, top_p, min_p, samples, _up(max_new_tokens))
    check(temperature, top_k, top_p, min_p)
    if max_new_tokens < 1 or samples < 1 or tokens.shape[1] < 1:
        raise UserError(
            f"max_new_tokens {max_new_tokens}, samples {samples} and prompt length"
            f" {tokens.shape[1]} must be 1 or more"
        )
    blank = ((0, 0), (0, -tokens.shape[1] % BUCKET))
    tokens = (np if isinstance(tokens, np.ndarray) else jnp).pad(tokens, blank)
    ids = np.full(_up(max(1, len(stop_ids)), 4), -1, np.int32)
    ids[: len(stop_ids)] = stop_ids
    table = np.zeros((2, 1), np.int32) if stop_table is None else stop_table
    layout = sharding.current()
    if layout is not None:
        sharding.check_divides(tokens.shape[0], "batch", layout, "prompts")
        # One new token at a time cannot be split along time.
        layout = layout._replace(rules={**layout.rules, "length": ()})
    with contextlib.nullcontext() if layout is None else sharding.use(layout):
        program = _program(model._replace(spec=None), options, _hashable(layout))
        limit = np.int32(max_new_tokens)
        out = program(params, tokens, lengths, key, limit, ids, table)
    end = slice(max_new_tokens)
    return out._replace(tokens=out.tokens[:, end], logps=out.logps[:, end])


def complete(
    model: Model,
    params,
    tokenizer,
    prompts: list[list[int]],
    key,
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    samples: int = 1,
    **options,
) -> list[dict]:
    """`generate` from lists of ids to text, on the host.

    One {"text", "tokens", "logps", "finished"} per sample. It stops at the tokenizer's
    `stop_ids` unless others are given; no stop is part of the text.
    """
    _check_ids(prompts, model.config, max_new_tokens)
    table = None
    if stop_strings:
        table = stops.stop_table(tokenizer, stop_strings, model.config.vocab_size)
    out = generate(
        model,
        params,
        pad(prompts, rows=_rows(len(prompts))),
        key,
        max_new_tokens=max_new_tokens,
        stop_ids=tokenizer.stop_ids if stop_ids is None else stop_ids,
        stop_table=table,
        samples=samples,
        **options,
    )
    out = jax.tree.map(np.asarray, out)
    found = []
    for row in range(len(prompts) * samples):
        end = out.lengths[row]
        ids = out.tokens[row, :end].tolist()
        found.append(
            {
                "text": stops.cut(tokenizer, ids, stop_strings),
                "tokens": ids,
                "logps": out.logps[row, :end].tolist(),
                "finished": bool(out.finished[row]),
            }
        )
    return found


def pad(prompts: Sequence[Sequence[int]], rows: int = 0) -> Prompts:
    """Lists of ids as one array, with empty rows up to `rows`."""
    rows = max(rows, len(prompts))
    lengths = np.zeros(rows, np.int32)
    lengths[: len(prompts)] = [len(ids) for ids in prompts]
    tokens = np.zeros((rows, max(1, lengths.max(initial=0))), np.int32)
    for row, ids in enumerate(prompts):
        tokens[row, : len(ids)] = ids
    return Prompts(tokens, lengths)


class Options(NamedTuple):
    """What a program is compiled for, beside shapes."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    samples: int
    length: int  # N


class _State(NamedTuple):
    """What the loop changes."""

    step: jax.Array  # int32[]  tokens that every row has been given
    out: Completions
    done: jax.Array  # bool[R]
    found: jax.Array  # int32[R]  state of the stop strings
    cache: Cache  # of all tokens but the last


@lru_cache(maxsize=64)
def _program(model: Model, options: Options, layout):
    """One compiled function per model, options and layout (which tracing looks up)."""
    out = None if layout is None else sharding.current().sharding()
    return jax.jit(partial(_run, model, options), out_shardings=out)


def _run(model, options, params, tokens, lengths, key, limit, stop_ids, stop_table):
    n, rows = options.samples, tokens.shape[0] * options.samples
    cache, logits = _prefill(model, params, tokens, lengths)
    cache, logits = _widen(cache, n, options.length), jnp.repeat(logits, n, axis=0)
    starts = jnp.repeat(lengths, n)
    keys = _row_keys(key, tokens.shape[0], n)
    if decoding.pays():
        params = decoding.rearrange(params, model.config)
        cache = decoding.split_layers(cache)

    def write(state: _State, logits) -> _State:
        at = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
        token, logp = sample(at, logits, **_truncation(options))
        return _accept(state, token, logp, stop_ids, stop_table)

    def advance(state: _State) -> _State:
        """Reads the last token, writes the next."""
        token = jax.lax.dynamic_slice_in_dim(state.out.tokens, state.step - 1, 1, 1)
        position = (starts + state.step - 1)[:, None]
        hidden, cache = model.forward(
            params, token, position, jnp.ones_like(token), state.cache
        )
        logits = decoding.logits(model, params, hidden[:, 0])
        return write(state._replace(cache=cache), logits)

    going = lambda s: (s.step < limit) & ~jnp.all(s.done)
    state = _start(rows, options.length, starts == 0, cache)
    state = jax.lax.while_loop(going, advance, write(state, logits))
    return state.out._replace(steps=state.step)


def _prefill(model, params, tokens, lengths):
    """The cache of the prompts, and the logits [B, V] after each."""
    rows, length = tokens.shape
    tokens = constrain(tokens, "batch", None)
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    cache = model.init_cache(rows, length)
    hidden, cache = model.forward(params, tokens, positions, segments, cache)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    return cache, decoding.logits(model, params, hidden)


def _widen(cache, samples: int, more: int):
    """Every row `samples` times, and `more` free slots."""
    cache = decoding.lengthen(cache, cache.positions.shape[1] + more)
    if samples > 1:
        again = lambda x, axis: jnp.repeat(x, samples, axis=axis)
        k, v, positions, segments, index = cache
        cache = Cache(
            again(k, 1), again(v, 1), again(positions, 0), again(segments, 0), index
        )
    names = (None, "batch", "act_heads", None, None)
    return cache._replace(k=constrain(cache.k, *names), v=constrain(cache.v, *names))


def _start(rows: int, length: int, done, cache) -> _State:
    tokens, logps = (jnp.zeros((rows, length), t) for t in (jnp.int32, jnp.float32))
    none, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    out = Completions(tokens, logps, none, no, jnp.int32(0))
    return _State(jnp.int32(0), out, done, none, cache)


def _accept(state: _State, token, logp, stop_ids, stop_table) -> _State:
    """Writes a token into each row that is not done, and sees which rows now are."""
    step, out, done, found, *_ = state
    token, logp = jnp.where(done, 0, token), jnp.where(done, 0.0, logp)
    write = lambda x, column: jax.lax.dynamic_update_slice(
        x, column[:, None], (0, step)
    )
    if stop_table.shape[1] > 1:
        found = jnp.where(done, found, stop_table[found, token])
    stop = jnp.any(token[:, None] == stop_ids, axis=1)
    stop = ~done & (stop | (found == stop_table.shape[0] - 1))
    out = Completions(
        write(out.tokens, token),
        write(out.logps, logp),
        out.lengths + ~done,
        out.finished | stop,
        out.steps,
    )
    return state._replace(step=step + 1, out=out, done=done | stop, found=found)


def _row_keys(key, prompts: int, samples: int):
    """One key per row: that of the prompt, folded with the number of the sample."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    if key.ndim == 0:
        key = fold(key, jnp.arange(prompts))
    return jax.vmap(fold, (0, None))(key, jnp.arange(samples)).reshape(-1)


def _truncation(options: Options) -> dict:
    return {k: getattr(options, k) for k in ("temperature", "top_k", "top_p", "min_p")}


def _up(length: int, bucket: int = BUCKET) -> int:
    return -(-length // bucket) * bucket


def _rows(count: int) -> int:
    """How many prompts the mesh asks for."""
    layout = sharding.current()
    return _up(count, 1 if layout is None else layout.ways("batch"))


def _hashable(layout):
    return None if layout is None else (layout.mesh, tuple(layout.rules.items()))


def _check_ids(prompts, config, max_new_tokens: int) -> None:
    for row, ids in enumerate(prompts):
        if not len(ids):
            raise UserError(f"prompt {row} is empty; begin it with the BOS token, say")
        if wrong := [i for i in ids if not 0 <= i < config.vocab_size]:
            raise UserError(
                f"prompt {row} has token id {wrong[0]}, outside of the model's"
                f" vocabulary of {config.vocab_size}; use the tokenizer of the model"
            )
        if len(ids) + max_new_tokens > config.max_len:
            raise UserError(
                f"prompt {row} has {len(ids)} tokens; with max_new_tokens"
                f" {max_new_tokens} that is more than the model's {config.max_len}"
                " positions; shorten one of the two"
            )
