"""Learning-rate schedules: each returns `step -> float32 lr`.

Convention, the same for all. Update number n (1 .. total_steps) is given
`step = n - 1`, the count before it is incremented, and W = `warmup_steps`:

* warmup, n <= W: lr = peak * n / W. The first update is never wasted on lr = 0,
  and update W is the first at the peak.
* afterwards the part that decays has M updates, and its i-th (i = 1 .. M) is given
  progress (i - 1) / M. So it starts at the peak, and the end value is what the update
  *after* the last would get: with `end_ratio` 0 the last update is small, not lost.
* past `total_steps` the lr stays at the end value.
"""

import math

import jax.numpy as jnp

from easylm.errors import UserError


def constant(peak, total_steps, warmup_steps):
    """Warmup, then the peak until the end."""
    return _schedule(peak, total_steps, warmup_steps, 0, lambda progress: 1.0)


def linear(peak, total_steps, warmup_steps, *, end_ratio=0.0):
    """Warmup, then a straight line to `end_ratio * peak`.

    The last lr is peak * (end_ratio + (1 - end_ratio) / (total - warmup)).
    """
    height = lambda progress: end_ratio + (1 - end_ratio) * (1 - progress)
    return _schedule(
        peak, total_steps, warmup_steps, total_steps - warmup_steps, height
    )


def cosine(peak, total_steps, warmup_steps, *, end_ratio=0.0):
    """Warmup, then half a cosine to `end_ratio * peak` (arXiv:1608.03983)."""
    wave = lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress))
    height = lambda progress: end_ratio + (1 - end_ratio) * wave(progress)
    return _schedule(
        peak, total_steps, warmup_steps, total_steps - warmup_steps, height
    )


def wsd(
    peak,
    total_steps,
    warmup_steps,
    *,
    end_ratio=0.0,
    decay_fraction=0.2,
    decay_shape="sqrt",
):
    """Warmup, stable at the peak, then decay over the last part of the run.

    The decay has ceil(decay_fraction * total_steps) updates and the shape
    1 - sqrt(progress) (`sqrt`, arXiv:2405.18392) or 1 - progress (`linear`).
    """
    shapes = {"sqrt": lambda p: 1 - jnp.sqrt(p), "linear": lambda p: 1 - p}
    if decay_shape not in shapes:
        raise UserError(
            f'wsd: decay_shape "{decay_shape}" is unknown; use "sqrt" or "linear"'
        )
    if not 0 <= decay_fraction <= 1:
        raise UserError(f"wsd: decay_fraction {decay_fraction} is not between 0 and 1")
    decay_steps = count_steps(decay_fraction, total_steps)
    if warmup_steps + decay_steps > total_steps:
        raise UserError(
            f"wsd: warmup of {warmup_steps} and decay of {decay_steps} updates do not "
            f"fit in {total_steps}; shorten the warmup or lower decay_fraction"
        )
    height = lambda p: end_ratio + (1 - end_ratio) * shapes[decay_shape](p)
    return _schedule(peak, total_steps, warmup_steps, decay_steps, height)


def count_steps(fraction, total_steps):
    """The updates that make up a fraction of the run, rounded up."""
    return math.ceil(fraction * total_steps - 1e-6)


def _schedule(peak, total_steps, warmup_steps, decay_steps, height):
    """Warmup, then `peak * height(progress)` with progress over the last updates."""
    if total_steps < 1:
        raise UserError(f"a run of {total_steps} updates has no learning rate")
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(
            f"warmup of {warmup_steps} updates does not fit in a run of {total_steps}; "
            f"use 0 to {total_steps}, or a fraction below 1"
        )

    def lr(step):
        step = jnp.asarray(step, jnp.float32)
        rise = jnp.minimum(1.0, (step + 1) / max(warmup_steps, 1))
        start = total_steps - decay_steps
        progress = jnp.clip((step - start) / max(decay_steps, 1), 0.0, 1.0)
        return jnp.float32(peak) * rise * height(progress)

    return lr
