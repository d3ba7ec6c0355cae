"""TPU slices by the names the cloud gives them: how many chips, how wired, how fast.

    v4-256, v5p-128, v3-32       the number counts cores, two to a chip
    v5litepod-64, v6e-256, tpu7x-64   the number counts chips
    v5p:4x4x8                    any of them by its shape, in chips
    2 x v6e-256                  two slices, joined by the data center network

Figures are Google Cloud's (cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}); the
limit of HBM is what the compiler enforces (libtpu 0.0.42). "Device" is what JAX calls a
device: a chip, or one of the two cores of a v3 or tpu7x chip.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from easylm.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Generation:
    """One kind of chip. Rates are of a chip, per second."""

    name: str
    flops: float  # bfloat16
    hbm_rate: float  # bytes
    hbm: float  # bytes that a program may use on one device
    link: float  # bytes through one port, each way
    network: float  # bytes through the data center network
    shapes: tuple[tuple[int, ...], ...]
    devices: int = 1  # of a chip
    counted: int = 1  # of a chip in the cloud's name
    alias: str = ""
    host: float = 16e9  # bytes to the memory of its host, and as many back

    @property
    def cloud(self) -> str:
        return self.alias or self.name


def _cubes(*sides: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, side.split("x"))) for side in sides)


_SQUARES = _cubes("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x4x12", "4x8x8")
_LARGE = ("4x4x16", "4x8x12", "8x8x8", "8x8x12", "8x8x16", "8x16x16", "16x16x16")

GENERATIONS = {
    g.name: g
    for g in (
        Generation(
            "v3",
            flops=123e12,
            hbm_rate=900e9,
            hbm=15.48 * GIB,
            link=82e9,
            network=50e9 / 8,
            shapes=_cubes(
                "2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32"
            ),
            devices=2,
            counted=2,
        ),
        Generation(
            "v4",
            flops=275e12,
            hbm_rate=1200e9,
            hbm=30.75 * GIB,
            link=50e9,
            network=50e9 / 8,
            shapes=_cubes(*_SMALL, *_LARGE),
            counted=2,
        ),
        Generation(
            "v5e",
            flops=197e12,
            hbm_rate=819e9,
            hbm=15.75 * GIB,
            link=50e9,
            network=25e9 / 8,
            shapes=_SQUARES,
            alias="v5litepod",
        ),
        Generation(
            "v5p",
            flops=459e12,
            hbm_rate=2765e9,
            hbm=95.74 * GIB,
            link=100e9,
            network=50e9 / 8,
            shapes=_cubes(*_SMALL, *_LARGE, "16x16x24"),
            counted=2,
        ),
        Generation(
            "v6e",
            flops=918e12,
            hbm_rate=1638e9,
            hbm=31.25 * GIB,
            link=100e9,
            network=100e9 / 8,
            shapes=_SQUARES,
            host=32e9,
        ),
        Generation(
            "tpu7x",
            flops=2307e12,
            hbm_rate=7380e9,
            hbm=94.75 * GIB,
            link=100e9,
            network=100e9 / 8,
            shapes=_cubes(*_SMALL, *_LARGE),
            devices=2,
        ),
    )
}
_NAME = re.compile(r"(?:(\d+)\s*[x*]\s*)?([a-z][a-z0-9]*?)(?:-(\d+)|:(\d+(?:x\d+)*))")
OTHER_NAMES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "v6": "v6e"}


class Slice(NamedTuple):
    """Chips wired together, `slices` times."""

    generation: Generation
    shape: tuple[int, ...]  # chips along each side
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        return self.chips * self.generation.devices

    @property
    def name(self) -> str:
        """As the cloud has it, v5p-128; by its shape where that is not enough."""
        g, chips = self.generation, math.prod(self.shape)
        same = [s for s in g.shapes if math.prod(s) == chips]
        one = f"{g.cloud}-{chips * g.counted}"
        if self.shape != same[0]:
            one = f"{g.name}:{'x'.join(map(str, self.shape))}"
        return one if self.slices == 1 else f"{self.slices} x {one}"

    @property
    def around(self) -> tuple[bool, ...]:
        """Whether each side is closed to a ring. Cubes of 4 chips a side are wired
        together optically; v5e and v6e only at 16, v3 at 32."""
        if self.generation.name in ("v5e", "v6e"):
            return tuple(side == 16 for side in self.shape)
        if self.generation.name == "v3":
            return tuple(side == 32 for side in self.shape)
        return tuple(side % 4 == 0 for side in self.shape)


def parse(text: str) -> Slice:
    """'v5p-128', 'v5p:4x4x4', '2 x v6e-256' -> the slice, or what there is."""
    found = _NAME.fullmatch(text.strip().lower())
    if not found:
        raise UserError(
            f"topology {text!r} is not a name such as v5p-128, v5litepod-64, v4:4x4x8"
            f" or '2 x v6e-256'; {_known()}"
        )
    times, kind, count, sides = found.groups()
    kind, slices = OTHER_NAMES.get(kind, kind), int(times or 1)
    if kind not in GENERATIONS:
        raise UserError(f"topology {text!r}: no TPU is called {kind}; {_known()}")
    if slices < 1:
        raise UserError(f"topology {text!r}: there must be one slice or more")
    generation = GENERATIONS[kind]
    if sides:
        shape = tuple(map(int, sides.split("x")))
        chips = math.prod(shape)
        same = [s for s in generation.shapes if s == shape]
    else:
        shape, chips = (), int(count) / generation.counted
        same = [s for s in generation.shapes if math.prod(s) == chips]
    if not same:
        raise UserError(f"topology {text!r}: {_nearest(generation, shape, chips)}")
    return Slice(generation, same[0], slices)


def _nearest(generation: Generation, shape, chips: float) -> str:
    """What is said about a slice that does not exist."""
    turned = tuple(sorted(shape))
    if turned in generation.shapes:
        sides = "x".join(map(str, turned))
        return f"sides go from short to long: {generation.name}:{sides}"
    distance = lambda s: abs(math.log(math.prod(s) / max(chips, 0.5)))
    near = sorted(generation.shapes, key=distance)[:2]
    names = (f"{Slice(generation, s).name} ({'x'.join(map(str, s))})" for s in near)
    unit = "cores" if generation.counted > 1 else "chips"
    return (
        f"there is no such slice; the nearest are {' and '.join(names)}."
        f" {generation.cloud}-N counts {unit}; all of them: {_names(generation)}"
    )


def _known() -> str:
    return "known are " + "; ".join(map(_names, GENERATIONS.values()))


def _names(generation: Generation) -> str:
    """v5litepod-1, 4, 8, ..., and the shapes that have no such name."""
    names = [Slice(generation, shape).name for shape in generation.shapes]
    counts = [name.rsplit("-", 1)[1] for name in names if "-" in name]
    shapes = [name for name in names if ":" in name]
    return ", ".join([f"{generation.cloud}-{'/'.join(counts)}", *shapes])
