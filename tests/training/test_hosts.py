"""Who is late, from the seconds that each process was by itself."""

import socket

import numpy as np

from easylm.training import hosts

NAMES = ["a", "b", "c", "d"]
EVEN = np.array([[0.1, 0.0]] * 4, np.float32)  # data_wait, rewards of four processes


def late(process, data=0.0, rewards=0.0):
    alone = EVEN.copy()
    alone[process] += data, rewards
    return alone


def test_a_process_that_is_late_three_lines_in_a_row_is_named_once():
    says, seen = hosts.Stragglers(NAMES), []
    for _ in range(6):
        seen.append(says(late(2, data=0.4), seconds=2.0))
    assert [len(lines) for lines in seen] == [0, 0, 1, 0, 0, 0]
    assert seen[2] == [
        "slow    process 2 on c holds up the others: it waits 0.50 s of an iteration of"
        " 2.00 s for data, they 0.10 s"
    ]


def test_it_is_named_again_after_it_has_recovered():
    says = hosts.Stragglers(NAMES)
    rows = [late(2, data=1.0)] * 3 + [EVEN] + [late(2, data=1.0)] * 3
    assert [len(says(row, 2.0)) for row in rows] == [0, 0, 1, 0, 0, 0, 1]


def test_processes_that_take_turns_are_not_stragglers():
    says = hosts.Stragglers(NAMES)
    assert not any(says(late(i % 4, rewards=5.0), 10.0) for i in range(12))


def test_what_it_waits_for_most_is_named():
    says = hosts.Stragglers(NAMES)
    (line,) = [x for _ in range(3) for x in says(late(0, rewards=3.0), 4.0)]
    assert "process 0 on a" in line and "for rewards" in line


def test_several_stragglers_do_not_hide_each_other():
    alone = late(1, data=1.0) + late(3, data=1.0) - EVEN
    alone = np.concatenate([alone, EVEN])
    says = hosts.Stragglers([*NAMES, *NAMES])
    lines = [x for _ in range(3) for x in says(alone, 2.0)]
    assert [line.split()[2] for line in lines] == ["1", "3"]


def test_a_small_part_of_an_iteration_is_no_reason():
    says = hosts.Stragglers(["a", "b"])
    alone = np.array([[0.0, 0.0], [0.09, 0.0]])
    assert not any(says(alone, 2.0) for _ in range(5))
    assert any(says(alone, 1.0) for _ in range(5))


def test_the_longest_wait_is_per_update_and_has_a_process():
    assert hosts.waits(late(2, data=0.7), updates=4) == {
        "perf/data_wait_max": np.float32(0.8) / 4,
        "perf/data_wait_process": 2.0,
    }


def test_one_process_has_nobody_to_wait_for():
    alone, used = hosts.look({"data_wait": 3.0, "train": 5.0})
    assert alone.tolist() == [[3.0, 0.0]]
    assert hosts.waits(alone, updates=1) == {}
    assert not any(hosts.Stragglers(hosts.names())(alone, 3.0) for _ in range(5))
    assert hosts.names() == [socket.gethostname()]
    assert all(0 < size < 2**15 for size in used.values())
