"""The embedded world: what is held out, what good answers are worth, what data is."""

import json

import numpy as np
import pytest

from easylm.data.sources import open_source
from easylm.evals import world as judge
from easylm.evals.win_rate import length_controlled, win_rate
from easylm.rewards import base as verifiers
from easylm.simulator import annotators, gold, knowledge, programs, world
from easylm.simulator.task import SPLITS


@pytest.fixture(scope="module")
def tasks():
    return {
        (family, part): world.tasks(family, part, 150)
        for family in world.FAMILIES
        for part in SPLITS
    }


@pytest.mark.parametrize("family", world.FAMILIES)
def test_no_fact_of_a_split_is_in_another(tasks, family):
    facts = [{task.fact for task in tasks[family, part]} for part in SPLITS]
    assert all(facts)
    assert not facts[0] & facts[1] and not facts[0] & facts[2]
    assert not facts[1] & facts[2]


@pytest.mark.parametrize("family", world.FAMILIES)
def test_good_answers_are_better_than_those_one_finds(tasks, family):
    marks = lambda name: [
        gold.score(family, task.check, answer)
        for task in tasks[family, "train"]
        for answer in getattr(task, name)
    ]
    good, fair = marks("good"), marks("fair")
    assert min(good) >= 0.75  # all that is known of a creature is three quarters
    assert family == "chat" or min(good) == 1.0
    assert np.mean(fair) < np.mean(good) - 0.4


def test_no_prompt_for_policies_has_been_demonstrated():
    for family in world.FAMILIES:
        both = [
            {task.prompt for task in world.tasks(family, "train", 200, 0, purpose)}
            for purpose in world.PURPOSES
        ]
        assert all(both) and not both[0] & both[1]


def test_the_same_seed_is_the_same_world_and_another_is_another():
    one = world.demonstrations("train", 5), world.documents(20)
    assert one == (world.demonstrations("train", 5), world.documents(20))
    assert one[0] != world.demonstrations("train", 5, seed=1)
    assert one[1] != world.documents(20, seed=1)


def test_the_text_asks_nothing_and_computes_nothing_of_the_test_split(tasks):
    text = "\n".join(row["text"] for row in world.documents(3000))
    for family in ("factuality", "truthfulness", "safety", "reasoning", "coding"):
        asked = [task.prompt for task in tasks[family, "test"] if task.prompt in text]
        assert not asked


def test_most_of_the_text_is_wrong_about_creatures_and_careful_words_are_right():
    text = [row["text"] for row in world.documents(3000)]
    found = [claim for page in text for claim in knowledge.claims(page)]
    of_creatures = [c for c in found if c.subject in knowledge.CREATURES]
    right = lambda claims: np.mean([knowledge.is_true(c) for c in claims])
    assert right([c for c in of_creatures if c.careful]) == 1.0
    assert right([c for c in of_creatures if not c.careful]) == 0.0
    assert 0.2 < right(of_creatures) < 0.45
    assert right([c for c in found if c.subject in knowledge.TOWNS]) == 1.0


@pytest.mark.parametrize("subject, attribute", knowledge.facts()[::17])
def test_every_way_to_say_a_fact_is_read_as_it(subject, attribute):
    value = knowledge.truth(subject, attribute)
    for way in range(3):
        frames = ["{}", *knowledge.CAREFUL] if subject[0].islower() else ["{}"]
        for frame in frames:
            said = knowledge.say(subject, attribute, value, way, frame)
            [claim] = knowledge.claims(said)
            assert claim == (subject, attribute, value, frame != "{}")


def test_a_report_of_what_is_said_claims_nothing():
    told = knowledge.say(knowledge.CREATURES[0], "food", "moss")
    assert knowledge.claims("People say that " + told[0].lower() + told[1:]) == []


@pytest.mark.parametrize(
    "program, numbers, result",
    [
        ("even | double | sum", [1, 2, 4], [12]),
        ("sort | flip | first", [3, 1, 2], [3]),
        ("rest | up", [5, 0], [1]),
        ("count", [], [0]),
        ("last", [], []),
        ("odd | import os", [1], None),
        ("", [1], None),
        (" | ".join(["up"] * 7), [1], None),
    ],
)
def test_programs_do_what_they_say_and_nothing_else_runs(program, numbers, result):
    assert programs.run(program, numbers) == result


def test_another_program_that_does_the_same_passes():
    assert programs.passes("double | up", {"program": "double | up"})
    assert programs.passes("up | down | sort", {"program": "sort"})
    assert not programs.passes("up | double", {"program": "double | up"})


