"""Plans by formulas: what is added up, what is advised, what is tried."""

import json

import jax
import jax.numpy as jnp
import pytest

from configs import grpo, ppo, sft
from easylm import plan as planner
from easylm.errors import UserError
from easylm.models import splash
from easylm.pods import compiler, roofline, show, slices, work
from easylm.pods.hlo import Collective
from easylm.sharding import absent_layout
from easylm.training.flops import matmul_params


def training(**changes):
    c = sft.get_config()
    c.model.name, c.mesh = "llama:3.1-8b", "data=2,fsdp=-1"
    c.data.length, c.batch = 2048, 64
    c.update_from_flattened_dict(changes)
    return c


def sampling(**changes):
    c = grpo.get_config()
    c.model.name, c.mesh, c.batch = "llama:3.1-8b", "data=2,fsdp=-1", 64
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def made():
    return planner.estimate(training(steps=1000), slices.parse("v5p-64"))


def test_memory_is_that_of_the_arrays(made):
    """Master weights and two moments in float32, split over the 16 devices of fsdp."""
    [step] = made.parts
    c = planner.programs.base.config_for("llama:3.1-8b")
    numbers = matmul_params(c) + c.vocab_size * c.dim
    assert step.memory["parameters"] == pytest.approx(4 * numbers / 16, rel=1e-3)
    assert step.memory["optimizer"] == pytest.approx(8 * numbers / 16, rel=1e-3)
    kept = 2 * c.layers * c.dim * 64 * 2048 / 32  # the residual stream in bfloat16
    assert step.memory["activations"] == pytest.approx(kept)


def test_the_cost_of_a_run_is_that_of_its_iterations(made):
    assert made.iterations == 1000
    assert made.chip_hours == pytest.approx(1000 * made.seconds * 32 / 3600)
    found = show.as_dict(made, price=2.0)
    assert found["cost"] == pytest.approx(2 * made.chip_hours)
    json.dumps(found)
    text = show.text(made, price=2.0)
    assert "NOT COMPILED" in text and "at 2 each" in text


def test_mfu_counts_what_the_model_needs(made):
    """6 FLOPs for a parameter and token, and those of attention."""
    [step] = made.parts
    c = planner.programs.base.config_for("llama:3.1-8b")
    tokens = 64 * 2048
    pairs = c.layers * tokens * 2049 / 2
    needed = 6 * matmul_params(c) * tokens + 12 * c.heads * c.head_dim * pairs
    assert made.mfu == pytest.approx(
        needed / step.seconds.total / (32 * 459e12), rel=1e-3
    )


def test_without_the_compiler_a_plan_is_an_estimate(monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda: "libtpu is not installed")
    assert planner.plan(training(), "v5p-64").estimated


def test_what_does_not_fit_says_what_to_change():
    """8B with its optimizer needs 96 GB; 8 chips of v5e have 126, and activations."""
    tried = planner.estimate(training(), slices.parse("v5litepod-8"))
    assert not tried.fits
    advice = show.advice(tried)
    assert any("microbatches" in line or "larger slice" in line for line in advice)
    assert "NO" in show.text(tried)


def test_sampling_with_split_layers_is_told_to_keep_weights_whole():
    slow = planner.estimate(sampling(), slices.parse("v5p-64"))
    other = sampling(**{"rollout.mesh": "data=-1,tensor=4"})
    quick = planner.estimate(other, slices.parse("v5p-64"))
    assert any("rollout.mesh" in line for line in show.advice(slow))
    assert not any("rollout.mesh" in line for line in show.advice(quick))
    times = [made.parts[1].seconds.total for made in (slow, quick)]
    assert times[1] < times[0] / 3


def test_weights_are_moved_in_the_dtype_of_sampling():
    """From a sixteenth on a device to a fourth: what it lacks, in bfloat16."""
    made = planner.estimate(
        sampling(**{"rollout.mesh": "data=-1,tensor=4"}), slices.parse("v5p-64")
    )
    moved, rollout = made.parts[:2]
    assert moved.name == "weights" and rollout.name == "rollout"
    assert moved.memory["sampler"] == rollout.memory["sampler"]
    [gathered] = moved.collectives
    whole = 4 * rollout.memory["sampler"]
    assert gathered.total == pytest.approx(whole * (1 / 4 - 1 / 16), rel=0.01)


def test_prompts_need_not_divide_into_the_microbatches_of_their_answers():
    made = planner.estimate(sampling(batch=32, microbatches=4), slices.parse("v5p-64"))
    assert made.tokens % (4 * 32) == 0 and made.parts[-1].name == "train step"


