"""The sizes that are measured at, their data, and what a device can do at most."""

import re
import time
from functools import cache, partial
from typing import NamedTuple


class Size(NamedTuple):
    """What a run is made of. Lengths are in tokens."""

    preset: str  # the model is this one of easylm/models,
    changes: dict  # with these numbers
    rows: int  # of a batch, and prompts that are answered
    length: int  # of a row
    pair: int  # of a row with two answers
    typical: int  # conversation, the median
    prompt: int
    new: int
    cases: tuple[str, ...]


TRAINING = "sft_padded", "sft_lengths_padded", "sft_lengths_packed"
PAIRS = "reward_model", "dpo", "pairs_padded", "pairs_packed"
ON_ACCELERATORS = (
    *("sft_padded", "sft_lengths_packed", "dpo", "dpo_packed"),
    *("sampling@16", "sampling@64", "sampling@256", "ppo_iteration@32"),
)
_LLAMA = dict(dtype="bfloat16", param_dtype="float32", max_len=4096, remat="dots")
_SMALL = dict(
    vocab_size=32_000,
    dim=512,
    layers=8,
    heads=8,
    kv_heads=4,
    head_dim=64,
    mlp_dim=1408,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_len=4096,
    dtype="float32",
    remat="none",
    unroll=8,  # on a CPU faster than a scan, and slower to compile
)

SIZES = {
    "small": Size(
        *("llama:tiny", _SMALL, 8, 512, 1024, 180, 128, 256),
        cases=(*TRAINING, "sampling", *PAIRS, "rollouts", "ppo_iteration"),
    ),
    "tiny": Size(
        *("llama:tiny", dict(dtype="bfloat16"), 2, 128, 256, 40, 16, 64),
        cases=("sft_lengths_packed", "dpo_packed", "sampling", "ppo_iteration"),
    ),
    "1b": Size(
        *("llama:3.2-1b", _LLAMA, 8, 4096, 4096, 500, 512, 512), cases=ON_ACCELERATORS
    ),
    "8b": Size(
        *("llama:3.1-8b", _LLAMA | dict(remat="full"), 4, 4096, 4096, 500, 512, 512),
        cases=("sampling@16", "sampling@64"),
    ),
}
size = SIZES["small"]  # the one in use


def use(name: str, rows: int | None = None, changes: tuple[str, ...] = ()) -> None:
    """changes: KEY=VALUE of the model's config, such as remat=full."""
    global size
    size = SIZES[name]
    given = dict(text.split("=", 1) for text in changes)
    given = {k: int(v) if v.lstrip("-").isdigit() else v for k, v in given.items()}
    size = size._replace(rows=rows or size.rows, changes=size.changes | given)


def model(**changes):
    from easylm.models.base import config_for
    from easylm.models.transformer import make

    return make(config_for(size.preset, **size.changes | changes))


def frozen(model, seed: int):
    """A model that is not trained; its parameters in the dtype of the computation."""
    import jax

    from easylm.models import base

    model = model._replace(spec=base.compute_spec(model))
    return model, base.init(model.spec, jax.random.key(seed))


def trainer(objective, lr: float):
    """(start, step): parameters -> state, and a compiled update of it. AdamW on all
    weights."""
    import jax

    from easylm.models import base
    from easylm.training import optimizer
    from easylm.training.step import init_state, train_step

    axes = base.map_spec(lambda s: s.axes, objective.spec)
    all = base.map_spec(lambda s: True, objective.spec)
    made, _ = optimizer.make({"lr": lr}, total_steps=1000, axes=axes)
    step = partial(train_step, loss=objective.loss, optimizer=made, trainable=all)
    return lambda p: init_state(p, made, all), jax.jit(step, donate_argnums=0)


