"""What notebooks share: runs that are made once and in silence, and their numbers."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

from configs.study import world as presets
from easylm import sweep
from easylm.simulator import annotators
from easylm.study import made
from easylm.study.names import BASE, START
from easylm.train import train
from easylm.training import checkpoint, metrics

SPLITS = ("train", "dev", "test")
STYLE = {  # of plots: plt.rcParams.update(notebook.STYLE)
    "figure.figsize": (7.2, 3.4),
    "figure.dpi": 90,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def run(config, workdir: str) -> str:
    """Trains unless the run is there; what it says goes to WORKDIR/log.txt."""
    if sweep.is_done(workdir, config):
        print(f"{workdir}: there already")
        return workdir
    began = time.monotonic()
    with _silence(workdir):
        train(config, workdir)
    steps, losses = curve(workdir, "train/loss")
    seconds = time.monotonic() - began
    print(f"{workdir}: {steps[-1]} iterations, {seconds:.0f} s, loss {losses[-1]:.3f}")
    return workdir


def policy(root: str) -> str:
    """The fine-tuned model that 01_quickstart leaves, whatever its numbers were; made
    with the study's where there is none."""
    for name, preset in ((BASE, "pretrain_medium"), (START, "sft")):
        if not checkpoint.is_done(f"{root}/{name}"):
            run(preset_of(root, preset), f"{root}/{name}")
    return f"{root}/{START}"


def preset_of(root: str, name: str):
    """A config of configs/study/world.py, locked: a key that it lacks is an error."""
    config = presets.get_config(name).lock()
    config.world.root = root
    return config


def curve(workdir: str, name: str) -> tuple[list[int], list[float]]:
    """The steps at which a number of docs/metrics.md was logged, and its values."""
    rows = [row for row in metrics.read(workdir) if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def kept(path: str, make: Callable[[], list[dict]]) -> list[dict]:
    """The rows of a JSONL file; if it is not there, those that make() gives."""
    file = Path(path)
    if not file.exists():
        rows = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [json.loads(line) for line in file.read_text().splitlines()]


def answers(root: str, part: str, prompts: int, times: int = 4) -> list[dict]:
    """Of the fine-tuned model to so many prompts of each family of a split; kept."""
    asked, writers = made.asked(part, prompts), ((START, 1.0),) * times
    return kept(
        f"{root}/data/answers-{part}.jsonl",
        lambda: made.answered(root, asked, writers, seed=SPLITS.index(part)),
    )


def pairs(root: str, kind: str, prompts: int) -> list[dict]:
    """What annotators of one kind prefer, kept in data/KIND.jsonl."""
    rows = answers(root, "train", prompts)
    return kept(f"{root}/data/{kind}.jsonl", lambda: annotators.pairs(kind, rows))


def held_out(root: str, prompts: int) -> list[dict]:
    """The best and the worst of the answers by the gold mark, in held_out.jsonl."""
    rows = answers(root, "dev", prompts)
    return kept(f"{root}/data/held_out.jsonl", lambda: annotators.pairs("gold", rows))


@contextlib.contextmanager
def _silence(workdir):
    Path(workdir).mkdir(parents=True, exist_ok=True)
    out, err = contextlib.redirect_stdout, contextlib.redirect_stderr
    with (Path(workdir) / "log.txt").open("a") as file, out(file), err(file):
        yield
