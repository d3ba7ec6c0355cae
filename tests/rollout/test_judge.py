"""What an answer is worth, by hand: terms, weights, rules, and what is logged."""

import jax
import numpy as np
import pytest

from easylm.errors import UserError
from easylm.rewards.workers import Workers
from easylm.rollout.judge import Judge, Term, check_example
from tests.rollout.made import ask, samples

KEY = jax.random.key(0)
ROWS = [ask("one?", ("contains", "one")), ask("two?", ("contains", "two"))]
TEXTS = ["one", "two two", "two one", "one", "x", "y"]  # the last two are not there


def answered(**changes):
    """Two answers to each of three prompts, the last of which is empty."""
    lengths = [1, 4, 8, 6, 0, 0]
    given = {"texts": TEXTS, "finished": [True, True, False, True, False, False]}
    ids = [[5] * n for n in lengths]
    return samples([[1], [1, 2], []], ids, **given | changes)


def scoring(*values):
    """A member that gives these scores."""
    return lambda samples, examples: np.array(values, np.float64)


def judge(terms, rows=ROWS, processes=0, **rules):
    return Judge(terms, rows.__getitem__, Workers(processes), **rules)


def total(metrics, name):
    return metrics[name].total, metrics[name].count


MODEL = Term(members=[scoring(1, 2, 3, 4, 99, 99)])


def test_terms_are_weighed_and_added_and_logged_as_they_were():
    half = Term(0.5, [scoring(8, 6, 4, 2, 99, 99)])
    found = judge({"a": MODEL, "b": half})(answered(), KEY)
    assert found.rewards.tolist() == [5, 5, 5, 5, 0, 0]
    assert found.rewards.dtype == np.float32
    assert found.terms["b"].tolist() == [8, 6, 4, 2, 0, 0]
    assert total(found.metrics, "rewards/a") == (10, 4)
    assert total(found.metrics, "rewards/b") == (20, 4)
    assert total(found.metrics, "rewards/total") == (20, 4)


def test_verifiers_come_last_whatever_they_are_called():
    """A reward model is asked by all processes at once: none waits there for one whose
    verifiers are slow."""
    before = []

    def member(samples, examples):
        before.extend(samples.terms)
        return np.ones(6)

    terms = {"a": Term(verifier="data"), "b": Term(members=[member])}
    found = judge(terms)(answered(), KEY)
    assert before == [] and set(found.terms) == {"a", "b"}
    assert found.rewards.tolist() == [2, 1, 2, 1, 0, 0]


