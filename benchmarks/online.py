"""How fast answers are sampled, and how fast PPO learns from them."""

import statistics
import time
from functools import partial
from types import SimpleNamespace

import shape

ANSWERS, AT_A_TIME, MEAN = 64, 8, 64  # answers of uneven length,
ASKED = 64  # to prompts of so many tokens


def sampling(repeats: int) -> dict:
    """Prefill and decode in one program."""
    import jax

    model, params = shape.frozen(shape.model(), seed=0)
    rows, new = shape.size.rows, shape.size.new
    prompts, key = _prompts(rows, shape.size.prompt), jax.random.key(2)
    seconds = lambda new: _generate(model, params, prompts, key, max_new_tokens=new)[0]
    first = seconds(new)
    peak = shape.peak_gib()
    seconds(1)  # compiled for fewer new tokens
    times, steps, fractions = [], [], []
    for _ in range(repeats):
        limit = reading(model.config, rows, shape.read_rate())
        times.append(seconds(new))
        steps.append((times[-1] - seconds(1)) / (new - 1))
        fractions.append(limit / steps[-1])
    return {
        "tokens_per_second": rows * new / statistics.median(times),
        "useful_tokens_per_second": rows / statistics.median(steps),  # without prefill
        "fraction_of_limit": statistics.median(fractions),
        "peak_gib": peak,
        "first_step_seconds": first,
        "seconds": times,
        "step_seconds": steps,
    }


def rollouts(repeats: int) -> dict:
    """`rollout_static`: batch after batch; `rollout_continuous`: rows are refilled.

    The same answers, alternating. A model that knows nothing draws almost uniformly
    from the vocabulary, of which one token in 64 is a stop: lengths are geometric.
    """
    import jax

    model, params = shape.frozen(shape.model(), seed=0)
    stops = range(0, model.config.vocab_size, MEAN)
    prompts, options = _prompts(ANSWERS, ASKED), dict(max_new_tokens=4 * MEAN)
    sample = partial(_generate, model, params, stop_ids=stops, **options)

    def static(keys):
        starts = range(0, ANSWERS, AT_A_TIME)
        cut = lambda i: jax.tree.map(lambda x: x[i : i + AT_A_TIME], (prompts, keys))
        return [sum(x) for x in zip(*(sample(*cut(i)) for i in starts), strict=True)]

    runs = {"static": static, "continuous": partial(sample, prompts, rows=AT_A_TIME)}
    reports, found = {}, {name: [] for name in runs}
    draw = lambda i: jax.random.split(jax.random.key(i), ANSWERS)
    for name, run in runs.items():
        reports[name] = {"first_step_seconds": run(draw(0))[0]}
        reports[name]["peak_gib"] = shape.peak_gib()
    for i in range(1, repeats + 1):  # other answers every time
        for name, run in runs.items():
            found[name].append(run(draw(i)))
    for name, report in reports.items():
        seconds, tokens, steps = zip(*found[name], strict=True)
        report["useful_tokens_per_second"] = _median_ratio(tokens, seconds)
        report["tokens_per_second"] = AT_A_TIME * _median_ratio(steps, seconds)
        report |= {"seconds": seconds, "tokens": tokens, "steps": steps}
    old, new = reports.values()
    ratios = [_median_ratio(old[what], new[what]) for what in ("seconds", "steps")]
    mean = sum(new["tokens"]) / ANSWERS / repeats
    new["note"] = (
        f"{ratios[0]:.2f} times as fast as static batches, which take {ratios[1]:.2f}"
        f" times the steps; {mean:.1f} tokens an answer"
    )
    return {f"rollout_{name}": report for name, report in reports.items()}


