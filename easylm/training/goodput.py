"""How much of a run's time was of use: since this process began, and since the first.

Of use are updates, and online the sampling, rewards and scoring before them. Compiling,
reading, waiting for data, evaluating and saving are not; nor is what was lost when a
run was killed and is done again, nor the time in which nothing ran.

The lines of metrics.jsonl are the memory: each says how long the run has lasted, and
which share of that was of use. A resumed run goes on from the last line that counts.
"""

import time

USEFUL = ("train", "rollout", "rewards", "scoring")


class Goodput:
    """Of the run whose earlier lines are `lines`, from iteration `start` on.

    hidden: seconds of `phases` that look useful, but went by waiting for the data of
    another process.
    """

    def __init__(self, phases, lines, start: int, clock=time.time):
        self._phases, self._clock, self.hidden = phases, clock, 0.0
        now = clock() - sum(phases.seconds().values())
        began, self._before = so_far(lines, start)
        self._began = now if began is None else min(began, now)

    def metrics(self) -> dict[str, float]:
        """perf/goodput of this process, perf/goodput_run of the run, and its time."""
        seconds = self._phases.seconds()
        useful = sum(seconds.get(name, 0.0) for name in USEFUL) - self.hidden
        lasted = self._clock() - self._began
        return {
            "perf/goodput": useful / sum(seconds.values()),
            "perf/goodput_run": (self._before + useful) / lasted,
            "time/run": lasted,
        }


def so_far(lines, start: int) -> tuple[float | None, float]:
    """When the run began, if `lines` know it, and its useful seconds until `start`.

    What was done after `start` will be done again: it counts as time, not as use.
    """
    known = [line for line in lines if "time/run" in line]
    kept = [line for line in known if line["step"] <= start]
    began = known[-1]["time"] - known[-1]["time/run"] if known else None
    useful = kept[-1]["perf/goodput_run"] * kept[-1]["time/run"] if kept else 0.0
    return began, useful
