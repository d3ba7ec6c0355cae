"""The processes of a run end together: one that fails tells the others why.

JAX alone has the one that fails wait for the others, who wait for it in the middle of
an update: after five minutes all of them abort, and their exit codes say nothing. One
that is killed can tell nobody. The others find out when they next wait for it, or by
JAX's heartbeat.
"""

import contextlib
import os
import re
import sys
import threading
import time
import traceback

import jax

from easylm.errors import UserError

_KEY, _SECONDS = "easylm/failed", 2.0  # how often the others ask
_GRACE = 3.0  # for one that fails of the same and is writing down of what
_LOST = r"Gloo|NCCL|heartbeat|CoordinationService|[Cc]onnection (closed|reset)"
_ALONE = (
    "error: another process of the run has died or cannot be reached; its log says why."
    " Start all of them again, and the run goes on from its last whole checkpoint ({})"
)
_once = threading.Lock()  # never given back: who has it ends the process


@contextlib.contextmanager
def listening():
    """Inside, the failure of another process ends this one, whatever it waits for, and
    its own failure ends the others."""
    client, over = _us().client, threading.Event()
    if client is None:
        yield
        return

    def listen():
        while not over.wait(_SECONDS):
            if said := _heard(client):
                over.wait(_GRACE)
                with _once:
                    _end(*said)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        leave(error)
    finally:
        over.set()
        thread.join()


def leave(error: Exception) -> None:
    """Tells the others and ends at once, as tidying up waits for them. Where there are
    no others it raises the error."""
    if (client := _us().client) is None:
        raise error
    with _once:
        _end(*(_heard(client) or _say(client, error)))


def _say(client, error) -> tuple[int, str]:
    """Exit code and last words of this process; the others hear of them."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        code, line = 2, text
    elif re.search(_LOST, text):
        return 1, _ALONE.format(text)
    else:
        traceback.print_exception(error)
        code, line = 1, f"{type(error).__name__}: {text}"
    told = f"{code} error: process {_us().process_id} has failed: {line}"
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was faster
        client.key_value_set(_KEY, told)
    return code, f"error: {line}"


def _heard(client) -> tuple[int, str] | None:
    """What another process has said, if any has."""
    try:
        code, line = client.key_value_try_get(_KEY).split(" ", 1)
    except jax.errors.JaxRuntimeError:  # nobody, or nobody is left to ask
        return None
    return int(code), line


def _end(code: int, line: str) -> None:
    """Leaves without waiting for anybody."""
    print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if _us().process_id == 0:  # the others ask this one, and die if it is gone
        time.sleep(2 * _SECONDS + _GRACE)
    os._exit(code)


def _us():
    """What JAX knows of the processes, asked without starting its devices."""
    from jax._src.distributed import global_state  # it has no public name

    return global_state
