"""What a run would do on a slice that is not here: does it fit, what does it wait for.

`plan` takes every program of the run to the TPU's own compiler, for the devices of the
slice, and adds up what comes out: memory by kind, traffic between chips, time at best,
and what that costs. Nothing has run on a TPU: whether it fits is the compiler's word,
times are a model (docs/pods.md says how good).
"""

from typing import NamedTuple

from easylm import sharding
from easylm.errors import UserError
from easylm.pods import compiler, flags, hlo, programs, roofline, slices, work
from easylm.pods.programs import PARAMETERS, SAMPLER, Program, Run, bytes_of
from easylm.pods.slices import GIB, Slice
from easylm.training import flops


class Part(NamedTuple):
    """One program of the run. Bytes are of one device, seconds of one run of it."""

    name: str
    times: float  # in an iteration
    fits: bool
    why: str  # what is short, if it does not fit
    memory: dict[str, float]  # kind -> bytes; together the most that is in use
    flops: float  # on one device, as computed
    seconds: roofline.Seconds
    collectives: list[hlo.Collective]


class Plan(NamedTuple):
    place: Slice
    mesh: dict[str, int]
    parts: tuple[Part, ...]
    held: dict[str, float]  # name of a model -> bytes on one device
    tokens: int  # trained on in an iteration
    seconds: float  # of an iteration
    mfu: float  # of the train step
    iterations: int | None

    @property
    def fits(self) -> bool:
        return all(part.fits for part in self.parts)

    @property
    def chip_hours(self) -> float | None:
        """Of the whole run, if its number of iterations is known."""
        if self.iterations is None:
            return None
        return self.iterations * self.seconds / 3600 * self.place.chips


def plan(config, topology: str | Slice, *, fast: bool = True) -> Plan:
    """fast: the compiler's quick mode, which is a little pessimistic about memory."""
    place = slices.parse(topology) if isinstance(topology, str) else topology
    if compiler.missing():
        raise UserError(compiler.missing())
    layout = sharding.make_layout(config.mesh, config.rules, compiler.devices(place))
    run = programs.programs(config, layout)
    everything = [a for arguments in run.held.values() for a in arguments]
    parts = tuple(_part(p, place, everything, run, fast) for p in run.programs)
    return _whole(place, layout, run, parts)


def _part(program: Program, place, everything, run, fast) -> Part:
    mine = [a for a in program.arguments if a.kind in programs.HELD]
    layout = program.layout
    resident = bytes_of([*everything, *program.beside], layout) - bytes_of(mine, layout)
    with sharding.use(layout):
        lowered = program.function.lower(*program.trees)
        done = _work(program)
    made = compiler.compiled(
        lowered, place, resident=resident, options=flags.TPU, fast=fast
    )
    mesh = layout.mesh
    found = hlo.collectives(hlo.parse(made.text), dict(mesh.shape), program.trips)
    memory = _memory(program, made.memory, resident, run)
    moved = _moved(program, memory, run)
    spent = roofline.seconds(place, mesh, done, moved, found)
    each = done.total / place.devices
    return Part(
        program.name, program.times, made.fits, made.why, memory, each, spent, found
    )


def _work(program: Program) -> work.Work:
    return work.count(program.function, *program.trees, trips=program.trips)


def _memory(program: Program, compiled, resident: float, run: Run) -> dict:
    """By kind. What is kept for the backward pass, and the cache, are a part of the
    compiler's temporaries that is known by its shape."""
    kinds = {}
    for argument in program.arguments:
        size = bytes_of([argument], program.layout)
        kinds[argument.kind] = kinds.get(argument.kind, 0.0) + size
    rest = compiled.peak - sum(kinds.values())
    for name, size in (
        ("activations", _activations(program, run)),
        ("cache", _cache(program, run)),
    ):
        size = min(size, max(rest, 0.0))
        if size:
            kinds[name] = size
            rest -= size
    kinds["temporaries"] = max(rest, 0.0)
    kinds["others"] = resident
    return kinds


def _activations(program: Program, run: Run) -> float:
    """The residual stream at every layer, which remat="full" keeps; "dots" and "none"
    keep more, and it shows as temporaries."""
    if program.name != "train step":
        return 0.0
    c = run.model.config
    return c.layers * _local_tokens(program) / run.microbatches * c.dim * 2.0


def _cache(program: Program, run: Run) -> float:
    if program.name != "rollout":
        return 0.0
    c, layout = run.model.config, program.layout
    ways = layout.ways("batch") * layout.ways("act_heads")
    return 4.0 * c.layers * run.slots * c.kv_heads * c.head_dim / ways


