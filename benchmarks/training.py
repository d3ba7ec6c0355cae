"""How fast models are fine-tuned, and how fast they learn from pairs."""

import statistics
import time

import shape

LONG = 4096  # tokens of a long answer, at most


def sft_padded(repeats: int) -> dict:
    """Every position holds a token: the speed of the step itself."""
    return _sft([[shape.size.length]] * shape.size.rows, repeats)


def sft_lengths_padded(repeats: int) -> dict:
    """Conversations of realistic length, one to a row."""
    return _sft([[int(n)] for n in shape.lengths(shape.size.rows)], repeats)


def sft_lengths_packed(repeats: int) -> dict:
    """Conversations of the same distribution, packed into rows."""
    return _sft(shape.packed_rows(), repeats)


def reward_model(repeats: int) -> dict:
    """Bradley-Terry on pairs that fill their rows."""
    return _compare("reward_model", shape.model(head="score"), *_full_pairs(), repeats)


def dpo(repeats: int) -> dict:
    """The same pairs, with the log-probabilities of policy and reference."""
    return _compare("preference", shape.model(), *_full_pairs(), repeats)


def dpo_packed(repeats: int) -> dict:
    """Pairs of realistic length, several to a row."""
    from easylm.data.packing import pack

    length = shape.size.pair
    lengths = _pair_lengths(40 * shape.size.rows).clip(max=length // 2)
    plan = pack(lengths.sum(axis=1), length, most=32)
    places = [plan[r] for r in range(shape.size.rows)]
    rows = [[int(n) for i in row for n in lengths[i]] for row in places]
    batch = _pairs(rows, length, items=32, answers=2)
    return _compare(
        "preference", shape.model(), batch, sum(map(len, rows)) / 2, repeats
    )


def pairs_padded(repeats: int) -> dict:
    """Each answer in a row of its own."""
    rows = [[n] for pair in _pair_lengths(2) for n in pair]
    return _long_pairs(rows, answers=1, repeats=repeats)


def pairs_packed(repeats: int) -> dict:
    """The two answers of a pair behind each other, and several pairs to a row."""
    from easylm.data.packing import pack

    lengths = _pair_lengths(200)
    plan = pack(lengths.sum(axis=1), 2 * LONG, most=32)
    rows = [[int(n) for i in plan[0] for n in lengths[i]]]
    return _long_pairs(rows, answers=2, repeats=repeats)


def _sft(rows: list[list[int]], repeats: int) -> dict:
    from easylm.objectives import sft

    model = shape.model()
    batch = {"seqs": shape.sequences(rows, shape.size.length)}
    return _train(sft.make(model), model, batch, {}, repeats)


def _full_pairs():
    """Pairs of two answers that fill their rows, and how many they are."""
    rows, length = shape.size.rows, shape.size.pair
    batch = _pairs([[length // 2] * 2] * rows, length, items=1, answers=2)
    return batch, rows


def _compare(name: str, model, batch, pairs: float, repeats: int) -> dict:
    from types import SimpleNamespace

    import jax

    from easylm.objectives import base as objectives
    from easylm.training.reference import item_logps

    objective = objectives.make(name, model)
    frozen = {}
    if objective.reference:
        reference, params = shape.frozen(model, seed=1)
        run = jax.jit(
            lambda params, batch: item_logps(reference, 1, 1.0, params, batch)
        )
        logps = lambda batch: run(params, batch)
        frozen = {"reference": SimpleNamespace(logps=logps, config=model.config)}
    return _train(objective, model, batch, frozen, repeats, pairs=pairs)


def _long_pairs(rows: list[list[int]], answers: int, repeats: int) -> dict:
    """Training of a small reward model on rows of 4,096 tokens an answer."""
    import jax.numpy as jnp

    from easylm.losses.masked import Mean
    from easylm.losses.reward import bradley_terry
    from easylm.models.answers import answer_scores
    from easylm.objectives import reward_model
    from easylm.objectives.base import Prepared

    length = answers * LONG
    model = shape.model(head="score", max_len=length, layers=2, unroll=2, remat="full")
    batch = _pairs(rows, length, items=32 if answers == 2 else 1, answers=answers)
    objective = reward_model.make(model)
    if answers == 1:  # pairs lie across rows

        def loss(params, batch):
            scores = answer_scores(model, params, batch["seqs"], (1, 1))
            each = bradley_terry(scores.reshape(-1, 2))
            mean = Mean(jnp.sum(each), jnp.float32(len(each)))
            return mean, {"loss": mean}

        as_it_is = lambda params, frozen, batch, key: Prepared([batch])
        objective = objective._replace(loss=loss, prepare=as_it_is)
    pairs = sum(map(len, rows)) / 2
    return _train(objective, model, batch, {}, repeats, pairs=pairs)


def _train(objective, model, batch, frozen, repeats: int, pairs=0) -> dict:
    """Updates of the objective, each held against the rate of products beside it."""
    import jax

    from easylm.models import base
    from easylm.models.attention import kernel

    start, step = shape.trainer(objective, lr=1e-4)

    def update(state):
        key = jax.random.key(0)
        [ready] = objective.prepare(state.params, frozen, batch, key).batches
        return jax.block_until_ready(step(state, ready)[0])

    began = time.perf_counter()
    state = update(start(base.init(model.spec, jax.random.key(0))))
    first = time.perf_counter() - began
    peak = shape.peak_gib()

    done, useful, tokens = work(model.config, batch["seqs"], len(frozen), pairs)
    times, rates = [], []
    before = shape.product_rate()
    for _ in range(repeats):
        began = time.perf_counter()
        state = update(state)
        times.append(time.perf_counter() - began)
        after = shape.product_rate()
        rates.append((before + after) / 2)
        before = after
    seconds = statistics.median(times)
    share = lambda work: statistics.median(
        work / (time * rate) for time, rate in zip(times, rates, strict=True)
    )
    size = batch["seqs"].tokens.size
    report = {
        "attention": kernel(model.config, batch["seqs"].tokens.shape[1]),
        "tokens_per_second": size / seconds,
        "useful_tokens_per_second": tokens / seconds,
        "fraction_of_limit": share(done),
        "mfu": share(useful),
        "peak_gib": peak,
        "first_step_seconds": first,
        "seconds": times,
    }
    return report | ({"pairs_per_second": pairs / seconds} if pairs else {})


def work(config, seqs, references: int, pairs: float) -> tuple[float, float, float]:
    """FLOPs of an update as the device does them, padding and all, those of the tokens
    that are there, and how many these are."""
    from easylm.training.flops import attended, forward_flops, train_flops

    tokens = float((seqs.segments != 0).sum())
    whole = seqs if pairs else _whole(seqs)

    def flops(seqs, tokens):
        of_all = config, tokens, float(attended(config, seqs.positions, seqs.segments))
        return train_flops(*of_all) + references * forward_flops(*of_all)

    return flops(whole, seqs.tokens.size), flops(seqs, tokens), tokens


def _pair_lengths(n: int):
    """Tokens of two answers with their prompt, [n, 2]: log-normal, median 300."""
    import numpy as np

    draws = np.random.default_rng(0).lognormal(np.log(300), 0.8, (n, 2))
    return draws.clip(32, LONG).astype(int)


def _pairs(rows: list[list[int]], length: int, items: int, answers: int) -> dict:
    import jax.numpy as jnp

    prompt = shape.size.prompt if min(map(min, rows)) > shape.size.prompt else 16
    return {
        "seqs": shape.sequences(rows, length, prompt),
        "items": jnp.zeros((len(rows), items), jnp.int32),
        "ratings": jnp.zeros((len(rows), items, answers, 0)),
    }


def _whole(seqs):
    """The same rows, every position counted as a token of one segment."""
    import jax.numpy as jnp

    positions = jnp.broadcast_to(jnp.arange(seqs.tokens.shape[1]), seqs.tokens.shape)
    return seqs.replace(positions=positions, segments=jnp.ones_like(seqs.segments))
