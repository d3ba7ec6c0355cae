"""What a run would do on a slice that is not here: does it fit, what does it wait for.

`plan` takes every program of the run to the TPU's own compiler, for the devices of the
slice, and adds up what comes out: memory by kind, traffic between chips, time at best,
and what that costs. Nothing has run on a TPU: whether it fits is the compiler's word,
times are a model (docs/pods.md says how good). `search` does so for many meshes.
"""

import itertools
import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

from easylm import sharding
from easylm.errors import UserError
from easylm.models.transformer import REMAT
from easylm.pods import (
    analytic,
    apart,
    compiler,
    flags,
    hlo,
    programs,
    roofline,
    slices,
    work,
)
from easylm.pods.runs import (
    HELD,
    OPTIMIZER,
    PARAMETERS,
    ROLLOUT,
    SAMPLER,
    TRAIN,
    WEIGHTS,
    Program,
    Run,
    bytes_of,
)
from easylm.pods.slices import Slice
from easylm.training import flops


class Part(NamedTuple):
    """One program of the run. Bytes are of one device, seconds of one run of it."""

    name: str
    times: float  # in an iteration
    why: str  # it does not fit; empty if it does
    memory: dict[str, float]  # kind -> bytes; together the most that is in use
    flops: float  # on one device, as computed
    seconds: roofline.Seconds
    collectives: list[hlo.Collective]

    @property
    def fits(self) -> bool:
        return not self.why


class Plan(NamedTuple):
    place: Slice
    mesh: dict[str, int]
    parts: tuple[Part, ...]
    held: dict[str, float]  # name of a model -> bytes on one device
    tokens: int  # trained on in an iteration
    seconds: float  # of an iteration
    mfu: float  # of the train step
    iterations: int | None
    estimated: bool  # by formulas, without the compiler

    @property
    def fits(self) -> bool:
        return all(part.fits for part in self.parts)

    @property
    def chip_hours(self) -> float | None:
        """Of the whole run, if its number of iterations is known."""
        if self.iterations is None:
            return None
        return self.iterations * self.seconds / 3600 * self.place.chips

    @property
    def rate(self) -> float:
        """Tokens that a chip trains on in a second."""
        return self.tokens / self.seconds / self.place.chips

    def cost(self, price: float | None) -> float | None:
        """Of the whole run, at so much for an hour of a chip."""
        hours = self.chip_hours
        return None if hours is None or price is None else hours * price


def plan(config, topology: str | Slice, *, fast: bool = True) -> Plan:
    """fast: the compiler's quick mode, which is a little pessimistic about memory, and
    overlaps nothing. Without a compiler, formulas (`Plan.estimated`)."""
    place = slices.parse(topology) if isinstance(topology, str) else topology
    check(config, place)
    if compiler.missing():
        return estimate(config, place)
    return apart.call(_here, config.copy_and_resolve_references(), place, fast)


def _here(config, place: Slice, fast: bool) -> Plan:
    """plan in this process, which the compiler may end."""
    layout = sharding.make_layout(config.mesh, config.rules, compiler.devices(place))
    run = programs.programs(config, layout)

    def made(program, resident):
        print(f"compiling {program.name} for {place.name}", file=sys.stderr)
        return _compiled(program, place, resident, fast)

    return _planned(place, layout, run, made, _work, estimated=False)


def estimate(config, place: Slice, counted: dict | None = None) -> Plan:
    """The same by formulas, in a second. `counted` keeps what programs compute for
    other meshes of the same run."""
    layout = sharding.absent_layout(config.mesh, config.rules, place.devices)
    run = programs.programs(config, layout)

    def made(program, resident):
        memory = analytic.memory(program, run)
        found = analytic.collectives(program, run)
        needed, room = memory.peak * 1.05, place.generation.hbm - resident
        why = (
            ""
            if needed < room
            else f"needs {needed / 2**30:.2f}G of {room / 2**30:.2f}G"
        )
        return memory, found, why

    counted = {} if counted is None else counted

    def work_of(program):
        key = program.name, program.tokens, program.trips, config.model.remat
        if key not in counted:
            counted[key] = _work(program)
        return counted[key]

    return _planned(place, layout, run, made, work_of, estimated=True)


def _compiled(program: Program, place, resident, fast):
    with sharding.use(program.layout):
        lowered = program.function.lower(*program.trees)
    made = compiler.compiled(
        lowered, place, resident=resident, options=flags.TPU, fast=fast
    )
    mesh = dict(program.layout.mesh.shape)
    found = hlo.collectives(hlo.parse(made.text), mesh, program.trips)
    return made.memory, found, made.why


def _planned(place, layout, run: Run, made, work_of, *, estimated: bool) -> Plan:
    """made(program, resident bytes) -> its memory, its collectives, why it does not
    fit; work_of(program) -> what it computes."""
    everything = [a for arguments in run.held.values() for a in arguments]
    parts = []
    for program in run.programs:
        mine = [a for a in program.arguments if a.kind in HELD]
        resident = bytes_of(everything) - bytes_of(mine)
        memory, found, why = made(program, resident)
        kinds = _kinds(program, memory, resident, run)
        done, moved = work_of(program), _moved(program, kinds, run)
        mesh, fetched = program.layout.mesh, bytes_of(program.arguments, host=True)
        spent = roofline.seconds(place, mesh, done, moved, fetched, found)
        each = done.total / place.devices
        parts.append(Part(program.name, program.times, why, kinds, each, spent, found))
    return _whole(place, layout, run, tuple(parts), estimated)