def test_ppo_has_four_models_and_knows_where_they_are():
    c = ppo.get_config()
    c.model.name, c.mesh = "llama:2-13b", "data=2,fsdp=-1"
    with pytest.raises(UserError, match=r"set config.reward.terms.model.model"):
        planner.estimate(c, slices.parse("v5p-64"))
    c.reward.terms.model.model = "llama:2-13b"
    made = planner.estimate(c, slices.parse("v5p-64"))
    names = [part.name for part in made.parts]
    assert names == [
        *(
            "weights",
            "rollout",
            "reward model",
            "log-probabilities",
            "reference",
            "value",
        ),
        "train step",
    ]
    step, value = made.parts[-1].memory, made.parts[-2].memory
    assert made.held.keys() == {"policy", "reference", "reward model"}
    assert step["others"] == made.held["reference"] + made.held["reward model"]
    whole = sum(made.held.values())
    assert value["others"] == whole - value["parameters"]


def test_a_state_in_the_memory_of_the_host_leaves_room_and_has_a_way_to_go(made):
    away = training(**{"optimizer.offload": True})
    [step], [there] = made.parts, planner.estimate(away, made.place).parts
    assert there.memory["optimizer"] < 1000  # the count of updates
    way = step.memory["optimizer"] / 16e9
    assert there.seconds.host == pytest.approx(way)
    assert there.seconds.total == pytest.approx(step.seconds.total + way, rel=0.01)


def test_a_search_ranks_what_fits_by_its_time(monkeypatch):
    monkeypatch.setattr(compiler, "missing", lambda: "libtpu is not installed")
    found = planner.search(training(), "v6e-16", most=100)
    fits = [t.plan.fits for t in found]
    assert fits[0] and fits == sorted(fits, reverse=True)
    times = [t.plan.seconds for t in found if t.plan.fits]
    assert times == sorted(times)
    assert "--config.mesh=" in show.table(found)


def test_only_the_data_axis_crosses_slices():
    place = slices.parse("2 x v6e-16")
    meshes = {c["mesh"] for c in planner.candidates(training(), place)}
    assert meshes and all(int(m.split(",")[0][5:]) % 2 == 0 for m in meshes)
    with pytest.raises(UserError, match="set data=2"):
        planner.check(training(mesh="fsdp=-1"), place)


@pytest.mark.parametrize(
    ("name", "mesh", "axis", "rate"),
    [
        ("v5p-128", "fsdp=-1", "fsdp", 600e9),  # three rings of two directions
        ("v5litepod-64", "fsdp=-1", "fsdp", 100e9),  # 8 x 8 is open: a line each way
        ("v6e-256", "data=16,fsdp=16", "fsdp", 200e9),  # one ring of 16
        ("2 x v6e-256", "data=2,fsdp=-1", "data", 100e9 / 8),  # the network
    ],
)
def test_wires_are_as_fast_as_the_torus_has_them(name, mesh, axis, rate):
    place = slices.parse(name)
    layout = absent_layout(mesh, {}, place.devices)
    assert roofline.rate(place, layout.mesh, (axis,)) == rate


def test_what_overlaps_costs_the_longer_of_the_two():
    place = slices.parse("v5p-128")
    mesh = absent_layout("fsdp=-1", {}, 64).mesh
    done = work.Work(products=64 * 459e12 * roofline.PRODUCTS["v5p"])  # a second
    one = Collective(
        "all-gather", ("fsdp",), 64, 600e9 / 2, 1, False, ""
    )  # half of one
    at = lambda *found: roofline.seconds(place, mesh, done, 0.0, 0.0, found)
    assert at(one).total == pytest.approx(1.5)
    assert at(one._replace(overlapped=True)).total == pytest.approx(1.0)
    long = at(one._replace(overlapped=True, times=4))
    assert long.total == pytest.approx(2.0) and long.bound == "network (fsdp)"


def test_products_are_counted_through_loops_and_gradients():
    x, w = jnp.zeros((8, 4)), jnp.zeros((3, 4, 4))
    run = lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0].sum()
    assert work.count(run, x, w).products == 3 * 2 * 8 * 4 * 4
    both = work.count(jax.grad(run, argnums=(0, 1)), x, w)
    assert both.products == 3 * 3 * 2 * 8 * 4 * 4
    until = lambda x: jax.lax.while_loop(
        lambda x: x[0, 0] < 1, lambda x: x @ x.T @ x, x
    )
    assert work.count(until, x, trips=5).products == 5 * 2 * 2 * 8 * 8 * 4


def test_the_attention_kernel_counts_half_of_the_pairs():
    q, ids = jnp.zeros((2, 256, 4, 128)), jnp.ones((2, 256), jnp.int32)
    attend = lambda q: splash.attend(q, q, q, ids, interpret=True).sum()
    pairs = 2 * 4 * 256 * 256 / 2
    assert work.count(attend, q).kernels == 4 * 128 * pairs
    assert work.count(jax.grad(attend), q).kernels == (4 + 14) * 128 * pairs
