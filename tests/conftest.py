"""Eight CPU devices for every test, and programs that compile fast, not run fast."""

import os
import tempfile
from importlib.metadata import version

FAST = "--xla_backend_optimization_level=0"
FAST += " --xla_cpu_parallel_codegen_split_count=1"  # pieces cost more than they save
if version("jaxlib").startswith("0.10."):  # later ones have no such switch
    FAST += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"
if "device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = f"--xla_force_host_platform_device_count=8 {FAST}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

# Programs compiled once serve the whole session, subprocesses included.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="easylm-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Begun first, so that no worker is left with one of them when the other is done.
LONG = (
    *("test_processes.py", "test_bucket.py"),
    *("test_train.py", "test_notebooks.py", "test_policy_objective.py"),
    *("test_comparisons.py", "test_compiled.py"),
    *("test_it_learns.py", "test_online.py", "test_sweep.py", "test_hf.py"),
    *("test_online_preference.py", "test_preference_learning.py", "test_study.py"),
)


def pytest_collection_modifyitems(items):
    last = len(LONG)
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, last))
