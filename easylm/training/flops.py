"""Work and limits: model FLOPs of a batch, peak FLOP/s of a device, memory bandwidth.

The convention behind MFU: a multiply-add is 2 FLOPs; the backward pass costs twice the
forward pass; only matrix products that the model needs are counted, so neither what
remat computes again nor norms, softmax or the embedding lookup. Attention counts the
query-key pairs that causality and the sliding window leave, about half of T x T. LoRA
and frozen weights are counted like full training.
"""

import functools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def matmul_params(cfg) -> int:
    """Parameters a token is multiplied with: q, k, v, o, gated MLP and the heads.

    The unembedding counts whether tied or not; the embedding lookup is no product.
    """
    attention = 2 * cfg.dim * cfg.head_dim * (cfg.heads + cfg.kv_heads)
    mlp = 3 * cfg.dim * cfg.mlp_dim
    heads = {"lm": cfg.vocab_size, "score": cfg.scores}
    wide = heads.get(cfg.head, sum(heads.values()))
    return cfg.layers * (attention + mlp) + wide * cfg.dim


def attended(cfg, positions, segments):
    """Query-key pairs of a batch, summed over layers.

    Each real token sees position + 1 keys, or at most `sliding_window` where a layer
    has one. So a segment of length n gives layers * n (n + 1) / 2 without a window.
    Numpy or jax arrays of any shape, as in `Sequences`. Floating point, because int32
    overflows.
    """
    keys = (positions + 1) * (segments != 0)
    if cfg.sliding_window is None:
        return cfg.layers * keys.sum(dtype=float)
    full = min(cfg.window_from, cfg.layers)
    near = keys.clip(max=cfg.sliding_window).sum(dtype=float)
    return full * keys.sum(dtype=float) + (cfg.layers - full) * near


def forward_flops(cfg, tokens, pairs):
    """2 * matmul_params * tokens + 4 * heads * head_dim * pairs.

    `tokens` counts real tokens (not padding), `pairs` comes from `attended`. The 4 is
    one product for the scores and one for the values, 2 FLOPs each.
    """
    return 2.0 * matmul_params(cfg) * tokens + 4.0 * cfg.heads * cfg.head_dim * pairs


def train_flops(cfg, tokens, pairs):
    """Forward and backward: 6 per parameter and token, 12 per head dim and pair."""
    return 3 * forward_flops(cfg, tokens, pairs)


def job_peak(dtype=jnp.float32) -> float | None:
    """Peak FLOP/s of all devices of the job together; None where one is unknown."""
    peaks = [peak_flops(device, dtype) for device in jax.devices()]
    return None if None in peaks else sum(peaks)


def peak_flops(device, dtype=jnp.float32) -> float | None:
    """Peak dense FLOP/s of one jax device; None for a device that is not in the tables.

    TPU and GPU: the published bfloat16 figure (float16 on V100 and T4), whatever the
    `dtype`. CPU: the matmul rate measured in `dtype`, shared among the local devices.
    """
    if device.platform == "cpu":
        return measure_matmul_peak(dtype) / jax.local_device_count()
    return _published_peak(device.device_kind)


def measure_matmul_peak(dtype=jnp.float32, size: int | None = None) -> float:
    """FLOP/s of the best of a few timed size x size matrix products on one device.

    Measured once per process, dtype and size: well under a second on a laptop.
    """
    if size is None:
        size = 1024 if jax.default_backend() == "cpu" else 8192
    return _matmul_peak(jnp.dtype(dtype).name, size)


@functools.cache
def measure_bandwidth(megabytes: int = 512) -> float:
    """Bytes/s at which one device reads memory: the best of a few timed row sums.

    The array should be larger than every cache. Measured once per process.
    """
    x = jnp.ones((megabytes * 2**20 // 4 // 4096, 4096), jnp.float32)
    return x.nbytes / _best_time(jax.jit(lambda x: x.sum(axis=1)), x)


@functools.cache
def _matmul_peak(dtype: str, size: int) -> float:
    products = 1 if jax.default_backend() == "cpu" else 32  # hides the dispatch
    x = np.random.default_rng(0).standard_normal((size, size)) / size**0.5
    x = jnp.asarray(x, dtype)
    chain = jax.jit(lambda x: lax.fori_loop(0, products, lambda _, y: y @ x, x))
    return products * 2 * size**3 / _best_time(chain, x)


def _best_time(f, *args, repeats: int = 5) -> float:
    jax.block_until_ready(f(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def _published_peak(kind: str) -> float | None:
    if kind in _TPU:
        return _TPU[kind]
    for pattern, peak in _GPU:
        if re.search(pattern, kind):
            return peak
    return None


# Per jax device. A chip of v2, v3 and 7x shows up as two devices: half the chip each.
_TPU = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}

# Dense (no 2:4 sparsity), float32 accumulation. The first pattern that matches decides.
_GPU = [
    (r"\bMIG\b|Laptop|RTX 4090 D", None),  # a part of the chip, or another chip
    (r"\bH200 NVL\b", 836e12),
    (r"\bH100 NVL\b", 836e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bG?H[12]00\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bL4\b", 121e12),
    (r"\bT4\b", 65e12),
    (r"\bV100\b", 125e12),
    (r"\bRTX 4090\b", 165e12),
]
