"""The decoder: one transformer that every family configures.

L layers, B rows, T time, D embed, N heads, K key/value heads, H head_dim, F mlp,
V vocab. Layers are stacked along a leading axis and scanned, so that compile time does
not grow with depth.
"""

from dataclasses import dataclass
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.nn.initializers import ones, zeros

from easylm.errors import UserError
from easylm.models.attention import KERNELS, cache_masks, over_rows
from easylm.models.base import Model, ParamSpec
from easylm.models.cache import Cache, attend_cache, init_cache, writer
from easylm.models.layers import (
    dropout,
    project,
    rms_norm,
    rope_frequencies,
    rope_tables,
    rotate,
)
from easylm.sharding import alone, check_divides, constrain, constrain_to, current

normal = cache(initializers.normal)  # the same function again: programs are kept by it


@dataclass(frozen=True)
class RopeScaling:
    """Longer context than trained: "llama3" (piecewise) or "linear"."""

    kind: str = "llama3"
    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_len: int = 8192


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a decoder, then how it is computed."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    mlp_dim: int
    head_dim: int = 0  # 0: dim / heads
    max_len: int = 4096
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied: bool = False  # the embedding is the unembedding
    qkv_bias: bool = False  # Qwen 2
    qk_norm: str = ""  # "head": each head (Qwen 3); "full": all heads at once (OLMo 2)
    post_norm: bool = (
        False  # norm after attention and MLP, inside the residual (OLMo 2)
    )
    sliding_window: int | None = None
    window_from: int = 0  # layers below this one see everything (Qwen 2)
    head: str = "lm"  # of tokens; "score": of a reward model; "both"
    scores: int = 1  # numbers that the score head gives for a token
    score_std: float = 0.02  # of its first weights
    # how it is computed
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    attention: str = "auto"  # over rows: "xla", "splash" (TPU), "cudnn" (GPU)
    remat: str = "full"  # what the backward pass recomputes: a name in REMAT
    dropout: float = 0.0
    rope_dtype: str = "float32"
    unroll: int = 1  # layers per step of the scan
    logits_chunk: int = 1024  # tokens per device whose logits exist at a time
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: str = "attn/(q|k|v|o)|mlp/(gate|up|down)"

    def __post_init__(self):
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.dim // self.heads)
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
            )
        if self.remat not in REMAT:
            raise UserError(f"remat {self.remat!r} is not one of {', '.join(REMAT)}")
        if self.attention not in KERNELS:
            known = ", ".join(KERNELS)
            raise UserError(f"attention {self.attention!r} is not one of {known}")
        if self.head not in ("lm", "score", "both"):
            raise UserError(f"head {self.head!r} is not 'lm', 'score' or 'both'")
        if self.qk_norm not in ("", "head", "full"):
            raise UserError(f"qk_norm {self.qk_norm!r} is not '', 'head' or 'full'")

    @property
    def lora_scale(self) -> float:
        return self.lora_alpha / self.lora_rank if self.lora_rank else 0.0


def computation(config) -> dict:
    """How the model is computed, to be the same in another of another shape."""
    names = "dtype", "param_dtype", "attention", "remat", "rope_dtype", "unroll"
    return {name: getattr(config, name) for name in (*names, "logits_chunk")}


# What the forward pass keeps for the backward pass.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,  # fastest, most memory
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # matmul outputs
    "full": jax.checkpoint_policies.nothing_saveable,  # only each layer's input
}


def make(config: TransformerConfig) -> Model:
    """The decoder's parameter specs and functions."""
    spec = param_spec(config)
    if config.lora_rank:
        from easylm.models import lora

        spec = lora.add(spec, config)
    return Model(config, spec, *_functions(config))


@lru_cache
def _functions(config: TransformerConfig):
    """The same ones for the same config: programs compiled for one model serve all
    others of its shape."""
    return tuple(partial(f, config=config) for f in (forward, unembed, init_cache))


