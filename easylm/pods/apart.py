"""A call in a process of its own: where the TPU compiler aborts, it aborts alone.

A failed check of libtpu ends its process with pages of stack traces. `call` makes one
line of that. What the call itself prints arrives; what libtpu writes does not.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from easylm.errors import UserError


def call(function, *args):
    """function(*args), all of it picklable; a UserError is raised here."""
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    with tempfile.TemporaryDirectory() as folder:
        given, made, said = (Path(folder) / name for name in ("given", "made", "said"))
        given.write_bytes(pickle.dumps((function, args)))
        command = [sys.executable, "-m", "easylm.pods.apart", given, made, said]
        code = subprocess.run(command, env=env, stdout=sys.stderr).returncode
        if not made.exists():
            raise _stopped(code, said.read_text(errors="replace"))
        found, failed = pickle.loads(made.read_bytes())
    if failed:
        raise found
    return found


def _stopped(code: int, said: str) -> Exception:
    """What became of a process that left no answer."""
    if code == -signal.SIGKILL:
        return UserError("the TPU compiler was killed: this machine is out of memory")
    check = re.search(r"Check failed: ([^\n]*)", said)
    if check:
        return UserError(
            f"the TPU compiler itself failed ({check[1].strip()}); try another mesh,"
            " another slice, or another version of libtpu"
        )
    return RuntimeError(f"the compiler's process ended with code {code}:\n{said}")


def _answer(given: str, made: str, said: str) -> None:
    """The other side of `call`."""
    mine = os.fdopen(os.dup(2), "w", buffering=1)
    sys.stdout = sys.stderr = mine
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    function, args = pickle.loads(Path(given).read_bytes())
    try:
        found = function(*args), False
    except UserError as error:
        found = error, True
    part = Path(made).with_suffix(".part")
    part.write_bytes(pickle.dumps(found))
    part.rename(made)


if __name__ == "__main__":
    _answer(*sys.argv[1:])
