"""Sweeps: the points of a function in a config file, planned, run and collected.

    def sweep_beta(add):
        for seed in range(3):
            for beta in (0.01, 0.1):
                add({"objective.beta": beta, "seed": seed})

Every point is a run in WORKDIR/<name>; the name is what differs between the points, as
in beta=0.1,seed=0. Whether a run is finished, and whether the run found in its folder
is this one, is read from what it left there, so a sweep needs no state of its own.
"""

import difflib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import ClassVar, NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from easylm.errors import UserError, parse
from easylm.evals.results import Run

STOPPED = os.EX_TEMPFAIL  # 75, easylm.train's PREEMPTED: the same command goes on


class Point(NamedTuple):
    """One run of a sweep."""

    name: str
    values: dict  # what differs between the points: {the short name of a key: value}
    workdir: str
    command: list[str]
    done: bool
    config: ConfigDict | None = None  # what the command runs


def names(config: str) -> dict[str, str]:
    """The sweeps of a config file: {name: first line of its docstring}."""
    docs = {name: f.__doc__ or "" for name, f in _sweeps(config).items()}
    return {name: doc.strip().partition("\n")[0] for name, doc in docs.items()}


def plan(config: str, sweep: str, workdir: str, given=()) -> list[Point]:
    """All points, checked against the config and against what their folders hold.

    `config` is FILE or FILE:PRESET, `given` are --config.key=value flags for all runs.
    """
    changes = _changes(config, sweep)
    made, texts = [], []
    for number, change in enumerate(changes, 1):
        where = f"sweep_{sweep}, point {number}"
        wanted = _config(config, given, change, where)
        texts.append(_flags(change, wanted))
        made.append(_read_back(config, [*given, *texts[-1]], wanted, where))
    points = []
    for found, text, values in zip(made, texts, _differing(changes, made), strict=True):
        name = ",".join(f"{k}={_short(v)}" for k, v in values.items()) or "default"
        folder = os.fspath(epath.Path(workdir) / name)
        command = ["python", "-m", "easylm.train", "--config", config]
        command += ["--workdir", folder, *given, *text]
        done = is_done(folder, found)
        points.append(Point(name, values, folder, command, done, found))
    _check_unique(sweep, [point.name for point in points])
    return points


def commands(points: list[Point]) -> str:
    """A line for the shell per point; those of finished runs are comments."""
    lines = (shlex.join(p.command) for p in points)
    return "\n".join(
        f"# finished: {line}" if p.done else line
        for p, line in zip(points, lines, strict=True)
    )


def run(points: list[Point]) -> int:
    """Runs what is not finished, one after the other, up to a failure. The exit code.

    A run that was interrupted goes on where it was. SIGTERM and Ctrl-C reach the run,
    which saves; the code is then 75, and the same command goes on.
    """
    todo, code, ran = [p for p in points if not p.done], 0, 0
    with _Relay() as relay:
        for number, point in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {shlex.join(point.command)}", flush=True)
            code = relay.call([sys.executable, *point.command[1:]])
            ran += code == 0
            if code or relay.asked:
                break
    left = len(todo) - ran
    if relay.asked and left:
        code = STOPPED
    if code == STOPPED:
        print(f"stopped in {point.name}; the same command goes on", file=sys.stderr)
    elif code:
        said = f"error: {point.name} ended with exit code {code}; it says why above"
        print(said, file=sys.stderr)
    done = len(points) - len(todo)
    print(f"{ran} ran, {done} skipped (finished before), {left} left")
    return code


def collect(points: list[Point]) -> list[Run]:
    """The last value of every metric of the finished runs; None for the others."""
    return [
        Run(p.name, p.values, _last_values(p.workdir) if p.done else None)
        for p in points
    ]


def is_done(workdir: str, config: ConfigDict) -> bool:
    """Whether this run has come to its end; another run in its place is an error."""
    if not (epath.Path(workdir) / "run.json").exists():
        return False
    from easylm.training import checkpoint  # takes seconds, and a new sweep needs none

    checkpoint.check_same_run(workdir, config)
    return checkpoint.is_done(workdir)


def nearest(word: str, known) -> str:
    """The one most like `word`, where "beta" is quite like "objective.beta"."""
    like = lambda a, b: difflib.SequenceMatcher(None, a, b).ratio()
    return max(known, key=lambda k: like(word, k) + like(_last(word), _last(k)))


def _sweeps(config: str) -> dict:
    """Every sweep_NAME of the config's file, by NAME."""
    path = config.split(":", 1)[0]
    if not Path(path).is_file():
        raise UserError(f"there is no config file {path}")
    spec = importlib.util.spec_from_file_location("sweep_config", path)
    if spec is None:
        raise UserError(f"{path} is not a config file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = {
        k.removeprefix("sweep_"): v
        for k, v in vars(module).items()
        if k.startswith("sweep_")
    }
    if not found:
        raise UserError(f"{path} has no sweeps; write def sweep_NAME(add): ... in it")
    return found


