"""Sums that remember their weight."""

import jax
import jax.numpy as jnp
import numpy as np

from easylm.losses.masked import Mean, masked_mean


def test_means_of_unequal_parts_add_to_the_mean_of_the_whole():
    values, mask = jnp.arange(6.0), jnp.array([1, 1, 1, 1, 0, 1.0])
    parts = masked_mean(values[:4], mask[:4]) + masked_mean(values[4:], mask[4:])
    assert parts.value == (0 + 1 + 2 + 3 + 5) / 5


def test_nothing_counted_is_zero_not_nan():
    assert masked_mean(jnp.ones(3), jnp.zeros(3)).value == 0
    assert jax.grad(lambda x: Mean(x, jnp.zeros(())).value)(1.0) == 0


def test_masked_nan_leaks_neither_into_the_value_nor_the_gradient():
    values = jnp.array([1.0, jnp.nan, 3.0])
    mask = jnp.array([1.0, 0.0, 1.0])
    mean, grad = jax.value_and_grad(lambda v: masked_mean(v, mask).value)(values)
    assert mean == 2
    np.testing.assert_array_equal(grad, [0.5, 0, 0.5])
