"""A run that takes seconds, for tests: its data, tokenizer, config and commands."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs import sft
from easylm.training.checkpoint import EXTRA
from tests.conftest import FAST

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def write_data(folder, rows=48):
    """Conversations of uneven length as JSONL; the path."""
    path = folder / "talk.jsonl"
    turns = []
    for i in range(rows):
        answer = " ".join(str(j) for j in range(i, i + 3 + i % 9))
        turns.append([("user", f"Count from {i}."), ("assistant", answer)])
    lines = (
        {"messages": [{"role": r, "content": c} for r, c in turn]} for turn in turns
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def changes(data, steps) -> dict:
    """To configs/sft.py: six updates of a two-layer model on rows of 64 tokens."""
    paths = ("data.mixture.main.path", "eval.mixture.main.path")
    return {
        "tokenizer": "train",
        "model.name": "llama:tiny",
        "model.vocab_size": 320,
        "model.dtype": "float32",
        "model.remat": "none",
        **dict.fromkeys(paths, str(data)),
        "data.length": 64,
        "batch": 8,
        "steps": steps,
        "optimizer.lr": 3e-3,
        "optimizer.schedule": "cosine",
        "optimizer.decay": 0.1,
        "eval.every": 0,
        "sample.every": 0,
        "log.every": 1,
        "log.tensorboard": False,
        "checkpoint.every": 1,
        "checkpoint.keep": 0,
    }


def config(data, steps=6, **more):
    c = sft.study().lock()
    c.update_from_flattened_dict(changes(data, steps) | more)
    return c


def command(data, workdir, *flags, devices=1, steps=6, **kwargs):
    """The same run from the command line, as a subprocess that is not waited for."""
    argv = [sys.executable, "-m", "easylm.train", "--config", "configs/sft.py"]
    argv += ["--workdir", str(workdir)]
    argv += [f"--config.{key}={x}" for key, x in changes(data, steps).items()]
    count = f"--xla_force_host_platform_device_count={devices} {FAST}"
    env = os.environ | {"XLA_FLAGS": count}
    return subprocess.Popen(
        [*argv, *flags], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE, **kwargs
    )


def lines(workdir):
    """metrics.jsonl as dicts."""
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(workdir):
    """{iteration: loss} of a run."""
    return {x["step"]: x["train/loss"] for x in lines(workdir) if "train/loss" in x}


def state(workdir, iteration=6):
    """Everything a checkpoint holds: {name: numpy array}."""
    reader, tree = ocp.StandardCheckpointer(), {}
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    folder = workdir / "checkpoints" / str(iteration)
    for item in ("params", "rest", *EXTRA):
        path = folder / item
        if not path.exists():
            continue
        shapes = jax.tree.map(target, reader.metadata(path).item_metadata.tree)
        tree[item] = reader.restore(path, shapes)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in flat}


def assert_same_run(one, other, iteration=6):
    """Bit for bit: parameters, optimizer, step and every loss on the way."""
    a, b = state(one, iteration), state(other, iteration)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert losses(one) == losses(other)


def killed_after(whole, iteration, folder):
    """What `kill -9` leaves when `iteration` was the last whole checkpoint."""
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name) > iteration:
            shutil.rmtree(path)
    return folder


def docs():
    return pathlib.Path(ROOT) / "docs"
