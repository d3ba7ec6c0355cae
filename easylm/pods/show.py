"""A plan to read: tables for people, a dict for programs."""

from easylm.pods.runs import ROLLOUT
from easylm.pods.slices import GIB

KINDS = {  # of memory, and their columns
    "parameters": "params",
    "optimizer": "optim",
    "frozen": "frozen",
    "sampler": "sampler",
    "batch": "batch",
    "activations": "activ",
    "cache": "cache",
    "temporaries": "temps",
    "others": "others",
}


def text(plan, price: float | None = None) -> str:
    place, generation = plan.place, plan.place.generation
    mesh = ", ".join(f"{name}={n}" for name, n in plan.mesh.items() if n > 1) or "one"
    sides = "x".join(map(str, place.shape))
    lines = [
        f"{place.name}: {place.chips} chips ({sides}), {place.devices} devices of"
        f" {generation.hbm / GIB:.1f} GiB; mesh {mesh}",
    ]
    if plan.estimated:
        lines.append(
            "NOT COMPILED, these are estimates by formulas: pip install 'easylm[plan]'"
        )
    lines += ["", *_memory(plan), "", *_traffic(plan), ""]
    lines += [f"{p.name} does not fit: {p.why}" for p in plan.parts if not p.fits]
    lines += [f"try {line}" for line in advice(plan)]
    lines.append(
        f"an iteration takes {clock(plan.seconds)} at best, {plan.tokens:,} tokens"
        f" trained on; {plan.rate:,.0f} tokens/s/chip; MFU of the step {plan.mfu:.0%}"
    )
    if plan.iterations:
        took = clock(plan.iterations * plan.seconds)
        cost = f", {plan.cost(price):,.0f} at {price:g} each" if price else ""
        lines.append(
            f"{plan.iterations:,} iterations: {took}, {plan.chip_hours:,.0f}"
            f" chip-hours{cost}"
        )
    else:
        lines.append("set config.steps for the cost of the whole run")
    return "\n".join(lines)


def table(found) -> str:
    """Of a search: what fits first."""
    rows = [f"{'':>4}  {'seconds':>9}{'GiB':>8}{'MFU':>6}  {'waits for':<18}changes"]
    for number, (changes, plan) in enumerate(found, 1):
        most = max(sum(part.memory.values()) for part in plan.parts) / GIB
        fits = f"{number}." if plan.fits else "NO"
        bound = max(plan.parts, key=lambda p: p.times * p.seconds.total).seconds.bound
        flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
        rows.append(
            f"{fits:>4}  {plan.seconds:>9.2f}{most:>8.2f}{plan.mfu:>6.0%}"
            f"  {bound:<18}{flags}"
        )
    return "\n".join(rows)


def as_dict(plan, price: float | None = None) -> dict:
    return {
        "topology": plan.place.name,
        "chips": plan.place.chips,
        "mesh": plan.mesh,
        "estimated": plan.estimated,
        "fits": plan.fits,
        "limit": plan.place.generation.hbm,
        "seconds": plan.seconds,
        "tokens": plan.tokens,
        "tokens_per_second_per_chip": plan.rate,
        "mfu": plan.mfu,
        "chip_hours": plan.chip_hours,
        "cost": plan.cost(price),
        "programs": [
            {
                "name": part.name,
                "times": part.times,
                "fits": part.fits,
                "why": part.why,
                "memory": part.memory,
                "flops": part.flops,
                "seconds": part.seconds.total,
                "bound": part.seconds.bound,
                "traffic": [
                    {"kind": kind, "axes": axes, "bytes": total, "overlapped": hidden}
                    for (kind, axes), (total, hidden) in traffic(part).items()
                ],
            }
            for part in plan.parts
        ],
    }


def traffic(part) -> dict[tuple[str, tuple], tuple[float, float]]:
    """(kind, axes) -> bytes that leave a device in one run, and those of them that do
    while it computes; the most first."""
    found = {}
    for one in part.collectives:
        total, hidden = found.get((one.kind, one.axes), (0.0, 0.0))
        more = one.total * one.overlapped
        found[one.kind, one.axes] = total + one.total, hidden + more
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def advice(plan) -> list[str]:
    """What to change: where it does not fit, and where it waits for no good reason."""
    found = []
    for part in plan.parts:
        if not part.fits:
            largest = max(part.memory, key=part.memory.get)
            found.append(f"{_SMALLER[largest]} ({part.name}: mostly {largest})")
        wires = part.seconds.hidden + part.seconds.exposed
        busy = part.seconds.compute + part.seconds.memory
        if part.name == ROLLOUT and "fsdp" in part.seconds.axis and wires > busy:
            found.append(
                "--config.rollout.mesh='data=-1,tensor=4', or as many as it takes for"
                " the weights to fit: now every token gathers all of them"
            )
    if plan.mesh["fsdp"] > 2 and plan.mesh["data"] == 1:
        found.append(
            "data=2 in config.mesh: where fsdp spans all devices, gradients are"
            " exchanged whole"
        )
    return list(dict.fromkeys(found))


_SMALLER = {
    "parameters": "more devices for fsdp or tensor, or a larger slice",
    "optimizer": "optimizer.offload=True, more devices for fsdp, or a larger slice",
    "frozen": "more devices for fsdp or tensor, or a larger slice",
    "others": "more devices for fsdp or tensor, or a larger slice",
    "sampler": "more devices for tensor in rollout.mesh",
    "activations": "twice the microbatches, or model.remat='full'",
    "temporaries": "twice the microbatches, or model.remat='full'",
    "cache": "fewer rollout.rows at a time",
    "batch": "a smaller batch",
}


def clock(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def _memory(plan) -> list[str]:
    large = lambda kind: any(p.memory.get(kind, 0) > 2**20 for p in plan.parts)
    kinds = [kind for kind in KINDS if large(kind)]
    head = f"{'GiB a device':<18}" + "".join(f"{KINDS[kind]:>8}" for kind in kinds)
    rows = [f"{head}{'total':>8}{'limit':>7}{'':>5}{'time':>16}  waits for"]
    limit = plan.place.generation.hbm / GIB
    for part in plan.parts:
        cells = "".join(f"{part.memory.get(kind, 0) / GIB:>8.2f}" for kind in kinds)
        total, fits = sum(part.memory.values()) / GIB, "fits" if part.fits else "NO"
        times = f"{part.times:g} x " if part.times != 1 else ""
        took = times + clock(part.seconds.total)
        rows.append(
            f"{part.name:<18}{cells}{total:>8.2f}{limit:>7.1f}{fits:>5}{took:>16}"
            f"  {part.seconds.bound}"
        )
    return rows


def _traffic(plan) -> list[str]:
    rows = [f"{'traffic':<18}{'GiB a device':>12}{'overlapped':>12}"]
    for part in plan.parts:
        for (kind, axes), (total, hidden) in traffic(part).items():
            if total > 2**20:
                share = f"{hidden / total:.0%}" if hidden else "-"
                rows.append(
                    f"{part.name:<18}{total / GIB:>12.3f}{share:>12}"
                    f"  {kind} over {' x '.join(axes)}"
                )
    return rows
