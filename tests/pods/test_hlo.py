"""Collectives are found where they are, as often as they run, along the right axes."""

import pytest

from easylm.pods import hlo

MESH = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}  # device = 4 data + fsdp

TEXT = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[16,8] {
  %p = bf16[64,8]{1,0} parameter(0)
  %all-reduce.5 = bf16[64,8]{1,0} all-reduce(%p), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %cut = bf16[16,8]{1,0} dynamic-slice(%all-reduce.5)
}

%body (state: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %ag = bf16[64,8]{1,0} all-gather(%w), channel_id=1, replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}, metadata={op_name="jit(step)/layer/dot"}
  %rs = bf16[16,8]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %next = (s32[], bf16[64,8]) tuple(%i, %ag)
}

%condition (state: (s32[], bf16[64,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%until_done (state: (s32[])) -> pred[] {
  ROOT %more = pred[] and(%a, %b)
}

%decode (state: (s32[])) -> (s32[]) {
  %small = f32[8]{0} all-reduce(%x), channel_id=7, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %out = (s32[]) tuple(%i)
}

%async_collective_fusion.1 (p: f32[4]) -> f32[32] {
  %again = f32[32]{0} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (p: f32[4]) -> f32[] {
  %one = (s32[], bf16[64,8]) while(%start), condition=%condition, body=%body
  %two = (s32[]) while(%begin), condition=%until_done, body=%decode
  %three = f32[32]{0} fusion(%p), kind=kLoop, calls=%async_collective_fusion.1, backend_config={"window_config":{"estimated_cycles":"7"}}
  %four = f32[32]{0} all-gather(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %move = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=4, source_target_pairs={{0,4},{4,0}}
  %total = f32[10]{0} all-reduce(%p), channel_id=6, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  ROOT %result = f32[] copy(%total)
}
"""


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
