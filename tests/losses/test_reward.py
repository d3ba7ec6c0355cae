"""Losses of reward models: numbers by hand, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np

from easylm.losses import reward

SCORES = jnp.array([[2.0, 1.0], [0.0, 3.0]])  # d = 1 and -3
RIGHT, WRONG = 0.313262, 3.048587  # softplus(-1), softplus(3)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_bradley_terry_by_hand():
    close(reward.bradley_terry(SCORES), [RIGHT, WRONG])
    smoothed = reward.bradley_terry(SCORES, label_smoothing=0.25)
    close(smoothed, [0.75 * RIGHT + 0.25 * 1.313262, 0.75 * WRONG + 0.25 * 0.048587])
    margins = jnp.array([1.0, -4.0])  # d = 0 and 1, each pair with its own
    close(reward.bradley_terry(SCORES, margins), [0.693147, RIGHT])


def test_equal_scores_give_log_2_and_a_shift_changes_nothing():
    close(reward.bradley_terry(jnp.full((3, 2), 7.0)), np.full(3, np.log(2)))
    close(reward.bradley_terry(SCORES + 5), reward.bradley_terry(SCORES))


def test_strength_multiplies():
    strengths = jnp.array([3.0, 1.0])
    close(reward.scaled_bradley_terry(SCORES, strengths), [3 * RIGHT, WRONG])


def test_centering_is_the_squared_sum_and_least_around_zero():
    close(reward.centering(SCORES), [9.0, 9.0])
    close(reward.centering(jnp.array([[1.5, -1.5]])), [0.0])


def test_regression_counts_known_attributes_only():
    scores = jnp.array([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]])
    ratings = jnp.array([[3.0, 3.0, jnp.nan], [jnp.nan] * 3])
    known = ~jnp.isnan(ratings)
    close(reward.regression(scores, ratings, known), [(4 + 1) / 2, 0.0])
    total = lambda s: jnp.sum(reward.regression(s, ratings, known))
    close(jax.grad(total)(scores), [[-2.0, -1.0, 0.0], [0.0, 0.0, 0.0]])


def test_ranking_of_two_is_bradley_terry():
    ranks = jnp.array([[1, 2], [1, 2]])
    close(reward.ranking(SCORES, ranks), reward.bradley_terry(SCORES))


def test_ranking_takes_each_ordered_pair_once():
    scores = jnp.array([1.0, 3.0, 0.0, 99.0])
    ranks = jnp.array([2, 1, 2, 0])  # one best, a tie, one that is not there
    close(reward.ranking(scores, ranks), (0.126928 + 0.048587) / 2)  # d = 2 and 3
    close(reward.ranking(scores, jnp.zeros(4, int)), 0.0)


def test_answers_that_are_not_there_leak_nothing():
    scores, ranks = jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1, 2, 0])
    value, gradient = jax.value_and_grad(reward.ranking)(scores, ranks)
    close(value, 1.313262)
    assert gradient[2] == 0 and np.isfinite(gradient).all()
