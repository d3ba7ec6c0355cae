"""The frozen reference: which one it is, and that a kept one is the computed one."""

import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from configs import preference
from easylm import sharding
from easylm.data import chat, pipeline, tokenizer
from easylm.data.encode import answers_encoder
from easylm.data.loader import place
from easylm.errors import UserError
from easylm.models import base, hf
from easylm.models.answers import answer_logps
from easylm.training import checkpoint, reference, setup
from easylm.training.step import init_state

BATCH, SHAPE = 4, (4, 2)  # rows; items in a row, answers of each


def write_pairs(path, count, seed=0):
    rng, lines = np.random.default_rng(seed), []
    for i in range(count):
        ask = {"role": "user", "content": f"{seed} {i}?"}
        says = [" ".join("ab"[k] * int(rng.integers(1, 9))) + f" {i}" for k in (0, 1)]
        both = [[ask, {"role": "assistant", "content": text}] for text in says]
        lines.append(dict(zip(("chosen", "rejected"), both, strict=True)))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("words"), "abab cdcd 0123456789?")


def train_tokenizer(folder, text):
    return tokenizer.train([text] * 9, str(folder / "tokenizer.model"), 300)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return [write_pairs(folder / f"{n}.jsonl", n, seed=n) for n in (23, 10)]


@pytest.fixture(scope="module", autouse=True)
def layout():
    with sharding.use(sharding.make_layout("data", devices=jax.devices()[:1])) as one:
        yield one


@pytest.fixture(scope="module")
def data(tok, files):
    """-> the data that the policy is trained on: shuffled, weighted, of two sources."""

    def data(paths=tuple(files), template=chat.tulu, **options):
        weights = (1.6, 0.5, 1.0)
        parts = [
            {"path": path, "format": "preferences", "weight": weight}
            for path, weight in zip(paths, weights, strict=False)
        ]
        return pipeline.build(
            {"mixture": parts},
            encoder=answers_encoder(tok, template, vocab_size=320),
            **dict(batch_rows=BATCH, length=192, seed=0, items_per_row=SHAPE[0])
            | options,
        )

    return data


def config_of(init="", **changes):
    c = preference.study()
    c.init, c.batch = str(init), BATCH
    c.model.name, c.model.vocab_size = "llama:tiny", 320
    c.model.dtype, c.model.remat, c.microbatches = "float32", "none", 1
    c.data.length, c.data.answer_length = 256, 128
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def make(tok, layout):
    """-> reference.make(...) of a config."""

    def make(config):
        return reference.make(config, tok, setup.make_model(config, tok), layout)

    return make


@pytest.fixture(scope="module")
def runs(tok, tmp_path_factory):
    """-> (workdir of a run, its last parameters)."""
    made = {}

    def run(seed, vocab_size=320, words=tok):
        if (seed, vocab_size, words) in made:
            return made[seed, vocab_size, words]
        workdir = tmp_path_factory.mktemp("run")
        config = config_of(**{"model.vocab_size": vocab_size})
        model = setup.make_model(config, SimpleNamespace(vocab_size=300))
        rng = np.random.default_rng(seed)
        one = lambda s: len(s.shape) - ("layers" in s.axes) == 1  # norms are around 1
        draw = lambda s: np.float32(rng.normal(one(s), 0.1, s.shape))
        params = jax.tree.map(jnp.asarray, base.map_spec(draw, model.spec))
        everything = base.map_spec(lambda _: True, model.spec)
        checkpoint.write_model_config(workdir, model.config)
        saved = checkpoint.Checkpoints(workdir, every=1)
        saved.save(3, init_state(params, optax.sgd(0.1), everything))
        saved.close()
        words.save(str(workdir / "tokenizer"))
        made[seed, vocab_size, words] = workdir, params
        return made[seed, vocab_size, words]

    return run


@pytest.fixture(scope="module")
def logps_under(tok):
    """(params, batch) -> log p of every answer under them."""
    model = setup.make_model(config_of(), tok)
    run = jax.jit(
        lambda params, batch: answer_logps(model, params, batch["seqs"], SHAPE)
    )
    return lambda params, batch: np.asarray(run(params, batch))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


# Which one it is.


