"""The stages of the study on the embedded world, in order, each done once.

A stage leaves a folder or a file in the root; what is there is not made again, so a
stopped study goes on where it was. Runs are ordinary runs of configs/study/world.py.
"""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from configs.study import world as presets
from easylm import sweep
from easylm.simulator import annotators
from easylm.study import made
from easylm.study.names import BASE, START

CONFIG = "configs/study/world.py"


class Scale(NamedTuple):
    """How much of the study is run."""

    prompts: int  # of each family, that preference data is made of
    candidates: int  # test prompts of each family, for best of 16
    sources: tuple[str, ...]  # of preference data, for DPO
    sizes: tuple[str, ...]  # of models
    judges: tuple[tuple[str, str], ...]  # (size, data) of the reward models
    online: tuple[tuple[str, str], ...]  # (judge, prompts) of the runs of PPO
    betas: tuple[float, ...] = ()  # of DPO on fine-grained data, beside the usual one
    kls: tuple[float, ...] = ()  # coefficients of PPO, beside the usual one
    seeds: tuple[int, ...] = (0,)


MINI = Scale(
    prompts=150,
    candidates=24,
    sources=("fine_grained", "web", "arena"),
    sizes=("small", "medium"),
    judges=(
        *(("small", "fine_grained"), ("small", "mix")),
        *(("medium", "fine_grained"), ("medium", "mix")),
    ),
    online=(("medium-fine_grained", "general"),),
)


SIZES, MIXES = ("medium", "large"), ("fine_grained", "mix")
FULL = Scale(
    prompts=250,
    candidates=60,
    sources=annotators.SOURCES,
    sizes=("small", "medium", "large"),
    judges=(
        *((size, data) for size in SIZES for data in MIXES),
        *(("medium", "web"), ("medium", "arena")),
    ),
    online=(
        *((f"{size}-{data}", "general") for size in SIZES for data in MIXES),
        *(("medium-web", "general"), ("medium-arena", "general")),
        *((f"{s}-fine_grained", p) for s in SIZES for p in ("reasoning", "mixed")),
    ),
    betas=(0.02, 0.05, 0.3),
    kls=(0.0, 0.02, 0.2),
    seeds=(0, 1, 2),
)
SCALES = {"mini": MINI, "full": FULL}


class Stage(NamedTuple):
    name: str
    weight: float  # seconds that it may take, relative to the others
    make: Callable[[], None]
    done: Callable[[], bool]
    command: str = ""  # that does the same, if it is a run


def stages(scale: Scale, root: str, seed: int = 0) -> list[Stage]:
    """In the order in which they need one another."""
    run, write = partial(_run, root, seed), partial(_write, root)
    tuning = _tuning(scale, run)
    found = [*_models(scale, run), *_data(scale, seed, write), *tuning]
    policies = [START, BASE]  # the first is what others are against
    policies += [stage.name for stage in tuning if is_policy(stage.name)]
    for name in policies:
        found.append(write(f"evals/{name}.json", 10, made.evaluation, name))
    found.append(write("data/candidates.jsonl", 40, made.candidates, scale, seed))
    for size, data in scale.judges:
        name = f"judge-{size}-{data}"
        found.append(write(f"evals/{name}.json", 10, made.judging, name))
    return found


def go(todo: list[Stage], root: str) -> None:
    """Makes what is not there yet, and says how far it is."""
    left = [stage for stage in todo if not stage.done()]
    if len(left) < len(todo):
        print(f"{len(todo) - len(left)} of {len(todo)} stages are done already")
    pace, seconds, weights = 1.0, 0.0, 0.0
    for number, stage in enumerate(left, len(todo) - len(left) + 1):
        ahead = sum(s.weight for s in left[number - len(todo) - 1 :])
        line = f"[{number:>2}/{len(todo)}] {stage.name:<40}"
        print(f"{line} about {_minutes(ahead * pace)} left", end="", flush=True)
        began = time.monotonic()
        with _quiet(Path(root) / "log" / f"{stage.name.replace('/', '-')}.txt"):
            stage.make()
        spent = time.monotonic() - began
        _note(root, stage.name, spent)
        seconds, weights = seconds + spent, weights + stage.weight
        pace = seconds / weights
        print(f"\r{line} {_minutes(spent):>20}", flush=True)


