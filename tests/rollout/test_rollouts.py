"""Prompts to answers with rewards: the same whatever decodes them, and where."""

import json
from functools import cache, partial

import jax
import numpy as np
import pytest

from easylm import sharding
from easylm.data import chat, pipeline
from easylm.data.encode import prompts_encoder
from easylm.data.loader import place
from easylm.evals import rewards
from easylm.models import base
from easylm.models.heads import token_logps
from easylm.rewards.workers import Workers
from easylm.rollout.judge import Judge, Term
from easylm.rollout.packed import pack, read
from easylm.rollout.rollouts import Rollout, weights
from easylm.training.progress import Phases
from tests.rollout import talk

NEW, GROUP, PROMPTS = 12, 3, 11
KEY = jax.random.key(7)
ONE = sharding.make_layout("data", devices=jax.devices()[:1])
STOPS = tuple(range(40, 448, 8))  # so that some answers end


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = talk.sentencepiece(tmp_path_factory.mktemp("tokenizer"))
    made.stop_ids = (made.eos, *STOPS)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer):
    """Eleven prompts in order, each once, eight to a batch.

    Answers to the first four of them are worth 1, to the others 0.
    """
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    rows = [
        {"prompt": f"one {'cat ' * (i % 5)}{i}?", "verifier": name, "answer": ""}
        for i, name in enumerate(["repetition"] * 4 + ["mentions_python"] * 7)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = [{"path": str(path), "format": "prompt_only"}]
    encoder = prompts_encoder(tokenizer, chat.tulu, vocab_size=talk.VOCAB)
    return pipeline.build(
        {"mixture": mixture, "too_long": "drop"},
        encoder=encoder,
        batch_rows=8,
        length=48,
        seed=0,
        packing=False,
        evaluation=True,
    )


@cache
def policy(layout):
    model, params = talk.model()
    where = sharding.make_layout(layout) if layout else ONE
    return jax.device_put(params, base.shardings(model.spec, where))


@pytest.fixture(scope="module")
def rollout(tokenizer, data):
    """rollout(mesh) -> (dataset, key) -> the samples of its first batch."""
    judge = Judge({"said": Term(verifier="data")}, data.example, Workers(0))

    @cache
    def make(mesh="", sampling="", **options):
        layout = sharding.make_layout(mesh) if mesh else ONE
        return Rollout(
            *(talk.model()[0], tokenizer, judge, layout, Phases()),
            sampling=sharding.regrouped(layout, sampling),
            group=GROUP,
            max_new_tokens=NEW,
            **options,
        )

    return make


@pytest.fixture(scope="module")
def ask(rollout, data):
    """ask(mesh, ...) -> the samples of a batch, the first unless told otherwise."""

    def ask(mesh="", key=KEY, batch=0, **options):
        made = rollout(mesh, **options)
        with sharding.use(made.layout):
            now = jax.random.fold_in(key, 0)
            return made(policy(mesh), place(data, batch, made.layout), now)

    return ask


@pytest.fixture(scope="module")
def expected(ask):
    return ask()


def assert_same(found, expected):
    for name in ("items", "tokens", "lengths", "finished", "there", "rewards"):
        np.testing.assert_array_equal(
            getattr(found, name), getattr(expected, name), err_msg=name
        )
    np.testing.assert_allclose(found.logps, expected.logps, atol=1e-4)
    assert found.texts == expected.texts
    assert found.questions == expected.questions
    assert [p.tolist() for p in found.prompts] == [p.tolist() for p in expected.prompts]


def test_answers_to_a_prompt_are_adjacent_and_differ(expected, data, tokenizer):
    assert expected.group == GROUP and len(expected.prompts) == 8
    assert expected.items.tolist() == list(range(8))
    for item, prompt, asked in zip(
        expected.items, expected.prompts, expected.questions, strict=True
    ):
        turns = data.example(int(item))["prompt"]
        ids, _ = chat.encode_chat(tokenizer, chat.tulu, turns, generation_prompt=True)
        assert prompt.tolist() == ids.tolist() and asked == turns[-1]["content"]
    answers = [tuple(row) for row in expected.tokens.tolist()]
    assert len(set(answers)) == 8 * GROUP


def test_lengths_and_stops_are_those_of_the_tokens(expected):
    assert 0 < expected.finished.sum() < 8 * GROUP
    mask = expected.mask
    assert not expected.tokens[~mask].any() and not expected.logps[~mask].any()
    for row, length, done in zip(
        expected.tokens, expected.lengths, expected.finished, strict=True
    ):
        assert done or length == NEW
        assert np.isin(row[:length], STOPS).tolist() == [False] * (length - 1) + [done]


def test_what_was_sampled_has_the_logps_of_the_model_that_reads_it_packed(expected):
    items = [[expected.segment(j)] for j in range(8 * GROUP)]
    made = pack(items, 128, ONE, step=4, most=8)
    model, params = talk.model()
    logps = jax.jit(partial(token_logps, model))(params, made.seqs)
    np.testing.assert_allclose(read(made, logps, NEW), expected.logps, atol=1e-4)


def test_the_key_decides(ask, expected):
    assert_same(ask(), expected)
    assert (ask(key=jax.random.key(8)).tokens != expected.tokens).any(axis=1).all()


@pytest.mark.parametrize(
    "mesh, options",
    [
        ("", {"rows": 4}),
        ("fsdp", {"sampling": "data", "rows": 8}),
        ("fsdp=4,tensor=2", {"sampling": "data=2,tensor=4"}),
    ],
)
def test_rows_and_meshes_change_nothing(ask, expected, mesh, options):
    """Neither how many decode at a time, nor where, nor on which mesh of its own."""
    found = ask(mesh, **options)
    assert_same(found, expected)
    used = found.metrics["rollout/utilisation"]
    assert used.total == expected.lengths.sum()
    assert 0.3 < used.total / used.count <= 1


def test_weights_are_moved_only_where_they_lie_elsewhere():
    (model, _), params = talk.model(), policy("fsdp")
    layout = sharding.make_layout("fsdp")
    assert weights(model, layout, layout) is None
    other = sharding.regrouped(layout, "data=-1,tensor=2")
    moved = weights(model, layout, other)(params)
    wanted = base.shardings(model.spec, other)
    assert jax.tree.map(lambda x: x.sharding, moved) == wanted
    jax.tree.map(np.testing.assert_array_equal, moved, params)


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(ask, expected):
    """Here a letter, that many answers say."""
    letters = [c for text in expected.texts for c in set(text) if c.isalpha()]
    letter = max(set(letters), key=letters.count)
    found = ask(stop_strings=(letter,))
    said = np.array([letter in text for text in expected.texts])
    assert said.any() and not said.all()
    np.testing.assert_array_equal(found.finished, said | expected.finished)
    cut = [text.partition(letter)[0] for text in expected.texts]
    assert found.texts == cut
    for j in np.flatnonzero(said):
        ids = found.tokens[j, : found.lengths[j]]
        np.testing.assert_array_equal(ids, expected.tokens[j, : len(ids)])
        assert len(ids) <= expected.lengths[j]


def test_the_last_batch_of_an_evaluation_has_prompts_that_are_not_there(ask):
    found = ask("fsdp", batch=1, sampling="data", rows=8)
    assert found.items.tolist() == [8, 9, 10, -1, -1, -1, -1, -1]
    there = np.repeat(found.items >= 0, GROUP)
    np.testing.assert_array_equal(found.there, there)
    assert (found.lengths > 0).tolist() == there.tolist()
    assert not found.rewards[~there].any() and not found.finished[~there].any()
    assert not any(found.questions[3:]) and not any(found.texts[3 * GROUP :])
    length, finished = (found.metrics[f"answers/{n}"] for n in ("length", "finished"))
    assert (length.total, length.count) == (found.lengths.sum(), 3 * GROUP)
    assert (finished.total, finished.count) == (found.finished.sum(), 3 * GROUP)
    reward = found.metrics["rewards/total"]
    assert (reward.total, reward.count) == (0, 3 * GROUP)


# The held-out reward: evals/rewards.py.


def test_an_evaluation_is_a_mean_over_every_prompt_exactly_once(rollout, data):
    made, seen = rollout(), []

    def listened(*args):
        seen.append(made(*args))
        return seen[-1]

    evaluate = rewards.make(listened, data, made.layout)
    params = policy("") | {"value": {"unused": np.zeros(3)}}
    with sharding.use(made.layout):
        found = evaluate(params)
        assert evaluate(params) == found
    once = seen[: len(seen) // 2]
    items = np.concatenate([samples.items for samples in once])
    assert items[items >= 0].tolist() == list(range(PROMPTS))
    assert found["rewards/total"] == found["rewards/said"] == 4 / PROMPTS
    lengths = np.concatenate([samples.lengths for samples in once])
    assert found["answers/length"] == pytest.approx(lengths.sum() / (PROMPTS * GROUP))
    assert set(found) == {
        *("rewards/total", "rewards/said", "rewards/failed"),
        *("answers/length", "answers/finished"),
    }
