"""Optimizers: updates by hand in numpy, dtypes, state, decay by name, configs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from easylm.errors import UserError
from easylm.training import optimizer, select
from tests.training.toy import (
    AXES,
    FEW,
    MATRICES,
    NAMES,
    SHAPES,
    build,
    flat,
    random_tree,
    steps,
)


def test_two_adamw_updates_by_hand_decay_all_but_the_norm():
    params = {"w": jnp.array([1.0, -2.0]), "norm": jnp.array([3.0])}
    g1 = {"w": jnp.array([0.1, -0.4]), "norm": jnp.array([2.0])}
    g2 = {"w": jnp.array([0.3, 0.2]), "norm": jnp.array([-1.0])}
    transform = optimizer.adamw(0.1, b1=0.9, b2=0.95, eps=1e-8, decay=0.5)
    updates, _ = steps(transform, params, g1, g2)

    for name, decay in (("w", 0.5), ("norm", 0.0)):
        a, b, p = (np.asarray(tree[name], np.float64) for tree in (g1, g2, params))
        m = (0.9 * 0.1 * a + 0.1 * b) / (1 - 0.9**2)
        v = (0.95 * 0.05 * a**2 + 0.05 * b**2) / (1 - 0.95**2)
        expected = -0.1 * (m / (np.sqrt(v) + 1e-8) + decay * p)
        np.testing.assert_allclose(updates[name], expected, 1e-5)


def test_two_lion_updates_by_hand():
    params = {"w": jnp.array([1.0, -2.0, 4.0])}
    g1, g2 = {"w": jnp.array([1.0, -1.0, 0.0])}, {"w": jnp.array([-0.05, -1.0, 0.0])}
    updates, state = steps(optimizer.lion(0.1, decay=0.2), params, g1, g2)
    # m = 0.01 g1 after the first; sign(0.9 m + 0.1 g2) = sign(0.009 - 0.005) = +1
    expected = -0.1 * (np.array([1, -1, 0]) + 0.2 * np.array([1, -2, 4]))
    np.testing.assert_allclose(updates["w"], expected, 1e-6)
    momentum = optax.tree.get(state, "mu")["w"]
    np.testing.assert_allclose(momentum, [0.0094, -0.0199, 0], 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_decreases_a_quadratic(name):
    params, target = random_tree(0, FEW), random_tree(1, FEW)
    loss = lambda p: optax.tree.norm(
        jax.tree.map(jnp.subtract, p, target), squared=True
    )
    transform, _ = optimizer.make(
        {"name": name, "lr": 0.2, "warmup": 5}, total_steps=60, axes=AXES
    )

    def step(carry, _):
        params, state = carry
        updates, state = transform.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), loss(params)

    start = (params, transform.init(params))
    (params, _), losses = jax.jit(lambda s: jax.lax.scan(step, s, length=60))(start)
    assert loss(params) < 0.2 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_state_and_updates_are_float32_for_bfloat16_parameters(name):
    params = random_tree(0, FEW, jnp.bfloat16)
    updates, state = steps(build(name), params, params)
    dtypes = {x.dtype for x in jax.tree.leaves((updates, state))}
    assert dtypes <= {jnp.dtype("float32"), jnp.dtype("int32")}
    exact = steps(build(name), jax.tree.map(jnp.float32, params), params)[0]
    jax.tree.map(np.testing.assert_array_equal, updates, exact)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_only_the_momentum_is_bfloat16_on_request(name):
    params = random_tree(0, FEW)
    _, state = steps(build(name, momentum_dtype="bfloat16"), params, params)
    assert {x.dtype for x in jax.tree.leaves(optax.tree.get(state, "mu"))} == {
        jnp.dtype("bfloat16")
    }
    nu = optax.tree.get(state, "nu", default={"w": jnp.float32(0)})
    assert {x.dtype for x in jax.tree.leaves(nu)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freeze", [None, "embed|attn"])
def test_state_maps_to_the_axes_of_the_parameters_also_with_holes(name, freeze):
    params, _ = select.partition(
        random_tree(0), select.trainable(random_tree(0), freeze=freeze)
    )
    config = {"name": name, "lr": 1.0, "decay": 0.1}
    transform, _ = optimizer.make(config, total_steps=9, axes=AXES)
    state = jax.eval_shape(transform.init, params)
    axes = optimizer.state_axes(transform, params, AXES)

    checked = []
    check = lambda x, names: checked.append(len(names) == x.ndim)
    jax.tree.map(check, state, axes)  # every leaf of the state, counters included
    same_rank = lambda x, p: checked.append(x.ndim == p.ndim)
    optax.tree_map_params(transform, same_rank, state, params)
    assert all(checked) and len(checked) > 2 * len(jax.tree.leaves(params))


def test_state_axes_are_none_where_adafactor_averaged():
    transform = build("adafactor", min_dim=6)
    axes = optimizer.state_axes(transform, random_tree(0), AXES)[0]
    assert axes.count == ()
    assert axes.row["layers"]["attn"]["q"] == ("layers", "embed", None, None)
    assert axes.col["layers"]["attn"]["q"] == ("layers", None, "heads", "head_dim")
    assert axes.row["layers"]["attn"]["q_bias"] == ("layers", "heads", "head_dim")


def decayed_names(config, names=tuple(SHAPES)):
    config = {"lr": 1.0, "decay": 0.5, "warmup": 0, **config}
    transform, _ = optimizer.make(config, total_steps=2, axes=AXES)
    params = random_tree(0, names)
    updates, _ = steps(transform, params, jax.tree.map(np.zeros_like, params))
    return {name for name, u in flat(updates).items() if np.abs(u).max() > 0}


def test_norms_biases_and_the_embedding_are_not_decayed_by_default():
    assert decayed_names({}) == {*MATRICES, "unembed"}


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_decays_by_name(name):
    config = {"name": name, "decay_mask": "q$"}
    assert decayed_names(config, FEW) == {"embed"}


def test_decay_mask_names_what_is_not_decayed():
    assert decayed_names({"decay_mask": "attn"}, FEW) == {"embed"}
    assert decayed_names({"decay_mask": ""}, FEW) == set(FEW)
    with pytest.raises(UserError, match="'biases' is in no parameter name"):
        decayed_names({"decay_mask": "biases"})


def test_frozen_parameters_have_no_state_no_decay_and_no_share_in_the_norm():
    params, grads = random_tree(0), random_tree(1)
    mask = select.trainable(params, freeze="^embed$|layers")
    config = {"lr": 1.0, "decay": 0.1, "decay_mask": "", "clip": 1.0, "b1": 0.0}
    transform, _ = optimizer.make(config, total_steps=9, axes=AXES)
    free, frozen = select.partition(params, mask)
    free_grads, _ = select.partition(grads, mask)
    alone = {name: grads[name] for name in ("final_norm", "unembed")}
    norm = optax.tree.norm(alone)
    assert norm > 1

    updates, state = steps(transform, free, free_grads)
    assert updates["embed"] is None and state[1][0].mu["layers"]["attn_norm"] is None
    np.testing.assert_allclose(
        state[1][0].mu["unembed"], grads["unembed"] / norm, rtol=1e-5
    )
    new = select.combine(optax.apply_updates(free, updates), frozen)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    for name, old in flat(params).items():
        changed = not np.array_equal(flat(new)[name], old)
        assert changed == (name in alone)


def test_gradients_are_clipped_to_the_global_norm_and_only_then():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([2.0])}  # norm 3
    for clip, factor in ((1.0, 1 / 3), (6.0, 1.0), (0, 1.0)):
        config = {"lr": 1.0, "b1": 0.0, "clip": clip}
        transform, _ = optimizer.make(config, total_steps=2, axes={})
        mu = steps(transform, params, grads)[1][1][0].mu
        np.testing.assert_allclose(mu["a"], factor * grads["a"], 1e-5)


def test_make_follows_the_schedule_it_returns():
    config = ConfigDict(
        {"lr": 0.5, "name": "lion", "schedule": "linear", "warmup": 0.2}
    )
    transform, schedule = optimizer.make(config, total_steps=10, axes={})
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    for step in (0, 1, 9):
        updates, _ = steps(transform, params, *[grads] * (step + 1))
        np.testing.assert_allclose(updates["w"], [-schedule(step)], 1e-6)
    np.testing.assert_allclose(
        [schedule(0), schedule(1), schedule(9)], [0.25, 0.5, 0.0625]
    )


@pytest.mark.parametrize("warmup, first", [(0.1, 0.2), (5, 0.2), (1, 1.0), (0, 1.0)])
def test_warmup_is_a_fraction_below_one_and_updates_from_one(warmup, first):
    config = {"lr": 1.0, "warmup": warmup, "schedule": "constant"}
    _, schedule = optimizer.make(config, total_steps=50, axes={})
    np.testing.assert_allclose([schedule(0), schedule(5)], [first, 1], 1e-6)


def test_none_in_a_config_keeps_the_default():
    config = {"lr": 1.0, "b2": None, "clip": None, "end_ratio": None}
    given, _ = optimizer.make(config, total_steps=9, axes=AXES)
    plain, _ = optimizer.make({"lr": 1.0}, total_steps=9, axes=AXES)
    params, grads = random_tree(0, FEW), random_tree(1, FEW)
    jax.tree.map(
        np.testing.assert_array_equal,
        steps(given, params, grads)[0],
        steps(plain, params, grads)[0],
    )


@pytest.mark.parametrize(
    "config, words",
    [
        ({"lr": 1.0, "beta1": 0.9}, "optimizer.beta1 .* adamw .* did you mean b1"),
        ({"lr": 1.0, "name": "lion", "eps": 1e-8}, "eps is not a setting of lion"),
        ({"lr": 1.0, "end_lr_ratio": 0.1}, "did you mean end_ratio"),
        ({"lr": 1.0, "schedule": "constant", "end_ratio": 0.1}, "with constant"),
        (
            {"lr": 1.0, "name": "adam"},
            "did you mean adamw.*adafactor, adamw, lion, muon",
        ),
        ({"lr": 1.0, "name": "make"}, 'optimizer.name "make" is unknown'),
        (
            {"lr": 1.0, "schedule": "cos"},
            "did you mean cosine.*there are: constant, cos",
        ),
        ({"lr": 1.0, "warmup": 2.5}, "warmup 2.5 is neither"),
        ({"lr": 1.0, "warmup": 11}, "warmup of 11 updates does not fit in a run of 10"),
        ({"lr": 1.0, "name": "muon", "scale": "big"}, 'use "rms" or "spectral"'),
        ({}, "optimizer.lr is missing"),
        ({"lr": "2e-5"}, "optimizer.lr='2e-5' is not a number; give one such as"),
        ({"lr": 1.0, "name": 3}, 'optimizer.name "3" is unknown'),
        ({"lr": 1.0, "clip": True}, "optimizer.clip=True is not a number"),
        ({"lr": 1.0, "decay_mask": 1}, "optimizer.decay_mask=1 is not text"),
        ({"lr": 1.0, "end_ratio": "0"}, "optimizer.end_ratio='0' is not a number"),
        (
            {"lr": 1.0, "name": "muon", "newton_schulz_steps": 2.5},
            "newton_schulz_steps=2.5 is not a whole number",
        ),
        (
            {"lr": 1.0, "momentum_dtype": "bf16"},
            'optimizer.momentum_dtype "bf16" is no .* use "float32" or "bfloat16"',
        ),
        ({"lr": 1.0, "momentum_dtype": "int8"}, "is no floating-point type"),
    ],
)
def test_config_mistakes_name_the_fix(config, words):
    with pytest.raises(UserError, match=words):
        optimizer.make(config, total_steps=10, axes=AXES)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_state_in_the_memory_of_the_host_changes_nothing_else(name):
    everything = [random_tree(seed) for seed in range(3)]
    some = [{**tree, "embed": None} for tree in everything]  # it is not trained
    for given in (everything, some):
        wanted = steps(build(name), *given)
        found = steps(optimizer.offloaded(build(name)), *given)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, wanted)
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(found[1]) if x.ndim}
        assert kinds == {optimizer.HOST}
