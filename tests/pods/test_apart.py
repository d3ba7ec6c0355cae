"""What ends a process of its own is one line here, or comes through whole."""

import os

import pytest

from easylm.errors import UserError
from easylm.pods import apart


def add(a, b):
    print("adding")
    return a + b


def refuse():
    raise UserError("set a to b")


def fail_a_check():
    os.write(
        2, b"F1122 x.cc:316] Check failed: 1 < 1 (1 vs. 1) \n*** stack trace: ***\n"
    )
    os.abort()


def stop():
    os._exit(3)


def test_the_answer_comes_back_and_what_was_printed(capfd):
    assert apart.call(add, 1, 2) == 3
    assert capfd.readouterr().err == "adding\n"


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (refuse, UserError, "^set a to b$"),
        (fail_a_check, UserError, r"compiler itself failed \(1 < 1 \(1 vs. 1\)\)"),
        (stop, RuntimeError, "ended with code 3"),
    ],
)
def test_what_ends_it_is_said(function, error, message, capfd):
    with pytest.raises(error, match=message):
        apart.call(function)
    assert not capfd.readouterr().err
