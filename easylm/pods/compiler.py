"""The TPU compiler without a TPU: libtpu compiles for a slice that is not here.

`devices(slice)` are stand-ins that a mesh can be made of; what is lowered for them is
compiled by the compiler that the slice itself would use, which says what fits.
"""

import importlib.util
import os
import re
from typing import NamedTuple

import jax

from easylm.pods import flags
from easylm.pods.slices import Slice

# Before libtpu is loaded: no search for a TPU, no warnings about its absence, no logs.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # two plans at a time
}
FAST = {"exec_time_optimization_effort": -1.0}  # a fifth of the time


class Memory(NamedTuple):
    """Bytes on one device, as the compiler assigns them."""

    arguments: int
    outputs: int  # beside those that take the place of arguments
    temporaries: int
    peak: int  # of all of it together, at the worst moment
    host: int  # of what lies in the memory of the host


class Compiled(NamedTuple):
    memory: Memory
    text: str  # the scheduled HLO
    fits: bool
    why: str  # what the compiler says when it does not


def missing() -> str:
    """Why there is no TPU compiler here; empty if there is one."""
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed: pip install 'easylm[plan]'"
    return ""


def devices(place: Slice) -> list:
    """Stand-ins for the devices of a slice, wired as the cloud wires it."""
    from jax.experimental import topologies

    os.environ.update(QUIET | os.environ)
    kind, shape = place.generation.name, place.shape
    options = {"wrap": [*place.around, *(False,) * (3 - len(shape))]}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # a chip is one device
    if place.slices > 1:
        options["num_slices"] = place.slices
    alone = shape == (1, 1)
    if alone:
        options["chips_per_host_bounds"] = [1, 1, 1]
    name = f"{kind}:{'x'.join(map(str, shape))}"
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return list(found.devices)


def compiled(
    lowered, place: Slice, *, resident: float = 0.0, options=(), fast: bool = True
) -> Compiled:
    """Compiles for the slice while `resident` bytes of a device belong to others."""
    room = place.generation.hbm - resident
    options = dict(options) | flags.ABSENT.get(place.generation.name, {})
    options |= FAST if fast else {}
    cap = {"xla_tpu_max_hbm_size_mib": max(1, int(room // 2**20))} if resident else {}
    why = ""
    try:
        made = lowered.compile(compiler_options=options | cap)
    except jax.errors.JaxRuntimeError as error:
        why = _reason(error)
        made = _anyway(lowered, options)
    if made is None:
        return Compiled(Memory(0, 0, 0, 0, 0), "", False, why)
    return Compiled(_memory(made.memory_analysis()), made.as_text(), not why, why)


def _anyway(lowered, options):
    """What it would be like on larger chips; None if an array alone is too large."""
    try:
        options = options | {"xla_tpu_no_crash_on_oom": True}
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        _reason(error)
        return None


def _memory(m) -> Memory:
    outputs = m.output_size_in_bytes - m.alias_size_in_bytes
    host = m.host_argument_size_in_bytes + m.host_temp_size_in_bytes
    peak = m.peak_memory_in_bytes - host  # the compiler adds them up
    rest = max(0, peak - m.argument_size_in_bytes - outputs)
    return Memory(m.argument_size_in_bytes, outputs, rest, peak, host)


def _reason(error) -> str:
    """What is short of what, from the compiler's error; another one is raised."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        raise error
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) (\w+)", text)
    if found:
        return "needs {} of {} {}".format(*found.groups())
    found = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", text)
    if found:
        return "needs {} of {} hbm".format(*found.groups())
    found = re.search(r"\(size=(\d+)\) would exceed memory \(size=(\d+)\)", text)
    if found:
        return "needs {:.2f}G of {:.2f}G hbm".format(
            *(int(n) / 2**30 for n in found.groups())
        )
    return text.splitlines()[0]
