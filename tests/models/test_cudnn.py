"""Attention by cuDNN: what it is told, what is made of its answer, and on a GPU, that
it is the same as XLA's.

There, without the settings that make all other tests run on a CPU:
    pytest --noconftest tests/models/test_cudnn.py -k on_a_gpu
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as vendor

from easylm import sharding
from easylm.errors import UserError
from easylm.models import cudnn
from easylm.models.attention import attend, kernel, visible
from easylm.models.base import config_for, map_spec
from easylm.models.transformer import make

ON_GPU = jax.default_backend() == "gpu"
needs_gpu = pytest.mark.skipif(
    not ON_GPU, reason="needs a GPU, and pytest --noconftest -k on_a_gpu"
)
B, T, N, K, H = 2, 64, 4, 2, 16


def packed(rows=B, time=T, most=5, padding=8):
    """positions and segments: several lengths in a row, and padding at its end."""
    rng = np.random.default_rng(1)
    segments = np.sort(rng.integers(1, most + 1, (rows, time)), axis=1)
    segments[:, time - padding :] = 0
    first = np.array([[row.tolist().index(s) for s in row] for row in segments])
    return np.int32(np.arange(time) - first), np.int32(segments)


def inputs(rows=B, time=T, heads=N, kv_heads=K, dim=H, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, time, n, dim) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def value_and_grads(function, segments, *qkv):
    """The output, 0 at padding, and gradients of a sum of it, also over padding."""
    weights = jnp.cos(jnp.arange(qkv[0].size).reshape(qkv[0].shape))

    def total(*qkv):
        out = function(*qkv).astype(jnp.float32)
        return jnp.sum(weights * out), out

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (_, out), grads = run(*qkv)
    return [jnp.where((segments != 0)[..., None, None], out, 0), *grads]


def by_cudnn(places, window, segments):
    return lambda *qkv: cudnn.attend(*qkv, cudnn.runs_of(segments, places), window)


def by_xla(window, positions, segments):
    """Without what padding gives: there XLA averages over everything."""
    seen = visible(positions, segments, positions, segments, window=window)
    real = (segments != 0)[..., None, None]
    return lambda *qkv: jnp.where(real, attend(*qkv, seen), 0)


def test_runs_are_the_segments_in_turns():
    segments = np.array([[0, 7, 7, 2, 0, 2], [1, 2, 2, 3, 4, 4]])
    runs = cudnn.runs_of(segments, places=2)
    none = [-1, -1]
    assert runs.starts.tolist() == [[[1, 3], [0, 1]], [[5, -1], [3, 4]], [none, none]]
    assert runs.lengths.tolist() == [[[2, 1], [1, 2]], [[1, -1], [1, 2]], [none, none]]
    assert runs.turn.tolist() == [[-1, 0, 0, 0, -1, 1], [0, 0, 0, 1, 1, 1]]


def documented(q, k, v, *, q_seqlen, q_offsets, scale, sliding_window_length, **rest):
    """What the library promises for its arguments: answers in the segments named, and
    anything elsewhere, also in gradients. Here that is NaN."""
    assert rest["mask_type"] is vendor.MaskType.PADDING_CAUSAL
    column = jnp.arange(q.shape[1])
    past = column[:, None] - column

    start, length = q_offsets[:, :-1, None], q_seqlen[..., None]
    member = (start >= 0) & (column >= start) & (column < start + length)  # [B, P, T]
    inside = member.any(axis=1)
    seen = (past >= 0) & jnp.einsum("bpt,bps->bts", member, member)
    if sliding_window_length:
        seen &= past < sliding_window_length
    q, k, v = (_read(x, inside) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * scale
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30))
    out = jnp.einsum("bnts,bsnh->btnh", weights, v)
    return jnp.where(inside[..., None, None], out, jnp.nan)


@jax.custom_vjp
def _read(x, inside):
    return jnp.where(inside[..., None, None], x, 0)


_read.defvjp(
    lambda x, inside: (_read(x, inside), inside),
    lambda inside, g: (jnp.where(inside[..., None, None], g, jnp.nan), None),
)


@pytest.mark.parametrize(
    ("places", "window", "mesh"),
    [(8, None, "data"), (2, 5, "fsdp=2,tensor=2,data=2")],
)
def test_turns_make_the_whole_and_take_nothing_from_elsewhere(
    monkeypatch, places, window, mesh
):
    monkeypatch.setattr(vendor, "dot_product_attention", documented)
    positions, segments = packed(rows=8)
    qkv = inputs(rows=8)
    with sharding.use(sharding.make_layout(mesh)):
        found = value_and_grads(by_cudnn(places, window, segments), segments, *qkv)
    wanted = value_and_grads(by_xla(window, positions, segments), segments, *qkv)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, wanted)


def lowered(monkeypatch, function, *args) -> str:
    """The program for a GPU that is not here: its library and chip are vouched for."""
    monkeypatch.setattr(vendor, "check_cudnn_version", lambda: 91300)
    monkeypatch.setattr(vendor, "check_compute_capability", lambda _: True)
    traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def calls(program: str) -> list[tuple[str, dict, list[str]]]:
    """(name, settings, types of the operands) of the library's calls."""
    found = []
    for line in program.splitlines():
        if name := re.search(r"@__cudnn\$(\w+)\(", line):
            config = line.replace("\\22", '"')
            settings = dict(re.findall(r'"(\w+)": "?(\w+)', config))
            operands = re.search(r" : \((.*)\) ->", line)[1].split(", ")
            found.append((name[1], settings, [x[7:-1] for x in operands]))
    return found


