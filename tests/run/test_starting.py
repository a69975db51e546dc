"""Which processes are commands, and take care of signals from the beginning."""

import signal
import subprocess
import sys
import time

import pytest
from reference.commands import modules

from hra_jax.run.starting import module_of


@pytest.mark.parametrize(
    ("words", "own", "module"),
    [
        (["python", "-m", "hra_jax.train", "--config", "x"], 2, "hra_jax.train"),
        (["python", "-X", "dev", "-Wm", "-m", "hra_jax.tasks"], 0, "hra_jax.tasks"),
        (["python", "-mhra_jax.tasks", "list", "A"], 2, "hra_jax.tasks"),
        (["python", "-Im", "hra_jax.data.manifest", "hra_jax"], 1, "hra_jax.data.manifest"),
        (["python", "-m", "pytest", "hra_jax"], 1, None),
        (["python", "-m", "hra_jaxx.train"], 0, None),
        (["python"], 0, None),
    ],
)
def test_a_command_is_a_module_of_this_package_that_the_interpreter_runs(words, own, module):
    assert module_of(words, own) == module


def test_in_other_programs_ctrl_c_is_what_python_makes_of_it(command_env):
    code = "import signal, threading, hra_jax; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, "
    code += "signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, threading.active_count())"
    for words in (["-c", code], ["-c", code, "-m", "hra_jax.train"]):
        done = subprocess.run([sys.executable, *words], env=command_env, capture_output=True, text=True, check=True)
        assert done.stdout == "True True 1\n"


@pytest.mark.parametrize("name", modules())
def test_every_command_is_ended_by_ctrl_c_while_it_imports(name, command_env):
    # It says what it has imported: here, the first thing of all.
    words = [sys.executable, "-X", "importtime", "-m", name, "--help"]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with subprocess.Popen(words, env=command_env, text=True, **pipes) as process:
        while (line := process.stderr.readline()).split()[-1:] != ["hra_jax"]:
            assert line
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "Traceback" not in errors
    assert time.monotonic() - start < 5


def test_the_commands_are_found():
    assert {"hra_jax.train", "hra_jax.tasks", "hra_jax.config", "hra_jax.data.manifest"} <= set(modules())
