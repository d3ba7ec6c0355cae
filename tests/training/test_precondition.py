"""Adafactor and Muon: by hand in numpy and by SVD, and layers kept apart."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm.models import base, transformer
from easylm.training import optimizer
from tests.training.toy import (
    MATRICES,
    SHAPES,
    build,
    flat,
    nest,
    random_tree,
    steps,
)


def numpy_adafactor(g, row, col, n):
    """One layer's matrix, update number n."""
    b2 = 1 - n**-0.8
    row = b2 * row + (1 - b2) * (g**2).mean(1)
    col = b2 * col + (1 - b2) * (g**2).mean(0)
    u = g / np.sqrt(np.outer(row, col) / row.mean())
    return u / max(1, np.sqrt((u**2).mean())), row, col


def test_two_adafactor_updates_by_hand_treat_each_layer_as_a_matrix():
    sizes = {"layers/attn/q": 8, "layers/attn/o": 6}  # of the inputs
    params, g1, g2 = (random_tree(seed, sizes) for seed in range(3))
    g2 = jax.tree.map(lambda g: 5 * g, g2)  # large enough to be scaled down
    updates, _ = steps(build("adafactor", 0.1, min_dim=4), params, g1, g2)
    for name, layer in itertools.product(sizes, range(3)):
        row, col = 0, 0
        for n, grads in enumerate((g1, g2), 1):
            g = np.asarray(flat(grads)[name][layer], np.float64)
            expected, row, col = numpy_adafactor(
                g.reshape(sizes[name], -1), row, col, n
            )
        got = flat(updates)[name][layer].reshape(sizes[name], -1)
        np.testing.assert_allclose(got, -0.1 * expected, 1e-4)


def test_adafactor_of_a_vector_is_rms_normalised_per_layer():
    name = "layers/attn_norm"
    params, g1 = random_tree(0, [name]), random_tree(1, [name])
    g2 = jax.tree.map(lambda g: g * jnp.array([[0.0], [1.0], [3.0]]), g1)
    got = flat(steps(build("adafactor", 0.1), params, g1, g2)[0])[name]
    # v is (1-b2) g2² + b2 g1²: a constant ratio in each layer, and at most 1 after rms
    b2 = 1 - 2**-0.8
    ratio = np.array([[0], [1], [min(1, 3 / np.sqrt(b2 + (1 - b2) * 9))]])
    np.testing.assert_allclose(got, -0.1 * np.sign(flat(g1)[name]) * ratio, 1e-4)


def test_adafactor_averages_over_inputs_or_outputs_and_never_over_layers():
    state = jax.eval_shape(build("adafactor", min_dim=6).init, random_tree(0))
    row, col = flat(state[0].row), flat(state[0].col)
    assert row["layers/attn/q"].shape == (3, 8, 1, 1)
    assert col["layers/attn/q"].shape == (3, 1, 2, 3)
    assert row["layers/attn/o"].shape == (3, 2, 3, 1)
    assert col["layers/attn/o"].shape == (3, 1, 1, 8)
    assert row["embed"].shape == (11, 1)
    for vector in ("layers/attn/q_bias", "layers/attn/q_norm", "layers/attn_norm"):
        assert row[vector].shape == SHAPES[vector][0]
        assert col[vector].size == 3
    # one side of 2 is below min_dim: the whole second moment is kept
    assert row["layers/mlp/up/lora_a"].shape == (3, 8, 2)


def as_matrices(name, x):
    """[layers, in, out] of a weight of SHAPES."""
    return np.asarray(x).reshape(3, 6 if name.endswith("/o") else 8, -1)


@pytest.fixture(scope="module")
def muon_updates():
    return flat(steps(build("muon", 1.0), random_tree(0), random_tree(1))[0])


@pytest.mark.parametrize("name", MATRICES)
def test_muon_update_is_the_nearest_orthogonal_matrix_of_each_layer(name, muon_updates):
    update = as_matrices(name, muon_updates[name])
    scale = 0.2 * max(update.shape[1:]) ** 0.5
    singular = np.linalg.svd(update / scale, compute_uv=False)
    assert singular.min() > 0.65 and singular.max() < 1.25
    grads = as_matrices(name, flat(random_tree(1))[name])
    for layer, g in zip(update, grads, strict=True):
        u, _, v = np.linalg.svd(g, full_matrices=False)
        aligned = u.T @ layer @ v.T / -scale  # diagonal: same singular vectors
        np.testing.assert_allclose(aligned, np.diag(np.diag(aligned)), atol=1e-3)
        assert np.diag(aligned).min() > 0.65


