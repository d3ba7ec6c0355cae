"""What online training cannot work with is one line with the fix, before it starts."""

import json

import jax
import numpy as np
import pytest

from configs import common
from configs.study import world
from easylm import sharding
from easylm.data import chat, pipeline
from easylm.data.encode import prompts_encoder
from easylm.errors import UserError
from easylm.models import hf
from easylm.rollout.scorer import Scorer
from easylm.training import online
from tests.rollout import talk
from tests.rollout.made import samples

LAYOUT = sharding.make_layout("data", devices=jax.devices()[:1])


def config(**changes):
    """Rewards of a verifier alone."""
    c = world.get_config("ppo")
    c.reward.processes = 0
    c.reward.terms = {"v": common.term(verifier="data")}
    c.lock()
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return talk.sentencepiece(tmp_path_factory.mktemp("tokenizer"))


def judges(config, tokenizer=None):
    return online.make_judges(config, tokenizer, LAYOUT)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.length": 127}, "128 tokens together, but .* 127; set it to 128"),
        ({"data.too_long": "truncate"}, "set data.too_long='drop'"),
        ({"reward.overlong_buffer": 65}, "65 is not among the 64 tokens"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(changes, message):
    online.check(config())
    with pytest.raises(UserError, match=message):
        online.check(config(**changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward.terms.v.weight": 0.0}, "no reward: set a model or a verifier"),
        ({"reward.terms.v.model": "there"}, "terms.v: .*not both, not none"),
        ({"reward.terms.v.verifier": ""}, "terms.v: .*not both, not none"),
        ({"reward.terms.v.transform": "combine"}, "is not one of log_sigmoid"),
        ({"reward.terms.v.combine": "max"}, "is not mean, min or uncertainty"),
    ],
)
def test_terms_that_are_no_rewards_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        judges(config(**changes))


def dataset(folder, tokenizer, rows):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pipeline.build(
        {"mixture": [{"path": str(path), "format": "prompt_only"}], "too_long": "drop"},
        encoder=prompts_encoder(tokenizer, chat.tulu, vocab_size=talk.VOCAB),
        batch_rows=2,
        length=48,
        seed=0,
        packing=False,
    )


def test_ground_truth_is_looked_at_before_training(tmp_path, tokenizer):
    rows = [{"prompt": "1 + 1?", "verifier": "gsm8k", "answer": x} for x in ("2", "?")]
    of = judges(config())
    with pytest.raises(UserError, match=r"^reward v, prompt 1: gsm8k: .*correct the"):
        of(dataset(tmp_path, tokenizer, rows))
    good = of(dataset(tmp_path, tokenizer, [rows[0]] * 2))
    made = samples([[1], [1]], [[5], [5]], texts=["2", "3"])
    assert good(made, jax.random.key(0)).rewards.tolist() == [1, 0]


def test_several_reward_models_are_an_ensemble(tmp_path, tokenizer):
    """From their directories; one without weight is not even opened."""
    plain, made = [], samples([[1, 9]] * 2, [[5, 6, 2], [7, 2]], items=[0, 1])
    for n in range(2):
        loaded = talk.reward_model(tokenizer, "tulu", score_std=0.1 + n)
        hf.save(tmp_path / f"{n}", loaded.params, loaded.model.config, dtype="float32")
        tokenizer.save(str(tmp_path / f"{n}"))
        scorer = Scorer(loaded, LAYOUT, length=64, batch=8)
        plain.append(scorer([made.segment(j) for j in range(2)]))
    c = config(**{"reward.terms.v.weight": 0.0}).copy_and_resolve_references()
    c.unlock()
    for name, combine in (("least", "min"), ("middle", "mean")):
        paths = f"{tmp_path}/0,{tmp_path}/1"
        c.reward.terms[name] = common.term(model=paths, weight=2.0)
        c.reward.terms[name].combine = combine
        c.reward.terms[name].template = "tulu"
    c.reward.terms.v.model, c.reward.terms.v.verifier = "nowhere", ""
    data = dataset(tmp_path, tokenizer, [{"prompt": "1 + 1?"}, {"prompt": "why?"}])
    found = judges(c, tokenizer)(data)(made, jax.random.key(0))
    np.testing.assert_allclose(found.terms["least"], np.min(plain, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.terms["middle"], np.mean(plain, axis=0), rtol=1e-5)
    total = 2 * (np.min(plain, axis=0) + np.mean(plain, axis=0))
    np.testing.assert_allclose(found.rewards, total, rtol=1e-5)
    assert np.abs(np.subtract(*plain)).min() > 0.1
