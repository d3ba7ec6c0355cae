"""How much a program computes: the matrix products of its jaxpr, loops multiplied out.

The compiler's own count takes the body of a loop once, and knows nothing of kernels.
Here a scan counts its length, a while loop what the caller says, of the branches of a
cond the largest counts, and attention kernels are known by name. Arrays are whole, not
the part of a device: divide by the devices.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Work(NamedTuple):
    """FLOPs of a program, a multiply-add being two."""

    products: float = 0.0  # matrix products
    kernels: float = 0.0  # Pallas: attention

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, n: float) -> "Work":
        return Work(*(n * x for x in self))

    @property
    def total(self) -> float:
        return self.products + self.kernels


def count(function, *args, trips: int = 1) -> Work:
    """Of function(*args), args being arrays or their shapes. `trips` of a while loop
    that has no fixed number."""
    return of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, trips)


def of_jaxpr(jaxpr, trips: int) -> Work:
    total = Work()
    for equation in jaxpr.eqns:
        total += _of(equation, trips)
    return total


def _of(equation, trips) -> Work:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return Work(products=_product(equation))
    if name == "pallas_call":
        return Work(kernels=_attention(equation))
    inner = [of_jaxpr(j, trips) for j in _jaxprs(params)]
    if name == "scan":
        return inner[0].times(params["length"])
    if name == "while":
        return of_jaxpr(params["body_jaxpr"].jaxpr, trips).times(trips)
    if name == "cond":
        return max(inner, key=lambda work: work.total)
    if name == "shard_map":
        return sum(inner, Work()).times(params["mesh"].size)
    return sum(inner, Work())


def _product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _attention(equation) -> float:
    """Of a kernel of models/splash.py: its products over the causal half of T x T."""
    name = equation.params["name"]
    [products] = [n for part, n in _PRODUCTS.items() if part in name]
    numbers = (
        x.aval for x in equation.invars if jnp.issubdtype(x.aval.dtype, jnp.floating)
    )
    *rows, heads, time, dim = max((x.shape for x in numbers), key=math.prod)
    return products * math.prod(rows) * heads * time * time * dim


_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # 2 FLOPs each, on half of the pairs


def _jaxprs(params):
    """All that an equation calls; a custom derivative only in the one that is run."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
