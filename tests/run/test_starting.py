"""Which processes are commands, and take care of signals from the beginning."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reference.commands import modules

from hra_jax.run.starting import module_of

REPOSITORY = Path(__file__).resolve().parents[2]
# Python runs this before all else: Ctrl-C comes at the moment at which a module is about to be imported.
INTERRUPTS = """
import os, signal, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.write(2, b"now\\n")
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""


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


def test_a_program_whose_name_has_ours_in_it_keeps_its_ctrl_c(command_env, tmp_path):
    package = tmp_path / "my_hra_jax"
    package.mkdir()
    code = "import signal, hra_jax; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    (package / "__init__.py").write_text(code)  # imported while `python -m` looks for the module
    (package / "__main__.py").write_text("")
    env = command_env | {"PYTHONPATH": os.pathsep.join([str(tmp_path), command_env["PYTHONPATH"]])}
    words = [sys.executable, "-m", "my_hra_jax"]
    assert subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["-m", "hra_jax.train"], "hra_jax.run.starting"),
        (["-m", "hra_jax.train"], "hra_jax.run.signals"),
        (["-m", "hra_jax.data.manifest"], "hra_jax.storage.writing"),
        ([str(REPOSITORY / "launch" / "local.py")], "hra_jax"),
        ([str(REPOSITORY / "launch" / "local.py")], "hra_jax.run.children"),
        ([str(REPOSITORY / "launch" / "sweep.py")], "hra_jax"),
        ([str(REPOSITORY / "launch" / "sweep.py")], "hra_jax.storage.locks"),
    ],
    ids=lambda value: value if isinstance(value, str) else Path(value[-1]).name,
)
def test_ctrl_c_counts_from_the_first_line_of_a_command(words, module, command_env, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(module=module))
    env = command_env | {"PYTHONPATH": os.pathsep.join([str(tmp_path), command_env["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, *words, "--help"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "now\nerror: interrupted\n")


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
