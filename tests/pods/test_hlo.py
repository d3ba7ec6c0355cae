"""Collectives are found where they are, as often as they run, along the right axes."""

from pathlib import Path

import pytest

from easylm.pods import hlo

MESH = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}  # device = 4 data + fsdp

TEXT = (Path(__file__).parent / "step.hlo").read_text()


@pytest.fixture(scope="module")
def found():
    parsed = hlo.parse(TEXT)
    return {(c.kind, c.axes): c for c in hlo.collectives(parsed, MESH, trips=50)}


def test_each_is_counted_once_with_its_axes(found):
    assert set(found) == {
        ("all-gather", ("fsdp",)),
        ("reduce-scatter", ("fsdp",)),
        ("all-reduce", ("data", "fsdp")),
        ("all-gather", ("data", "fsdp")),
        ("collective-permute", ("data",)),
        ("all-reduce", ("data",)),
    }


def test_what_is_in_a_loop_runs_as_often_as_the_loop(found):
    assert found["all-gather", ("fsdp",)].times == 12
    assert found["reduce-scatter", ("fsdp",)].times == 12
    assert found["all-reduce", ("data", "fsdp")].times == 50  # until it is done
    assert found["all-reduce", ("data",)].times == 1


def test_bytes_are_those_that_leave_a_device(found):
    """Of an array of so many bytes on n devices: (n - 1) / n, an all-reduce twice."""
    wire = {key: c.wire for key, c in found.items()}
    assert wire["all-gather", ("fsdp",)] == 64 * 8 * 2 * 3 / 4
    assert wire["reduce-scatter", ("fsdp",)] == 64 * 8 * 2 * 3 / 4
    assert wire["all-reduce", ("data", "fsdp")] == 2 * 8 * 4 * 7 / 8
    assert wire["collective-permute", ("data",)] == 6 * 4
    assert wire["all-reduce", ("data",)] == 2 * 10 * 4 / 2
    assert found["all-gather", ("fsdp",)].source == "jit(step)/layer/dot"


def test_what_starts_here_and_ends_there_overlaps(found):
    overlapped = {key for key, c in found.items() if c.overlapped}
    assert overlapped == {
        ("all-gather", ("data", "fsdp")),
        ("collective-permute", ("data",)),
    }


def test_cycles_are_those_of_what_runs():
    assert hlo.cycles(hlo.parse(TEXT)) == 12 * 100 + 7