def _moved(program: Program, memory: dict, run: Run) -> float:
    c, layout = run.model.config, program.layout
    model = 2.0 * flops.matmul_params(c) / layout.ways("mlp")
    if program.name == "rollout":
        held = memory[SAMPLER]
        return roofline.decoding(memory.get("cache", 0.0), max(held, 0.0), program.trips)
    tokens = _local_tokens(program)
    if program.name != "train step":
        return roofline.layers(c, tokens, model, 1)
    state = memory[PARAMETERS] + memory[programs.OPTIMIZER]
    passes = 3 + (c.remat == "full")
    return 2 * state + roofline.layers(c, tokens, model * run.microbatches, passes)


def _local_tokens(program: Program) -> float:
    layout = program.layout
    return program.tokens / layout.ways("batch") / layout.ways("length")


def _whole(place, layout, run: Run, parts) -> Plan:
    seconds = sum(part.times * part.seconds.total for part in parts)
    step = parts[-1]
    held = {name: float(bytes_of(a, layout)) for name, a in run.held.items()}
    peak = place.generation.flops * place.chips
    mfu = run.flops / (step.times * step.seconds.total) / peak
    return Plan(
        place,
        dict(layout.mesh.shape),
        parts,
        held,
        run.tokens,
        seconds,
        mfu,
        run.iterations,
    )


# To read.


def show(plan: Plan, price: float | None = None) -> str:
    place, generation = plan.place, plan.place.generation
    mesh = ", ".join(f"{name}={n}" for name, n in plan.mesh.items() if n > 1) or "one"
    sides = "x".join(map(str, place.shape))
    lines = [
        f"{place.name}: {place.chips} chips ({sides}), {place.devices} devices of"
        f" {generation.hbm / GIB:.1f} GiB; mesh {mesh}",
        "",
        *_table(plan),
        "",
        *_traffic(plan),
        "",
    ]
    for part in plan.parts:
        if not part.fits:
            lines.append(f"{part.name} does not fit: {part.why}")
    lines += _advice(plan)
    rate = plan.tokens / plan.seconds / place.chips
    lines.append(
        f"an iteration takes {_time(plan.seconds)} at best, {plan.tokens:,} tokens"
        f" trained on; {rate:,.0f} tokens/s/chip; MFU of the step {plan.mfu:.0%}"
    )
    if plan.iterations:
        hours = plan.chip_hours
        text = f"{plan.iterations:,} iterations: {hours:,.0f} chip-hours"
        text += f" ({_time(plan.iterations * plan.seconds)})"
        lines.append(text + (f", {hours * price:,.0f} at {price} each" if price else ""))
    return "\n".join(lines)


_KINDS = {
    "parameters": "params",
    "optimizer": "optim",
    "frozen": "frozen",
    "sampler": "sampler",
    "activations": "activ",
    "cache": "cache",
    "temporaries": "temps",
    "others": "others",
}


def _table(plan: Plan) -> list[str]:
    kinds = [k for k in _KINDS if any(part.memory.get(k, 0) > 2**20 for part in plan.parts)]
    head = f"{'GiB a device':<18}" + "".join(f"{_KINDS[k]:>9}" for k in kinds)
    rows = [head + f"{'total':>9}{'limit':>8}{'':>5}  {'time':>9}  waits for"]
    limit = plan.place.generation.hbm / GIB
    for part in plan.parts:
        cells = "".join(f"{part.memory.get(k, 0) / GIB:>9.2f}" for k in kinds)
        total = sum(part.memory.values()) / GIB
        fits = "fits" if part.fits else "NO"
        times = f"{part.times:g} x " if part.times != 1 else ""
        rows.append(
            f"{part.name:<18}{cells}{total:>9.2f}{limit:>8.2f}{fits:>5}"
            f"  {times}{_time(part.seconds.total):>9}  {part.seconds.bound}"
        )
    return rows


def traffic(part: Part) -> dict[tuple[str, tuple], tuple[float, float]]:
    """(kind, axes) -> bytes that leave a device in one run, and those of them that do
    while it computes; the most first."""
    found = {}
    for one in part.collectives:
        total, hidden = found.get((one.kind, one.axes), (0.0, 0.0))
        more = one.total * one.overlapped
        found[one.kind, one.axes] = total + one.total, hidden + more
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def _traffic(plan: Plan) -> list[str]:
    rows = [f"{'traffic':<18}{'GiB a device':>12}{'overlapped':>12}"]
    for part in plan.parts:
        for (kind, axes), (total, hidden) in traffic(part).items():
            if total > 2**20:
                share = f"{hidden / total:.0%}" if hidden else "-"
                where = f"{kind} over {' x '.join(axes) or 'itself'}"
                rows.append(
                    f"{part.name:<18}{total / GIB:>12.3f}{share:>12}  {where}"
                )
    return rows


def _advice(plan: Plan) -> list[str]:
    del plan
    return []


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours = seconds / 3600
    return f"{seconds / 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"


