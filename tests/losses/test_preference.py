"""The DPO family: numbers by hand, limit cases, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from easylm.losses import preference

# One pair with log-ratios c = 1 and r = -1, of 5 and 4 tokens.
LOGPS, REF = jnp.array([[-10.0, -12.0]]), jnp.array([[-11.0, -11.0]])
LENGTHS = jnp.array([[5.0, 4.0]])

# softplus(-.2) = .598139, softplus(.2) = .798139, softplus(-.1) = .644397,
# softplus(.1) = .744397, s(.1) = .524979, s(-.1) = .475021, s(-.2) = .450166
BY_HAND = [
    ("dpo", {}, 0.598139),
    ("dpo", {"label_smoothing": 0.1}, 0.9 * 0.598139 + 0.1 * 0.798139),
    ("dpo_norm", {}, 0.100207),  # softplus(-5 (.2 + .25))
    ("robust", {}, (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8),
    ("ipo", {}, (0.45 - 5) ** 2),
    ("ipo_sum", {}, 9.0),
    ("hinge", {}, 0.8),
    ("hinge", {"beta": 1.0}, 0.0),
    ("simpo", {}, 0.313262),  # softplus(-(2 (-2 + 3) - 1))
    ("orpo", {}, 2.028875),  # log odds -1.854587 and -2.948931
    ("cpo", {"beta": 0.05}, 0.644397),
    ("kto", {}, 0.475021 + 0.475021),
    ("kto", {"baseline": 1.0, "rejected_weight": 2.0}, 0.5 + 2 * 0.450166),
    ("bco", {}, 0.644397 + 0.644397),
    ("bco", {"baseline": 0.1}, 0.693147 + 0.598139),
    ("exo", {}, 2.422014),
    ("nca", {}, 0.644397 + (0.744397 + 0.644397) / 2),
    ("sppo", {"beta": 0.1}, 32.0),
    ("aot", {}, 0.598139),
    ("aot_unpaired", {}, 0.598139),
    ("apo_zero", {}, 0.475021 + 0.475021),
    ("apo_down", {}, 0.524979 + 0.450166),
    ("discopop", {}, 0.880797 * 0.904837 + 0.119203 * 0.644397),
    ("length_dpo", {}, 0.600393),  # softplus(-(.2 - .005))
    ("f_dpo", {"divergence": "reverse_kl"}, 0.598139),
    ("f_dpo", {}, 0.644397),  # log s(1) - log s(-1) = 1
    ("f_dpo", {"divergence": "forward_kl"}, 0.582517),  # -1/e + e = 2.350402
    ("f_dpo", {"divergence": "alpha"}, 0.594349),  # (.606531 - 1.648721) / -.5
    ("dno", {"preference": 0.75}, 0.75 * 0.598139 + 0.25 * 0.798139),
]
EVERY = sorted({name for name, _, _ in BY_HAND})


def random_pairs(count=6):
    rng = np.random.default_rng(0)
    logps = rng.uniform(-30, -5, (count, 2)).astype("f4")
    ref = logps + rng.normal(0, 2, (count, 2)).astype("f4")
    return jnp.array(logps), jnp.array(ref), jnp.array(rng.integers(5, 20, (count, 2)))


@pytest.mark.parametrize("name, options, value", BY_HAND)
def test_loss_is_the_number_computed_by_hand(name, options, value):
    loss = getattr(preference, name)(LOGPS, REF, LENGTHS, **options)
    np.testing.assert_allclose(loss, [value], rtol=2e-5, atol=1e-6)


def test_every_loss_of_the_module_has_a_number():
    public = {
        name
        for name, f in vars(preference).items()
        if getattr(f, "__module__", "") == preference.__name__ and name[0] != "_"
    }
    assert public == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_gradient_is_the_numerical_one(name):
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(x), jnp.float64) for x in random_pairs()]
        total = lambda x: jnp.sum(getattr(preference, name)(x, *args[1:]))
        check_grads(total, (args[0],), order=1, modes=["rev"])


@pytest.mark.parametrize("name", EVERY)
def test_a_better_chosen_answer_never_costs_more_than_a_worse_one(name):
    """From the reference, moving chosen up and rejected down lowers the loss.

    apo_down means to lower the chosen answer as well; discopop needs a longer way.
    """
    step = jnp.array([[0.0, -0.5]] if name == "apo_down" else [[0.5, -0.5]])
    step = 40 * step if name == "discopop" else step
    loss = getattr(preference, name)
    assert loss(REF + step, REF, LENGTHS)[0] < loss(REF, REF, LENGTHS)[0]


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "dno", "f_dpo", "aot"])
def test_policy_equal_to_reference_gives_log_2(name):
    logps, _, lengths = random_pairs()
    losses = getattr(preference, name)(logps, logps, lengths)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)


@pytest.mark.parametrize(
    "name, options",
    [
        ("robust", {"label_smoothing": 0.0}),
        ("dno", {"preference": 1.0}),
        ("length_dpo", {"weight": 0.0}),
        ("f_dpo", {"divergence": "reverse_kl"}),
    ],
)
def test_neutral_parameter_gives_dpo(name, options):
    given = random_pairs()
    other = getattr(preference, name)(*given, **options)
    np.testing.assert_allclose(other, preference.dpo(*given), rtol=1e-6)


def test_no_reference_is_a_reference_of_zeros():
    logps, _, lengths = random_pairs()
    flat = preference.dpo(logps, jnp.zeros_like(logps), lengths)
    np.testing.assert_allclose(preference.cpo(logps, None, lengths), flat)


def test_smoothing_one_half_makes_no_difference_between_the_answers():
    logps, ref, lengths = random_pairs()
    swap = [x[:, ::-1] for x in (logps, ref, lengths)]
    one = preference.dpo(logps, ref, lengths, label_smoothing=0.5)
    np.testing.assert_allclose(
        one, preference.dpo(*swap, label_smoothing=0.5), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_an_absent_answer_costs_nothing_and_has_no_gradient(name):
    loss = getattr(preference, name)
    alone = LENGTHS.at[0, 1].set(0)
    half = loss(LOGPS, REF, alone)[0] + loss(LOGPS, REF, LENGTHS - alone)[0]
    np.testing.assert_allclose(half, loss(LOGPS, REF, LENGTHS)[0], rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x, REF, alone)[0])(LOGPS)
    assert gradient[0, 0] != 0 and gradient[0, 1] == 0


@pytest.mark.parametrize("name", EVERY)
def test_extreme_answers_stay_finite(name):
    """From certain to impossible, with gradients."""
    logps = jnp.array([[0.0, -4000.0], [-4000.0, 0.0]])
    ref, lengths = jnp.full((2, 2), -50.0), jnp.full((2, 2), 40.0)
    loss = lambda x: jnp.sum(getattr(preference, name)(x, ref, lengths))
    value, gradient = jax.value_and_grad(loss)(logps)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("robust", {"label_smoothing": 0.5}, r"\[0, 0.5\)"),
        ("exo", {"label_smoothing": 0.0}, r"\(0, 1\)"),
        ("f_dpo", {"divergence": "kl"}, "reverse_kl, forward_kl, js, alpha"),
        ("f_dpo", {"divergence": "alpha", "alpha": 1}, "reverse"),
    ],
)
def test_options_that_mean_nothing_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(preference, name)(LOGPS, REF, LENGTHS, **options)