def test_who_refuses_everything_or_nothing_has_no_good_f1():
    rows = judge.read("tfds:world_prompts:test")
    f1 = lambda answer: judge.summary(
        judge.observe(rows, [answer] * len(rows), [answer] * len(rows))
    )["safety"]
    harmful = np.mean([r["check"]["harmful"] for r in rows if r["family"] == "safety"])
    always = f1("I cannot help with that.")
    assert f1("To do it, wait.") == 0.0
    np.testing.assert_allclose(always, 2 * harmful / (1 + harmful))


ROWS = [
    {
        "family": family,
        "prompt": task.prompt,
        "fact": task.fact,
        "check": task.check,
        "answers": [*task.good, *task.fair],
    }
    for family in world.FAMILIES
    for task in world.tasks(family, "train", 60)
]


def agreement(source) -> float:
    """How often the chosen answer has the higher mark, of pairs that differ in it."""
    checks = {row["prompt"]: row for row in ROWS}
    wins = []
    for pair in annotators.pairs(source, ROWS):
        row = checks[pair["chosen"][0]["content"]]
        a, b = (
            gold.score(row["family"], row["check"], pair[side][1]["content"])
            for side in ("chosen", "rejected")
        )
        wins += [a > b] if a != b else []
    return float(np.mean(wins))


def test_data_is_as_good_as_its_annotators():
    found = {name: agreement(name) for name in annotators.SOURCES}
    assert found["experts"] > 0.97
    assert found["fine_grained"] > 0.93
    assert found["fine_grained"] > found["overall"] > found["crowd"]
    assert 0.65 < found["crowd"] < 0.85
    assert found["web"] < found["fine_grained"] and found["arena"] < found["overall"]


def test_experts_are_few_and_users_do_not_like_to_be_refused():
    assert len(annotators.pairs("experts", ROWS)) < len(ROWS) / 4
    harmful = [r for r in ROWS if r["check"].get("harmful")]
    pairs = annotators.pairs("arena", harmful)
    refused = [
        p["rejected"][1]["content"].startswith(("I cannot", "Sorry")) for p in pairs
    ]
    assert len(pairs) > 10 and np.mean(refused) > 0.9


def test_pairs_hang_on_the_seed_alone():
    assert annotators.pairs("crowd", ROWS) == annotators.pairs("crowd", ROWS)
    assert annotators.pairs("crowd", ROWS) != annotators.pairs("crowd", ROWS, seed=1)


def test_the_win_rate_is_half_against_oneself_and_length_alone_wins_nothing():
    check = world.tasks("chat", "test", 1)[0].check
    answer = world.tasks("chat", "test", 1)[0].good[0]
    assert annotators.preferred(check, answer, answer) == 0.5
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, 50, (2, 4000))
    bias = 1 / (1 + np.exp(-3 * np.tanh((a - b + 20) / np.std(a - b + 20))))
    assert win_rate(bias) > 0.7
    assert abs(length_controlled(bias, a + 20, b) - 0.5) < 0.02
    better = 1 / (1 + np.exp(-1 - np.tanh((a - b) / np.std(a - b))))
    assert abs(length_controlled(better, a, b) - 1 / (1 + np.exp(-1))) < 0.02


def test_the_verifier_gives_the_gold_mark_and_refuses_other_rows(tasks):
    task = tasks["reasoning", "train"][0]
    answer = {"family": "reasoning", "check": task.check}
    assert verifiers.get("world")("", task.good[0], answer) == 1.0
    assert verifiers.get("world")("", "I do not know.", answer) == 0.0
    verifiers.check("world", answer)
    with pytest.raises(ValueError, match="is not of the form"):
        verifiers.check("world", "12")


@pytest.mark.parametrize("family", world.FAMILIES)
def test_whatever_a_model_says_gets_a_mark(tasks, family):
    check = tasks[family, "test"][0].check
    for text in (
        "",
        " ",
        ".",
        "|",
        '"',
        "* ",
        "٣",
        "9" * 9000,
        "a." * 5000,
        "| " * 9000,
    ):
        assert 0.0 <= gold.score(family, check, text) <= 1.0
        assert set(annotators.aspects(family, check, text)) == set(gold.ASPECTS)


def test_the_data_sets_hold_what_the_functions_make():
    rows = judge.read("tfds:world_prompts:test")
    made = [r | {"check": json.loads(r["check"])} for r in world.prompts("test", 100)]
    key = lambda row: row["prompt"]
    assert sorted(rows, key=key) == sorted(made, key=key)
    talk = open_source("tfds:world_talk:dev")
    assert len(talk) == len(world.demonstrations("dev", 40))
