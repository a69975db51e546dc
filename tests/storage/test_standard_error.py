"""What reaches standard error while the notes of a library are kept from it."""

import os
import re
import signal
import subprocess
import sys

import pytest

from hra_jax.storage import standard_error

NOTES = re.compile(rb"Note: ")


def test_notes_are_dropped_and_what_others_write_follows(capfd):
    with standard_error.without(NOTES):
        os.write(2, b"first\nNote: a\n\n")
        with standard_error.without(NOTES):
            os.write(2, b"Note: b\nsecond\n")
        os.write(2, b"third\n")
    os.write(2, b"Note: of somebody else\n")
    assert capfd.readouterr().err == "first\nsecond\nthird\nNote: of somebody else\n"


def test_nothing_is_kept_of_what_has_been_passed_on(capfd):
    with standard_error.without(NOTES):
        for _ in range(10):
            with standard_error.without(NOTES):
                os.write(2, b"x" * 1000 + b"\n")
        assert os.fstat(2).st_size == 0
    assert len(capfd.readouterr().err) == 10 * 1001


SETUP = """
import os, re, time, faulthandler
from hra_jax.run import signals
from hra_jax.storage import standard_error
signals._PATIENCE_SECONDS = 0.1
signals.install()
with standard_error.without(re.compile(rb"Note: ")):
    os.write(2, b"Note: a\\nsaid before\\n")
    os.write(1, b"ready\\n")
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "status", "last"), [(signal.SIGINT, 130, "error: interrupted\n"), (signal.SIGTERM, 75, "")]
)
def test_the_last_words_of_a_command_reach_the_user(command_env, number, status, last):
    with subprocess.Popen(
        [sys.executable, "-c", SETUP], env=command_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (status, f"said before\n{last}")


CRASHES = """
import os, re, sys
from hra_jax import cli
from hra_jax.storage import standard_error
def main(argv):
    with standard_error.without(re.compile(rb"Note: ")):
        os.abort()
cli.run(main, argv=["crash"])
"""


def test_where_a_command_crashed_reaches_the_user(command_env):
    done = subprocess.run([sys.executable, "-c", CRASHES], env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT and "Fatal Python error: Aborted" in done.stderr
