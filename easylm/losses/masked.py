"""Sums that remember their weight, so that averages of averages cannot happen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """A mean in two pieces: add over microbatches, steps and hosts; divide once."""

    total: jax.Array
    count: jax.Array

    def __add__(self, other):
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self):
        """total / count, and 0 where nothing was counted."""
        empty = self.count == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1.0, self.count))


def masked_mean(values, mask) -> Mean:
    """Mean of `values` over the positions where `mask` is not 0.

    Values under a 0 are never multiplied, only replaced: a NaN there cannot leak,
    neither into the sum nor into its gradient.
    """
    kept = jnp.where(mask != 0, values, 0.0).astype(jnp.float32)
    mask = mask.astype(jnp.float32)
    return Mean(jnp.sum(kept * mask), jnp.sum(mask))
