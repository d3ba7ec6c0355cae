"""What a run says about itself: numbers, rates, samples, and a summary at the end."""

from functools import partial

import jax
import jax.numpy as jnp

from easylm.losses.masked import Mean
from easylm.models import base
from easylm.training import flops, hosts, metrics
from easylm.training.goodput import USEFUL, Goodput
from easylm.training.progress import Phases, Progress, peak_memory, rates, summary


class Report:
    """Gathers the steps since the last line, and writes lines when they are due."""

    def __init__(self, config, workdir, parts, phases: Phases, lr, steps, start):
        objective, model, frozen = parts
        self._config, self._model, self._phases = config, model, phases
        self._unit, self._updates = objective.unit, objective.updates
        self._what = "prompts" if objective.online else _EXAMPLES[objective.unit]
        self._lr, self._steps, self._start, self._done = lr, steps, start, start
        self._progress = Progress(steps, start, name=config.objective.name)
        self._goodput = Goodput(phases, metrics.read(workdir), start)
        self._stragglers = hosts.Stragglers(hosts.names())
        self._writer = metrics.make(
            workdir,
            tensorboard=config.log.tensorboard,
            wandb={"project": config.log.wandb} if config.log.wandb else None,
            config=config.to_dict(),
            resume_step=start or -1,
        )
        self._peak = flops.job_peak(model.config.dtype)
        known = [] if objective.online else frozen.values()  # not in the updates
        others = [f.config for f in known if f.config is not None]
        self._work = jax.jit(partial(_work, model.config, others))
        self._window, self._seen, self._mark = [], [], {}
        self._last, self._tokens, self._flops = {}, 0.0, 0.0

    def beginning(self, layout, data) -> None:
        """Says what will be trained, and on what."""
        self._writer.scalars(self._start, self._goodput.metrics())  # remembered
        c, stats, what = self._model.config, data.stats, self._what
        mesh = " x ".join(f"{k} {v}" for k, v in layout.mesh.shape.items() if v > 1)
        devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        self._progress.print(
            f"model   {base.count(self._model.spec):,} parameters, {c.layers} layers,"
            f" {c.dtype}\n"
            f"devices {devices}{', mesh ' + mesh if mesh else ''}\n"
            f"data    {stats['items']:,} {what}, {stats['tokens']:,} tokens"
            f" ({stats['scored_tokens']:,} scored) in {stats['rows']:,} rows,"
            f" {stats['fill']:.1%} full\n"
            f"run     {self._steps:,} iterations of {self._config.batch} rows"
            + (f", resuming after {self._start:,}" if self._start else "")
        )
        if data.counts:
            counts = ", ".join(f"{n:,} {why}" for why, n in sorted(data.counts.items()))
            self._progress.print(f"rows    {counts}")
            counts = {f"data/{why}": n for why, n in data.counts.items()}
            self._writer.scalars(self._start, counts)

    def waiting(self, batches, profiler):
        """The batches, with the time spent waiting for them on the clock; to the
        profiler, an iteration lasts until the next one is asked for."""
        batches, iterations = iter(batches), range(self._start, self._steps)
        if line := profiler.missed(iterations):
            self._progress.print(line)
        for iteration in iterations:
            profiler.begin(iteration)
            with jax.profiler.StepTraceAnnotation("iteration", step_num=iteration):
                with self._phases("data_wait"):
                    item = next(batches)
                yield item
            if profiler.ends(iteration):
                with self._phases("train"):
                    jax.block_until_ready(self._window)
                with self._phases("profile"):
                    self._progress.print(profiler.end())

    def add(self, measured, seqs) -> None:
        """Takes the metrics of one update."""
        self._window.append(measured | self._work(seqs))

    def seen(self, done: int, ready) -> None:
        """Takes what was seen on the way to the updates of an iteration."""
        self._seen.append(dict(ready.metrics))
        self._writer.records(done, ready.samples)
        if done % max(self._config.log.every, 1) == 0:
            for number, row in enumerate(ready.samples[:_SHOWN]):
                text = f"{row['prompt']}\n\n{row['answer']}\n\n{row['reward']:.4g}"
                self._writer.text(done, f"rollout/{number}", text)

    def step(self, done: int) -> None:
        """After an iteration: the progress bar, and a line if one is due."""
        self._done = done
        self._progress.advance(done)
        every = self._config.log.every
        first = done == self._start + 1  # it compiled: its time says nothing
        if first or done == self._steps or (every and done % every == 0):
            self._line(done, timed=not first)

    def evaluate(self, evaluate, sample, params, done: int) -> None:
        """Held-out numbers and completions, where the config asks for them."""
        if evaluate and self._due(self._config.eval.every, done):
            with self._phases("evaluate"):
                values = {f"eval/{k}": v for k, v in evaluate(params).items()}
            self._last |= values
            self._writer.scalars(done, values)
            text = "  ".join(f"{k} {v:.4f}" for k, v in values.items())
            self._progress.print(f"{done:>6}  {text}")
        if sample and self._due(self._config.sample.every, done):
            with self._phases("sample"):
                answers = sample(params, jax.random.key(self._config.seed))
            self._samples(done, answers)

    def end(self) -> dict[str, float]:
        """Prints the summary. The last value of every metric."""
        size, where = peak_memory()  # the last line's is that of all hosts
        size = max(size, self._last.get(f"memory/{where}_peak", 0.0) * 2**30)
        text = summary(
            self._phases.seconds(),
            steps=self._steps - self._start,
            tokens=self._tokens,
            flops=self._flops,
            peak=self._peak,
            loss=self._last.get("train/loss"),
            memory=(size, where),
            goodput=self._goodput.metrics(),
        )
        if jax.process_index() == 0:
            print(text)
        return self._last

    def close(self) -> None:
        totals = self._phases.metrics()
        if self._done > self._start:
            totals |= self._goodput.metrics()
        self._writer.scalars(self._done, totals)
        self._writer.close()
        self._progress.close()

    def _line(self, done: int, timed: bool) -> None:
        with self._phases("train"):  # waits for the device
            values = metrics.accumulate(self._window)
        updates = len(self._window)
        values["tokens"] = values.pop("scored_tokens")
        work = {name: values.pop(name) * updates for name in ("real_tokens", "flops")}
        work |= {name: values[name] * updates for name in ("tokens", self._unit)}
        line = {"data/fill": values.pop("fill")}
        line |= {f"train/{k}": v for k, v in values.items()}
        line |= metrics.accumulate(self._seen)
        line["train/learning_rate"] = float(self._lr(done * self._updates - 1))
        seconds = self._phases.seconds()
        spent = {n: s - self._mark.get(n, 0.0) for n, s in seconds.items()}
        alone, used = hosts.look(spent)
        line |= used
        if timed:
            line |= self._rates(spent, work, updates) | self._shares(spent)
            line |= hosts.waits(alone, updates)
            self._held_up(alone, spent)
        line |= self._goodput.metrics()
        self._window, self._seen, self._mark = [], [], seconds
        self._last |= line
        self._writer.scalars(done, line)
        self._progress.log(done, line)

    def _held_up(self, alone, spent) -> None:
        """Takes note of the time that other processes cost this one."""
        self._goodput.hidden += float(alone[:, 0].max()) - spent.get("data_wait", 0.0)
        lasted = sum(spent.get(name, 0.0) for name in ("data_wait", *USEFUL))
        done = len(self._seen)
        for warning in self._stragglers(alone / done, lasted / done):
            self._progress.print(warning)

    def _rates(self, spent, work, updates):
        self._tokens += work["real_tokens"]
        self._flops += work["flops"]
        return rates(
            steps=updates,
            seconds=spent.get("train", 0.0) + spent.get("data_wait", 0.0),
            waited=spent.get("data_wait", 0.0),
            tokens=work["real_tokens"],
            scored=work["tokens"],
            items={} if self._unit == "tokens" else {self._unit: work[self._unit]},
            flops=work["flops"],
            peak=self._peak,
        )

    def _shares(self, spent) -> dict[str, float]:
        """Of the time since the last line, where an iteration has several parts."""
        parts = {name: spent.get(name, 0.0) for name in _PARTS}
        if not any(parts[name] for name in _PARTS[:-1]):
            return {}
        total = sum(parts.values())
        return {f"perf/share_{name}": value / total for name, value in parts.items()}

    def _samples(self, done: int, answers) -> None:
        lines = []
        for number, (prompt, answer) in enumerate(answers):
            self._writer.text(done, f"samples/{number}", f"{prompt}\n\n{answer}")
            lines.append(f"        {prompt!r}\n     -> {answer!r}")
        self._progress.print(f"{done:>6}  samples\n" + "\n".join(lines))

    def _due(self, every: int, done: int) -> bool:
        resumed = done == self._start and self._start > 0
        return (
            bool(every) and not resumed and (done % every == 0 or done == self._steps)
        )


_SHOWN = 4  # answers of an iteration in TensorBoard
_PARTS = ("rollout", "rewards", "scoring", "train")
_EXAMPLES = {"tokens": "examples", "pairs": "pairs", "items": "items"}


def _work(config, frozen, seqs):
    """Tokens and model FLOPs of a batch, for the rates."""
    one = jnp.ones(())
    real = jnp.sum(seqs.segments != 0).astype(jnp.float32)
    attended = lambda c: flops.attended(c, seqs.positions, seqs.segments)
    work = flops.train_flops(config, real, attended(config))
    work += sum(flops.forward_flops(c, real, attended(c)) for c in frozen)
    return {
        "real_tokens": Mean(real, one),
        "scored_tokens": Mean(jnp.sum((seqs.mask != 0) * 1.0), one),
        "flops": Mean(work, one),
        "fill": Mean(real, one * seqs.tokens.size),
    }
