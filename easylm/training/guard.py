"""Reasons to stop: a number that is not finite, a signal from outside."""

import signal
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from easylm.errors import UserError
from easylm.training.step import is_finite


class FiniteGuard:
    """Stops the run at a NaN or infinity, and keeps the batch that made it.

    A step is looked at when the next one has been sent to the device, so that looking
    does not hold up the device.
    """

    def __init__(self, workdir):
        self._workdir = epath.Path(workdir)
        self._waiting = None

    def check(self, iteration: int, batch, measured) -> None:
        self.flush()
        self._waiting = iteration, batch, is_finite(measured)

    def flush(self) -> None:
        """Looks at the last step, too."""
        if self._waiting is None:
            return
        (iteration, batch, finite), self._waiting = self._waiting, None
        if bool(finite):
            return
        path = self._workdir / f"nonfinite-{iteration}-{jax.process_index()}.npz"
        with path.open("wb") as file:
            np.savez(file, **_local(batch))
        raise UserError(
            f"the loss or the gradient of iteration {iteration} is not finite;"
            f" the batch is in {path}. Lower optimizer.lr or optimizer.clip, look at"
            " the data, or compute with model.dtype=float32; the last checkpoint is"
            " from before it"
        )


class Stop:
    """Turns SIGTERM and Ctrl-C into a question the loop asks; the second one kills."""

    def __enter__(self):
        self._asked, self._votes = False, None
        self._old = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread, a notebook's for example
                break
        return self

    def __exit__(self, *error):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self._asked = True
        signal.signal(number, signal.SIG_DFL)

    def requested(self) -> bool:
        """Whether to stop here: the same answer on all processes, asked after every
        iteration. Of several, they vote on the devices, behind the update, and the
        votes are read one iteration later: nobody waits for them."""
        if jax.process_count() == 1:
            return self._asked
        votes, self._votes = self._votes, _vote(self._asked)
        return votes is not None and bool(votes)


def _vote(yes: bool) -> jax.Array:
    """Whether any process says yes, before that is known."""
    each, all = _everywhere()
    local = np.full(jax.local_device_count(), yes)
    return all(jax.make_array_from_process_local_data(each, local))


@cache
def _everywhere():
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    each, whole = (NamedSharding(mesh, spec) for spec in (P("devices"), P()))
    return each, jax.jit(jnp.any, out_shardings=whole)


def _local(batch) -> dict[str, np.ndarray]:
    """What this process holds of a batch, by name."""
    tree = {k: vars(v) if hasattr(v, "tokens") else v for k, v in batch.items()}
    flat = flatten_dict(tree, sep="/")
    return {
        name: np.concatenate([np.asarray(s.data) for s in _first_copies(x)])
        for name, x in flat.items()
    }


def _first_copies(x):
    shards = [s for s in x.addressable_shards if s.replica_id == 0]
    return sorted(shards, key=lambda s: [(i.start or 0) for i in s.index])