@pytest.mark.parametrize("window", [None, 16])
def test_a_program_for_a_gpu_calls_the_kernel_with_segments(monkeypatch, window):
    _, segments = packed()
    qkv = inputs(dtype=jnp.bfloat16)
    run = by_cudnn(8, window, segments)
    grads = jax.grad(lambda *qkv: run(*qkv).sum(dtype=jnp.float32), argnums=(0, 1, 2))
    forward, backward, *again = calls(lowered(monkeypatch, grads, *qkv))
    assert [forward[0], backward[0]] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert [call[0] for call in again] == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    kv_heads = N if cudnn.ALIKE else K
    kv = f"{B}x{T}x{kv_heads}x{H}xbf16"
    places = [f"{B}x8xi32"] * 2 + [f"{B}x9xi32"] * 2
    assert forward[2] == [f"{B}x{T}x{N}x{H}xbf16", kv, kv, *places]
    assert backward[2][-4:] == places
    for _, settings, _ in (forward, backward):
        assert settings["mask_type"] == "PADDING_CAUSAL"
        assert settings["max_seg_per_batch"] == "8"
        assert settings["sliding_window_length"] == str(window or 0)


def test_a_model_calls_the_kernel_on_all_devices(monkeypatch):
    monkeypatch.setattr(cudnn, "obstacle", lambda c: "")
    model = make(config_for("llama:1m", attention="cudnn", dtype="bfloat16"))
    c = model.config
    shape = lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype)
    params = map_spec(shape, model.spec)
    positions, segments = packed(rows=8)
    with sharding.use(sharding.make_layout("fsdp=4,tensor=2")):
        forward = lambda p: model.forward(p, segments, positions, segments)[0]
        name, _, operands = calls(lowered(monkeypatch, forward, params))[0]
    assert name == "fmhaSoftmax"
    assert operands[0] == f"2x{T}x{c.heads // 2}x{c.head_dim}xbf16"


def test_where_there_is_no_gpu_it_is_not_chosen():
    if ON_GPU:
        pytest.skip("there is one")
    assert kernel(config_for("llama:1m"), 4096) == "xla"
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        kernel(config_for("llama:1m", attention="cudnn"), 4096)


@needs_gpu
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window", "places"),
    [
        (4, 4, 64, None, cudnn.AT_ONCE),
        (8, 2, 64, None, 2),
        (8, 2, 64, 48, cudnn.AT_ONCE),
        (4, 2, 128, 48, 2),
    ],
)
def test_on_a_gpu_it_is_attention(heads, kv_heads, dim, window, places):
    positions, segments = packed(rows=3, time=512, padding=100)
    qkv = inputs(3, 512, heads, kv_heads, dim, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in qkv]
    with jax.default_matmul_precision("highest"):
        wanted = value_and_grads(by_xla(window, positions, segments), segments, *exact)
    found = value_and_grads(by_cudnn(places, window, segments), segments, *qkv)
    for ours, theirs in zip(found, wanted, strict=True):
        error = jnp.linalg.norm(ours.astype(jnp.float32) - theirs)
        assert error < 0.02 * jnp.linalg.norm(theirs)


@needs_gpu
def test_on_a_gpu_it_is_chosen():
    assert kernel(config_for("llama:1m", dtype="bfloat16"), 4096) == "cudnn"
    assert kernel(config_for("llama:1m", dtype="float32"), 4096) == "xla"
