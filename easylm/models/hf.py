"""Weights in and out of Hugging Face directories (config.json + safetensors).

`load` puts a checkpoint straight onto the mesh, `save` writes one that `transformers`
loads. Rotary halves lie the same way on both sides: weights are only transposed.

L layers; a layer's weight is [in.., out..] here and [out, in] there.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from fsspec.implementations.local import LocalFileSystem
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from easylm.errors import UserError
from easylm.models import base, lora, safetensors
from easylm.models.base import Model, ParamSpec
from easylm.models.hf_config import config_from_hf, config_to_hf
from easylm.models.safetensors import Tensor
from easylm.models.transformer import TransformerConfig, param_spec
from easylm.sharding import Layout

__all__ = ["config_from_hf", "config_to_hf", "load", "save"]

# our name -> theirs, and how many leading axes of ours are the inputs of the weight:
# such a weight is transposed; with 0 the order of the axes is the same.
_NAMES = {
    "embed": ("model.embed_tokens.weight", 0),
    "layers/attn_norm": ("input_layernorm.weight", 0),
    "layers/attn/q": ("self_attn.q_proj.weight", 1),
    "layers/attn/k": ("self_attn.k_proj.weight", 1),
    "layers/attn/v": ("self_attn.v_proj.weight", 1),
    "layers/attn/o": ("self_attn.o_proj.weight", 2),
    "layers/attn/q_bias": ("self_attn.q_proj.bias", 0),
    "layers/attn/k_bias": ("self_attn.k_proj.bias", 0),
    "layers/attn/v_bias": ("self_attn.v_proj.bias", 0),
    "layers/attn/q_norm": ("self_attn.q_norm.weight", 0),
    "layers/attn/k_norm": ("self_attn.k_norm.weight", 0),
    "layers/mlp_norm": ("post_attention_layernorm.weight", 0),
    "layers/mlp/gate": ("mlp.gate_proj.weight", 1),
    "layers/mlp/up": ("mlp.up_proj.weight", 1),
    "layers/mlp/down": ("mlp.down_proj.weight", 1),
    "final_norm": ("model.norm.weight", 0),
    "unembed": ("lm_head.weight", 1),
}
_POST_NORM_NAMES = _NAMES | {
    "layers/attn_norm": ("post_attention_layernorm.weight", 0),
    "layers/mlp_norm": ("post_feedforward_layernorm.weight", 0),
}
_NOT_A_WEIGHT = "rotary_emb.inv_freq"  # a constant that old checkpoints hold
_AHEAD = 8  # tensors being read while one is put onto the mesh

# What the weights are worthless without. Not max_len: it is a limit, not maths.
_ARCHITECTURE = (
    "vocab_size dim layers heads kv_heads mlp_dim head_dim rope_theta rope_scaling"
    " norm_eps tied qkv_bias qk_norm post_norm sliding_window window_from"
).split()


class Weight(NamedTuple):
    """One of our parameters, and the tensors it is made of: one per layer, or one."""

    name: str
    spec: ParamSpec
    theirs: tuple[str, ...]
    inner: int  # leading axes of (a layer of) ours that are inputs

    @property
    def stacked(self) -> bool:
        return self.name.startswith("layers/")

    @property
    def shape(self) -> tuple[int, ...]:
        """Ours, without L."""
        return self.spec.shape[1:] if self.stacked else self.spec.shape

    @property
    def their_shape(self) -> tuple[int, ...]:
        shape, inner = self.shape, self.inner
        if self.name == "embed":
            return shape
        outer = (math.prod(shape[inner:]),)
        return (*outer, math.prod(shape[:inner])) if inner else outer


def load(path, model: Model, layout: Layout | None = None, key=None):
    """The parameters of `model` from the directory `path`, laid out on the mesh.

    Whatever the rules of the layout say, each device is first given an equal share of
    the rows of every tensor as they lie in the file, and the mesh exchanges them from
    there. So hosts read different bytes, and each byte is read once; only rows that do
    not divide over the devices are read by several. `key` draws fresh LoRA adapters.
    """
    config = replace(model.config, lora_rank=0)
    weights = _weights(config)
    _check_config(path, config)
    found = _find(path)
    _check(path, weights, found, layout)

    spec = flatten_dict(model.spec, sep="/")
    fresh = {n: s for n, s in spec.items() if n.endswith(("/lora_a", "/lora_b"))}
    key = jax.random.key(0) if key is None else key
    params = flatten_dict(
        base.init(unflatten_dict(fresh, sep="/"), key, layout), sep="/"
    )
    where = _shardings(model.spec, layout)
    jobs = [(w, i) for w in weights for i in range(len(w.theirs))]
    arrays = _read_ahead((found[w.theirs[i]] for w, i in jobs), layout)
    for (w, layer), array in zip(jobs, arrays, strict=True):
        name = w.name if w.name in spec else f"{w.name}/w"
        place = _placer(w.shape, w.inner, jnp.dtype(spec[name].dtype), where[name])
        if not w.stacked:
            params[name] = place(array)
            continue
        if layer == 0:
            params[name] = _empty(spec[name].shape, spec[name].dtype, where[name])
        params[name] = place(array, params[name], layer)
    return unflatten_dict(params, sep="/")


def save(
    path,
    params,
    config: TransformerConfig,
    tokenizer=None,
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: float = 5e9,
    chat_template: str | None = None,
):
    """Write a directory that `transformers` loads: weights, configs, tokenizer files.

    LoRA adapters are merged. One tensor at a time is gathered, by all processes, and
    process 0 writes. The directory appears under its name only when it is complete.
    """
    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"dtype {dtype!r} is not 'bfloat16' or 'float32'")
    plain = replace(config, lora_rank=0)
    tensors = _tensors(_weights(plain))
    params = _by_weight(params, plain)
    shards = _shards(tensors, jnp.dtype(dtype), max_shard_bytes)
    texts = _texts(plain, dtype, tokenizer, shards)
    _agree(_occupied(path))
    arrays = (_take(params[w.name], w, i, dtype, config) for w, i in tensors.values())

    problem = ""
    if jax.process_index() == 0:
        problem = _write(path, shards, arrays, texts, tokenizer, chat_template)
    if jax.process_count() > 1:  # those who do not write still take part
        deque(arrays, maxlen=0)
    _agree(problem)


# The name table.


def _weights(config: TransformerConfig) -> list[Weight]:
    names = _POST_NORM_NAMES if config.post_norm else _NAMES
    out = []
    for name, spec in flatten_dict(param_spec(config), sep="/").items():
        theirs, inner = names[name]
        if name.startswith("layers/"):
            layers = range(config.layers)
            theirs = tuple(f"model.layers.{i}.{theirs}" for i in layers)
        else:
            theirs = (theirs,)
        out.append(Weight(name, spec, theirs, inner))
    return out


def _tensors(weights: list[Weight]) -> dict[str, tuple[Weight, int]]:
    """Their name -> (our parameter, layer), layer after layer."""
    tensors = ((i, w) for w in weights for i in range(len(w.theirs)))
    order = sorted(tensors, key=lambda at: (at[1].name == "unembed", at[0]))
    return {w.theirs[i]: (w, i) for i, w in order}


# Reading.


def _check_config(path, ours: TransformerConfig):
    theirs = config_from_hf(path)
    pairs = [(f, getattr(ours, f), getattr(theirs, f)) for f in _ARCHITECTURE]
    if wrong := [f"{f} {b!r}, not {a!r}" for f, a, b in pairs if a != b]:
        raise UserError(
            f"{path} is not the model of this config: it has {'; '.join(wrong)}; take"
            " the checkpoint's own config, see config_from_hf"
        )


def _find(path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, by its name there."""
    fs, root = safetensors.filesystem(path)
    files = {name.rsplit("/", 1)[-1] for name in fs.ls(root, detail=False)}
    shards = sorted(f for f in files if f.endswith(".safetensors"))
    index = "model.safetensors.index.json"
    if "model.safetensors" in files and index in files:
        raise UserError(
            f"{path} has both model.safetensors and {index}; remove the one that is old"
        )
    if index in files:
        shards = _indexed(fs, f"{root}/{index}")
        if absent := [f for f in shards if f not in files]:
            raise UserError(f"{path}: {absent[0]} is missing, but {index} names it")
    elif shards and shards != ["model.safetensors"]:
        raise UserError(f"{path} has {shards[0]}, but no {index} to say which belong")
    elif not shards:
        raise UserError(f"{path} has no model.safetensors; no other format is read")
    found = {}
    with ThreadPoolExecutor(_AHEAD) as pool:
        headers = pool.map(lambda f: safetensors.tensors(fs, f"{root}/{f}"), shards)
        for header in headers:
            if twice := sorted(header.keys() & found.keys()):
                raise UserError(f"{path}: tensor {twice[0]} is in two files")
            found |= header
    return found


