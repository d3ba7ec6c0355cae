"""Schedules: first, peak and last values by hand; steps count from 0."""

import jax.numpy as jnp
import numpy as np
import pytest

from easylm.errors import UserError
from easylm.training import schedules


def values(schedule, steps):
    return np.array([schedule(step) for step in range(steps)])


def test_linear_by_hand():
    lr = schedules.linear(1.0, 6, 2)
    np.testing.assert_allclose(values(lr, 7), [0.5, 1, 1, 0.75, 0.5, 0.25, 0], 1e-6)


def test_linear_to_a_tenth_without_warmup():
    lr = schedules.linear(2.0, 4, 0, end_ratio=0.1)
    np.testing.assert_allclose(values(lr, 5), [2, 1.55, 1.1, 0.65, 0.2], 1e-6)


def test_cosine_by_hand():
    lr = schedules.cosine(1.0, 6, 2)
    wave = [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    np.testing.assert_allclose(values(lr, 6), [0.5, 1, *wave][:2] + wave, 1e-6)
    lr = schedules.cosine(1.0, 4, 0, end_ratio=0.5)
    np.testing.assert_allclose(values(lr, 5)[[0, 2, 4]], [1, 0.75, 0.5], 1e-6)


def test_constant_by_hand():
    lr = schedules.constant(3.0, 5, 3)
    np.testing.assert_allclose(values(lr, 5), [1, 2, 3, 3, 3], 1e-6)


def test_wsd_is_stable_then_decays_over_the_last_fraction():
    linear = schedules.wsd(1.0, 10, 2, decay_fraction=0.4, decay_shape="linear")
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    np.testing.assert_allclose(values(linear, 11), expected, 1e-6)
    sqrt = schedules.wsd(1.0, 10, 2, decay_fraction=0.4, end_ratio=0.1)
    np.testing.assert_allclose(values(sqrt, 7), expected[:7], 1e-6)
    np.testing.assert_allclose(sqrt(7), 0.1 + 0.9 * 0.5, 1e-6)
    np.testing.assert_allclose(sqrt(9), 0.1 + 0.9 * (1 - 0.75**0.5), 1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_no_update_is_wasted_and_the_peak_is_reached(name, warmup):
    lr = values(getattr(schedules, name)(2e-5, 20, warmup), 20)
    assert lr.min() > 0
    np.testing.assert_allclose(lr.max(), 2e-5, 1e-6)
    np.testing.assert_allclose(lr[max(warmup - 1, 0)], 2e-5, 1e-6)


def test_lr_is_float32_of_a_traced_count_and_holds_after_the_end():
    lr = schedules.linear(1e-3, 4, 1, end_ratio=0.5)
    assert lr(jnp.int32(2)).dtype == jnp.float32
    np.testing.assert_allclose(lr(1000), 5e-4, 1e-6)


def test_a_run_that_is_all_warmup_ends_at_the_peak():
    assert values(schedules.linear(1.0, 4, 4), 4).tolist() == [0.25, 0.5, 0.75, 1]


def test_a_fraction_of_the_run_is_rounded_up_but_not_by_rounding_errors():
    assert schedules.count_steps(0.03, 100) == 3
    assert schedules.count_steps(0.1, 30) == 3  # 0.1 * 30 is 3.0000000000000004
    assert schedules.count_steps(0.03, 10) == 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: schedules.linear(1.0, 10, 11), "warmup of 11 .* run of 10"),
        (lambda: schedules.cosine(1.0, 0, 0), "run of 0 updates"),
        (
            lambda: schedules.wsd(1.0, 10, 6, decay_fraction=0.5),
            "warmup of 6 and decay",
        ),
        (lambda: schedules.wsd(1.0, 10, 0, decay_shape="cube"), 'use "sqrt"'),
        (lambda: schedules.wsd(1.0, 10, 0, decay_fraction=2.0), "between 0 and 1"),
    ],
)
def test_impossible_schedules_say_what_to_change(make, words):
    with pytest.raises(UserError, match=words):
        make()
