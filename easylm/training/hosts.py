"""The processes of a run side by side: which one the others wait for.

A step ends when the slowest process is done with it, so that all steps look alike. What
each process did by itself, before the programs that all run together, tells them apart.

P processes.
"""

import socket

import numpy as np
from jax.experimental.multihost_utils import process_allgather

from easylm.training.progress import memory

ALONE = {"data_wait": "data", "rewards": "rewards"}  # phase: what it waits for
_FACTOR, _SHARE = 2.0, 0.05  # of the others' time, of the iteration: late beyond both
_LINES = 3  # in a row


def look(spent) -> tuple[np.ndarray, dict[str, float]]:
    """(float[P, phases of ALONE], memory/*): the seconds of `spent` that each process
    was by itself, and the most that one holds. All of them call it, or none."""
    held = memory()
    row = [spent.get(name, 0.0) for name in ALONE] + list(held.values())
    rows = process_allgather(np.array(row, np.float32))
    most = rows[:, len(ALONE) :].max(axis=0).tolist()
    used = {f"memory/{k}": x / 2**30 for k, x in zip(held, most, strict=True)}
    return rows[:, : len(ALONE)], used


def waits(alone, updates: int) -> dict[str, float]:
    """The longest wait for data, in seconds per update, and whose it is."""
    if len(alone) == 1:
        return {}
    process = int(alone[:, 0].argmax())
    longest = float(alone[process, 0])
    return {
        "perf/data_wait_max": longest / updates,
        "perf/data_wait_process": float(process),
    }


def names() -> list[str]:
    """The name of every process's host. All of them call it, or none."""
    mine = socket.gethostname().encode()[:64].ljust(64, b"\0")
    rows = process_allgather(np.frombuffer(mine, np.uint8))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


class Stragglers:
    """Says which processes have been late for several lines in a row, once each."""

    def __init__(self, hosts: list[str]):
        self._hosts, self._late = hosts, np.zeros(len(hosts), int)

    def __call__(self, alone, seconds: float) -> list[str]:
        """A line for each process that has just become one.

        alone: float[P, phases of ALONE], of an iteration that lasted `seconds`.
        """
        if len(alone) == 1:
            return []
        own = alone.sum(axis=1)
        theirs = np.array([np.median(np.delete(own, p)) for p in range(len(own))])
        late = own > _FACTOR * theirs + _SHARE * seconds
        self._late = np.where(late, self._late + 1, 0)
        what = np.array(list(ALONE.values()))[alone.argmax(axis=1)]
        return [
            f"slow    process {p} on {self._hosts[p]} holds up the others: it waits"
            f" {own[p]:.2f} s of an iteration of {seconds:.2f} s for {what[p]}, they"
            f" {theirs[p]:.2f} s"
            for p in np.flatnonzero(self._late == _LINES)
        ]
