"""Weights in and out of Hugging Face directories (config.json + safetensors).

`load` puts a checkpoint straight onto the mesh, `save` writes one that `transformers`
loads. The rotary layout is the same on both sides, so that weights are only transposed.

L layers; a layer's weight is [in.., out..] here and [out, in] there.
"""

import json
import math
import os
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from easylm.errors import UserError
from easylm.models import base, lora, safetensors
from easylm.models.base import Model, ParamSpec
from easylm.models.hf_config import config_from_hf, config_to_hf
from easylm.models.transformer import TransformerConfig, param_spec
from easylm.sharding import Layout

__all__ = ["config_from_hf", "config_to_hf", "load", "save"]

# our name -> theirs, and how many leading axes of ours are the weight's inputs:
# those weights are transposed, the others (0) keep the order of their axes.
_LAYER = {
    "attn_norm": ("input_layernorm.weight", 0),
    "attn/q": ("self_attn.q_proj.weight", 1),
    "attn/k": ("self_attn.k_proj.weight", 1),
    "attn/v": ("self_attn.v_proj.weight", 1),
    "attn/o": ("self_attn.o_proj.weight", 2),
    "attn/q_bias": ("self_attn.q_proj.bias", 0),
    "attn/k_bias": ("self_attn.k_proj.bias", 0),
    "attn/v_bias": ("self_attn.v_proj.bias", 0),
    "attn/q_norm": ("self_attn.q_norm.weight", 0),
    "attn/k_norm": ("self_attn.k_norm.weight", 0),
    "mlp_norm": ("post_attention_layernorm.weight", 0),
    "mlp/gate": ("mlp.gate_proj.weight", 1),
    "mlp/up": ("mlp.up_proj.weight", 1),
    "mlp/down": ("mlp.down_proj.weight", 1),
}
_LAYER_POST_NORM = _LAYER | {
    "attn_norm": ("post_attention_layernorm.weight", 0),
    "mlp_norm": ("post_feedforward_layernorm.weight", 0),
}
_TOP = {
    "embed": ("model.embed_tokens.weight", 0),
    "final_norm": ("model.norm.weight", 0),
    "unembed": ("lm_head.weight", 1),
}
_NOT_WEIGHTS = "rotary_emb.inv_freq"  # old checkpoints hold this constant
_AHEAD = 8  # tensors that are read while one is put onto the mesh


class Weight(NamedTuple):
    """One of our parameters and the tensors it is made of, one per layer."""

    name: str
    spec: ParamSpec
    theirs: tuple[str, ...]
    inner: int  # leading axes of a layer's weight that are inputs
    stacked: bool  # has the leading axis L

    @property
    def ours_shape(self) -> tuple[int, ...]:
        return self.spec.shape[1:] if self.stacked else self.spec.shape

    @property
    def theirs_shape(self) -> tuple[int, ...]:
        shape, inner = self.ours_shape, self.inner
        if inner:
            return math.prod(shape[inner:]), math.prod(shape[:inner])
        return shape if self.name == "embed" else (math.prod(shape),)


def load(path, model: Model, layout: Layout | None = None, key=None):
    """The parameters of `model` from the directory `path`, laid out on the mesh.

    A device receives an equal share of the rows of each tensor as they lie in the file,
    whatever the rules say, and the mesh exchanges them from there: hosts read different
    bytes and together read each byte once (several times where the number of rows does
    not divide over the devices). `key` draws fresh adapters of a LoRA model.
    """
    config = replace(model.config, lora_rank=0)
    _check_config(path, config)
    weights = _weights(config)
    files = _find(path, weights, config)
    flat_spec = flatten_dict(model.spec, sep="/")
    adapters = {n: s for n, s in flat_spec.items() if n.rpartition("/")[2][:5] == "lora_"}
    where = _shardings(model.spec, layout)
    params = {}
    for weight, array in _stream(weights, files, layout):
        name = weight.name
        name = f"{name}/w" if f"{name}/w" in flat_spec else name
        ...
    return unflatten_dict(params, sep="/")
