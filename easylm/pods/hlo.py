"""What a compiled TPU program does between chips, read from its scheduled HLO.

`collectives` walks the program from its entry, multiplies what is in a loop by the
loop's trips, and gives every collective once: its kind, the bytes that leave a device,
over which axes of the mesh, and whether other work runs meanwhile. What passes between
slices goes through their hosts, as send and recv; its axis is SLICES.
"""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

SLICES = ("slices",)
KINDS = "all-gather reduce-scatter all-reduce all-to-all collective-permute".split()
_SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2}
_SIZES |= {f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)}

_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_GROUPS_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_GROUPS_IOTA = re.compile(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_GROUPS_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_LESS = re.compile(r"ROOT .* compare\(\S*?%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_OPERATION = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")
_RENDEZVOUS = re.compile(r'transfer_rendezvous="([^"]*)"')
_SENT = re.compile(r" = \((\w+)\[([\d,]*)\].* send\(.*xla_megascale_runtime")
_SENT_AS = re.compile(r'megascale_transfer_type="(\w+)"')
_SENT_TO = re.compile(r'megascale_target="\{([\d,]*)\}')
_SOURCE = re.compile(r'op_name="([^"]*)"')
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")


class Collective(NamedTuple):
    kind: str
    axes: tuple[str, ...]  # of the mesh, along which its devices differ
    size: int  # how many devices exchange
    wire: float  # bytes that leave a device each time
    times: float
    overlapped: bool  # other work runs meanwhile
    source: str  # the operation of the model that it belongs to

    @property
    def total(self) -> float:
        return self.wire * self.times


class Hlo(NamedTuple):
    computations: Mapping[str, list[str]]  # name -> its instructions
    entry: str


def parse(text: str) -> Hlo:
    computations, entry, lines = {}, "", None
    for line in text.splitlines():
        if lines is None:
            found = _COMPUTATION.match(line)
            if found:
                entry = found[2] if found[1] else entry
                lines = computations.setdefault(found[2], [])
        elif line == "}":
            lines = None
        elif line.startswith("  ") and " = " in line:
            lines.append(line)
        elif lines:  # kernels are written over several lines
            lines[-1] += line
    return Hlo(computations, entry)


def collectives(hlo: Hlo, mesh: Mapping[str, int], trips: int = 1) -> list[Collective]:
    """`trips` of a loop whose number is not fixed."""
    found = {}
    for name, line, times in _walk(hlo, hlo.entry, 1.0, trips):
        sent, operation = _SENT.search(line), _OPERATION.search(line)
        if sent:
            found[line] = _between_slices(sent, hlo.computations[name], times)
        if not operation:
            continue
        channel = _CHANNEL.search(line)
        started = bool(operation[2]) or "async_collective_fusion" in name
        one = _collective(line, operation[1], "reduce-scatter" in name, mesh)
        one = one._replace(times=times, overlapped=started)
        # One that overlaps is written where it starts, and again where it ends.
        key = (channel[1], one.kind, one.wire, times) if channel else line
        if key in found:
            one = one._replace(overlapped=True)
        found[key] = one
    return [one for one in found.values() if one.size > 1]


def _walk(hlo: Hlo, name: str, times: float, trips: int):
    """(computation, instruction, how often it runs), loops multiplied out."""
    for line in hlo.computations.get(name, ()):
        yield name, line, times
        loop = _WHILE.search(line)
        if loop:
            more = times * (_trips(hlo, loop[1]) or trips)
            yield from _walk(hlo, loop[2], more, trips)
            continue
        branches = _BRANCHES.search(line)
        called = branches[1].split(",") if branches else _CALLED.findall(line)
        for one in called:
            yield from _walk(hlo, one.strip(" %"), times, trips)


def _trips(hlo: Hlo, condition: str) -> int | None:
    """Of a loop that counts from 0 to a constant."""
    lines = hlo.computations.get(condition, ())
    constants = dict(m.groups() for m in map(_CONSTANT.search, lines) if m)
    for line in lines:
        found = _LESS.search(line)
        if found and found[1] in constants:
            return int(constants[found[1]])
    return None


def _collective(line: str, kind: str, scatters: bool, mesh) -> Collective:
    """scatters: what is an all-reduce inside of a fusion that keeps a part of it."""
    result = line.split(" = ", 1)[1].split(f" {kind}", 1)[0]
    arrays = [_bytes(*array) for array in _ARRAY.findall(result)]
    size = sum(arrays)
    if f"{kind}-start(" in line:  # operands and results; a counter or two
        size = max(arrays)
    group = _group(line, mesh)
    axes, n = _axes(group, mesh), len(group)
    if kind == "all-reduce" and scatters:
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        size *= n
    source = _SOURCE.search(line)
    name = source[1] if source else ""
    return Collective(kind, axes, n, _wire(kind, size, n), 1.0, False, name)


def _between_slices(sent, lines, times: float) -> Collective:
    line = sent.string
    how, to = _SENT_AS.search(line), _SENT_TO.search(line)
    kind = how[1].lower().replace("_", "-") if how else "collective-permute"
    n = len(to[1].split(",")) if to else 2
    size = _bytes(sent[1], sent[2]) * (n if kind == "all-gather" else 1)
    wire, name = _wire(kind, size, n), _RENDEZVOUS.search(line)[1]
    return Collective(kind, SLICES, n, wire, times, _meanwhile(line, lines), name)


def _wire(kind: str, size: float, n: int) -> float:
    """Bytes that leave one of n devices, for an array that is whole so large."""
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
    return size * share.get(kind, (n - 1) / n)


def _meanwhile(sent: str, lines) -> bool:
    """Whether anything is computed before what was sent has its answer."""
    mine = _RENDEZVOUS.search(sent)[0]
    [answer] = [line for line in lines if " recv(" in line and mine in line]
    done = f"recv-done({answer.split(' = ')[0].strip()})"
    [end] = [i for i, line in enumerate(lines) if done in line]
    between = lines[lines.index(sent) : end]
    return any(re.search(r" (fusion|while|custom-call)\(", line) for line in between)


def _bytes(kind: str, sides: str) -> float:
    return _SIZES.get(kind, 1) * math.prod(int(s) for s in sides.split(",") if s)


def _group(line: str, mesh) -> list[int]:
    """Numbers of the devices of the first group."""
    devices = math.prod(mesh.values())
    numbers = lambda text: [int(x) for x in text.split(",")]
    found = _PAIRS.search(line)
    if found:
        pairs = [numbers(pair) for pair in found[1].strip("{}").split("},{")]
        return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    found = _GROUPS_MESH.search(line)
    if found:
        sizes = [int(part.split("=")[1]) for part in found[1].split(",")]
        names = [part.split("=")[0].strip(" '") for part in found[1].split(",")]
        ids = np.arange(math.prod(sizes))
        if found[2]:
            ids = ids.reshape(numbers(found[2]))
            ids = ids.transpose(numbers(found[3])) if found[3] else ids
        over = [name.strip(" '") for name in found[4].split(",")]
        where = tuple(slice(None) if name in over else 0 for name in names)
        return ids.reshape(sizes)[where].ravel().tolist()
    found = _GROUPS_IOTA.search(line)
    if found:
        ids = np.arange(math.prod(numbers(found[2]))).reshape(numbers(found[2]))
        ids = ids.transpose(numbers(found[3])) if found[3] else ids
        return ids.reshape(numbers(found[1]))[0].tolist()
    found = _GROUPS_LISTED.search(line)
    if found:
        return numbers(found[1].split("}")[0].strip("{"))
    return list(range(devices))


def _axes(group: list[int], mesh) -> tuple[str, ...]:
    """Along which the devices of a group differ; they are numbered as the mesh is."""
    where = np.unravel_index(group, tuple(mesh.values()))
    return tuple(
        name for name, at in zip(mesh, where, strict=True) if len(set(at.tolist())) > 1
    )
