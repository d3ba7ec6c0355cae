"""What a person sees of a run: a progress line, where the time goes, and a summary."""

import contextlib
import os
import resource
import sys
import time

import jax
from tqdm import tqdm

# What the line shows, in this order: metric name -> how it is written.
_SHOWN = {
    "train/loss": lambda x: f"loss {x:.3f}",
    "train/learning_rate": lambda x: f"lr {x:.1e}",
    "perf/tokens_per_second": lambda x: f"{_short(x)} tok/s",
    "perf/mfu": lambda x: f"MFU {x:.1%}",
}
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_TRAINING = ("train", "data_wait")  # the phases that rates are computed over
_WHOLE = ("compile", "evaluate")  # what happens inside of them is theirs


class Progress:
    """A bar on a terminal; elsewhere one plain line per `log`, fit for a log file.

    Only process 0 shows anything.
    """

    def __init__(self, total, start=0, *, name="train", stream=None):
        self._total, self._start, self._name = total, start, name
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._shown = jax.process_index() == 0
        self._bar = None
        if self._shown and _is_terminal(self._stream):
            self._bar = self._open_bar()

    def advance(self, step):
        """Moves the bar to `step` (steps done so far)."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step, metrics):
        """Shows the numbers of `metrics` that fit in a line, at `step`."""
        shown = [show(metrics[k]) for k, show in _SHOWN.items() if k in metrics]
        if self._bar is not None:
            self.advance(step)
            self._bar.bar_format = "  ".join([_BAR, *shown])
            self._bar.refresh()
        elif self._shown:
            self.print("  ".join([self._position(step), *shown]))

    def print(self, text):
        """Prints lines without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._shown:
            print(text, file=self._stream, flush=True)

    def close(self):
        """Leaves the bar where it is."""
        if self._bar is not None:
            self._bar.close()

    def _open_bar(self):
        return tqdm(
            total=self._total,
            initial=self._start,
            desc=self._name,
            file=self._stream,
            bar_format=_BAR,
            dynamic_ncols=True,
        )

    def _position(self, step):
        elapsed, done = time.monotonic() - self._began, step - self._start
        left = _clock(elapsed / done * (self._total - step)) if done > 0 else "?"
        share = f"{step / self._total:.0%}"
        where = f"{self._name} {step}/{self._total} {share:>4}"
        return f"{where}  {_clock(elapsed)} left {left}"


class Phases:
    """Wall time by phase: `with phases("compile"): ...`.

    Each moment belongs to one phase, the innermost, or that of `_WHOLE` around it;
    outside of all it is "other". So the phases add up to the time since the clock was
    made. Where a profile is recorded, it shows them all.
    """

    def __init__(self, clock=time.perf_counter):
        self._clock, self._mark = clock, clock()
        self._seconds, self._open = {}, ["other"]

    @contextlib.contextmanager
    def __call__(self, name):
        self._charge()
        around = self._open[-1]
        self._open.append(around if around in _WHOLE else name)
        try:
            with jax.profiler.TraceAnnotation(name):
                yield
        finally:
            self._charge()
            self._open.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds so far by phase, in the order in which the phases first ended."""
        self._charge()
        return dict(self._seconds)

    def metrics(self) -> dict[str, float]:
        """The same as time/<phase>, with time/total."""
        seconds = self.seconds()
        total = {"time/total": sum(seconds.values())}
        return total | {f"time/{name}": value for name, value in seconds.items()}

    def _charge(self):
        now, name = self._clock(), self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now


def rates(*, steps, seconds, waited, tokens, scored, items, flops, peak):
    """The perf/* numbers of `steps` optimizer steps that took `seconds` together.

    `waited` of these seconds went by waiting for data. `tokens` are real, `scored` have
    mask 1, `items` is {what: how many} of other things worth counting; `flops` is from
    flops.train_flops and `peak` from flops.job_peak, and where that is None there is no
    perf/mfu. All are sums over the whole job.
    """
    values = {
        "perf/step_time": seconds / steps,
        "perf/data_wait": waited / steps,
        "perf/tokens_per_second": tokens / seconds,
        "perf/scored_tokens_per_second": scored / seconds,
    }
    values |= {f"perf/{what}_per_second": n / seconds for what, n in items.items()}
    return values if peak is None else values | {"perf/mfu": flops / seconds / peak}


def memory() -> dict[str, float]:
    """Bytes in use now, and at most so far, on the fullest local device: device and
    device_peak. The CPU keeps no such statistics: the process's own, process_peak."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    kinds = {"device": "bytes_in_use", "device_peak": "peak_bytes_in_use"}
    if all(key in one for key in kinds.values() for one in stats):
        return {name: max(s[key] for s in stats) for name, key in kinds.items()}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def peak_memory() -> tuple[float, str]:
    """(bytes, "device"): the most any local device held at once; or (.., "process")."""
    (name, size) = list(memory().items())[-1]
    return size, name.removesuffix("_peak")


def summary(seconds, *, steps, tokens, flops, peak, loss, memory, goodput) -> str:
    """The table printed at the end of a run.

    `seconds` is `Phases.seconds()`, `memory` is as `peak_memory()`; tokens, flops and
    peak as in `rates`. Rates are over the time spent training and waiting for data.
    `goodput` is `Goodput.metrics()`.
    """
    total = sum(seconds.values())
    training = sum(seconds.get(name, 0.0) for name in _TRAINING)
    rows = [("steps", f"{steps:,}", ""), ("tokens", _short(tokens), "")]
    rows += [("wall time", _clock(total), "")]
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        share = f"{value / total:.1%}" if total else ""
        rows.append(("  " + name.replace("_", " "), _clock(value), share))
    if steps:
        rows.append(("goodput", f"{goodput['perf/goodput_run']:.1%}", ""))
    if steps and goodput["time/run"] > total + 1:
        here, lasted = goodput["perf/goodput"], _clock(goodput["time/run"])
        note = f"of {lasted} with restarts; {here:.1%} since the last"
        rows[-1] = (*rows[-1][:2], note)
    if training:
        rows.append(("tokens/s", _short(tokens / training), ""))
    if training and peak:
        rows.append(("MFU", f"{flops / training / peak:.1%}", ""))
    rows.append(("final loss", "none" if loss is None else f"{loss:.4f}", ""))
    size, where = memory
    rows.append(("peak memory", f"{size / 2**30:.2f} GiB", where))
    return _align(rows)


def _is_terminal(stream):
    """Some containers give a terminal of no width, on which a bar would be nothing."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def _align(rows):
    lines = [
        f"{name:<13} {value:>10}  {note:>7}".rstrip() for name, value, note in rows
    ]
    return "\n".join(lines)


def _clock(seconds):
    return f"{seconds:.1f}s" if seconds < 60 else tqdm.format_interval(seconds)


def _short(number):
    """1234567 -> 1.2M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.1f}".removesuffix(".0")
