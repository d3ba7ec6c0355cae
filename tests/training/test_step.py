"""One update: how the batch is cut must not matter, and frozen means frozen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm.losses.masked import Mean
from easylm.training import optimizer
from easylm.training.step import init_state, is_finite, train_step

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
AXES = {"w": (None,), "b": ()}
EVERYTHING = {"w": True, "b": True}


def loss(params, batch):
    """Squared error, rows weighted: a stand-in for token counts that differ."""
    error = (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2
    mean = Mean(jnp.sum(error * batch["weight"]), jnp.sum(batch["weight"]))
    return mean, {"loss": mean}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=8)
    weight = np.array([9, 0, 1, 1, 0, 0, 3, 2.0])
    return jax.tree.map(jnp.float32, {"x": x, "y": y, "weight": weight})


def update(batch, trainable=EVERYTHING, **options):
    config = {"name": "adamw", "lr": 0.1, "warmup": 0, "clip": 0.0}
    made, _ = optimizer.make(config, total_steps=10, axes=AXES)
    state = init_state(PARAMS, made, trainable)
    step = partial(
        train_step, loss=loss, optimizer=made, trainable=trainable, **options
    )
    return jax.jit(step)(state, batch)


@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_microbatches_weigh_tokens_not_microbatches(batch, microbatches):
    whole, parts = update(batch), update(batch, microbatches=microbatches)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)


def test_gradient_is_the_weighted_mean_by_hand(batch):
    _, metrics = update(batch)
    error = batch["x"] @ PARAMS["w"] + PARAMS["b"] - batch["y"]
    slope = 2 * error * batch["weight"] / jnp.sum(batch["weight"])
    by_hand = jnp.sqrt(jnp.sum((slope @ batch["x"]) ** 2) + jnp.sum(slope) ** 2)
    np.testing.assert_allclose(metrics["grad_norm"].value, by_hand, rtol=1e-5)


def test_sum_reduction_leaves_out_the_division(batch):
    mean, total = update(batch)[1], update(batch, reduction="sum")[1]
    ratio = total["grad_norm"].value / mean["grad_norm"].value
    np.testing.assert_allclose(ratio, jnp.sum(batch["weight"]), rtol=1e-5)


def test_frozen_parameters_stay_and_have_no_state(batch):
    state, metrics = update(batch, trainable={"w": False, "b": True})
    np.testing.assert_array_equal(state.params["w"], PARAMS["w"])
    assert state.params["b"] != PARAMS["b"]
    assert all(x.shape == () for x in jax.tree.leaves(state.opt_state))
    assert metrics["param_norm"].value == 0.5


def test_a_batch_without_scored_tokens_moves_nothing(batch):
    state, metrics = update(batch | {"weight": jnp.zeros(8)})
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)
    assert bool(is_finite(metrics))


def test_nan_is_noticed(batch):
    assert not bool(is_finite(update(batch | {"y": jnp.full(8, jnp.nan)})[1]))
