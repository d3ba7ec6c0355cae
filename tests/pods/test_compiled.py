"""Stand-ins for real runs, compiled for absent TPUs: what they exchange and hold.

The inventory of collectives is committed, inventory.txt. A change of the model or of
the compiler that changes it is looked at, explained, and written down:

    python -m tests.pods.test_compiled > tests/pods/inventory.txt
"""

import re
import sys
from functools import cache
from pathlib import Path

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from configs import grpo, sft
from easylm import sharding
from easylm.errors import UserError
from easylm.plan import estimate
from easylm.pods import compiler, flags, hlo, slices
from easylm.pods.programs import programs
from easylm.pods.runs import OPTIMIZER, bytes_of
from easylm.training.flops import matmul_params

INVENTORY = Path(__file__).parent / "inventory.txt"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="libtpu is for Linux only"
)


def training():
    """An update of Llama 3.1 8B on 16 chips."""
    c = sft.get_config()
    c.model.name = "llama:3.1-8b"
    c.mesh = "data=2,fsdp=4,tensor=2"
    c.data.length, c.batch = 1024, 32
    return c, "v5p-32", "train step"


def sampling():
    """Answers of a policy whose weights are split for that, on 8 chips."""
    c = grpo.get_config()
    c.model.name = "llama:3.2-1b"
    c.mesh = "data=2,fsdp=-1"
    c.rollout.mesh = "data=-1,tensor=4"
    c.rollout.prompt_length, c.rollout.max_new_tokens = 256, 512
    c.data.length, c.batch, c.rollout.group = 768, 16, 4
    return c, "v6e-8", "rollout"


@cache
def made(of):
    """(program, what was compiled, collectives, run) of a stand-in."""
    return built(*of())


def built(config, topology, name, **options):
    place = slices.parse(topology)
    layout = sharding.make_layout(config.mesh, config.rules, compiler.devices(place))
    run = programs(config, layout)
    [program] = [p for p in run.programs if p.name == name]
    with sharding.use(program.layout):
        lowered = program.function.lower(*program.trees)
    done = compiler.compiled(lowered, place, options=flags.TPU, **options)
    mesh = dict(program.layout.mesh.shape)
    found = hlo.collectives(hlo.parse(done.text), mesh, program.trips)
    return program, done, found, run


def inventory() -> str:
    """A line for each kind, axes and size of more than 64 KiB: how often, how large."""
    lines = []
    for of in (training, sampling):
        lines.append(f"{of.__name__}: {of.__doc__.lower()}")
        count = {}
        for one in made(of)[2]:
            if one.wire > 2**16:
                key = f"{one.kind} over {' x '.join(one.axes)}", one.wire / 2**20
                count[key] = count.get(key, 0) + one.times
        lines += [
            f"    {times:>6g} x {size:>9.3f} MiB  {what}"
            for (what, size), times in sorted(count.items())
        ]
    return "\n".join(lines) + "\n"


def total(found, kind, *axes) -> float:
    return sum(c.total for c in found if (c.kind, c.axes) == (kind, axes))


def test_the_collectives_are_those_that_are_written_down():
    assert inventory() == INVENTORY.read_text()


def test_weights_are_gathered_once_per_layer_and_direction():
    program, _, found, run = made(training)
    split = program.layout.ways("mlp")
    weights = 2 * matmul_params(run.models[0].config) / split * 3 / 4  # from 3 others
    gathered = total(found, "all-gather", "fsdp")
    assert gathered == pytest.approx(2 * weights, rel=0.05)


def test_gradients_are_scattered_not_summed_everywhere():
    _, _, found, run = made(training)
    weights = 2 * matmul_params(run.models[0].config) / 2 * 3 / 4
    # That of the unembedding is in float32.
    assert total(found, "reduce-scatter", "fsdp") == pytest.approx(weights, rel=0.1)
    assert total(found, "all-reduce", "fsdp") < 0.01 * weights
    assert total(found, "all-reduce", "data", "fsdp") < 0.01 * weights


def test_nobody_holds_all_of_the_optimizer_state():
    program, _, _, run = made(training)
    state = [a for a in program.arguments if a.kind == OPTIMIZER]
    c = run.models[0].config
    numbers = matmul_params(c) + c.vocab_size * c.dim  # and the embedding
    assert bytes_of(state) == pytest.approx(8 * numbers / 8, rel=0.01)


def test_logits_exist_for_a_chunk_of_tokens_only():
    program, done, _, run = made(training)
    c, split = run.models[0].config, program.layout.ways("act_vocab")
    vocab = c.vocab_size // split
    shapes = re.findall(r"\b(?:f32|bf16)\[([\d,]+)\]", done.text)
    wide = [[int(n) for n in s.split(",")] for s in set(shapes)]
    wide = [s for s in wide if vocab in s and c.dim not in s and len(s) > 1]
    rows = {max(n for n in s if n != vocab) for s in wide if vocab in s}
    assert rows and max(rows) <= c.logits_chunk


def test_the_cache_is_written_in_place():
    """No copy of a whole block of it in the loop over tokens."""
    program, done, _, run = made(sampling)
    c = run.models[0].config
    here = 64 // program.layout.ways("batch"), c.kv_heads // 4
    block = rf"{c.layers},{here[0]},{here[1]},"
    lines = [line for line in done.text.splitlines() if f"bf16[{block}" in line]
    assert any("while(" in line for line in lines)
    # Outside of loops the prompts' part is copied once.
    names = set(re.findall(r"body=%?([\w.\-]+)", done.text))
    loops = hlo.parse(done.text).computations
    lines = [line for name in names for line in loops[name]]
    copies = [line for line in lines if re.search(rf"= bf16\[{block}\S* copy", line)]
    assert not copies


def test_sampling_gathers_no_weights():
    _, _, found, run = made(sampling)
    weights = 2 * matmul_params(run.models[0].config) / 4
    layer = weights / run.models[0].config.layers
    assert all(c.wire < layer / 4 for c in found if c.kind == "all-gather")


def test_what_does_not_fit_is_the_compiler_s_word():
    place = slices.parse("v6e-4")
    where = SingleDeviceSharding(compiler.devices(place)[0])
    x = jax.ShapeDtypeStruct((8192, 8192), "float32", sharding=where)  # 256 MiB
    lowered = jax.jit(lambda x: x @ x).lower(x)
    assert compiler.compiled(lowered, place).fits
    resident = place.generation.hbm - 500 * 2**20  # room for one, not for two
    done = compiler.compiled(lowered, place, resident=resident)
    assert not done.fits and "needs" in done.why


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": "data=3,fsdp=-1"}, r"sizes that divide 16: \[1, 2, 4, 8, 16\]"),
        ({"mesh": "fsdp=-1,tensor=16"}, r"sizes of that axis that do: \[1, 2, 4, 8\]"),
        ({"batch": 6}, "use 8, or change the mesh"),
        ({"microbatches": 64}, "use 512"),
    ],
)
def test_what_does_not_divide_is_said_before_anything_is_compiled(changes, message):
    config, topology, _ = training()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        estimate(config, slices.parse(topology))


if __name__ == "__main__":
    sys.stdout.write(inventory())
