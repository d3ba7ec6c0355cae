"""Where arrays live: the mesh, and rules from the names of dimensions to its axes.

Every parameter and every activation names its dimensions ("embed", "heads", ...).
A rule says over which mesh axes a name is split. Change a rule, and the whole program
is laid out anew; nothing else in the code mentions devices.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)

from easylm.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")
_AUTO = (AxisType.Auto,) * len(AXES)

# name of a dimension -> mesh axes it is split over; a name that is absent is whole.
RULES = {
    # activations
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "act_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
    # parameters
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# `config.mesh` is one of these names, or sizes: "data=2,fsdp=4,tensor=2". -1: the rest.
PRESETS = {
    "data": "data=-1",  # every device holds everything
    "fsdp": "fsdp=-1",  # parameters and optimizer split over all devices
    "hybrid": "data=2,fsdp=-1",  # two replicas, each split
    "tensor": "tensor=-1",  # heads, MLP and vocabulary split
    "fsdp_tensor": "fsdp=-1,tensor=2",
    "context": "context=-1",  # long rows split along time
    "fsdp_context": "fsdp=-1,context=2",
    "all": "data=1,fsdp=-1,tensor=2,context=2",
}


class Layout(NamedTuple):
    """A mesh and the rules that fill it."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]

    def sharding(self, *names: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, partition(names, self.rules))

    def ways(self, name: str) -> int:
        """Into how many parts the dimension `name` is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules.get(name, ()))


def make_layout(mesh: str = "fsdp", rules: Mapping = (), devices=None) -> Layout:
    """The layout that the config asks for, over all devices of all processes."""
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(mesh, len(devices))
    grid = _grid(tuple(shape.values()), devices)
    return Layout(Mesh(grid, AXES, axis_types=_AUTO), all_rules(rules))


def absent_layout(mesh: str, rules: Mapping, devices: int) -> Layout:
    """The layout of so many devices that are not here, nor stand-ins for them."""
    shape = mesh_shape(mesh, devices)
    grid = AbstractMesh(tuple(shape.values()), AXES, axis_types=_AUTO)
    return Layout(grid, all_rules(rules))


def regrouped(layout: Layout, mesh: str = "", rules: Mapping = ()) -> Layout:
    """Other axes over the same devices in the same order, so that one program can move
    arrays from the one to the other. Where no mesh is named they stay; so does
    everything where no rules are given either."""
    if not (mesh or rules):
        return layout
    shape = mesh_shape(mesh, layout.mesh.size) if mesh else dict(layout.mesh.shape)
    if isinstance(layout.mesh, AbstractMesh):
        grid = AbstractMesh(tuple(shape.values()), AXES, axis_types=_AUTO)
    else:
        devices = layout.mesh.devices.reshape(tuple(shape.values()))
        grid = Mesh(devices, AXES, axis_types=_AUTO)
    return Layout(grid, all_rules(rules))


def all_rules(changes: Mapping = ()) -> dict[str, tuple[str, ...]]:
    return RULES | {name: _axes(name, axes) for name, axes in dict(changes).items()}


def mesh_shape(mesh: str, devices: int) -> dict[str, int]:
    """'fsdp=-1,tensor=2' on 8 devices -> {data: 1, fsdp: 4, tensor: 2, context: 1}."""
    text = PRESETS.get(mesh, mesh)
    try:
        given = {k.strip(): int(v) for k, v in (p.split("=") for p in text.split(","))}
    except ValueError:
        raise UserError(
            f"mesh {mesh!r} is neither a preset ({', '.join(PRESETS)}) nor sizes such"
            " as 'data=2,fsdp=-1'"
        ) from None
    if unknown := set(given) - set(AXES):
        raise UserError(f"mesh axis {sorted(unknown)[0]!r} is not one of {AXES}")
    sizes = {axis: given.get(axis, 1) for axis in AXES}
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {mesh!r}: sizes are positive, and at most one is -1")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest = devices // fixed
    if open_axes:
        sizes[open_axes[0]] = rest
    if fixed * (rest if open_axes else 1) != devices:
        fit = [n for n in range(1, devices + 1) if devices % n == 0]
        raise UserError(
            f"mesh {mesh!r} needs a multiple of {fixed} devices, but there are"
            f" {devices}; sizes that divide {devices}: {fit}"
        )
    return sizes


def held(rows: int, layout: Layout) -> list[int]:
    """Which rows of a batch lie on devices of this process."""
    of_rows = layout.sharding("batch")
    parts = of_rows.addressable_devices_indices_map((rows,)).values()
    return sorted({r for part in parts for r in range(*part[0].indices(rows))})


def to_mesh(array: np.ndarray, rows: int, layout: Layout, *names) -> jax.Array:
    """A batch of `rows` rows from those that this process holds."""
    mine = held(rows, layout)

    def cut(index):
        at = np.searchsorted(mine, range(*index[0].indices(rows)))
        return array[at][:, *index[1:]]

    sharding = layout.sharding("batch", *names)
    return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, cut)


def to_host(x: jax.Array, layout: Layout) -> np.ndarray:
    """The rows of a batch that this process holds, however x itself is split."""
    if x.is_fully_addressable:
        return np.asarray(x)
    wanted = layout.sharding("batch", "length"), layout.sharding("batch")
    fine = any(x.sharding.is_equivalent_to(w, x.ndim) for w in wanted[x.ndim < 2 :])
    if not (fine or x.is_fully_replicated):
        x = jax.jit(lambda x: x, out_shardings=wanted[1])(x)
    mine = held(len(x), layout)
    out = np.empty((len(mine), *x.shape[1:]), x.dtype)
    for shard in x.addressable_shards:
        rows = np.arange(*shard.index[0].indices(len(x)))
        here = np.isin(rows, mine)
        at = np.searchsorted(mine, rows[here])
        out[at, *shard.index[1:]] = np.asarray(shard.data)[here]
    return out


def cut(batch, parts: int):
    """[B, ...] -> [parts, B / parts, ...] in every array.

    Row r goes to part r mod `parts`: every device keeps its own rows.
    """
    one = lambda x: jnp.moveaxis(
        x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0
    )
    return jax.tree.map(one, batch)


def partition(names, rules) -> PartitionSpec:
    """Dimension names -> PartitionSpec. A mesh axis serves the first name that asks."""
    used, parts = set(), []
    for name in names:
        axes = tuple(a for a in rules.get(name, ()) if a not in used)
        used.update(axes)
        parts.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*parts)


def check_divides(size: int, name: str, layout: Layout, what: str) -> None:
    """An error with the fix in it when `size` cannot be split as the rules say."""
    ways = layout.ways(name)
    if size % ways:
        below, above = size // ways * ways, (size // ways + 1) * ways
        nearest = f"{below} or {above}" if below else f"{above}"
        axes = " x ".join(layout.rules[name])
        raise UserError(
            f"{what} = {size} does not divide over {ways} devices (mesh axes {axes});"
            f" use {nearest}, or change the mesh"
        )


_current: list[Layout] = []


@contextlib.contextmanager
def use(layout: Layout) -> Iterator[Layout]:
    """Inside, `constrain` lays activations out on this mesh."""
    _current.append(layout)
    here = isinstance(layout.mesh, Mesh)
    try:
        with (jax.set_mesh if here else use_abstract_mesh)(layout.mesh):
            yield layout
    finally:
        _current.pop()


def current() -> Layout | None:
    return _current[-1] if _current else None


def alone() -> bool:
    """Whether programs run on one device."""
    layout = current()
    return layout is None or layout.mesh.size == 1


def ways(name: str) -> int:
    """Into how many parts programs split the dimension `name`."""
    layout = current()
    return 1 if layout is None else layout.ways(name)


def platform() -> str:
    """Where programs run: on the mesh in use, which may be one that is not here."""
    device = _device()
    return "tpu" if device is None else device.platform  # what is absent is planned


def device_kind() -> str:
    """Such as "TPU v5p"; empty for devices that are absent."""
    device = _device()
    return "" if device is None else device.device_kind


def _device():
    """One of those that programs run on; None if they are absent."""
    layout = current()
    if layout is None:
        return jax.devices()[0]
    here = isinstance(layout.mesh, Mesh)
    return layout.mesh.devices.flat[0] if here else None


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Ask the compiler to lay out `x` by the names of its dimensions."""
    if alone():
        return x
    return jax.lax.with_sharding_constraint(x, current().sharding(*names))


def constrain_to(x: jax.Array, *axes) -> jax.Array:
    """The same by axes of the mesh, one or several for each dimension."""
    where = NamedSharding(current().mesh, PartitionSpec(*axes))
    return jax.lax.with_sharding_constraint(x, where)


def _grid(shape: tuple[int, ...], devices) -> np.ndarray:
    if devices[0].platform == "tpu":  # the torus decides which neighbours are near
        from jax.experimental import mesh_utils

        slices = {getattr(d, "slice_index", 0) for d in devices}
        if len(slices) > 1 and shape[0] % len(slices) == 0:
            inner = (shape[0] // len(slices), *shape[1:])
            outer = (len(slices), *(1,) * (len(shape) - 1))
            return mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    return np.asarray(devices).reshape(shape)


def _axes(name: str, axes) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    if name not in RULES:
        raise UserError(f"rule for unknown dimension {name!r}; known: {sorted(RULES)}")
    if unknown := set(axes) - set(AXES):
        raise UserError(f"rule {name!r}: {sorted(unknown)[0]!r} is no axis of {AXES}")
    return axes