def ppo_iteration(repeats: int) -> dict:
    """Answers, rewards, what the models say of them, and an update of both models."""
    import jax
    import jax.numpy as jnp

    from easylm import sharding
    from easylm.models import base
    from easylm.objectives import policy_gradient
    from easylm.objectives.online import Rows
    from easylm.training.progress import Phases

    model, judge = shape.model(), shape.model(head="score")
    objective = policy_gradient.make(model, judge)
    layout, phases = sharding.make_layout("data"), Phases()
    size = shape.size
    frozen = {
        "rollout": _rollout(model, judge, layout, phases),
        "rows": Rows(size.prompt + size.new, 1),
        "reference": _reference(model),
    }
    start, step = shape.trainer(objective, lr=1e-6)
    batch = {"seqs": shape.sequences([[size.prompt]] * size.rows, size.prompt)}
    batch["items"] = jnp.arange(size.rows)[:, None]

    def iteration(state, number):
        """The new state, the seconds of each phase, and of all."""
        before, began = phases.seconds(), time.perf_counter()
        ready = objective.prepare(state.params, frozen, batch, jax.random.key(number))
        with phases("update"):
            [part] = ready.batches
            state = jax.block_until_ready(step(state, part)[0])
        seconds, now = time.perf_counter() - began, phases.seconds()
        names = ("rollout", "rewards", "scoring", "update")
        return state, {k: now[k] - before.get(k, 0.0) for k in names}, seconds

    with sharding.use(layout):
        params = base.init(objective.spec, jax.random.key(0), layout)
        state, _, first = iteration(start(params), 0)
        peak = shape.peak_gib()
        times, fractions, split = [], [], []
        for number in range(1, repeats + 1):
            limit = _limit(model.config, judge.config)
            state, spent, seconds = iteration(state, number)
            times.append(seconds)
            fractions.append(limit / seconds)
            split.append(spent)
    speed = size.rows * size.new / statistics.median(times)
    seconds = {k: statistics.median(spent[k] for spent in split) for k in split[0]}
    return {
        "tokens_per_second": speed,
        "useful_tokens_per_second": speed,
        "fraction_of_limit": statistics.median(fractions),
        "peak_gib": peak,
        "first_step_seconds": first,
        "seconds": times,
        "phases": seconds,
        "note": ", ".join(f"{k} {t:.1f} s" for k, t in seconds.items()),
    }


def _rollout(model, judge, layout, phases):
    """Answers that never end before the limit, and a reward model that reads them."""
    from easylm.rollout.judge import Judge, Term
    from easylm.rollout.rollouts import Rollout
    from easylm.rollout.scorer import Scorer

    model_of_rewards, params = shape.frozen(judge, seed=1)
    loaded = SimpleNamespace(model=model_of_rewards, params=params, weights=None)
    rows, new = shape.size.rows, shape.size.new
    scorer = Scorer(loaded, layout, length=shape.size.prompt + new, batch=rows)
    member = lambda samples, _: scorer([samples.segment(j) for j in range(rows)])
    example = lambda number: {"prompt": [{"role": "user", "content": ""}]}
    judged = Judge({"model": Term(members=[member])}, example)
    silent = SimpleNamespace(stop_ids=(), decode=lambda ids: "")  # text is not timed
    return Rollout(model, silent, judged, layout, phases, max_new_tokens=new)


def _reference(model):
    import jax

    from easylm.models.heads import token_logps

    reference, params = shape.frozen(model, seed=0)
    program = jax.jit(partial(token_logps, reference))
    return SimpleNamespace(tokens=lambda batch: program(params, batch["seqs"]))


def _limit(policy, scored) -> float:
    """Seconds of an iteration at the rates of products and of memory.

    Prompts are read; each new token reads every weight and the cache once; policy,
    reference, rewards and values read all of it, and policy and values are updated.
    """
    from easylm.training.flops import forward_flops, train_flops

    rows, prompt, new = shape.size.rows, shape.size.prompt, shape.size.new
    pairs = lambda length: rows * policy.layers * length * (length + 1) / 2
    work = forward_flops(scored, rows * prompt, pairs(prompt))  # without logits
    for config, reads in ((policy, 2), (scored, 2)):
        of_all = config, rows * (prompt + new), pairs(prompt + new)
        work += reads * forward_flops(*of_all) + train_flops(*of_all)
    return work / shape.product_rate() + new * reading(policy, rows, shape.read_rate())


def reading(config, rows: int, rate: float) -> float:
    """Seconds in which every weight, and a half-full cache, are read once."""
    import jax.numpy as jnp

    from easylm.training.flops import matmul_params

    cached = shape.size.prompt + shape.size.new / 2
    numbers = matmul_params(config)
    numbers += rows * cached * 2 * config.layers * config.kv_heads * config.head_dim
    return numbers * jnp.dtype(config.dtype).itemsize / rate


def _generate(model, params, prompts, keys, **options) -> tuple[float, int, int]:
    """Seconds, tokens of the answers, and steps of the loop."""
    import jax

    from easylm.rollout.sampler import generate

    began = time.perf_counter()
    out = jax.block_until_ready(generate(model, params, prompts, keys, **options))
    seconds = time.perf_counter() - began
    return seconds, int(out.lengths.sum()), int(out.steps)


def _prompts(rows: int, length: int):
    import jax
    import jax.numpy as jnp

    from easylm.rollout.sampler import Prompts

    vocabulary = shape.model().config.vocab_size
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, vocabulary)
    return Prompts(tokens, jnp.full(rows, length, jnp.int32))


def _median_ratio(above, below) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
