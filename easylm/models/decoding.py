"""Parameters rearranged so that a CPU decodes at the speed of its memory.

A scan copies each layer's weights out of the stack for every token, and a few tokens
times an [in, out] matrix run at half the speed of an [out, in] matrix times a few
tokens. So, once before the first token: one dict per layer, weights as rows, queries,
keys and values in one matrix, gate and up in another. An accelerator wants none of it:
it scans the stacked weights as they are, however many layers there are.

L layers, D embed, N heads, K key/value heads, H head_dim, F mlp, V vocab.
"""

import math

import jax
import jax.numpy as jnp

from easylm.models import lora
from easylm.models.cache import Cache
from easylm.models.layers import Rows, times_rows
from easylm.models.transformer import unembed
from easylm.sharding import alone, platform


def pays() -> bool:
    """Whether to rearrange: on one CPU device; a second copy of the weights is made."""
    return platform() == "cpu" and alone()


def rearrange(params, config):
    """What `forward` takes in place of the parameters when it has a cache."""
    if config.lora_rank:
        params = lora.merge(params, config)
    at = lambda i: jax.tree.map(lambda x: x[i], params["layers"])
    vocab = unembed(params, config=config).T
    return {
        "embed": params["embed"].astype(config.dtype),
        "layers": tuple(_layer(at(i), config) for i in range(config.layers)),
        "final_norm": params["final_norm"],
        "unembed": Rows(vocab, (config.vocab_size,)),
    }


def split_layers(cache: Cache) -> Cache:
    """The cache that goes with rearranged parameters: one array per layer."""
    return Cache(*(tuple(tuple(block) for block in blocks) for blocks in cache))


def logits(model, params, hidden):
    """[B, D] after the final norm -> float32[B, V]."""
    weight = params.get("unembed")
    if not isinstance(weight, Rows):
        weight = model.unembed(params)
        return jnp.einsum(
            "bd,dv->bv", hidden, weight, preferred_element_type=jnp.float32
        )
    return times_rows(hidden, weight.w).astype(jnp.float32)


def _layer(w, c):
    attn = {k: x for k, x in w["attn"].items() if k not in ("q", "k", "v", "o")}
    qkv = jnp.concatenate([w["attn"][name] for name in "qkv"], axis=1)  # [D, N+2K, H]
    gate_up = jnp.concatenate([w["mlp"]["gate"], w["mlp"]["up"]], axis=1)  # [D, 2F]
    rows = lambda x, dims=1: _rows(x, dims, c.dtype)
    return {
        "attn_norm": w["attn_norm"],
        "attn": attn | {"qkv": rows(qkv), "o": rows(w["attn"]["o"], 2)},
        "mlp_norm": w["mlp_norm"],
        "mlp": {"gate_up": rows(gate_up), "down": rows(w["mlp"]["down"])},
    }


def _rows(weight, dims: int, dtype) -> Rows:
    """[in.., out..] with `dims` input axes -> [out, in]."""
    shape = weight.shape[dims:]
    flat = weight.reshape(math.prod(weight.shape[:dims]), -1)
    return Rows(flat.T.astype(dtype), shape)
