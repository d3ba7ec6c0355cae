"""A run of four processes, of two, and of one: the same, whatever happens to them."""

import json
import os
import re
import signal

import numpy as np
import pytest

from configs import ppo
from easylm.models import hf
from easylm.train import PREEMPTED, train
from tests import several, tiny
from tests.rollout import talk

STEPS = 6
CURVES = ("train/loss", "train/value/loss", "objective/scores", "objective/kl")
CURVES += ("eval/rewards/total",)


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    """To configs/ppo.py: a policy and a reward model of one layer, eight prompts."""
    folder = tmp_path_factory.mktemp("ppo")
    tokenizer = talk.sentencepiece(folder)
    for name, options in {
        "policy": {},
        "judge": dict(head="score", score_std=0.1),
    }.items():
        model, params = talk.model(**options)
        hf.save(folder / name, params, model.config, dtype="float32")
        tokenizer.save(str(folder / name))
    prompts = folder / "prompts.jsonl"
    rows = ({"prompt": f"Say {i} to the cat."} for i in range(40))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixtures = {
        f"{part}.mixture.main.{key}": value
        for part in ("data", "eval")
        for key, value in {"path": str(prompts), "format": "prompt_only"}.items()
    }
    return mixtures | {
        "init": str(folder / "policy"),
        "reward.terms.model.model": str(folder / "judge"),
        "reward.terms.model.template": "tulu",
        "reward.no_stop": -1.0,
        "model.dtype": "float32",
        "model.remat": "none",
        "rollout.prompt_length": 56,
        "rollout.max_new_tokens": 8,
        "rollout.stop_strings": ("a", "e", "s"),
        "data.length": 64,
        "eval.mixture.main.max_rows": 8,
        "eval.every": 3,
        "batch": 8,
        "steps": STEPS,
        "objective.epochs": 2,
        "optimizer.lr": 1e-4,
        "log.every": 1,
        "log.tensorboard": False,
        "checkpoint.every": 1,
        "checkpoint.keep": 0,
    }


@pytest.fixture(scope="module")
def whole(changes, tmp_path_factory):
    """The run as one process does it, undisturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    train(configured(changes), workdir)
    return workdir


def configured(changes):
    config = ppo.get_config().lock()
    config.update_from_flattened_dict(changes | {"checkpoint.every": 0})
    return config


def flags(changes, workdir):
    argv = ["--config", "configs/ppo.py", "--workdir", str(workdir)]
    return argv + [f"--config.{name}={value}" for name, value in changes.items()]


def test_a_run_goes_on_when_a_process_is_killed_or_stopped(changes, whole, tmp_path):
    """Of four one is killed; two take over, until one of them is told to stop; one
    does the rest."""
    workdir, logs = tmp_path / "run", tmp_path / "logs"
    argv = flags(changes, workdir)
    four = several.start(argv, 4, 1, logs / "four")
    several.wait_for(workdir / "checkpoints" / "1", four)
    four[2].kill()
    ended = several.codes(four)
    assert ended.pop(2) == -signal.SIGKILL
    assert not {None, 0, 2, PREEMPTED} & set(ended)
    for n in (0, 1, 3):
        assert "another" in (logs / "four" / f"{n}.log").read_text()
    saved = checkpoints(workdir)[-1]

    two = several.start(argv, 2, 2, logs / "two")
    several.wait_for(workdir / "checkpoints" / str(saved + 1), two)
    os.kill(two[1].pid, signal.SIGTERM)
    assert several.codes(two) == [PREEMPTED] * 2
    said = (logs / "two" / "0.log").read_text()
    assert f"resuming after {saved}" in said
    saved = checkpoints(workdir)[-1]
    assert f"stopped and saved after iteration {saved} of {STEPS}" in said

    assert any("perf/data_wait_max" in line for line in tiny.lines(workdir))

    train(configured(changes), workdir)
    assert_same(whole, workdir)


def test_what_only_one_process_notices_ends_all_with_its_code(changes, tmp_path):
    """Process 0 alone opens the tokenizer."""
    wrong = changes | {"tokenizer": "/nowhere"}
    two = several.start(flags(wrong, tmp_path / "run"), 2, 1, tmp_path / "logs")
    assert several.codes(two, seconds=60) == [2, 2]
    said = [(tmp_path / "logs" / f"{n}.log").read_text() for n in (0, 1)]
    line = re.search("^error: (no tokenizer at /nowhere.*)$", said[0], re.M)[1]
    assert f"error: process 0 has failed: {line}\n" in said[1]
    assert "Traceback" not in said[0] + said[1]


def checkpoints(workdir):
    """The iterations of which there is a whole one."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def assert_same(one, other):
    """Curves, parameters, and the answers that process 0 has written."""
    for name in CURVES:
        a, b = (
            {x["step"]: x[name] for x in tiny.lines(folder) if name in x}
            for folder in (one, other)
        )
        assert list(a) == list(b)
        np.testing.assert_allclose(
            list(a.values()), list(b.values()), rtol=1e-3, atol=1e-4, err_msg=name
        )
    a, b = tiny.state(one, STEPS), tiny.state(other, STEPS)
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_allclose(x, b[name], rtol=1e-3, atol=1e-4, err_msg=name)
    told = {(row["step"], row["item"]): row for row in samples(one)}
    mine = samples(other)
    assert {row["step"] for row in mine} == set(range(1, STEPS + 1))
    for row in mine:
        expected = told[row["step"], row["item"]]
        assert row["answer"] == expected["answer"]
        assert row["reward"] == pytest.approx(expected["reward"], abs=1e-3)


def samples(workdir):
    return [json.loads(line) for line in (workdir / "samples.jsonl").open()]