def test_it_is_the_policy_as_it_starts_or_the_model_that_is_named(
    make, data, runs, layout, logps_under, tok, tmp_path
):
    (start, start_params), (other, other_params) = runs(1), runs(2)
    made = data()
    batch = place(made, 0, layout)
    fresh = base.init(setup.make_model(config_of(), tok).spec, jax.random.key(0))
    exported = tmp_path / "exported"
    shape = setup.make_model(config_of(), tok).config
    hf.save(exported, other_params, shape, tok, dtype="float32")
    lora = {"model.lora_rank": 2, "model.dropout": 0.3}
    for config, params in (
        (config_of(), fresh),  # where a policy from scratch starts
        (config_of(start), start_params),
        (config_of(start, **lora), start_params),
        (config_of(start, **{"reference.path": str(other)}), other_params),
        (config_of(start, **{"reference.path": str(exported)}), other_params),
    ):
        found = make(config)(made, "train")
        close(found.logps(batch), logps_under(params, batch))
        assert not found.config.lora_rank and not found.config.dropout
    there = np.asarray(batch["items"]) >= 0
    assert there.any() and not there.all()
    assert (np.asarray(found.logps(batch))[~there] == 0).all()


def test_matrices_are_held_as_they_are_computed_and_norms_in_float32(tok, layout, runs):
    half = {"model.dtype": "bfloat16"}
    for config in (config_of(**half), config_of(runs(1)[0], **half)):
        model = setup.make_model(config, tok)
        frozen, params = reference._load(config, tok, model, layout)
        for name, x in flatten_dict(params, sep="/").items():
            assert x.dtype == ("float32" if "norm" in name else "bfloat16"), name
        assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(
            lambda s: jnp.dtype(s.dtype), frozen.spec, is_leaf=base.is_spec
        )


def test_half_of_the_memory_changes_no_number(make, data, layout, runs, tok):
    workdir, params = runs(1)
    config = config_of(workdir, **{"model.dtype": "bfloat16"})
    made, model = data(), setup.make_model(config, tok)
    batch = place(made, 0, layout)
    whole = jax.jit(lambda p, b: answer_logps(model, p, b["seqs"], SHAPE))
    held = make(config)(made, "train").logps(batch)
    np.testing.assert_array_equal(held, whole(params, batch))


def test_other_tokens_than_the_policys_are_one_line(make, runs, tmp_path, tok):
    larger, _ = runs(2, vocab_size=384)
    with pytest.raises(UserError, match=f"{larger} has a vocabulary of 384, .* 320;"):
        make(config_of(**{"reference.path": str(larger)}))
    words = train_tokenizer(tmp_path, "3.14 naïve reads the reference 99")
    other, _ = runs(2, words=words)
    with pytest.raises(UserError, match=f"{other} has another tokenizer .*take a"):
        make(config_of(**{"reference.path": str(other)}))
    with pytest.raises(UserError) as found:
        make(config_of(**{"reference.path": str(tmp_path / "nowhere")}))
    assert "nowhere" in str(found.value) and "\n" not in str(found.value)
    # The policy starts there with this tokenizer, and so does its reference.
    make(config_of(other))


# A kept one.


@pytest.fixture(scope="module")
def kept(tmp_path_factory, runs):
    """The config of a run that keeps its log-probabilities."""
    file = str(tmp_path_factory.mktemp("kept") / "deep" / "logps.npz")
    return config_of(runs(1)[0], **{"reference.cache": file, "microbatches": 4})


def parent(config):
    return pathlib.Path(config.reference.cache).parent


def test_kept_numbers_are_those_computed_with_every_batch(make, data, layout, kept):
    made = data()
    table = make(kept)(made, "train")
    computed = make(config_of(kept.init))(made, "train")
    assert table.config is None and computed.config.layers == 2
    seen = set()
    for i in range(made.batches(3)):
        batch = place(made, i, layout)
        close(table.logps(batch), computed.logps(batch))
        seen |= set(np.asarray(batch["items"]).ravel().tolist())
    assert seen == set(range(-1, 33))
    other_order = data(items_per_update=5, seed=4)
    batch = place(other_order, 1, layout)
    again = make(kept)(other_order, "train")
    close(again.logps(batch), computed.logps(batch))


def test_numbers_are_computed_once(make, data, layout, kept):
    made = data()
    batch = place(made, 1, layout)
    first = make(kept)(made, "train").logps(batch)
    [file] = [p for p in parent(kept).iterdir() if p.name == "logps-train.npz"]
    before = file.stat()
    later = data()
    later.every_item = None  # nobody asks for it
    np.testing.assert_array_equal(make(kept)(later, "train").logps(batch), first)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_every_data_has_a_file_of_its_own(make, data, files, layout, kept):
    held_out = data(files[1:], evaluation=True)
    made = make(kept)
    made(data(), "train")
    found = made(held_out, "eval")
    names = sorted(path.name for path in parent(kept).iterdir())
    assert names == ["logps-eval.npz", "logps-train.npz"]
    plain = make(config_of(kept.init))(held_out, "eval")
    for i in range(held_out.one_pass()):
        batch = place(held_out, i, layout)
        close(found.logps(batch), plain.logps(batch))


