"""How long a program takes at best, and what it waits for.

Three resources work at once: the matrix units, the memory, the wires. What the compiler
overlaps with computing costs the longer of the two, what it does not is added; and so
is the way to the memory of the host, at the rate of jax-ml.github.io/scaling-book.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from easylm.pods.hlo import SLICES, Collective
from easylm.pods.slices import Slice
from easylm.pods.work import Work

# Shares of the peak that large products reach, by the compiler's own cost model (8192^3
# in bfloat16); attention kernels reach about half.
PRODUCTS = {"v3": 0.85, "v4": 0.93, "v5e": 0.88, "v5p": 0.9, "v6e": 0.7, "tpu7x": 0.7}
KERNELS = 0.5
MEMORY = 0.85  # of the bandwidth


class Seconds(NamedTuple):
    """Of one run of a program."""

    compute: float
    memory: float
    hidden: float  # on the wires while something is computed
    exposed: float  # on the wires while nothing is
    host: float  # to the memory of the host, and back at the same time
    axis: str  # of the mesh, whose wires are busiest

    @property
    def total(self) -> float:
        return max(self.compute, self.memory, self.hidden) + self.exposed + self.host

    @property
    def bound(self) -> str:
        """What it waits for most of the time."""
        wires = self.hidden + self.exposed
        network = f"network ({self.axis})" if self.axis else "network"
        parts = {"compute": self.compute, "memory": self.memory, network: wires}
        parts["host"] = self.host
        return max(parts, key=parts.get)


def seconds(
    place: Slice,
    mesh,
    work: Work,
    moved: float,
    fetched: float,
    found: Iterable[Collective],
) -> Seconds:
    """work: of all devices; moved: bytes to and from the memory of one; fetched: those
    from the memory of its host, where they go again."""
    generation = place.generation
    peak = generation.flops / generation.devices * place.devices
    compute = work.products / (peak * PRODUCTS[generation.name])
    compute += work.kernels / (peak * KERNELS)
    memory = moved / (generation.hbm_rate / generation.devices * MEMORY)
    hidden, exposed, busy = 0.0, 0.0, {}
    for one in found:
        spent = one.total / rate(place, mesh, one.axes)
        busy[one.axes] = busy.get(one.axes, 0.0) + spent
        hidden += spent * one.overlapped
        exposed += spent * (not one.overlapped)
    axis = " x ".join(max(busy, key=busy.get)) if busy else ""
    host = fetched / (generation.host / generation.devices)
    return Seconds(compute, memory, hidden, exposed, host, axis)


def rate(place: Slice, mesh, axes: tuple[str, ...]) -> float:
    """Bytes per second that a device can send along axes of the mesh."""
    generation = place.generation
    crosses = "data" in axes and place.slices > 1 and not isinstance(mesh, Mesh)
    if axes == SLICES or crosses:
        return generation.network / generation.devices
    total = 0.0
    for side, length in _spanned(place, mesh, axes).items():
        ring = length == place.shape[side] and place.around[side] and length > 2
        total += generation.link * (2 if ring else 1)
    # Two devices of one chip share its wires; among themselves they are faster.
    return max(total, generation.link) / generation.devices


def _spanned(place: Slice, mesh, axes) -> dict[int, int]:
    """How far devices of a slice that differ along these axes lie apart: {side of the
    slice: chips}."""
    if not isinstance(mesh, Mesh):
        return _spanned_at_best(place, mesh, axes)
    where = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    devices = np.ravel(mesh.devices[where]).tolist()
    number = lambda device: getattr(device, "slice_index", 0)
    here = [d for d in devices if number(d) == number(devices[0])]
    lengths = {
        side: len({device.coords[side] for device in here})
        for side in range(len(place.shape))
    }
    return {s: n for s, n in lengths.items() if n > 1}


def _spanned_at_best(place: Slice, mesh, axes) -> dict[int, int]:
    """Of a mesh without devices: on as few sides as hold them, the longest first."""
    count = int(np.prod([mesh.shape[name] for name in axes]))
    found, sides = {}, sorted(enumerate(place.shape), key=lambda side: -side[1])
    for side, length in sides:
        if count > 1:
            found[side] = min(length, count)
            count = -(-count // length)
    return found


def decoding(cache: float, weights: float, steps: int) -> float:
    """Bytes moved by a loop that reads the weights, and a cache that fills up, for each
    token."""
    return steps * (weights + cache / 2)


def layers(c, tokens: float, weights: float, passes: float) -> float:
    """Bytes moved by `passes` over so many tokens of a device: the weights, and what
    each layer writes and reads again."""
    wide = 8 * c.dim + 2 * c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim
    each = 2 * 2.0 * tokens * (wide + 3 * c.mlp_dim)
    return passes * (weights + c.layers * each)
