"""Functions of a user's own file: found, checked, and as good as ours."""

import os

import jax
import numpy as np
import pytest

from easylm import own
from easylm.data import prompt_formats
from easylm.data.sources import BadRow
from easylm.errors import UserError
from easylm.objectives import preference, reward_model
from easylm.objectives.base import bind_loss
from easylm.rewards import base
from easylm.rewards.workers import Job, Workers

LOSSES = '''
"""Losses of somebody else."""
from jax.nn import softplus
from jax.numpy import mean

def gentle(logps, ref_logps, lengths, *, beta=0.1):
    d = (logps - ref_logps)[:, 0] - (logps - ref_logps)[:, 1]
    return softplus(-beta * d)

def average(logps, ref_logps, lengths):
    return mean(gentle(logps, ref_logps, lengths))

def per_token(logps, ref_logps, lengths):
    return gentle(logps / lengths, ref_logps / lengths, lengths)

def scored(x):
    return softplus(x.scores[:, 1, 0] - x.scores[:, 0, 0]), x.there.all(axis=1)
'''
VERIFIERS = """
from easylm.errors import UserError

def brief(prompt, response, answer, *, words=3):
    return float(len(response.split()) <= words)

def check_brief(answer):
    if answer:
        raise UserError("brief compares with nothing; leave the answer out")
"""
_RNG = np.random.default_rng(0)
NUMBERS = (-_RNG.uniform(5, 30, (2, 6, 2))).astype(np.float32)
LENGTHS = _RNG.integers(5, 30, (6, 2)).astype(np.float32)


@pytest.fixture
def losses(tmp_path):
    (tmp_path / "my_loss.py").write_text(LOSSES)
    return tmp_path / "my_loss.py"


@pytest.fixture
def verifiers(tmp_path):
    (tmp_path / "my_reward.py").write_text(VERIFIERS)
    return tmp_path / "my_reward.py"


def test_a_preference_loss_of_a_file_is_as_good_as_ours(losses):
    mine = preference.judging(f"{losses}:gentle", beta=0.3, nll_weight=0.1)
    ours = preference.judging("dpo", beta=0.3, nll_weight=0.1)
    jax.tree.map(
        np.testing.assert_array_equal, mine(*NUMBERS, LENGTHS), ours(*NUMBERS, LENGTHS)
    )
    assert mine.beta == 0.3 and preference.judging(f"{losses}:gentle").beta == 0.1


def test_a_loss_that_divides_by_lengths_does_not_mind_pairs_that_are_not_there(losses):
    judge = preference.judging(f"{losses}:per_token")
    zeros = np.zeros((2, 2), np.float32)

    def total(logps):
        pairs, _ = judge(logps, zeros, zeros)
        return (pairs.loss * pairs.counts).sum()

    assert np.isfinite(jax.grad(total)(zeros)).all()


def test_a_reward_model_s_loss_of_a_file_is_as_good_as_ours(losses):
    there = LENGTHS > 0
    one = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    shapes = reward_model.Answers(one(1, 2, 1), one(1, 2, 0), one(1, 2), one(1))
    answers = reward_model.Answers(NUMBERS[0][..., None], NUMBERS[:0], LENGTHS, there)
    mine = bind_loss(reward_model.LOSSES, f"{losses}:scored", {}, shapes)(answers)
    ours = reward_model.bradley_terry(answers)
    jax.tree.map(np.testing.assert_allclose, mine, ours)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "my_loss.py:gentel",
            "has gentle, average, per_token, scored; did you mean 'gentle'?",
        ),
        ("my_loss.py:softplus", "no such function; my_loss.py has gentle"),
        ("my_los.py:gentle", r"there is no file .*my_los.py"),
        ("my_loss.py:scored", r"write def scored\(logps, ref_logps, lengths, \.\.\.\)"),
        ("my_loss.py:average", r"shape \(\); give \(1,\), as dpo does"),
        ("gentle", "or FILE.py:NAME for one of your own"),
    ],
)
def test_what_is_wrong_with_a_loss_is_said_before_anything_runs(
    losses, monkeypatch, name, message
):
    monkeypatch.chdir(losses.parent)
    with pytest.raises(UserError, match=message):
        preference.judging(name)


def test_a_verifier_of_a_file_runs_here_and_in_other_processes(verifiers):
    job = lambda text: Job(f"{verifiers}:brief", "", text, "", {"words": 2})
    for processes in (0, 1):
        with Workers(processes) as workers:
            verdicts = workers.score([job("one two"), job("one two three")])
        assert [(v.score, v.failed) for v in verdicts] == [(1.0, ""), (0.0, "")]


def test_a_verifier_s_own_check_of_ground_truth_is_asked(verifiers):
    base.check(f"{verifiers}:brief", "")
    with pytest.raises(UserError, match="leave the answer out"):
        base.check(f"{verifiers}:brief", "42")
    with pytest.raises(UserError, match=r"write def check_brief\(prompt, response"):
        base.get(f"{verifiers}:check_brief")


def test_rows_of_data_cannot_say_which_file_is_run(verifiers):
    row = {"prompt": "Hello", "verifier": f"{verifiers}:brief", "answer": ""}
    with pytest.raises(BadRow, match="set reward.terms.NAME.verifier"):
        prompt_formats.prompt_only(row)


def test_a_file_that_has_changed_is_read_again(verifiers):
    find = lambda name: own.function(f"{verifiers}:{name}", base.PARAMETERS)
    assert find("brief") is find("brief")
    verifiers.write_text(VERIFIERS.replace("brief(prompt", "short(prompt"))
    os.utime(verifiers, (0, 0))
    assert find("short")("", "a b c", "") == 1.0
