"""A trace of a few iterations for XProf and Perfetto: config.profile = "10:13".

Only process 0 records: all processes run the same programs, and traces are large. They
are written on this machine first and then copied, so that the workdir may be a bucket.
"""

import pathlib
import re
import shutil
import sys
import tempfile

import jax
from etils import epath

from easylm.errors import UserError


class Profiler:
    """Records in `workdir`/profile. What it is in the middle of is saved on leaving."""

    def __init__(self, text: str, workdir):
        self._wanted = parse(text)
        self._folder = epath.Path(workdir) / "profile"
        self._local, self._seen = None, range(0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._local is not None:
            print(self.end(), file=sys.stderr)

    def missed(self, iterations: range) -> str:
        """A line for a run that does none of the iterations that were asked for."""
        if not self._wanted or max(iterations.start, self._wanted.start) < min(
            iterations.stop, self._wanted.stop
        ):
            return ""
        return (
            f"profile none: {_named(self._wanted)} are not among those to do,"
            f" {iterations.start} to {iterations.stop - 1}"
        )

    def begin(self, iteration: int) -> None:
        """Before the iteration: starts to record, if it is one of those."""
        if iteration not in self._wanted or jax.process_index() != 0:
            return
        if self._local is None:
            self._local = tempfile.mkdtemp()
            self._seen = range(iteration, iteration)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call: slow, and hides the rest
            jax.profiler.start_trace(
                self._local, create_perfetto_trace=True, profiler_options=options
            )
        self._seen = range(self._seen.start, iteration + 1)

    def ends(self, iteration: int) -> bool:
        """Whether the iteration is the last to be recorded."""
        return self._local is not None and iteration == self._wanted[-1]

    def end(self) -> str:
        """Saves what was recorded; a line that says where."""
        jax.profiler.stop_trace()
        local, self._local = pathlib.Path(self._local), None
        for file in local.rglob("*"):
            if not file.is_dir():
                copy = self._folder / file.relative_to(local)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        shutil.rmtree(local)
        return f"profile {_named(self._seen)} in {self._folder}"


def parse(text: str) -> range:
    """ "10:13" -> the iterations 10, 11 and 12; "" -> none."""
    if not text:
        return range(0)
    bounds = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    wanted = range(*map(int, bounds.groups())) if bounds else range(0)
    if not wanted:
        raise UserError(
            f"config.profile {text!r} is not FIRST:STOP; --config.profile=10:13 records"
            " iterations 10, 11 and 12"
        )
    return wanted


def _named(iterations: range) -> str:
    return f"iterations {iterations.start} to {iterations.stop - 1}"
