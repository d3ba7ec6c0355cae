"""A run of several processes on this machine.

They are forked from a process that has imported everything, which takes each of them
seconds otherwise; and what one has compiled the others do not compile again.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time

from tests.conftest import FAST
from tests.tiny import ROOT

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["configs.ppo", "easylm.training.report", "easylm.training.profiler"]
)


def start(flags, count: int, devices: int, logs) -> list:
    """`python -m easylm.train FLAGS` on `count` processes, with so many devices each;
    what they say goes to logs/<number>.log."""
    logs.mkdir(parents=True)
    where = ["--coordinator", f"localhost:{free_port()}", "--processes", str(count)]
    processes = []
    for n in range(count):
        argv = ["easylm.train", *flags, *where, "--process", str(n)]
        given = argv, devices, str(logs / f"{n}.log")
        processes.append(_context.Process(target=_run, args=given))
        processes[-1].start()
    return processes


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def wait_for(path, processes, seconds=300) -> None:
    """Until it is there, all of them running."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert all(process.is_alive() for process in processes), "one has ended"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def codes(processes, seconds=300) -> list[int]:
    """How they end: all of them by themselves."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(end - time.monotonic())
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def _run(argv, devices, log):
    file = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{count} {FAST}"
    _share_programs()
    sys.argv = argv
    runpy.run_module("easylm.train", run_name="__main__", alter_sys=True)


def _share_programs():
    """A CPU has another fingerprint in every process, although the programs are the
    same; without it all of them look for a program under the same name."""
    import jax
    from jax._src import cache_key

    assert cache_key._hash_accelerator_config
    cache_key._hash_accelerator_config = lambda *given: None
    jax.config.update("jax_share_binary_between_hosts", True)