def param_spec(c: TransformerConfig) -> dict:
    """Names, shapes and dimension names of every parameter."""
    dtype = jnp.dtype(c.param_dtype)
    weight = partial(ParamSpec, init=normal(0.02), dtype=dtype)
    bias = partial(ParamSpec, init=zeros, dtype=dtype)
    norm = partial(ParamSpec, init=ones, dtype=dtype)
    into = ("layers", "embed", "heads", "head_dim")
    into_kv = ("layers", "embed", "kv_heads", "head_dim")
    n, k, h, d, f = c.heads, c.kv_heads, c.head_dim, c.dim, c.mlp_dim
    attn = {
        "q": weight((c.layers, d, n, h), into),
        "k": weight((c.layers, d, k, h), into_kv),
        "v": weight((c.layers, d, k, h), into_kv),
        "o": weight((c.layers, n, h, d), ("layers", "heads", "head_dim", "embed")),
    }
    if c.qkv_bias:
        attn["q_bias"] = bias((c.layers, n, h), ("layers", "heads", "head_dim"))
        attn["k_bias"] = bias((c.layers, k, h), ("layers", "kv_heads", "head_dim"))
        attn["v_bias"] = bias((c.layers, k, h), ("layers", "kv_heads", "head_dim"))
    if c.qk_norm == "head":
        attn["q_norm"] = norm((c.layers, h), ("layers", None))
        attn["k_norm"] = norm((c.layers, h), ("layers", None))
    if c.qk_norm == "full":
        attn["q_norm"] = norm((c.layers, n, h), ("layers", "heads", None))
        attn["k_norm"] = norm((c.layers, k, h), ("layers", "kv_heads", None))
    mlp = {
        "gate": weight((c.layers, d, f), ("layers", "embed", "mlp")),
        "up": weight((c.layers, d, f), ("layers", "embed", "mlp")),
        "down": weight((c.layers, f, d), ("layers", "mlp", "embed")),
    }
    spec = {
        "embed": weight((c.vocab_size, d), ("vocab", "embed")),
        "layers": {
            "attn_norm": norm((c.layers, d), ("layers", None)),
            "attn": attn,
            "mlp_norm": norm((c.layers, d), ("layers", None)),
            "mlp": mlp,
        },
        "final_norm": norm((d,), (None,)),
    }
    if not c.tied and c.head != "score":
        spec["unembed"] = weight((d, c.vocab_size), ("embed", "vocab"))
    if c.head != "lm":
        init = normal(c.score_std)
        spec["score"] = ParamSpec((d, c.scores), ("embed", None), init, dtype)
    return spec


def forward(
    params,
    tokens,
    positions,
    segments,
    cache: Cache | None = None,
    *,
    config: TransformerConfig,
    dropout_key=None,
):
    """int32[B, T] three times -> hidden [B, T, D] after the final norm, and the cache.

    Positions are below T, or below the slots of the cache: no row is longer.
    With a cache, these T tokens follow each other in every row, and attention runs over
    the slots up to each; more than one token must start at one position in all rows.
    Without a cache, attention runs over the T tokens themselves.
    """
    c = config
    _check_rows(tokens)
    x = _embed(params["embed"].astype(c.dtype), tokens)
    keys = None
    if c.dropout and dropout_key is not None:
        first, *keys = jax.random.split(dropout_key, c.layers + 1)
        x, keys = dropout(x, c.dropout, first), jnp.stack(keys)
    length = tokens.shape[1] if cache is None else sum(cache.sizes)
    tables = _rope_at(positions, length, c)
    if cache is not None:
        return _extend(params, x, positions, tables, cache, c)
    attend = over_rows(c, positions, segments)

    def layer(x, at):
        weights, index, key = at
        look = lambda q, k, v: (attend(q, k, v, index), None)
        return _block(x, weights, tables, look, c, dropout_key=key)

    if c.remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT[c.remat], prevent_cse=False)
    at = (params["layers"], jnp.arange(c.layers), keys)
    x, _ = jax.lax.scan(layer, x, at, unroll=c.unroll)
    return rms_norm(x, params["final_norm"], c.norm_eps), None


def _embed(table, tokens):
    """[B, T, D]. Devices that share the table look up their own columns for one
    another's rows, and exchange these: text travels, not the table; back, too."""
    if alone():
        return table[tokens]
    layout = current()
    rows = tuple(a for a in layout.rules["batch"] if a not in layout.rules["embed"])
    length, width = layout.sharding("length", "embed").spec
    found = table[constrain_to(tokens, rows, length)]
    return constrain(constrain_to(found, rows, length, width), "batch", "length", None)


def _rope_at(positions, length: int, c):
    """cos and sin [B, T, 1, H/2], looked up in those of positions 0 to length - 1.

    XLA on a CPU fuses cosines into whatever reads them, so they would be computed for
    every head of every layer; what is looked up it computes once.
    """
    freqs = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
    tables = rope_tables(jnp.arange(length), freqs, c.rope_dtype)
    return tuple(table[positions] for table in tables)


def unembed(params, *, config: TransformerConfig):
    """The [D, V] matrix of the logits, in the compute dtype."""
    if config.head == "score":
        raise UserError(
            "a reward model predicts no tokens; set config.model.head='both' to keep"
            " the vocabulary, or start from a language model"
        )
    weight = params["embed"].T if config.tied else params["unembed"]
    # Cast where it lies: what is gathered from there is in the compute dtype.
    return constrain(weight.astype(config.dtype), "embed", "vocab")


