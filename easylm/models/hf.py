"""Weights from a Hugging Face directory straight onto the mesh; hf_save.py goes back."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from math import gcd

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from easylm.errors import UserError
from easylm.models import base, safetensors
from easylm.models.base import Model
from easylm.models.hf_config import config_from_hf, config_to_hf
from easylm.models.hf_names import EMBED, HEAD, Weight, to_ours, weights
from easylm.models.hf_save import save
from easylm.models.safetensors import Tensor
from easylm.models.transformer import TransformerConfig
from easylm.sharding import Layout

__all__ = ["config_from_hf", "config_to_hf", "load", "save"]

_INDEX = "model.safetensors.index.json"
_NOT_A_WEIGHT = "rotary_emb.inv_freq"  # a constant that old checkpoints hold
_AHEAD = 8  # tensors being read while others are put onto the mesh

# What the weights are worthless without. Not max_len: it is a limit, not maths.
_ARCHITECTURE = """
    vocab_size dim layers heads kv_heads mlp_dim head_dim rope_theta rope_scaling
    norm_eps tied qkv_bias qk_norm post_norm sliding_window window_from
"""


def load(path, model: Model, layout: Layout | None = None, key=None):
    """The parameters of `model` from the directory `path`, laid out on the mesh.

    Whatever the rules of the layout say, each device is first given an equal share of
    the rows of every tensor as they lie in the file, and the mesh exchanges them from
    there. So hosts read different bytes, and each byte is read once; only rows that do
    not divide over the devices are read by several. `key` draws fresh LoRA adapters.
    """
    config = replace(model.config, lora_rank=0)
    _check_config(path, config)
    table = weights(config)
    found = _find(path)
    _check(path, table, found, layout)

    spec = flatten_dict(model.spec, sep="/")
    params, where = _start(model.spec, layout, key)
    arrays = _read_ahead((found[w.theirs] for w in table), layout)
    for layer, group in groupby(table, lambda w: w.layer):
        group = [w._replace(name=_name(w, spec)) for w in group]
        tensors = {w.name: next(arrays) for w in group}
        stacks = {} if layer is None else {w.name: params[w.name] for w in group}
        out = tuple((w.name, where[w.name]) for w in group)
        params |= _placer(_of_layer_0(group), _dtypes(group, spec), out)(
            tensors, stacks, layer
        )
    return unflatten_dict(params, sep="/")