def test_what_was_made_with_something_else_is_refused_and_named(
    make, data, files, kept, runs, tmp_path
):
    make(kept)(data(), "train")
    file = f"{parent(kept)}/logps-train.npz was made with another"
    same = {"reference.cache": kept.reference.cache}
    with pytest.raises(UserError, match=f"{file} checkpoint; remove it, or name"):
        make(config_of(runs(2)[0], **same))(data(), "train")
    with pytest.raises(UserError, match=f"{file} data; remove"):
        make(kept)(data(files[:1]), "train")
    with pytest.raises(UserError, match=f"{file} data; remove"):
        make(kept)(data(length=128), "train")
    with pytest.raises(UserError, match=f"{file} template; remove"):
        make(kept)(data(template=as_prose), "train")
    rotated = {"model.rope_dtype": "bfloat16"}
    with pytest.raises(UserError, match=f"{file} model; remove"):
        make(config_of(kept.init, **same, **rotated))(data(), "train")
    with pytest.raises(UserError, match=f"{file} checkpoint and data and template;"):
        make(config_of(runs(2)[0], **same))(data(files[:1], as_prose), "train")
    # What changes no log-probability may change.
    free = {"model.remat": "full", "model.lora_rank": 2, "model.lora_alpha": 4.0}
    make(config_of(kept.init, **same, **free))(data(batch_rows=8), "train")


def as_prose(messages, tokenizer, *, generation_prompt=False):
    pieces = chat.tulu(messages, tokenizer, generation_prompt=generation_prompt)
    return [chat.Piece("So: "), *pieces]


# Fingerprints.

SMALL = {
    "a": jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 2)), jnp.float32),
    "b": {"w": jnp.asarray(np.random.default_rng(1).normal(size=(8,)), jnp.bfloat16)},
    "norm": jnp.ones(8),
}


def test_a_fingerprint_does_not_hang_on_the_layout():
    params = {"embed": jnp.arange(64.0).reshape(8, 8), "norm": jnp.ones(8)}
    alone = reference.fingerprint(params)
    split = sharding.make_layout("fsdp=8")
    for names in (("embed",), (None, "embed")):
        where = {"embed": split.sharding(*names), "norm": split.sharding()}
        with sharding.use(split):
            spread = jax.device_put(jax.device_get(params), where)
            assert len(spread["embed"].sharding.device_set) == 8
            assert reference.fingerprint(spread) == alone


def bits(x):
    return np.asarray(x).view(f"uint{8 * x.dtype.itemsize}").copy()


def test_every_bit_of_every_number_is_in_the_fingerprint():
    seen = {reference.fingerprint(SMALL)}
    rng, count = np.random.default_rng(2), 1
    for name, x in flatten_dict(SMALL).items():
        for at in np.ndindex(x.shape):
            changed = bits(x)
            changed[at] ^= 1 << rng.integers(8 * x.dtype.itemsize)
            tree = dict(flatten_dict(SMALL)) | {
                name: jnp.asarray(changed.view(x.dtype))
            }
            seen.add(reference.fingerprint({"/".join(k): v for k, v in tree.items()}))
            count += 1
    assert len(seen) == count


@pytest.mark.parametrize("kind", ["any", "rounded", "signs"])
def test_numbers_that_change_places_change_the_fingerprint(kind):
    """Weights that were rounded to bfloat16 once differ in their upper bits only."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(16, 256)).astype(np.float32)
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) if kind != "any" else x
    x = x if kind != "signs" else np.sign(x)
    seen, count = {reference.fingerprint({"x": x})}, 1
    for _ in range(20):
        two = x.copy()
        first, second = rng.choice(x.size, 2, replace=False)
        if x.flat[first] == x.flat[second]:
            continue
        two.flat[[first, second]] = x.flat[[second, first]]
        rows = x.copy()
        i, j = rng.choice(16, 2, replace=False)
        rows[[i, j]] = x[[j, i]]
        for other in (two, rows):
            seen.add(reference.fingerprint({"x": other}))
        count += 2
    same_rows = count - len(seen)  # the same two may be drawn twice
    assert same_rows <= 4
    assert reference.fingerprint({"x": -x}) not in seen
    assert reference.fingerprint({"x": x.T}) not in seen
    assert reference.fingerprint({"y": x}) not in seen
