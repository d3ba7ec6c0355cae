"""What this process holds, as rows on the mesh: packed there, and read back.

Every process packs its own items, in as many rows as the one that needs most. J
segments, R rows, T time, N tokens that a segment may score.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from easylm import sharding
from easylm.data import packing
from easylm.data.sequences import Item, Sequences, lay_out
from easylm.sharding import Layout


class Packed(NamedTuple):
    """Rows on the mesh, and where in them the segments of this process lie."""

    seqs: Sequences  # [R, T]
    items: np.ndarray  # int[rows here, items]  the number of each item, or -1
    row: np.ndarray  # int[J]  among the rows of this process
    start: np.ndarray  # int[J]  of the scored tokens, which end the segment
    length: np.ndarray  # int[J]  how many they are
    layout: Layout

    @property
    def rows(self) -> int:
        return self.seqs.tokens.shape[0]


def pack(
    items: Sequence[Item], length: int, layout: Layout, *, step: int, most: int
) -> Packed:
    """Items of whole segments, at most `most` to a row; rows a multiple of `step`.

    Segments are numbered through: K of the first item, K of the second, and so on.
    """
    rows = plan(items, length, most)
    return lay(items, rows, length, layout, step=step, most=most)


def plan(items: Sequence[Item], length: int, most: int) -> list[list[int]]:
    """Which items share a row."""
    sizes = [sum(len(ids) for ids, _ in item) for item in items]
    found = packing.pack(np.array(sizes, np.int64), length, most)
    return [found[r].tolist() for r in range(found.count)]


def lay(items, rows, length: int, layout: Layout, *, step: int, most: int) -> Packed:
    """The items in rows that are planned; those that are in none lie nowhere."""
    here = step // layout.ways("batch") * share(layout)  # of `step` rows
    steps = agree(-(-max(len(rows), 1) // here))
    numbers = np.full((steps * here, most), -1, np.int32)
    for r, row in enumerate(rows):
        numbers[r, : len(row)] = row
    local = lay_out([[items[i] for i in row[row >= 0]] for row in numbers], length)
    place = lambda x: sharding.to_mesh(x, steps * step, layout, "length")
    where = _places(items, numbers)
    return Packed(jax.tree.map(place, local), numbers, *where, layout)


def share(layout: Layout) -> int:
    """How many of the parts into which a batch is cut this process holds."""
    return len(sharding.held(layout.ways("batch"), layout))


def read(packed: Packed, x: jax.Array, width: int) -> np.ndarray:
    """The scored part of every segment of x [R, T]: [J, N], zeros behind it."""
    local, (segment, token) = sharding.to_host(x, packed.layout), _tokens(packed)
    out = np.zeros((len(packed.row), width), local.dtype)
    out[segment, token] = local[packed.row[segment], packed.start[segment] + token]
    return out


def read_last(packed: Packed, x: jax.Array) -> np.ndarray:
    """What x [R, T] says of the last token of every segment: [J]."""
    local = sharding.to_host(x, packed.layout)
    return local[packed.row, packed.start + packed.length - 1]


def write(packed: Packed, values: np.ndarray) -> jax.Array:
    """[J, N] at the scored tokens of the segments: float32[R, T], zeros elsewhere."""
    time = packed.seqs.tokens.shape[1]
    local = np.zeros((len(packed.items), time), np.float32)
    segment, token = _tokens(packed)
    local[packed.row[segment], packed.start[segment] + token] = values[segment, token]
    return sharding.to_mesh(local, packed.rows, packed.layout, "length")


def agree(number: int) -> int:
    """The largest of all processes."""
    return int(np.max(multihost_utils.process_allgather(np.asarray(number))))


def _places(items, numbers):
    """row, start, length of every segment."""
    found = {}
    first = np.cumsum([0, *(len(item) for item in items)])
    for r, row in enumerate(numbers):
        at = 0
        for i in row[row >= 0]:
            for k, (ids, mask) in enumerate(items[i]):
                scored = int(np.count_nonzero(mask))
                at += len(ids)
                found[first[i] + k] = r, at - scored, scored
    ordered = [found.get(j, (0, 0, 0)) for j in range(first[-1])]
    return np.array(ordered, np.int64).reshape(-1, 3).T


def _tokens(packed: Packed):
    """(segment, number in it) of every scored token."""
    width = int(packed.length.max(initial=0))
    return np.nonzero(np.arange(width) < packed.length[:, None])
