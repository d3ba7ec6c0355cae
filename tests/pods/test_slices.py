"""Slices by their names, and what is said when there is none of that name."""

import pytest

from easylm.errors import UserError
from easylm.pods.slices import GENERATIONS, Slice, parse


@pytest.mark.parametrize(
    ("name", "chips", "devices", "shape"),
    [
        ("v3-32", 16, 32, (4, 4)),  # cores, two of them to a chip
        ("v4-256", 128, 128, (4, 4, 8)),
        ("v5p-128", 64, 64, (4, 4, 4)),
        ("v5litepod-64", 64, 64, (8, 8)),  # chips
        ("v5e-64", 64, 64, (8, 8)),
        ("v6e-256", 256, 256, (16, 16)),
        ("tpu7x-64", 64, 128, (4, 4, 4)),  # two devices to a chip
        ("v5p:4x4x8", 128, 128, (4, 4, 8)),
        ("2 x v6e-256", 512, 512, (16, 16)),
        ("4xv5litepod-16", 64, 64, (4, 4)),
    ],
)
def test_a_name_says_how_many_chips_and_devices(name, chips, devices, shape):
    place = parse(name)
    assert (place.chips, place.devices, place.shape) == (chips, devices, shape)


def test_every_slice_has_a_name_that_is_read_back():
    for generation in GENERATIONS.values():
        for shape in generation.shapes:
            for times in (1, 2):
                place = Slice(generation, shape, times)
                assert parse(place.name) == place


def test_rings_are_closed_where_the_cloud_wires_them():
    assert parse("v5p:4x4x8").around == (True, True, True)
    assert parse("v5p:2x4x4").around == (False, True, True)
    assert parse("v5litepod-128").around == (False, True)  # 8 x 16
    assert parse("v6e-64").around == (False, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p-100", r"nearest are v5p-128 \(4x4x4\) and v5p-64 .* counts cores"),
        ("v5litepod-100", r"v5litepod-128 \(8x16\).* counts chips"),
        ("v5p:4x4x5", r"nearest are v5p-128 \(4x4x4\)"),
        ("v5p:8x4x4", r"from short to long: v5p:4x4x8"),
        ("v6-256x", "is not a name such as"),
        ("v9-8", "no TPU is called v9; .*known are v3"),
        ("0 x v4-8", "one slice or more"),
    ],
)
def test_what_is_no_slice_is_told_the_nearest_one(name, message):
    with pytest.raises(UserError, match=message):
        parse(name)
