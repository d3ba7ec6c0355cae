"""Preference learning and reward models through the loop: what a run leaves behind."""

import json
import re

import numpy as np
import pytest

from configs import preference, reward_model
from easylm.errors import UserError
from easylm.evals.scoring import load_scorer
from easylm.train import train
from easylm.training import checkpoint
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Yes is right, no is wrong, whatever comes after it."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = []
    for i in range(40):
        prompt = {"role": "user", "content": f"Count from {i}."}
        count = " ".join(str(j) for j in range(i, i + 3 + i % 5))
        says = lambda word, count=count: {"role": "assistant", "content": word + count}
        pair = {"chosen": says("yes "), "rejected": says("no ")}
        lines.append({side: [prompt, answer] for side, answer in pair.items()})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config(make, data, steps=6, **changes):
    c = make.study()
    c.tokenizer = "train"
    c.model.name = "llama:tiny"
    c.model.vocab_size = 320
    c.model.dtype = "float32"
    c.model.remat = "none"
    c.mesh = "data"
    c.microbatches = 1
    c.data.mixture.main.path = c.eval.mixture.main.path = str(data)
    c.data.length = 128
    c.data.answer_length = 64
    c.data.items_per_update = 8
    c.data.items_per_row = 4
    c.batch = 8
    c.steps = steps
    c.optimizer.lr = 1e-2
    c.log.every = 1
    c.log.tensorboard = False
    c.checkpoint.every = 3
    c.checkpoint.keep = 0
    c.eval.every = 6
    c.lock()
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def dpo(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dpo")
    train(config(preference, data), workdir)
    return workdir


@pytest.fixture(scope="module")
def rewards(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rewards")
    train(config(reward_model, data), workdir)
    return workdir


def test_dpo_starts_at_log_2_and_learns_the_preference(dpo):
    losses = tiny.losses(dpo)
    np.testing.assert_allclose(losses[1], np.log(2), rtol=1e-5)
    assert losses[6] < losses[1] - 0.05
    before, after = (x for x in tiny.lines(dpo) if "eval/margin" in x)
    assert before["eval/margin"] == 0 and before["eval/pairs"] == 40
    assert after["eval/accuracy"] > 0.8 and after["eval/margin"] > 0
    assert [x["train/pairs"] for x in tiny.lines(dpo) if "train/pairs" in x] == [8] * 6


def test_a_reward_model_learns_and_scores_what_it_learnt(rewards, data):
    *_, after = (x for x in tiny.lines(rewards) if "eval/accuracy" in x)
    assert after["eval/accuracy"] > 0.8
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    score = load_scorer(rewards, length=64, batch=8)
    good, bad = (score([row[side] for row in rows]) for side in ("chosen", "rejected"))
    assert np.mean(good > bad) == pytest.approx(after["eval/accuracy"])
    np.testing.assert_allclose(np.mean(good - bad), after["eval/margin"], rtol=1e-4)
    one = load_scorer(rewards, length=64, batch=8)([rows[3]["chosen"]])
    np.testing.assert_allclose(one[0], good[3], rtol=1e-5)


def test_everything_logged_is_documented(dpo, rewards):
    page = (tiny.docs() / "metrics.md").read_text()
    documented = set(re.findall(r"\| `([\w/]+)` \|", page))
    for workdir in (dpo, rewards):
        logged = {name for line in tiny.lines(workdir) for name in line}
        assert logged - {"step", "time"} <= documented


def test_a_resumed_run_keeps_its_reference(data, dpo, tmp_path):
    """The reference comes from the config, not from the parameters it resumes with."""
    workdir = tiny.killed_after(dpo, 3, tmp_path / "run")
    train(config(preference, data), workdir)
    tiny.assert_same_run(workdir, dpo)


def test_a_cached_reference_gives_the_same_run(data, dpo, tmp_path):
    cache = str(tmp_path / "reference.npz")
    train(config(preference, data, **{"reference.cache": cache}), tmp_path / "run")
    ours, theirs = tiny.losses(tmp_path / "run"), tiny.losses(dpo)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-5)
    assert {p.name for p in tmp_path.glob("*.npz")} == {
        "reference-train.npz",
        "reference-eval.npz",
    }


def test_a_reference_that_moves_is_saved_with_the_run(data, tmp_path):
    options = {"objective.sync_every": 2, "objective.sync_share": 0.5, "eval.every": 0}
    moving = config(preference, data, **options)
    train(moving, tmp_path / "whole")
    workdir = tiny.killed_after(tmp_path / "whole", 3, tmp_path / "run")
    train(moving, workdir)
    assert tiny.losses(workdir) == tiny.losses(tmp_path / "whole")
    loaded = checkpoint.load_for_inference(workdir)
    assert "reference" not in loaded.params


def test_a_reference_with_another_vocabulary_is_refused(data, dpo, tmp_path):
    other = config(
        preference, data, **{"reference.path": str(dpo), "model.vocab_size": 384}
    )
    with pytest.raises(UserError, match="vocabulary of 320, the policy one of 384"):
        train(other, tmp_path / "run")


def test_kto_with_unpaired_answers(data, tmp_path):
    """Half of the data has only good answers, half only bad ones."""
    lines = []
    for i, row in enumerate(map(json.loads, data.read_text().splitlines())):
        side = ("chosen", "rejected")[i % 2]
        prompt, answer = (turn["content"] for turn in row[side])
        lines.append({"prompt": prompt, "completion": answer, "label": i % 2 == 0})
    path = tmp_path / "unpaired.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unpaired = {"data.mixture.main.format": "unpaired", "objective.loss": "kto"}
    made = config(preference, path, **unpaired | {"eval.every": 0})
    train(made, tmp_path / "run")
    first, *_, last = (x for x in tiny.lines(tmp_path / "run") if "train/loss" in x)
    assert first["train/loss"] == pytest.approx(0.5, rel=1e-4)  # 1 - s(0), one side
    assert last["train/loss"] < first["train/loss"] - 0.01
    assert first["train/pairs"] == 8
