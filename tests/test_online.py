"""Whole online runs: what is saved, what is written, and how they go on."""

import json

import jax
import numpy as np
import pytest

from configs import common
from easylm import sharding
from easylm.data import formats
from easylm.errors import UserError
from easylm.pods.programs import programs
from easylm.rewards import base
from easylm.train import train
from easylm.training import setup
from scripts import label
from tests import tiny

METHODS = {
    "ppo": {"advantage": "gae", "kl_coef": 0.1, "kl_target": 0.1, "epochs": 2},
    "grpo": {"advantage": "group_mean", "kl_coef": 0.0, "minibatches": 2},
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Questions with the answer that a verifier looks for."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = (
        {"prompt": f"Say {i}.", "verifier": "contains", "answer": "1"}
        for i in range(40)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model that has been trained for one update."""
    folder = tmp_path_factory.mktemp("start")
    data = tiny.write_data(folder)
    train(tiny.config(data, steps=1), str(folder / "sft"))
    return folder / "sft"


def config(prompts, start, method="ppo", steps=4, **changes):
    c = common.base()
    common.policy_gradient(c, "gae")
    common.online(c, prompt_length=32, max_new_tokens=16)
    c.value = {"path": "", "optimizer": {"lr": 1e-3}}
    c.data.mixture.main = common.source(str(prompts), "prompt_only")
    c.reward.terms.data = common.term(verifier="data")
    c.reward.no_stop = 0.25
    c.reward.processes = 0
    c.init = str(start)
    c.rollout.group = 2
    c.rollout.rows = 8
    c.model.dtype = "float32"
    c.batch = 8
    c.steps = steps
    c.log.every = 1
    c.log.tensorboard = False
    c.checkpoint.every = 2
    c.checkpoint.keep = 0
    c.optimizer.lr = 1e-3
    c.lock()
    options = {f"objective.{name}": x for name, x in METHODS[method].items()}
    c.update_from_flattened_dict(options | changes)
    return c


@pytest.fixture(scope="module")
def recorded(prompts, start, tmp_path_factory):
    """The folder of a run, and what its first update was given."""
    folder, given = tmp_path_factory.mktemp("whole") / "run", []
    make_step = setup.make_step

    def recording(*parts):
        step = make_step(*parts)

        def record(state, batch):
            given.append(shapes((state.params, state.opt_state, batch)))
            return step(state, batch)

        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_step", recording)
        train(config(prompts, start), str(folder))
    return folder, given[0]


def shapes(tree):
    """Of every array: shape, dtype, and the shape of what a device holds of it."""
    part = lambda x: x.sharding.shard_shape(x.shape)
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), part(x)), tree)


@pytest.fixture(scope="module")
def whole(recorded):
    return recorded[0]


def test_what_is_planned_is_what_runs(recorded, prompts, start):
    c = config(prompts, start)
    planned = programs(c, sharding.make_layout(c.mesh)).programs[-1].trees
    *state, batch = recorded[1]
    assert shapes(planned[:2]) == tuple(state)
    rows, most = (b["seqs"].tokens[0][0] for b in (batch, shapes(planned[2])))
    assert rows <= most  # answers may be shorter
    of_a_row = lambda tree: jax.tree.map(
        lambda x: (x[0][1:], x[1]), tree, is_leaf=lambda x: type(x) is tuple
    )
    assert of_a_row(batch) == of_a_row(shapes(planned[2]))


def test_a_resumed_run_is_the_uninterrupted_one(whole, prompts, start, tmp_path):
    """Bit for bit: policy, value model, both optimizers, and the KL coefficient."""
    resumed = tiny.killed_after(whole, 2, tmp_path / "run")
    train(config(prompts, start), str(resumed))
    tiny.assert_same_run(whole, resumed, iteration=4)
    names = tiny.state(whole, 4)
    assert any("value" in name and "score" in name for name in names)
    assert any("kl_coef" in name for name in names)
    samples = [(folder / "samples.jsonl").read_text() for folder in (whole, resumed)]
    assert samples[0] == samples[1]


def test_samples_are_written_with_their_rewards(whole):
    rows = [json.loads(line) for line in (whole / "samples.jsonl").open()]
    assert [sum(row["step"] == i for row in rows) for i in (1, 2, 3, 4)] == [16] * 4
    row = rows[0]
    assert row["prompt"].startswith("Say ")
    expected = 1.0 if "1" in row["answer"] else 0.0
    assert row["rewards"]["data"] == expected
    assert row["reward"] == (expected if row["finished"] else 0.25)


def test_what_is_logged_adds_up(whole):
    for line in tiny.lines(whole):
        if "objective/kl" not in line:
            continue
        assert line["rollout/logp_gap"] < 1e-4
        np.testing.assert_allclose(
            line["objective/rlhf_reward"],
            line["objective/scores"] + line["objective/non_score_reward"],
            atol=1e-6,
        )
        shares = [x for name, x in line.items() if name.startswith("perf/share_")]
        assert not shares or abs(sum(shares) - 1) < 1e-6


def test_groups_dynamic_sampling_and_other_text_run(prompts, start, tmp_path):
    data = tiny.write_data(tmp_path)
    changes = {"objective.ptx_weight": 0.1, "ptx.batch": 8, "rollout.rounds": 2}
    c = config(prompts, start, "grpo", steps=2, **changes)
    with c.unlocked():
        c.ptx.mixture.main = common.source(str(data))
    final = train(c, str(tmp_path / "run"))
    assert final["train/ptx/loss"] > 0
    assert final["rollout/rounds"] in (1.0, 2.0)


def test_labels_by_majority_are_prompts_again(prompts, start, tmp_path, capsys):
    """Of a model's own answers; with --wrong, only where they are not the truth."""
    out = tmp_path / "labels.jsonl"
    argv = ["--model", str(start), "--data", str(prompts), "--out", str(out)]
    argv += ["--verifier", "gsm8k", "--samples", "4", "--max_new_tokens", "16"]
    argv += ["--max_rows", "8", "--batch", "8"]
    label.main(argv)
    read = formats.get("prompt_only")
    rows = [read(json.loads(line)) for line in out.open()]
    assert f"{len(rows)} of 8 prompts have a label" in capsys.readouterr().out
    assert all(base.get(v)("", a, a) == 1.0 for r in rows for v, a in r["verifiers"])
    label.main([*argv, "--wrong"])
    wrong = [read(json.loads(line)) for line in out.open()]
    assert wrong == [r for r in rows if float(r["verifiers"][0][1]) != 1]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {
                "objective.interleaved": True,
                "objective.kl_target": 0.0,
                "microbatches": 2,
                "batch": 16,
            },
            "set microbatches=1",
        ),
        ({"reference.path": "none"}, "objective.kl_coef=0, or reference.path"),
        ({"data.length": 40}, "set it to 48 or more"),
        ({"data.too_long": "truncate"}, "too_long='drop'"),
        ({"reward.terms.data.weight": 0.0}, "no reward: set a model or a verifier"),
        ({"reward.terms.data.verifier": "contain"}, "did you mean 'contains'"),
        ({"reward.terms.data.transform": "tanh"}, "transform 'tanh' is not one of"),
        ({"reward.terms.data.model": "x"}, "set model, or verifier"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(prompts, start, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config(prompts, start, **changes), str(tmp_path))
