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


BETWEEN = """
ENTRY %main (p: bf16[64,128]) -> bf16[64,128] {
  %p = bf16[64,128]{1,0} parameter(0)
  %t = token[] after-all()
  %send.1 = (bf16[64,128]{1,0}, u32[], token[]) send(%p, %t), channel_id=2, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="psum.7_0",_xla_megascale_target="{1,2,3,4}x{0:15}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (bf16[64,128]{1,0}, u32[], token[]) recv(%t), channel_id=1, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="psum.7_0"}
  %work = bf16[64,128]{1,0} fusion(%p), kind=kLoop, calls=%other
  %recv-done.1 = (bf16[64,128]{1,0}, token[]) recv-done(%recv.1), channel_id=1
}
"""


def test_what_hosts_pass_between_slices_is_counted():
    def only(text):
        [one] = hlo.collectives(hlo.parse(text), MESH)
        return one

    one = only(BETWEEN)
    assert (one.kind, one.axes, one.size) == ("all-reduce", hlo.SLICES, 4)
    assert one.wire == 2 * 64 * 128 * 2 * 3 / 4 and one.overlapped
    alone = "\n".join(x for x in BETWEEN.splitlines() if "%work" not in x)
    assert not only(alone).overlapped


def test_a_permutation_is_along_what_its_pairs_differ_in():
    line = "  %x = f32[6]{0} collective-permute(%p), source_target_pairs={{0,0},{1,5}}"
    text = f"ENTRY %main (p: f32[6]) -> f32[6] {{\n{line}\n}}"
    [one] = hlo.collectives(hlo.parse(text), MESH)
    assert one.axes == ("data",)