def _indexed(fs, index: str) -> list[str]:
    try:
        return sorted(set(json.loads(fs.cat_file(index))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise UserError(f"{index} is not readable ({e!r}); copy it again") from e


def _check(path, weights: list[Weight], found: dict[str, Tensor], layout):
    """Before anything is loaded: no tensor is missing, left over, or of another shape."""
    needed = {theirs: w for w in weights for theirs in w.theirs}
    for name in needed:
        if name not in found:
            more = sum(n not in found for n in needed) - 1
            raise UserError(
                f"{path}: tensor {name} ({needed[name].name}) is missing"
                + (f", and {more} more" if more else "")
            )
    head, embed = _NAMES["unembed"][0], _NAMES["embed"][0]
    copied = head in found and head not in needed
    if copied:
        needed[head] = needed[embed]
    extra = [n for n in found if n not in needed and not n.endswith(_NOT_A_WEIGHT)]
    if extra:
        raise UserError(
            f"{path}: tensor {extra[0]} has no place in the model of its config.json"
            + (f", nor have {len(extra) - 1} more" if extra[1:] else "")
        )
    for name, w in needed.items():
        shape, dtype = found[name].shape, found[name].dtype
        if shape != w.their_shape:
            raise UserError(
                f"{found[name].file}: tensor {name} is {list(shape)}, but {w.name} needs"
                f" {list(w.their_shape)}"
            )
        if dtype not in safetensors.DTYPES:
            known = ", ".join(safetensors.DTYPES)
            raise UserError(
                f"{found[name].file}: tensor {name} is {dtype}; only {known} are read"
            )
    if copied and not _equal(found[head], found[embed], layout):
        raise UserError(
            f"{path}: {head} differs from {embed}, but config.json says"
            " tie_word_embeddings; correct one of the two"
        )


def _equal(one: Tensor, other: Tensor, layout) -> bool:
    out = None if layout is None else NamedSharding(layout.mesh, PartitionSpec())
    one, other = _read_ahead([one, other], layout)
    return bool(np.asarray(jax.jit(jnp.array_equal, out_shardings=out)(one, other)))


def _read_ahead(tensors: Iterable[Tensor], layout) -> Iterator:
    """Each tensor as it lies in its file, its rows split over all devices."""
    pending = deque()
    with ThreadPoolExecutor(_AHEAD) as pool:
        for tensor in tensors:
            pending.append((tensor, pool.submit(_read_share, tensor, layout)))
            if len(pending) == _AHEAD:
                yield _spread(*pending.popleft(), layout)
        while pending:
            yield _spread(*pending.popleft(), layout)


def _read_share(tensor: Tensor, layout) -> dict[tuple[int, int], np.ndarray]:
    """What this process's devices get: (start, stop) -> those rows, each once."""
    rows = tensor.shape[0]
    if layout is None:
        return {(0, rows): safetensors.read(tensor)}
    where = _row_sharding(rows, layout.mesh)
    indices = where.addressable_devices_indices_map(tensor.shape).values()
    spans = {index[0].indices(rows)[:2] for index in indices}
    return {span: safetensors.read(tensor, *span) for span in spans}


def _spread(tensor: Tensor, share, layout):
    rows, share = tensor.shape[0], share.result()
    if layout is None:
        return share[0, rows]
    where = _row_sharding(rows, layout.mesh)
    mine = lambda index: share[index[0].indices(rows)[:2]]
    return jax.make_array_from_callback(tensor.shape, where, mine)


@lru_cache
def _row_sharding(rows: int, mesh: Mesh) -> NamedSharding:
    devices = mesh.devices.reshape(math.gcd(rows, mesh.size), -1)
    grid = Mesh(devices, ("rows", "copies"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(grid, PartitionSpec("rows"))


@lru_cache
def _placer(shape, inner: int, dtype, where):
    """(tensor) -> ours, or (tensor, stack, layer) -> the stack with that layer in it."""
    outer = len(shape) - inner
    axes = (*range(outer, len(shape)), *range(outer))

    def place(x, stack=None, layer=None):
        x = x.reshape(*shape[inner:], *shape[:inner]).transpose(axes).astype(dtype)
        if stack is None:
            return x
        return jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)

    return jax.jit(place, donate_argnums=1, out_shardings=where)


def _empty(shape, dtype, where):
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)()


def _shardings(spec, layout) -> dict:
    flat = flatten_dict(spec, sep="/")
    if layout is None:
        return dict.fromkeys(flat)
    return flatten_dict(base.shardings(spec, layout), sep="/")


# Writing.


def _by_weight(params, config: TransformerConfig) -> dict:
    """{our name: array, or {w, lora_a, lora_b}}; another tree is an error."""
    spec = flatten_dict(param_spec(config), sep="/")
    out = {}
    for name, x in flatten_dict(params, sep="/").items():
        weight, _, part = name.rpartition("/")
        if part in ("w", "lora_a", "lora_b"):
            out.setdefault(weight, {})[part] = x
        else:
            out[name] = x
    for name, s in spec.items():
        if name not in out:
            raise UserError(f"the parameters lack {name}; nothing was written")
        x = out[name]["w"] if isinstance(out[name], dict) else out[name]
        if x.shape != s.shape:
            raise UserError(f"parameter {name} is {x.shape}, its config says {s.shape}")
    if extra := [name for name in out if name not in spec]:
        raise UserError(f"parameter {extra[0]} has no name in a Hugging Face model")
    return out


def _shards(tensors, dtype, limit) -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> {tensor: shape}, each file below `limit` bytes where a tensor allows."""
    files, size = [{}], 0
    for name, (w, _) in tensors.items():
        more = math.prod(w.their_shape) * dtype.itemsize
        if files[-1] and size + more > limit:
            files.append({})
            size = 0
        files[-1][name] = w.their_shape
        size += more
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    total = len(files)
    names = (f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total))
    return dict(zip(names, files, strict=True))


def _texts(config, dtype: str, tokenizer, shards) -> dict[str, dict]:
    """The JSON files. config.json is the last: without it a directory does not load."""
    out, ids = {}, dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if tokenizer is not None:
        ids = dict(zip(ids, (tokenizer.bos, tokenizer.eos, tokenizer.pad), strict=True))
    if len(shards) > 1:
        numbers = sum(math.prod(s) for file in shards.values() for s in file.values())
        out["model.safetensors.index.json"] = {
            "metadata": {"total_size": numbers * jnp.dtype(dtype).itemsize},
            "weight_map": {name: f for f, names in shards.items() for name in names},
        }
    stops = {} if tokenizer is None else {"eos_token_id": list(tokenizer.stop_ids)}
    out["generation_config.json"] = ids | stops
    out["config.json"] = config_to_hf(config, dtype=dtype) | ids
    return out


def _take(param, w: Weight, layer: int, dtype: str, config):
    """One tensor as it will lie in the file; on every process when there are several."""
    where = None
    if jax.process_count() > 1:
        mesh = jax.tree.leaves(param)[0].sharding.mesh
        where = NamedSharding(mesh, PartitionSpec())
    scale = config if isinstance(param, dict) else None
    take = _taker(w.inner, w.stacked, w.their_shape, dtype, scale, where)
    return take(param, layer)


@lru_cache
def _taker(inner, stacked, shape, dtype, config, where):
    def take(param, layer):
        if stacked:
            index = jax.lax.dynamic_index_in_dim
            param = jax.tree.map(lambda x: index(x, layer, 0), param)
            with jax.default_matmul_precision("highest"):
                x = lora.merge({"weight": param}, config)["weight"] if config else param
            x = x[0]
        else:
            x = param
        axes = (*range(inner, x.ndim), *range(inner))
        return x.transpose(axes).reshape(shape).astype(dtype)

    return jax.jit(take, out_shardings=where)


def _write(path, shards, arrays, texts, tokenizer, chat_template) -> str:
    """What went wrong, or nothing. A local directory is filled aside, then renamed."""
    fs, root = safetensors.filesystem(path)
    local = isinstance(fs, LocalFileSystem)
    folder = f"{root}.partial" if local else root
    try:
        if local and fs.exists(folder):  # left by a run that was killed
            fs.rm(folder, recursive=True)
        fs.makedirs(folder, exist_ok=True)
        for file, shapes in shards.items():
            with fs.open(f"{folder}/{file}", "wb") as out:
                _write_shard(out, shapes, arrays)
        if tokenizer is not None:
            tokenizer.save(folder if local else fs.unstrip_protocol(folder), chat_template)
        for name, text in texts.items():
            fs.pipe_file(f"{folder}/{name}", json.dumps(text, indent=2).encode())
        if local:
            fs.mv(folder, root)
    except OSError as e:
        if fs.exists(folder):
            fs.rm(folder, recursive=True)
        why = e.strerror or e
        return f"{path} could not be written ({why}); nothing is left there; make room"
    return ""