def _extend(params, x, positions, tables, cache: Cache, c):
    """The layers over T more tokens; each writes its keys and values into the cache."""
    seen = cache_masks(c, positions, sum(cache.sizes))
    run = _scan_cached if isinstance(params["layers"], dict) else _unroll_cached
    x, cache = run(params["layers"], x, positions, tables, seen, cache, c)
    return rms_norm(x, params["final_norm"], c.norm_eps), cache


def _scan_cached(layers, x, positions, tables, seen, cache: Cache, c):
    """Stacked layers. The cache rides in the carry, updated in place."""
    write, filled = writer(positions, cache.sizes), jnp.max(positions) + 1

    def layer(carry, at):
        x, memory = carry
        weights, index = at

        def look(q, k, v):
            written = Cache(write(memory.k, k, 2, index), write(memory.v, v, 1, index))
            read = lambda m: jax.lax.dynamic_index_in_dim(m, index, 0, False)
            blocks = (tuple(map(read, blocks)) for blocks in written)
            return attend_cache(q, *blocks, seen(index), filled), written

        return _block(x, weights, tables, look, c), None

    (x, cache), _ = jax.lax.scan(layer, (x, cache), (layers, jnp.arange(c.layers)))
    return x, cache


def _unroll_cached(layers, x, positions, tables, seen, cache: Cache, c):
    """One layer after the other, each with arrays of its own (see decoding.py)."""
    write, filled = writer(positions, cache.sizes), jnp.max(positions) + 1
    out = []
    for index, weights in enumerate(layers):

        def look(q, k, v, index=index):
            mine = ([block[index] for block in blocks] for blocks in cache)
            keys, values = (list(blocks) for blocks in mine)
            written = write(keys, k, 2), write(values, v, 1)
            return attend_cache(q, *written, seen(index), filled), written

        x, memory = _block(x, weights, tables, look, c)
        out.append(memory)
    # [layer][k or v][block] -> [k or v][block][layer]
    return x, Cache(*(tuple(zip(*x, strict=True)) for x in zip(*out, strict=True)))


def _block(x, w, tables, look, c, dropout_key=None):
    """Attention and MLP with their residuals. look: (q, k, v) -> what attention gives,
    and what is kept of keys and values."""
    into = partial(project, dtype=c.dtype, lora_scale=c.lora_scale)
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)

    h = x if c.post_norm else rms_norm(x, w["attn_norm"], c.norm_eps)
    q, k, v = _qkv(h, w["attn"], tables, c, into)
    out, memory = look(q, k, v)
    out = constrain(out, "batch", "length", "act_heads", None)
    out = into(out, w["attn"]["o"], dims=2)
    out = rms_norm(out, w["attn_norm"], c.norm_eps) if c.post_norm else out
    x = constrain(x + dropout(out, c.dropout, keys[0]), "batch", "length", None)

    h = x if c.post_norm else rms_norm(x, w["mlp_norm"], c.norm_eps)
    if "gate_up" in w["mlp"]:  # joined by decoding.py
        gate, up = jnp.split(into(h, w["mlp"]["gate_up"]), 2, axis=-1)
    else:
        gate, up = (into(h, w["mlp"][name]) for name in ("gate", "up"))
    h = jax.nn.silu(gate) * up
    out = into(constrain(h, "batch", "length", "act_mlp"), w["mlp"]["down"])
    out = rms_norm(out, w["mlp_norm"], c.norm_eps) if c.post_norm else out
    x = constrain(x + dropout(out, c.dropout, keys[1]), "batch", "length", None)
    return x, memory


def _qkv(h, w, tables, c, into):
    if "qkv" in w:  # joined by decoding.py
        cuts = (c.heads, c.heads + c.kv_heads)
        q, k, v = jnp.split(into(h, w["qkv"]), cuts, axis=2)
    else:
        q, k, v = (into(h, w[name]) for name in "qkv")
    if c.qkv_bias:
        biases = (w[f"{name}_bias"].astype(c.dtype) for name in "qkv")
        q, k, v = (x + bias for x, bias in zip((q, k, v), biases, strict=True))
    if c.qk_norm == "head":
        q, k = (
            rms_norm(q, w["q_norm"], c.norm_eps),
            rms_norm(k, w["k_norm"], c.norm_eps),
        )
    if c.qk_norm == "full":
        q, k = (_norm_heads(q, w["q_norm"], c), _norm_heads(k, w["k_norm"], c))
    q = constrain(rotate(q, tables), "batch", "length", "act_heads", None)
    return q, rotate(k, tables), v


def _norm_heads(x, scale, c):
    """One RMS over all heads of a token together."""
    flat = x.reshape(*x.shape[:2], -1)
    return rms_norm(flat, scale.reshape(-1), c.norm_eps).reshape(x.shape)


def _check_rows(tokens):
    layout = current()
    if layout is not None:
        check_divides(tokens.shape[0], "batch", layout, "rows of the batch")
        check_divides(tokens.shape[1], "length", layout, "row length")
