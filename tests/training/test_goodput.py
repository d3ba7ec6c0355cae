"""How much of a run's time was of use, over kills and restarts."""

import pytest

from easylm.training.goodput import Goodput
from easylm.training.progress import Phases


class Machine:
    """Starts a run again and again, on a clock of its own. A start loads for 2 s, an
    iteration takes 1 s and writes a line."""

    def __init__(self):
        self.now, self.lines, self.saved = 1000.0, [], 0

    def start(self):
        self.phases = Phases(clock=lambda: self.now)
        self.spend("load", 2)
        clock = lambda: self.now
        self.goodput = Goodput(self.phases, self.lines, self.saved, clock=clock)
        kept = self.saved or -1  # as metrics.make does it
        self.lines = [line for line in self.lines if line["step"] <= kept]
        self.log(self.saved)

    def train(self, first, last):
        for step in range(first, last + 1):
            self.spend("train", 1)
            self.log(step)

    def save(self, step):
        self.spend("save", 1)
        self.saved = step

    def spend(self, phase, seconds):
        with self.phases(phase):
            self.now += seconds

    def log(self, step):
        line = {"step": step, "time": self.now, "train/loss": 1.0}
        self.lines.append(line | self.goodput.metrics())

    @property
    def last(self):
        names = ("perf/goodput", "perf/goodput_run", "time/run")
        return pytest.approx([self.lines[-1][name] for name in names])


@pytest.fixture
def machine():
    machine = Machine()
    machine.start()
    return machine


def test_only_training_is_of_use(machine):
    for phase in ("compile", "evaluate", "data_wait", "save", "sample"):
        machine.spend(phase, 1)
    for phase in ("rollout", "rewards", "scoring"):
        machine.spend(phase, 1)
    machine.now += 3  # other
    machine.train(1, 5)
    assert machine.last == [8 / 18, 8 / 18, 18]


def test_what_is_done_again_after_a_kill_counts_once(machine):
    machine.train(1, 4)
    machine.save(4)
    machine.train(5, 9)  # lost
    machine.start()
    machine.train(5, 6)
    assert machine.last == [2 / 4, (4 + 2) / (2 + 4 + 1 + 5 + 2 + 2), 16]


def test_time_when_nothing_ran_is_lost(machine):
    machine.train(1, 4)
    machine.save(4)
    machine.now += 100
    machine.start()
    machine.train(5, 8)
    assert machine.last == [4 / 6, 8 / 113, 113]


def test_restarts_without_a_checkpoint_are_remembered(machine):
    machine.train(1, 4)
    machine.start()
    machine.start()  # killed before it had done anything
    machine.train(1, 4)
    assert machine.last == [4 / 6, 4 / 14, 14]


def test_many_restarts_add_up(machine):
    for i in range(5):
        machine.train(10 * i + 1, 10 * i + 10)
        machine.save(10 * i + 10)
        machine.train(10 * i + 11, 10 * i + 15)  # lost
        machine.start()
    assert machine.last == [0, 50 / (2 + 5 * 18), 92]


def test_waiting_for_the_data_of_another_process_is_of_no_use(machine):
    machine.train(1, 4)
    machine.goodput.hidden += 3
    machine.train(5, 6)
    assert machine.last == [3 / 8, 3 / 8, 8]


def test_lines_of_a_run_without_goodput_say_nothing(machine):
    lines = [{"step": 1, "time": 10.0, "train/loss": 1.0}]
    goodput = Goodput(machine.phases, lines, 1, clock=lambda: machine.now)
    assert goodput.metrics()["time/run"] == 2