def test_muon_of_scanned_layers_is_muon_of_each_layer(muon_updates):
    transform = build("muon", 1.0)
    update = jax.jit(lambda g: transform.update(g, transform.init(g), g)[0])
    names = ["layers/attn/q", "layers/attn/o"]
    for layer in range(3):
        grads = random_tree(1)  # drawn in full, so that the values are the same
        one = nest({name: flat(grads)[name][layer : layer + 1] for name in names})
        for name, u in flat(update(one)).items():
            expected = muon_updates[name][layer]
            np.testing.assert_allclose(u[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, n, m", [("q", 8, 6), ("o", 6, 8)])
def test_muon_of_attention_is_muon_of_its_matrix(name, n, m, muon_updates):
    plain = {"w": random_tree(1)["layers"]["attn"][name].reshape(3, n, m)}
    transform = optimizer.muon(1.0, axes={"w": ("layers", "mlp", "embed")})
    updates, _ = steps(transform, plain, plain)
    got = muon_updates[f"layers/attn/{name}"].reshape(3, n, m)
    np.testing.assert_allclose(got, updates["w"], rtol=1e-4, atol=1e-5)


def test_muon_leaves_all_but_the_matrices_of_layers_to_adamw():
    names = [name for name in SHAPES if name not in MATRICES[1:]]
    params, g1, g2 = (random_tree(seed, names) for seed in range(3))
    keywords = {"b1": 0.8, "b2": 0.9, "eps": 1e-6, "decay": 0.1}
    muon = flat(steps(build("muon", 0.1, **keywords), params, g1, g2)[0])
    adam = flat(steps(build("adamw", 0.1, **keywords), params, g1, g2)[0])
    for name in names:
        same = np.allclose(muon[name], adam[name], rtol=1e-4, atol=1e-6)
        assert same == (name not in MATRICES), name


def test_muon_momentum_looks_one_step_ahead():
    params, g1, g2 = (random_tree(seed, ["layers/attn/q"]) for seed in range(3))
    got, _ = steps(build("muon", 1.0, momentum=0.5), params, g1, g2)
    # m = .5 (.5 g1) + .5 g2, ahead = .5 m + .5 g2; a scale does not matter
    ahead = jax.tree.map(lambda a, b: 0.125 * a + 0.75 * b, g1, g2)
    expected, _ = steps(build("muon", 1.0, momentum=0.0), params, ahead)
    got, expected = (tree["layers"]["attn"]["q"] for tree in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2:tiny", "olmo2:tiny"])
def test_muon_finds_the_matrices_of_real_models(family):
    spec = transformer.param_spec(base.config_for(family))
    axes = base.map_spec(lambda s: s.axes, spec)
    state = jax.eval_shape(optimizer.muon(1.0, axes=axes).init, base.abstract(spec))
    found = {name for name, nu in flat(state[0].nu).items() if nu.size == 1}
    attn = {f"layers/attn/{name}" for name in "qkvo"}
    assert found == attn | {f"layers/mlp/{name}" for name in ("gate", "up", "down")}


def test_muon_scales_and_learning_rate_of_its_adamw_part(muon_updates):
    transform = build("muon", 1.0, scale="spectral", adam_lr_ratio=0.25)
    factors = {
        "layers/mlp/up/w": 1.5**0.5 / (0.2 * 12**0.5),  # in 8, out 12
        "layers/mlp/up/lora_a": 1 / (0.2 * 8**0.5),  # in 8, out 2
        "embed": 0.25,
    }
    grads = nest({name: flat(random_tree(1))[name] for name in factors})
    updates = flat(steps(transform, grads, grads)[0])
    for name, factor in factors.items():
        np.testing.assert_allclose(updates[name], factor * muon_updates[name], 1e-4)
