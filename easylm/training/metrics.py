"""What a run writes down: metrics.jsonl, TensorBoard and Weights & Biases.

docs/metrics.md defines every name. Only process 0 writes; on the others a `Writer` has
no backends and does nothing.
"""

import html
import json
import math
import os
import secrets
import shutil
import tempfile
import time

import jax
from etils import epath

from easylm.errors import UserError

_REWRITE_SECONDS = 60  # object stores cannot append: how often a whole file is put


def make(workdir, *, tensorboard=True, wandb=None, config=None, resume_step=None):
    """Opens the writer of a run.

    `wandb` is None or the keyword arguments of wandb.init ({"project": ..., ...}).
    `resume_step` is the last step that counts: what a killed run logged after it is
    removed from metrics.jsonl and hidden in TensorBoard. A run that starts again from
    nothing passes -1; None keeps all that is there.
    """
    if jax.process_index() != 0:
        return Writer([])
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    backends = [_Jsonl(workdir, resume_step)]
    if tensorboard:
        backends.append(_TensorBoard(workdir, config, resume_step))
    if wandb is not None:
        backends.append(_Wandb(workdir, dict(wandb), config))
    return Writer(backends)


def read(workdir) -> list[dict]:
    """The lines of metrics.jsonl so far; none on processes that do not write."""
    path = epath.Path(workdir) / "metrics.jsonl"
    if jax.process_index() != 0 or not path.exists():
        return []
    return [json.loads(line) for line in _lines_until(path.read_bytes(), None, path)]


def accumulate(window, prefix="") -> dict[str, float]:
    """[{name: Mean}] of the steps since the last log -> {prefix + name: float}.

    Adds totals and counts, divides once, fetches from the device once. Like
    `Mean.value`, a name of which nothing was counted is 0.
    """
    sums = {}
    for metrics in jax.device_get(window):
        for name, mean in metrics.items():
            total, count = sums.get(name, (0.0, 0.0))
            sums[name] = total + float(mean.total), count + float(mean.count)
    return {prefix + name: t / n if n else 0.0 for name, (t, n) in sums.items()}


class Writer:
    """Sends each call to every backend."""

    def __init__(self, backends):
        self._backends = backends

    def scalars(self, step, values):
        """Numbers of one step, {name: float}."""
        values = {name: float(value) for name, value in values.items()}
        for backend in self._backends:
            backend.scalars(int(step), values)

    def text(self, step, name, text):
        """A text of one step, for example a sampled completion."""
        for backend in self._backends:
            backend.text(int(step), name, text)

    def records(self, step, rows):
        """Things of one step to be read one by one, [{name: value}]: samples.jsonl."""
        for backend in self._backends[:1] if rows else ():
            backend.records(int(step), rows)

    def close(self):
        """Writes out what is still buffered."""
        for backend in self._backends:
            backend.close()


class _Jsonl:
    """metrics.jsonl, a JSON object per call: {"step": .., "time": seconds since 1970,
    name: value}; and samples.jsonl, one per record, if there are any."""

    def __init__(self, workdir, resume_step):
        self._log = self._open(workdir / "metrics.jsonl", resume_step)
        self._samples, self._records = (workdir / "samples.jsonl", resume_step), None
        if self._samples[0].exists():  # what came after the last step that counts
            self._records = self._open(*self._samples)

    def _open(self, path, resume_step):
        old = path.read_bytes() if path.exists() else b""
        lines = _lines_until(old, resume_step, path)
        return (_ObjectLog if _is_remote(path) else _FileLog)(path, old, lines)

    def scalars(self, step, values):
        values = {name: _strict_json(value) for name, value in values.items()}
        self._write({"step": step, "time": round(time.time(), 3), **values})

    def text(self, step, name, text):
        self._write({"step": step, "time": round(time.time(), 3), name: text})

    def records(self, step, rows):
        if self._records is None:
            self._records = self._open(*self._samples)
        for row in rows:
            self._records.write(json.dumps({"step": step, **row}).encode() + b"\n")

    def _write(self, record):
        self._log.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def close(self):
        self._log.close()
        if self._records is not None:
            self._records.close()