def rows_of(rows: list[list[int]], length: int, prompt: int = 0):
    """Random tokens in rows of segments of such lengths, on the host."""
    import numpy as np

    from easylm.data.sequences import lay_out

    vocabulary = model().config.vocab_size
    rng = np.random.default_rng(0)
    draw = lambda n: (
        rng.integers(0, vocabulary, n).astype("i4"),
        np.float32(np.arange(n) >= prompt),
    )
    return lay_out([[[draw(n)] for n in row] for row in rows], length)


def sequences(rows: list[list[int]], length: int, prompt: int = 0):
    import jax

    return jax.device_put(rows_of(rows, length, prompt))


def lengths(n: int):
    """Tokens of chat examples: log-normal, median `typical`, cut at the row."""
    import numpy as np

    draws = np.random.default_rng(0).lognormal(np.log(size.typical), 0.8, n)
    return draws.clip(16, size.length).astype(int)


def packed_rows() -> list[list[int]]:
    """Lengths of conversations that fill the rows of a batch."""
    from easylm.data.packing import pack

    drawn = lengths(50 * size.rows)
    plan = pack(drawn, size.length)
    return [[int(drawn[i]) for i in plan[r]] for r in range(size.rows)]


def product_rate() -> float:
    """FLOP/s of matrix products: as published, or what a CPU keeps up now."""
    import jax

    from easylm.training.flops import measure_matmul_peak, peak_flops

    if jax.default_backend() == "cpu":
        return matmul_rate()
    return peak_flops(jax.devices()[0]) or measure_matmul_peak(size.changes["dtype"])


def read_rate() -> float:
    """Bytes/s that memory gives: as published, or what a CPU's gives now."""
    import jax

    from easylm.training.flops import measure_bandwidth

    if jax.default_backend() == "cpu":
        measure_bandwidth.cache_clear()
        return measure_bandwidth()
    return published_bandwidth(jax.devices()[0].device_kind) or measure_bandwidth(8192)


def published_bandwidth(kind: str) -> float | None:
    """Bytes/s by the name of a device; None for one that is not in the tables."""
    from easylm.pods.slices import GENERATIONS

    if kind in _TPU:
        chip = GENERATIONS[_TPU[kind]]
        return chip.hbm_rate / chip.devices
    return next((rate for name, rate in _GPU if re.search(name, kind)), None)


_TPU = {
    **{"TPU v3": "v3", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e"},
    **{"TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e"},
    "TPU7x": "tpu7x",
}
_GPU = [  # by the data sheets; the first that matches decides
    (r"\bMIG\b", None),  # a part of the chip
    (r"\bH200\b", 4.8e12),
    (r"\bH100 NVL\b", 3.9e12),
    (r"\bH100 PCIe\b", 2.0e12),
    (r"\bH100\b", 3.35e12),
    (r"\bA100-SXM4-80GB\b", 2.039e12),
    (r"\bA100 80GB PCIe\b", 1.935e12),
    (r"\bA100.*40GB\b", 1.555e12),
    (r"\bL4\b", 300e9),
    (r"\bT4\b", 320e9),
    (r"\bV100\b", 900e9),
    (r"\bRTX 4090\b", 1.008e12),
]


def matmul_rate(seconds: float = 2.0) -> float:
    """FLOP/s of float32 matrix products, one after the other for some seconds."""
    import jax
    import jax.numpy as jnp

    edge, done = 2048, 0
    x = jnp.full((edge, edge), 1e-3)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        jax.block_until_ready(product(x))
        done += 1
    return done * 2 * edge**3 / (time.perf_counter() - began)


@cache
def measured() -> dict:
    """What this process finds on its device: for the record, not for the ratios."""
    from easylm.training.flops import measure_bandwidth, measure_matmul_peak

    dtype = size.changes["dtype"]
    return {
        "product_flops": measure_matmul_peak(dtype),
        "product_dtype": dtype,
        "read_bytes": measure_bandwidth(),
    }


def peak_gib() -> float:
    from easylm.training.progress import peak_memory

    return peak_memory()[0] / 2**30