def _changes(config: str, sweep: str) -> list[dict]:
    """What the sweep's function adds."""
    known = _sweeps(config)
    if sweep not in known:
        raise UserError(
            f"no sweep {sweep!r} in {config}; did you mean {nearest(sweep, known)}?"
            f" There are {', '.join(known)}"
        )
    changes = []
    known[sweep](changes.append)
    for number, change in enumerate(changes, 1):
        if not isinstance(change, dict):
            raise UserError(
                f"sweep_{sweep}, point {number}: add() was given {change!r}; give a"
                ' dict such as {"optimizer.lr": 1e-5}'
            )
    if not changes:
        raise UserError(f"sweep_{sweep} of {config} has no points; it never calls add")
    return changes


def _config(config: str, given, change: dict, where: str) -> ConfigDict:
    """The locked config with the flags given and the changes of a point."""
    made = _parsed(config, given)
    leaves = _leaves(made)
    flagged = {flag.partition("=")[0].removeprefix("--config.") for flag in given}
    for key, value in change.items():
        if key not in leaves:
            inside = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
            near = nearest(str(key), inside or leaves)
            raise UserError(
                f"{where}: the config has no value {key!r}; did you mean {near}?"
            )
        if key in flagged:
            raise UserError(f"{where} sets {key} itself; leave out --config.{key}")
        try:
            made.update_from_flattened_dict({key: value})
        except (TypeError, ValueError):
            group, _, last = key.rpartition(".")
            kind = (_get(made, group) if group else made).get_type(last)
            raise UserError(
                f"{where}: {key} = {value!r} is of type {type(value).__name__}, the"
                f" config wants {kind.__name__}"
            ) from None
    return made


def _parsed(config: str, given) -> ConfigDict:
    """What easylm.train would run with these flags."""
    values, argv = flags.FlagValues(), ["sweep", "--config", config, *given]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    parse(argv, values)
    return values.config


def _flags(change: dict, made: ConfigDict) -> list[str]:
    """The changes for a command line, which has no word for None."""
    found = {key: _get(made, key) for key in change}
    return [f"--config.{k}={v}" for k, v in found.items() if v is not None]


def _read_back(config: str, given, wanted: ConfigDict, where: str) -> ConfigDict:
    """The config that a run with these flags has: if it is not the wanted one, none."""
    try:
        made = _parsed(config, given)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if made.to_json_best_effort() != wanted.to_json_best_effort():
        raise UserError(
            f"{where} has a value, such as None, that no flag can say; put it into a"
            " preset of the config"
        )
    return made


def _differing(changes: list[dict], made: list[ConfigDict]) -> list[dict]:
    """What each point has where they differ; all that it sets if it is the only one."""
    keys = list(dict.fromkeys(key for change in changes for key in change))
    if len(made) > 1:
        keys = [key for key in keys if len({repr(_get(c, key)) for c in made}) > 1]
    # "seed" means the seed of the run, also where another key ends like that.
    lasts = [_last(key) for key in {"seed", *keys}]
    labels = {k: _last(k) if lasts.count(_last(k)) == 1 else k for k in keys}
    return [{label: _get(c, key) for key, label in labels.items()} for c in made]


def _check_unique(sweep: str, found: list[str]) -> None:
    for number, name in enumerate(found, 1):
        first = found.index(name) + 1
        if first < number:
            raise UserError(
                f"sweep_{sweep}: points {first} and {number} are both named {name};"
                " leave one out, or let their values differ in letters or digits"
            )


def _short(value) -> str:
    """For the name of a folder: 1e-05, tulu, the end of a path."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(float(value))
    if isinstance(value, int):
        return str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value))[-40:].strip("-")


def _leaves(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted keys of all values."""
    keys = []
    for key, value in config.items():
        group = isinstance(value, ConfigDict)
        keys += _leaves(value, f"{prefix}{key}.") if group else [prefix + key]
    return keys


def _get(config: ConfigDict, key: str):
    return reduce(getitem, key.split("."), config)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _last_values(workdir: str) -> dict[str, float]:
    """The last value of each number in metrics.jsonl."""
    from easylm.training import metrics  # see is_done

    last = {}
    for row in metrics.read(workdir):
        last |= row
    if not last:
        raise UserError(f"{workdir} has no metrics.jsonl any more; remove it and rerun")
    numbers = {k: v for k, v in last.items() if k not in ("step", "time")}
    return {k: float(v) for k, v in numbers.items() if _is_number(v)}


def _is_number(value) -> bool:
    """Not a sampled text; JSON has no NaN, so metrics.jsonl writes these in words."""
    return not isinstance(value, str) or value in ("NaN", "Infinity", "-Infinity")


class _Relay:
    """Runs a command, and passes on the signals that ask this process to stop.

    A terminal, and some schedulers, send the signal to the run as well, and a run that
    gets the same one twice dies without saving. So each is passed on as the other.
    """

    OTHER: ClassVar = {
        signal.SIGINT: signal.SIGTERM,
        signal.SIGTERM: signal.SIGINT,
    }

    def __enter__(self):
        self.asked, self._process = False, None
        self._old = {n: signal.signal(n, self._pass_on) for n in self.OTHER}
        return self

    def __exit__(self, *error):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def call(self, command: list[str]) -> int:
        """The exit code, as a shell gives it."""
        self._process = subprocess.Popen(command)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _pass_on(self, number, frame):
        self.asked = True
        if self._process is not None:
            self._process.send_signal(self.OTHER[number])
