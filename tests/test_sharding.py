"""Layouts change where numbers live, never what they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from easylm import sharding
from easylm.data.sequences import Sequences
from easylm.errors import UserError
from easylm.models import base, transformer
from easylm.objectives import base as objectives
from tests import drawn


@pytest.fixture(scope="module")
def model():
    """Eight heads and four key/value heads, so that every preset divides."""
    config = base.config_for("llama:tiny", logits_chunk=32)
    return transformer.make(config)


@pytest.fixture(scope="module")
def batch():
    """Eight packed rows of 32 tokens, two segments and a tail of padding."""
    tokens = np.random.default_rng(1).integers(0, 256, (8, 32)).astype(np.int32)
    lengths = np.array([[5 + i, 20 - i, 7] for i in range(8)])
    segments = np.stack([np.repeat([1, 2, 0], row) for row in lengths])
    positions = np.stack([np.concatenate([np.arange(n) for n in r]) for r in lengths])
    mask = (tokens % 3 > 0) * (segments > 0)
    seqs = Sequences(tokens, mask.astype("f4"), segments, positions * (segments > 0))
    return {"seqs": jax.tree.map(jnp.asarray, seqs)}


def gradient(model, batch, layout):
    """(loss, gradient as numpy) of SFT under a layout."""
    objective = objectives.make("sft", model, z_loss=1e-3)
    with sharding.use(layout):
        where = base.shardings(model.spec, layout)
        params = jax.device_put(drawn.params(model.spec), where)
        rows = layout.sharding("batch", "length")
        batch = jax.device_put(batch, rows)
        run = jax.jit(jax.value_and_grad(lambda p: objective.loss(p, batch)[0].total))
        loss, grads = run(params)
    return float(loss), jax.tree.map(np.asarray, grads)


@pytest.fixture(scope="module")
def alone(model, batch):
    return gradient(
        model, batch, sharding.make_layout("data", devices=jax.devices()[:1])
    )


@pytest.mark.parametrize("preset", sharding.PRESETS)
def test_every_preset_gives_the_loss_and_gradient_of_one_device(
    preset, model, batch, alone
):
    devices = jax.devices()[:4] if preset == "tensor" else jax.devices()
    layout = sharding.make_layout(preset, devices=devices)
    loss, grads = gradient(model, batch, layout)
    np.testing.assert_allclose(loss, alone[0], rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5),
        grads,
        alone[1],
    )


@pytest.fixture(scope="module")
def split(model):
    layout = sharding.make_layout("fsdp=4,tensor=2")
    return base.init(model.spec, jax.random.key(0), layout)


def test_fsdp_and_tensor_split_every_large_parameter(split):
    for name in ("embed", "unembed"):
        assert split[name].addressable_shards[0].data.size == split[name].size / 8
    q = split["layers"]["attn"]["q"]
    assert q.sharding.spec == P(None, "fsdp", "tensor", None)
    assert q.addressable_shards[0].data.size == q.size / 8


def test_parameters_do_not_depend_on_the_layout(model, split):
    one = base.init(model.spec, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, one, split)


def test_rules_in_the_config_replace_the_defaults():
    layout = sharding.make_layout("fsdp=4,tensor=2", {"mlp": None, "embed": "tensor"})
    assert layout.sharding("embed", "mlp").spec == P("tensor", None)
    assert layout.ways("batch") == 4


def test_regrouped_changes_what_it_is_told_and_nothing_else():
    layout = sharding.make_layout("fsdp=4,tensor=2")
    other = sharding.regrouped(layout, rules={"embed": ()})
    assert other.mesh == layout.mesh
    assert (layout.ways("embed"), other.ways("embed")) == (4, 1)
    mesh = sharding.regrouped(layout, "tensor=-1").mesh
    assert mesh.devices.ravel().tolist() == layout.mesh.devices.ravel().tolist()
    assert mesh.shape["tensor"] == 8
    assert sharding.regrouped(layout) is layout


def test_an_axis_serves_the_first_dimension_that_asks():
    assert sharding.partition(("mlp", "vocab"), sharding.RULES) == P("tensor", None)


@pytest.mark.parametrize(
    "mesh, devices, shape",
    [
        ("fsdp", 8, (1, 8, 1, 1)),
        ("data=2,fsdp=-1,tensor=2", 8, (2, 2, 2, 1)),
        ("context=4,data=-1", 8, (2, 1, 1, 4)),
        ("fsdp=1", 1, (1, 1, 1, 1)),
    ],
)
def test_mesh_sizes(mesh, devices, shape):
    assert tuple(sharding.mesh_shape(mesh, devices).values()) == shape


@pytest.mark.parametrize(
    "mesh, message",
    [
        ("fdsp", "neither a preset"),
        ("fdsp=8", "mesh axis 'fdsp'"),
        ("data=-1,fsdp=-1", "at most one is -1"),
        ("fsdp=3", r"multiple of 3 devices, but there are 8.*\[1, 2, 4, 8\]"),
        ("data=0", "sizes are positive"),
    ],
)
def test_a_mesh_that_cannot_be_is_explained(mesh, message):
    with pytest.raises(UserError, match=message):
        sharding.mesh_shape(mesh, 8)


def test_heads_that_do_not_divide_say_what_would():
    model = transformer.make(base.config_for("llama:tiny"))
    with pytest.raises(UserError, match="kv_heads of parameter .* = 4 .* use 8"):
        base.shardings(model.spec, sharding.make_layout("tensor"))


# From the host to the mesh and back.


@pytest.mark.parametrize("preset", sharding.PRESETS)
def test_rows_go_to_the_mesh_and_come_back(preset):
    layout = sharding.make_layout(preset)
    rows = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    assert sharding.held(16, layout) == list(range(16))  # there is one process
    placed = sharding.to_mesh(rows, 16, layout, "length")
    assert placed.sharding == layout.sharding("batch", "length")
    np.testing.assert_array_equal(sharding.to_host(placed, layout), rows)
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, rows[shard.index])


def test_arrays_of_any_rank_are_split_by_rows():
    layout = sharding.make_layout("fsdp=4,context=2")
    for shape in ((16,), (16, 3), (16, 3, 5)):
        array = np.random.default_rng(0).integers(0, 9, shape)
        placed = sharding.to_mesh(array, 16, layout)
        assert placed.addressable_shards[0].data.shape == (4, *shape[1:])
        np.testing.assert_array_equal(sharding.to_host(placed, layout), array)
