"""The command that prints the keys."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("word", ["quickstart", "--config.steps=3"])
def test_words_and_flags_that_the_list_of_keys_does_not_take_are_refused(command_env, word):
    done = subprocess.run(
        [sys.executable, "-m", "hra_jax.config", word], env=command_env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and word.removeprefix("--").partition("=")[0] in line