class _FileLog:
    """Appends: a line is with the operating system when `write` returns."""

    def __init__(self, path, old, lines):
        self._path = path
        try:
            if old != b"".join(lines):
                _replace(path, b"".join(lines))
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _unwritable(path, error) from error

    def write(self, line):
        try:
            written = self._file.write(line)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        if written != len(line):
            raise _unwritable(self._path, "only a part of a line was written")

    def close(self):
        self._file.close()


class _ObjectLog:
    """Keeps all lines in memory and puts the whole object now and then, and at the end.

    A kill -9 loses at most the last minute.
    """

    def __init__(self, path, old, lines):
        self._path, self._lines = path, lines
        self._due = _Due()
        if old != b"".join(lines):
            self._put()

    def write(self, line):
        self._lines.append(line)
        if self._due():
            self._put()

    def close(self):
        self._put()

    def _put(self):
        self._path.write_bytes(b"".join(self._lines))


class _TensorBoard:
    """Event files in workdir/tensorboard; for object stores written here and copied.

    tensorboardX hands events to a thread, so a copy before `close` may lack the last.
    """

    def __init__(self, workdir, config, resume_step):
        from tensorboardX import SummaryWriter

        self._target = workdir / "tensorboard"
        self._remote = _is_remote(workdir)
        self._dir = tempfile.mkdtemp() if self._remote else os.fspath(self._target)
        self._due = _Due()
        self._writer = SummaryWriter(
            self._dir,
            purge_step=None if resume_step is None else max(resume_step + 1, 0),
            flush_secs=30,
            filename_suffix=f".{time.time_ns()}",  # two in one second would overwrite
        )
        if config is not None:
            text = json.dumps(config, indent=2, default=str)
            self.text(max(resume_step or 0, 0), "config", text)

    def scalars(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if self._remote and self._due():
            self._copy()

    def text(self, step, name, text):
        # Four spaces make it a code block: TensorBoard renders text as markdown.
        block = "\n".join("    " + line for line in text.splitlines())
        self._writer.add_text(name, block, step)

    def close(self):
        self._writer.close()
        if self._remote:
            self._copy()
            shutil.rmtree(self._dir)

    def _copy(self):
        self._target.mkdir(parents=True, exist_ok=True)
        for file in epath.Path(self._dir).iterdir():
            (self._target / file.name).write_bytes(file.read_bytes())


class _Wandb:
    """One W&B run per workdir; its id is kept in workdir/wandb_id.txt.

    W&B cannot take steps back: after a resume it ignores points up to the step it
    already has.
    """

    def __init__(self, workdir, options, config):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "Weights & Biases is not installed: "
                'pip install "easylm[wandb]", or leave wandb out of the config'
            ) from error
        self._html = wandb.Html
        if not _is_remote(workdir):
            options.setdefault("dir", os.fspath(workdir))
        self._run = wandb.init(
            id=_wandb_id(workdir), resume="allow", config=config, **options
        )

    def scalars(self, step, values):
        self._run.log(values, step=step)

    def text(self, step, name, text):
        page = self._html(f"<pre>{html.escape(text)}</pre>")
        self._run.log({name: page}, step=step)

    def close(self):
        self._run.finish()


class _Due:
    """True at once, and then once per `_REWRITE_SECONDS`."""

    def __init__(self):
        self._last = -math.inf  # the first time at once

    def __call__(self):
        now = time.monotonic()
        if now - self._last < _REWRITE_SECONDS:
            return False
        self._last = now
        return True


def _lines_until(data, resume_step, path):
    """Complete lines of steps <= resume_step. The last line may be half-written."""
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                continue
            raise UserError(
                f"{path} line {number} is not a metrics record; delete that line"
            ) from error
        if resume_step is None or step <= resume_step:
            kept.append(line + b"\n")
    return kept


def _replace(path, data):
    """All or nothing: a crash leaves the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _strict_json(value):
    """JSON has no NaN; float() and JavaScript's Number() read these strings."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _wandb_id(workdir):
    path = workdir / "wandb_id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _is_remote(path):
    return "://" in os.fspath(path)


def _unwritable(path, reason):
    return UserError(
        f"cannot write {path}: {reason}; "
        "free some space or change the workdir, then run the same command again"
    )