def _work(program: Program) -> work.Work:
    with sharding.use(program.layout):
        return work.count(program.function, *program.trees, trips=program.trips)


def _kinds(program: Program, memory, resident: float, run: Run) -> dict:
    """By kind. What is kept for the backward pass, and the cache, are a part of the
    compiler's temporaries that is known by its shape."""
    kinds = {}
    for argument in program.arguments:
        size = bytes_of([argument])
        kinds[argument.kind] = kinds.get(argument.kind, 0.0) + size
    rest = memory.peak - sum(kinds.values())
    left = ((argument.kind, bytes_of([argument])) for argument in program.gives)
    for name, size in (
        *left,
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
    if program.name != TRAIN:
        return 0.0
    wide = sum(m.config.layers * m.config.dim for m in run.models)
    return 2.0 * wide * _local_tokens(program) / run.microbatches


def _cache(program: Program, run: Run) -> float:
    if program.name != ROLLOUT:
        return 0.0
    c, layout = run.models[0].config, program.layout
    ways = layout.ways("batch") * layout.ways("act_heads")
    return 4.0 * c.layers * run.slots * c.kv_heads * c.head_dim / ways


def _moved(program: Program, memory: dict, run: Run) -> float:
    """Bytes to and from the memory of a device."""
    layout, tokens = program.layout, _local_tokens(program)
    weights = lambda c: 2.0 * flops.matmul_params(c) / layout.ways("mlp")
    if program.name == ROLLOUT:
        cache, held = memory.get("cache", 0.0), memory[SAMPLER]
        return roofline.decoding(cache, held, program.trips)
    if program.name == WEIGHTS:
        return memory[PARAMETERS] + memory[SAMPLER]
    if program.name != TRAIN:
        c = run.models[0].config
        return roofline.layers(c, tokens, weights(c), 1)
    moved = 2 * (memory[PARAMETERS] + memory[OPTIMIZER])
    for c in (model.config for model in run.models):
        passes = 3 + (c.remat == "full")
        moved += roofline.layers(c, tokens, weights(c) * run.microbatches, passes)
    return moved


def _local_tokens(program: Program) -> float:
    layout = program.layout
    return program.tokens / layout.ways("batch") / layout.ways("length")


def _whole(place, layout, run: Run, parts, estimated) -> Plan:
    seconds = sum(part.times * part.seconds.total for part in parts)
    step = parts[-1]
    held = {name: float(bytes_of(a)) for name, a in run.held.items()}
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
        estimated,
    )


# What is worth a try.


class Try(NamedTuple):
    changes: dict  # to the config
    plan: Plan


def search(config, topology: str | Slice, *, most: int = 8) -> list[Try]:
    """Meshes x remat x microbatches: all of them by formulas, the `most` promising ones
    by the compiler. What fits comes first, the quickest of it first."""
    place = slices.parse(topology) if isinstance(topology, str) else topology
    found, counted = [], {}
    for changes in candidates(config, place):
        one = changed(config, changes)
        try:
            found.append(Try(changes, estimate(one, place, counted)))
        except UserError:  # it divides nothing
            continue
    if not found:
        raise UserError(
            f"no mesh of {place.devices} devices divides batch {config.batch} and the"
            " model; change config.batch"
        )
    found = _ranked(found)[:most]
    if compiler.missing():
        return found
    return _ranked(list(_compiled_tries(config, place, found)))


def _compiled_tries(config, place: Slice, found: list[Try]) -> Iterator[Try]:
    for changes, _ in found:
        try:
            yield Try(changes, plan(changed(config, changes), place))
        except UserError as error:  # the compiler's own; there are others to try
            print(f"{changes['mesh']}: {error}", file=sys.stderr)


def candidates(config, place: Slice) -> Iterator[dict]:
    devices = place.devices
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    tensors = [n for n in sizes if n <= 16]
    replicas = [n for n in sizes if n <= max(8, 2 * place.slices)]
    for data, tensor in itertools.product(replicas, tensors):
        if devices % (data * tensor) or data % place.slices:
            continue
        mesh = f"data={data},fsdp={devices // data // tensor},tensor={tensor}"
        for remat, parts in itertools.product(REMAT, (1, 2, 4, 8)):
            yield {"mesh": mesh, "model.remat": remat, "microbatches": parts}


def changed(config, changes: dict):
    """A copy of the config with some keys set."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config


def _ranked(found: list[Try]) -> list[Try]:
    return sorted(found, key=lambda t: (not t.plan.fits, t.plan.seconds))


def check(config, place: Slice) -> None:
    """What does not divide, said before anything is compiled."""
    sharding.mesh_shape(config.mesh, place.devices)
    if place.slices > 1:
        shape = sharding.mesh_shape(config.mesh, place.devices)
        if shape["data"] % place.slices:
            near = math.ceil(shape["data"] / place.slices) * place.slices
            raise UserError(
                f"{place.slices} slices are joined by the slow network, which only the"
                f" data axis may cross: set data={near} in config.mesh, not"
                f" {shape['data']}"
            )
