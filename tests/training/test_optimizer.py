"""Optimizers: updates by hand in numpy, layers kept apart, names, freezing, state."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from easylm.errors import UserError
from easylm.models import base, transformer
from easylm.training import optimizer

# L=3 layers, D=8 embed, H=2 heads of 3, V=11 vocab, F=12 mlp
SHAPES = {
    "embed": ((11, 8), ("vocab", "embed")),
    "layers/attn/q": ((3, 8, 2, 3), ("layers", "embed", "heads", "head_dim")),
    "layers/attn/o": ((3, 2, 3, 8), ("layers", "heads", "head_dim", "embed")),
    "layers/attn/q_bias": ((3, 2, 3), ("layers", "heads", "head_dim")),
    "layers/attn/q_norm": ((3, 2, 3), ("layers", "heads", None)),
    "layers/attn_norm": ((3, 8), ("layers", None)),
    "layers/mlp/up/w": ((3, 8, 12), ("layers", "embed", "mlp")),
    "layers/mlp/up/lora_a": ((3, 8, 2), ("layers", "embed", None)),
    "final_norm": ((8,), (None,)),
    "unembed": ((8, 11), ("embed", "vocab")),
}
MATRICES = [n for n, (shape, _) in SHAPES.items() if n.split("/")[-1] in "q o w lora_a"]
NAMES = ["adamw", "adafactor", "lion", "muon"]


def nest(flat):
    tree = {}
    for name, x in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = x
    return tree


def flat(tree):
    return flatten_dict(tree, sep="/")


AXES = nest({name: axes for name, (_, axes) in SHAPES.items()})
FEW = ("embed", "layers/attn/q")  # fewer to compile


def random_tree(seed, names=tuple(SHAPES), dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    return nest({name: draw(SHAPES[name][0]) for name in names})


def build(name, lr=1e-2, **keywords):
    if name in ("adafactor", "muon"):
        keywords["axes"] = AXES
    return getattr(optimizer, name)(lr, **keywords)


def steps(transform, params, *gradients):
    """The last updates, and the state after them."""
    update, state = jax.jit(transform.update), jax.jit(transform.init)(params)
    for grads in gradients:
        updates, state = update(grads, state, params)
    return updates, state


# --- updates by hand


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


# --- Muon


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


# --- every optimizer


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
    params, _ = optimizer.partition(
        random_tree(0), optimizer.trainable(random_tree(0), freeze=freeze)
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


# --- names: decay, freezing


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
    mask = optimizer.trainable(params, freeze="^embed$|layers")
    config = {"lr": 1.0, "decay": 0.1, "decay_mask": "", "clip": 1.0, "b1": 0.0}
    transform, _ = optimizer.make(config, total_steps=9, axes=AXES)
    free, frozen = optimizer.partition(params, mask)
    free_grads, _ = optimizer.partition(grads, mask)
    alone = {name: grads[name] for name in ("final_norm", "unembed")}
    norm = optax.tree.norm(alone)
    assert norm > 1

    updates, state = steps(transform, free, free_grads)
    assert updates["embed"] is None and state[1][0].mu["layers"]["attn_norm"] is None
    np.testing.assert_allclose(
        state[1][0].mu["unembed"], grads["unembed"] / norm, rtol=1e-5
    )
    new = optimizer.combine(optax.apply_updates(free, updates), frozen)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    for name, old in flat(params).items():
        changed = not np.array_equal(flat(new)[name], old)
        assert changed == (name in alone)


def test_trainable_takes_what_train_names_and_freeze_does_not():
    spec = random_tree(0)
    names = lambda **k: {
        n for n, yes in flat(optimizer.trainable(spec, **k)).items() if yes
    }
    assert names() == set(SHAPES) == names(freeze="", train="")
    assert names(train=r"/lora_[ab]$") == {"layers/mlp/up/lora_a"}
    assert names(train="attn", freeze="bias|norm") == {"layers/attn/q", "layers/attn/o"}


@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"freeze": "mpl"}, "freeze='mpl' is in no parameter name; names are: embed"),
        ({"train": "lora_c"}, "train='lora_c' is in no parameter name"),
        ({"train": "attn", "freeze": "layers"}, "nothing is left to train"),
        ({"freeze": "("}, "no regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant_are_errors(keywords, words):
    with pytest.raises(UserError, match=words):
        optimizer.trainable(random_tree(0), **keywords)


def test_combine_undoes_partition():
    params = random_tree(0)
    mask = optimizer.trainable(params, freeze="norm")
    back = optimizer.combine(*optimizer.partition(params, mask))
    jax.tree.map(np.testing.assert_array_equal, back, params)


# --- make


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
    ],
)
def test_config_mistakes_name_the_fix(config, words):
    with pytest.raises(UserError, match=words):
        optimizer.make(config, total_steps=10, axes=AXES)
