"""Stages made by several processes at once, each as soon as what it needs is there.

A process makes one stage after another. What a stage prints goes to log/STAGE.txt in
its root.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from easylm.errors import UserError

Plan = Callable[[], list]  # the stages of a root; it is called by every process


def go(plans: dict[str, Plan], jobs: int, ended: Callable[[str], None]) -> None:
    """Makes what is not there yet, and says how far it is.

    plans: {root: plan}. ended(root) is called when all stages of a root are there.
    """
    stages = {(root, s.name): s for root, plan in plans.items() for s in plan()}
    left = {key: stage for key, stage in stages.items() if not stage.done()}
    if len(left) < len(stages):
        print(f"{len(stages) - len(left)} of {len(stages)} stages are done already")
    open_roots = {root: {k for k in left if k[0] == root} for root in plans}
    for root in plans:
        if not open_roots[root]:
            ended(root)
    clock = _Clock(left.values(), jobs)
    with _workers(plans, min(jobs, len(left))) as idle:
        busy: dict[Connection, tuple] = {}
        while left:
            for key in _ready(left, busy.values())[: len(idle)]:
                idle[-1].send(key)
                busy[idle.pop()] = key
            _show(f"{', '.join(n for _, n in busy.values())}; {clock}")
            for worker in wait(list(busy)):
                key = root, name = busy.pop(worker)
                seconds, device = _received(worker, root, name)
                idle.append(worker)
                clock.done(left.pop(key))
                _note(root, stage=name, seconds=round(seconds, 1), device=device)
                number = len(stages) - len(left)
                _show("")
                line = f"[{number:>2}/{len(stages)}] {name:<44}{minutes(seconds):>14}"
                print(line, flush=True)
                open_roots[root].discard(key)
                if not open_roots[root]:
                    ended(root)


def spent(root: str) -> dict[str, float]:
    """Seconds of each stage, without those of a time that it was stopped."""
    path, found = Path(root) / "seconds.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        found[row["stage"]] = found.get(row["stage"], 0.0) + row["seconds"]
    return found


def devices(root: str) -> list[str]:
    """What its stages ran on."""
    rows = map(json.loads, (Path(root) / "seconds.jsonl").read_text().splitlines())
    return list(dict.fromkeys(row["device"] for row in rows))


def minutes(seconds: float) -> str:
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest:02} s" if whole else f"{rest} s"


class _Clock:
    """How long it takes, from the weights of stages and the pace so far."""

    def __init__(self, stages, jobs):
        self._ahead, self._behind = sum(s.weight for s in stages), 0.0
        self._jobs, self._began = jobs, time.monotonic()

    def done(self, stage) -> None:
        self._ahead -= stage.weight
        self._behind += stage.weight

    def __str__(self) -> str:
        seconds = time.monotonic() - self._began
        pace = seconds / self._behind if self._behind else 1 / self._jobs
        return f"about {minutes(self._ahead * pace)} left"


def _ready(left, busy) -> list[tuple]:
    """What nobody makes yet, and everything it needs is there; in order."""
    waits = lambda key: any((key[0], name) in left for name in left[key].needs)
    return [key for key in left if key not in busy and not waits(key)]


@contextlib.contextmanager
def _workers(plans, count: int) -> Iterator[list[Connection]]:
    """Connections to so many processes; whatever ends this, ends them."""
    context = multiprocessing.get_context("spawn")
    found = []
    try:
        for number in range(count):
            here, there = context.Pipe()
            share = cores()[number::count]
            process = context.Process(target=_work, args=(there, plans, share))
            process.start()
            there.close()
            found.append((here, process))
        yield [here for here, _ in found]
    finally:
        for here, _ in found:
            here.close()  # who has nothing to do goes,
        for _, process in found:
            process.join(1)
            if process.is_alive():
                process.terminate()  # and a run saves what it has
        for _, process in found:
            process.join()


def cores() -> list[int]:
    """The numbers of those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count()))


def _work(connection, plans, share) -> None:
    """Makes the stages that it is sent the keys of, and says how long each took."""
    if hasattr(os, "sched_setaffinity"):  # threads of two that share cores get nowhere
        os.sched_setaffinity(0, share)
    stages = {(root, s.name): s for root, plan in plans.items() for s in plan()}
    with contextlib.suppress(EOFError, KeyboardInterrupt):  # those who ask have gone
        while True:
            root, name = connection.recv()
            began, good = time.monotonic(), True
            _write_to(_log(root, name))
            try:
                stages[root, name].make()
            except Exception:
                traceback.print_exc()
                good = False
            connection.send((good, time.monotonic() - began, _device()))


def _device() -> str:
    import jax

    found = jax.devices()
    return f"{len(found)} x {found[0].device_kind}"


def _received(worker, root, name) -> tuple[float, str]:
    """How many seconds the stage took, and on what."""
    try:
        good, *found = worker.recv()
    except EOFError:
        good = False
    if not good:
        raise UserError(f"the stage {name} did not end; {_log(root, name)} says why")
    return tuple(found)


def _write_to(path: Path) -> None:
    """What this process says from now on, its libraries in C++ included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    with path.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def _log(root, name) -> Path:
    return Path(root) / "log" / f"{name.replace('/', '-')}.txt"


def _note(root, **row) -> None:
    with (Path(root) / "seconds.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _show(line: str) -> None:
    """What is going on now, on a terminal only."""
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)
