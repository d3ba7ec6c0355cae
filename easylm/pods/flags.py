"""What the TPU compiler is told, in one place.

`apply` puts the flags where libtpu reads them, before it is loaded; what the user has
in LIBTPU_INIT_ARGS comes after ours, and wins. The planner gives the same flags to the
compiler of an absent slice, so that what is planned is what runs. docs/pods.md has the
share of the traffic that they make asynchronous.
"""

import os

TPU = {
    # Weights of the next layer are gathered, and gradients of the last are scattered,
    # while a layer computes. All of them are needed: alone, none makes a gather of a
    # scanned layer asynchronous.
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
}

# What a compiler without its TPU cannot do. That of tpu7x ends in a failed check where
# it lays an all-reduce on SparseCores (libtpu 0.0.42).
ABSENT = {"tpu7x": {"xla_tpu_enable_sparse_core_collective_offload_all_reduce": False}}


def apply() -> None:
    """To be called before the first use of a device."""
    given = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    ours = [f"--{name}={str(value).lower()}" for name, value in TPU.items()]
    rest = [flag for flag in ours if flag not in given]
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(rest + given)