def test_a_transform_is_of_one_term_and_not_logged():
    clipped = Term(2.0, MODEL.members, transform="clip", settings={"high": 2.5})
    found = judge({"a": clipped, "b": MODEL})(answered(), KEY)
    assert found.rewards.tolist() == [3, 6, 8, 9, 0, 0]
    assert found.terms["a"].tolist() == [1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize(
    "combine, expected",
    [
        ("mean", [2, 2, 3, 2]),
        ("min", [0, 2, 0, 0]),  # WCO
        ("uncertainty", [2 - 0.5 * 8 / 3, 2, 3 - 0.5 * 6, 2 - 0.5 * 8 / 3]),  # UWO
    ],
)
def test_members_of_an_ensemble_are_one_term(combine, expected):
    members = [
        scoring(0, 2, 0, 4, 9, 9),
        scoring(2, 2, 3, 2, 9, 9),
        scoring(4, 2, 6, 0, 9, 9),
    ]
    term = Term(1.0, members, combine=combine, doubt=0.5)
    found = judge({"a": term})(answered(), KEY)
    np.testing.assert_allclose(found.rewards, [*expected, 0, 0], rtol=1e-6)


def test_an_unfinished_answer_gets_what_is_said_before_gain_and_bias():
    found = judge({"a": MODEL}, no_stop=-10.0, gain=2.0, bias=1.0)(answered(), KEY)
    assert found.rewards.tolist() == [3, 5, -19, 9, 0, 0]
    found = judge({"a": MODEL}, gain=2.0, bias=1.0)(answered(), KEY)
    assert found.rewards.tolist() == [3, 5, 7, 9, 0, 0]


def test_what_is_too_long_costs_by_its_tokens_after_all_else():
    """Of 8 tokens the last 4 cost more and more, up to 3."""
    found = judge({"a": MODEL}, buffer=4, penalty=3.0, gain=2.0)(answered(), KEY)
    assert found.rewards.tolist() == [2, 4, 6 - 3, 8 - 1.5, 0, 0]


def test_rewards_are_normalised_before_the_rules():
    running = np.array([10, 2.0, 40.0])  # mean 2, deviation 2
    found = judge({"a": MODEL}, no_stop=-7.0)(answered(), KEY, running)
    np.testing.assert_allclose(found.rewards, [-0.5, 0, -7, 1, 0, 0], rtol=1e-6)
    assert total(found.metrics, "rewards/raw") == (10, 4)
    assert total(found.metrics, "rewards/squares") == (30, 4)


# Verifiers.


def test_verifiers_of_the_data_are_averaged():
    rows = [ask("one?", ("contains", "one"), ("exact_match", "one")), ROWS[1]]
    found = judge({"v": Term(verifier="data")}, rows)(answered(), KEY)
    assert found.rewards.tolist() == [1, 0, 1, 0, 0, 0]
    rows[0] = ask("one?", ("contains", "two"), ("exact_match", "one"))
    found = judge({"v": Term(verifier="data")}, rows)(answered(), KEY)
    assert found.rewards.tolist() == [0.5, 0.5, 1, 0, 0, 0]


def test_a_named_verifier_reads_the_first_ground_truth_of_the_row():
    found = judge({"v": Term(4.0, verifier="contains")})(answered(), KEY)
    assert found.rewards.tolist() == [4, 0, 4, 0, 0, 0]
    assert found.terms["v"].tolist() == [1, 0, 1, 0, 0, 0]
    few = Term(verifier="at_most_words", options={"words": 1})
    found = judge({"v": few}, [ask("one?"), ask("two?")])(answered(), KEY)
    assert found.rewards.tolist() == [1, 0, 0, 1, 0, 0]


def test_verifiers_run_in_processes():
    term = Term(verifier="contains")
    found = judge({"v": term}, processes=1)(answered(), KEY)
    assert found.rewards.tolist() == [1, 0, 1, 0, 0, 0]
    assert total(found.metrics, "rewards/failed") == (0, 4)


def test_a_verifier_that_fails_gives_nothing_and_is_counted():
    """Ground truth that nobody looked at before: the rows from CHECKED on."""
    rows = [ask("one?", ("gsm8k", "1")), ask("two?", ("gsm8k", "no number"))]
    texts = ["1", "2", "2", "2", "", ""]
    found = judge({"v": Term(verifier="data")}, rows)(answered(texts=texts), KEY)
    assert found.rewards.tolist() == [1, 0, 0, 0, 0, 0]
    assert total(found.metrics, "rewards/failed") == (2, 4)


def coins(key, **given):
    texts = ["the same"] * 64
    made = samples([[1]] * 4, [[5]] * 64, texts=texts, **given)
    rows = [ask("?")] * 4
    return judge({"v": Term(verifier="random")}, rows)(made, key).rewards


def test_a_coin_is_tossed_for_every_answer_and_again_with_every_key():
    first = coins(KEY)
    assert set(first) == {0, 1} and 16 < first.sum() < 48
    for group in first.reshape(4, 16):
        assert set(group) == {0, 1}
    np.testing.assert_array_equal(coins(KEY), first)
    assert (coins(jax.random.key(1)) != first).any()


def test_a_process_without_answers_has_rewards_of_none():
    empty = samples([[], []], [[], []])
    terms = {"a": Term(members=[scoring(9, 9)]), "v": Term(verifier="data")}
    found = judge(terms)(empty, KEY)
    assert found.rewards.tolist() == [0, 0]
    assert total(found.metrics, "rewards/total") == (0, 0)


# What is wrong with the data or the options is said before training starts.

DATA = Term(verifier="data")


@pytest.mark.parametrize(
    "term, row, message",
    [
        (DATA, ask("?"), "names no verifier; name one"),
        (DATA, ask("?", ("gsm8", "1")), "unknown verifier 'gsm8'.*did you mean"),
        (DATA, ask("?", ("gsm8k", "none")), "correct the row"),
        (Term(verifier="gsm8k"), ask("?"), "correct the row"),
        (Term(verifier="contain"), ask("?"), "did you mean 'contains'"),
        (Term(verifier="at_most_words"), ask("?"), "missing.*'words'"),
        (Term(verifier="gsm8k", options={"n": 1}), ask("?", ("", "1")), "'n'"),
    ],
)
def test_what_no_verifier_can_work_with_is_an_error_that_says_where(term, row, message):
    with pytest.raises(UserError, match=rf"^reward v, prompt 3: .*{message}"):
        check_example(term, row, "reward v, prompt 3")


def test_rows_that_are_fine_pass_the_check():
    check_example(DATA, ask("?", ("contains", "one"), ("MATH", "1")), "")
    check_example(Term(verifier="repetition", options={"n": 2}), ask("?"), "")
