"""Prompts to completions, against the full forward pass, other batches and meshes."""

import re
from functools import lru_cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from easylm import sharding
from easylm.data import tokenizer
from easylm.data.sequences import Sequences
from easylm.errors import UserError
from easylm.models import base, heads, transformer
from easylm.rollout import loop, stops
from easylm.rollout.sampler import complete, generate, pad
from tests import drawn

FAMILIES = ("llama", "qwen2", "qwen3", "olmo2", "mistral")
PROMPTS = pad([[1, 2, 3, 4, 5], [7, 8, 9] * 4, [5], [250, 3, 9, 11, 12, 13, 14, 15]])
NEW = 20
RARE = tuple(range(0, 256, 20))  # ends that come now and then
KEY = jax.random.key(1)
KEYS = jax.random.split(KEY, 4)  # one per prompt


@lru_cache
def tiny(family="llama", **overrides):
    model = transformer.make(base.config_for(f"{family}:tiny", **overrides))
    params = drawn.params(model.spec)
    return model, jax.tree.map(lambda x: x * 3, params)  # sharper than at the start


@pytest.fixture(scope="module")
def llama():
    return tiny()


def rows(prompts, out):
    """[(prompt, completion)] as lists of ids."""
    samples = len(out.tokens) // len(prompts.tokens)
    for r, (tokens, length) in enumerate(zip(out.tokens, out.lengths, strict=True)):
        start = prompts.lengths[r // samples]
        yield prompts.tokens[r // samples, :start].tolist(), tokens[:length].tolist()


def full_logits(model, params, ids):
    """[T] -> [T, V] without a cache."""
    ids = ids[None]
    positions = jnp.arange(ids.shape[1])[None]
    hidden, _ = model.forward(params, ids, positions, jnp.ones_like(ids))
    return (hidden @ model.unembed(params))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_decoding_is_the_full_forward(family):
    """The probability of each token is what `heads.token_logps` computes again."""
    model, params = tiny(family)
    out = generate(model, params, PROMPTS, KEYS, max_new_tokens=NEW)
    check_logps(model, params, out, atol=2e-5)


def test_logps_know_the_temperature_but_no_truncation(llama):
    model, params = llama
    options = {"temperature": 0.5, "top_k": 100}
    out = generate(model, params, PROMPTS, KEYS, max_new_tokens=NEW, **options)
    # The logits are linear in the scale of the last norm.
    sharper = params | {"final_norm": params["final_norm"] * 2}
    check_logps(model, sharper, out, atol=2e-5)


def check_logps(model, params, out, atol):
    score = jax.jit(partial(heads.token_logps, model))
    for r, (prompt, new) in enumerate(rows(PROMPTS, out)):
        ids = jnp.array([(prompt + new + [0] * 32)[:32]])
        one = jnp.ones_like(ids)
        logps = score(params, Sequences(ids, one, one, jnp.arange(32)[None]))
        np.testing.assert_allclose(
            out.logps[r], logps[0, len(prompt) :][:NEW], atol=atol
        )


def test_greedy_takes_the_argmax_of_the_full_forward(llama):
    model, params = llama
    out = generate(model, params, PROMPTS, KEYS, max_new_tokens=NEW, temperature=0)
    run = jax.jit(partial(full_logits, model))
    for prompt, new in rows(PROMPTS, out):
        said = run(params, jnp.array((prompt + new + [0] * 32)[:32])).argmax(-1)
        assert new == said[len(prompt) - 1 :][:NEW].tolist()


def test_a_row_does_not_depend_on_its_batch(llama):
    """Nor on how far the others make its prompt be padded."""
    model, params = llama
    run = partial(generate, model, params, max_new_tokens=NEW)
    together = run(PROMPTS, KEYS)
    texts = [prompt for prompt, _ in rows(PROMPTS, together)]
    alone = run(pad(texts[2:3], rows=4), jnp.roll(KEYS, -2))
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[2])
    longer = run(pad([*texts[:3], [3] * 100]), KEYS)
    np.testing.assert_array_equal(longer.tokens[:3], together.tokens[:3])


def test_samples_of_a_prompt_are_adjacent_and_differ(llama):
    model, params = llama
    run = partial(generate, model, params, max_new_tokens=NEW)
    one, three = run(PROMPTS, KEYS), run(PROMPTS, KEYS, samples=3)
    assert three.tokens.shape == (12, NEW)
    np.testing.assert_array_equal(three.tokens[::3], one.tokens)
    np.testing.assert_allclose(three.logps[::3], one.logps, atol=1e-5)
    assert len({tuple(row) for row in three.tokens.tolist()}) == 12


@pytest.mark.parametrize("mesh", ["", "fsdp=4,tensor=2"])
def test_rows_that_are_refilled_sample_what_separate_rows_do(llama, mesh):
    """A row that is done takes the next prompt; nobody's answer changes."""
    model, params = llama
    run = partial(generate, model, max_new_tokens=NEW, samples=2, stop_ids=RARE)
    apart = run(params, PROMPTS, KEYS)
    assert len(set(apart.lengths.tolist())) > 2 and apart.finished.any()
    if not mesh:
        shared = run(params, PROMPTS, KEYS, rows=3)
    else:
        layout = sharding.make_layout(mesh)
        with sharding.use(layout):
            params = jax.device_put(params, base.shardings(model.spec, layout))
            shared = run(params, PROMPTS, KEYS, rows=4)
    np.testing.assert_array_equal(shared.tokens, apart.tokens)
    np.testing.assert_array_equal(shared.lengths, apart.lengths)
    np.testing.assert_array_equal(shared.finished, apart.finished)
    np.testing.assert_allclose(shared.logps, apart.logps, atol=2e-5)
    assert int(shared.steps) < (3 if not mesh else 2) * NEW


def test_refilled_rows_waste_few_steps(llama):
    """Answers of uneven length keep 2 rows busier than batches of 2 would."""
    model, params = llama
    run = partial(generate, model, params, max_new_tokens=NEW, stop_ids=RARE, samples=4)
    out = run(PROMPTS, KEYS, rows=2)
    lengths = np.asarray(out.lengths)
    batches = sum(max(pair) for pair in zip(lengths[::2], lengths[1::2], strict=True))
    assert lengths.sum() / 2 <= out.steps < batches


def test_a_stop_id_ends_its_row_and_the_last_row_ends_the_loop(llama):
    model, params = llama
    run = partial(generate, model, params, PROMPTS, KEYS, max_new_tokens=NEW)
    free = run()
    assert free.steps == NEW and not free.finished.any()
    ends = np.array([3, 0, 7, 5])
    ids = [int(free.tokens[r, end]) for r, end in enumerate(ends)]
    first = [min(row.index(i) for i in ids if i in row) for row in free.tokens.tolist()]
    out = run(stop_ids=ids)
    assert out.lengths.tolist() == [n + 1 for n in first]
    assert out.finished.all() and out.steps == max(first) + 1 < NEW
    for r, length in enumerate(out.lengths):
        assert (out.tokens[r, :length] == free.tokens[r, :length]).all()
        assert not out.tokens[r, length:].any() and not out.logps[r, length:].any()


def test_an_empty_row_stays_empty_and_nobody_waits_for_it(llama):
    model, params = llama
    prompts = pad([[1, 2, 3]], rows=4)
    free = generate(model, params, prompts, KEYS, max_new_tokens=NEW)
    assert free.lengths.tolist() == [NEW, 0, 0, 0] and not free.tokens[1:].any()
    stop = [int(free.tokens[0, 0])]
    out = generate(model, params, prompts, KEYS, max_new_tokens=NEW, stop_ids=stop)
    assert out.steps == 1


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A model with a tokenizer."""
    path = tmp_path_factory.mktemp("sp") / "tokenizer.model"
    texts = ["the cat sat on the mat and the dog ran to the cat\n"] * 20
    made = tokenizer.train(texts, str(path), 300)
    return *tiny(vocab_size=320), made


def test_stop_strings_end_a_completion_where_they_are_complete(speaking):
    """Inside a token, over a boundary of tokens, two at once."""
    model, params, made = speaking
    pieces = stops.token_bytes(made) + [b""] * 320
    prompts = [[1, 5, 6, 7], [1, 9], [290], [295, 4]]
    run = partial(complete, model, params, made, prompts, KEY, max_new_tokens=NEW)
    free = run(stop_ids=(), stop_strings=["never"])
    told = [pieces[i] for row in free for i in row["tokens"]]
    inside = next(p for p in told if len(p) > 1 and p.isascii())[:2].decode()
    pairs = [(a, b) for a, b in pairwise(told[:NEW]) if a and b]
    across = next(a[-1:] + b[:1] for a, b in pairs if (a + b).isascii()).decode()
    for strings in ([inside], [across], [inside, across]):
        for row, long in zip(run(stop_ids=(), stop_strings=strings), free, strict=True):
            raw = [
                b"".join(pieces[i] for i in long["tokens"][: n + 1]) for n in range(NEW)
            ]
            hit = [any(s.encode() in r for s in strings) for r in raw]
            assert row["finished"] == any(hit)
            length = hit.index(True) + 1 if any(hit) else NEW
            assert row["tokens"] == long["tokens"][:length]
            assert not any(s in row["text"] for s in strings)


def test_complete_is_generate_in_words(speaking):
    model, params, made = speaking
    prompts = [[1, 5, 6, 7], [1, 9], [290], [4] * 60]
    found = complete(model, params, made, prompts, KEY, max_new_tokens=9, stop_ids=())
    out = generate(model, params, pad(prompts), KEY, max_new_tokens=9)
    assert out.tokens.shape == (4, 9)
    for row, tokens, logps in zip(found, out.tokens, out.logps, strict=True):
        assert row["tokens"] == tokens.tolist()
        assert row["text"] == made.decode(row["tokens"])
        np.testing.assert_allclose(row["logps"], logps)
        assert not row["finished"]


@pytest.fixture(scope="module")
def on_one_device():
    """Rows that end at different times; 7, so that 8 devices need an empty one."""
    model, params = tiny("mistral", kv_heads=4)
    prompts = [[n + 1, 2 * n, 5] * (1 + n % 3) for n in range(7)]
    options = {"max_new_tokens": NEW, "samples": 2, "stop_ids": [7, 50, 100, 200]}
    run = partial(complete, model, tokenizer=Bytes, prompts=prompts, key=KEY, **options)
    return model, params, run, run(params=params)


@pytest.mark.parametrize("mesh", ["data", "fsdp=4,tensor=2", "tensor=4,context=2"])
def test_eight_devices_sample_what_one_samples(on_one_device, mesh):
    """Here the layers are scanned, on one device they are not."""
    model, params, run, found = on_one_device
    layout = sharding.make_layout(mesh)
    with sharding.use(layout):
        params = jax.device_put(params, base.shardings(model.spec, layout))
        spread = run(params=params)
    assert [row["tokens"] for row in spread] == [row["tokens"] for row in found]
    assert [row["finished"] for row in spread] == [row["finished"] for row in found]


class Bytes:
    """As much of a tokenizer as ids need that are never put into words."""

    decode = staticmethod(str)


def test_a_step_copies_neither_the_cache_nor_the_weights():
    """Nothing as large as a layer's cache or weights is made anew in the loop."""
    model, params = tiny(vocab_size=128, head_dim=32, layers=1)
    options = loop.Options(1.0, 0, 1.0, 0.0, 1, 8, 64)
    tokens, lengths = np.ones((8, 64), np.int32), np.full(8, 64, np.int32)
    run = jax.jit(partial(loop.run, model, options))
    args = (params, tokens, lengths, KEY, 64, jnp.array([1]), jnp.zeros((2, 1)))
    text = run.lower(*args).compile().as_text()
    *_, last = (line for line in text.splitlines() if " while(" in line)
    body = re.search(r"body=%([\w.-]+)", last)[1]
    body = text[text.index(f"\n%{body} (") :].split("\n}")[0]
    assert "f32[8,4,32,128]" in body  # the cache is there
    large = r"f32\[(8,4,32,128|8,4,128,32|512,64|64,256|256,64|128,64)\]"
    assert not re.findall(rf"= {large}\S* (?:copy|transpose)\(", body)


def test_bad_input_is_one_line_with_the_fix(llama):
    model, params = llama
    run = partial(complete, model, params, Bytes, key=KEY, stop_ids=())
    with pytest.raises(UserError, match="prompt 1 is empty"):
        run(prompts=[[1], []], max_new_tokens=4)
    with pytest.raises(UserError, match="token id 256.*vocabulary of 256"):
        run(prompts=[[1, 256]], max_new_tokens=4)
    with pytest.raises(UserError, match="more than the model's 512 positions"):
        run(prompts=[[1] * 500], max_new_tokens=13)
    with pytest.raises(UserError, match="top_p is 0"):
        run(prompts=[[1]], max_new_tokens=4, top_p=0)
    uneven = pytest.raises(UserError, match="prompts = 3 .* use 8")
    with sharding.use(sharding.make_layout("data")), uneven:
        generate(model, params, pad([[1]] * 3), KEY, max_new_tokens=4)