def spent(root: str) -> dict[str, float]:
    """Seconds of each stage, over all times that it was begun."""
    path, found = Path(root) / "seconds.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        found[row["stage"]] = found.get(row["stage"], 0.0) + row["seconds"]
    return found


def is_policy(name: str) -> bool:
    return name.split("-")[0] in ("dpo", "ppo", "grpo")


def _models(scale, run):
    for size in scale.sizes:
        yield run(f"pretrain-{size}", f"pretrain_{size}", 60)
        yield run(f"sft-{size}", "sft", 60, {"world.size": size})


def _data(scale, seed, write):
    yield write("data/answers.jsonl", 40, made.answers, scale, seed)
    yield write("data/dev.jsonl", 20, made.dev_pairs, seed)
    for source in dict.fromkeys((*scale.sources, *(d for _, d in scale.judges))):
        yield write(f"data/{source}.jsonl", 1, made.pairs, seed, source)
    for name in (*dict.fromkeys(p for _, p in scale.online), "verifiable", "dev"):
        yield write(f"data/prompts-{name}.jsonl", 1, made.prompts, name)


def _tuning(scale, run) -> list[Stage]:
    found = []
    for size, data in scale.judges:
        changes = {"world.size": size, "world.data": data}
        found.append(run(f"judge-{size}-{data}", "judge", 25, changes))
    for data in scale.sources:
        found.append(run(f"dpo-{data}", "dpo", 40, {"world.data": data}))
    for beta in scale.betas:
        changes = {"world.data": "fine_grained", "objective.beta": beta}
        found.append(run(f"dpo-fine_grained-beta={beta}", "dpo", 40, changes))
    for judge, prompts in scale.online:
        changes = {"world.judge": judge, "world.prompts": prompts}
        found.append(run(f"ppo-{judge}-{prompts}", "ppo", 100, changes))
    for kl in scale.kls:
        name = f"ppo-medium-fine_grained-general-kl={kl}"
        found.append(run(name, "ppo", 100, {"objective.kl_coef": kl}))
    found.append(run("grpo", "grpo", 80))
    return found


def _run(root, seed, name, preset, weight, changes=None) -> Stage:
    folder = f"{root}/{name}"
    changes = {"world.root": root, "seed": seed, **(changes or {})}

    def config():
        made = presets.get_config(preset)
        made.update_from_flattened_dict(changes)
        return made.lock()

    def make():
        from easylm import train

        train.train(config(), folder)

    command = ["python", "-m", "easylm.train", "--config", f"{CONFIG}:{preset}"]
    command += ["--workdir", folder]
    command += [f"--config.{key}={value}" for key, value in changes.items()]
    done = lambda: sweep.is_done(folder, config())
    return Stage(name, weight, make, done, shlex.join(command))


def _write(root, name, weight, function, *args) -> Stage:
    """A file of rows, or of one value, that is there whole or not at all."""
    path = Path(root) / name

    def make():
        value = function(root, *args)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        lines = value if path.suffix == ".jsonl" else [value]
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.rename(path)

    return Stage(name, weight, make, path.exists)


@contextlib.contextmanager
def _quiet(path: Path):
    """What a stage prints goes to a file; if it fails, where that is is said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        except BaseException:
            print(f"\nthe last stage did not end: {path}", file=sys.stderr)
            raise


def _note(root, name, seconds) -> None:
    with (Path(root) / "seconds.jsonl").open("a") as file:
        file.write(json.dumps({"stage": name, "seconds": round(seconds, 1)}) + "\n")


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
