"""What happens on a worker of a TPU pod: runs that outlive their connection, and how they stop."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TPU = Path(__file__).resolve().parent.parent / "launch" / "tpu"

# In place of the interpreter of the environment: trains until the file `go` is there, and copies logs.
TRAINING = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
  [ $# -ge 4 ] || exit 0
  mkdir -p "$(dirname "$4")" && cp "$3" "$4"
  exit
fi
trap 'echo saved; exit 75' TERM
echo "training $* $JAX_COMPILATION_CACHE_DIR"
while [ ! -e go ]; do sleep 0.05; done
exit "$(cat go)"
"""


@pytest.fixture
def worker(tmp_path):
    """Starts worker.sh as ssh would."""
    home = tmp_path / "hra_jax"
    (home / "venv" / "bin").mkdir(parents=True)
    shutil.copy(TPU / "worker.sh", home)
    (home / "venv" / "bin" / "python").write_text(TRAINING)
    (home / "venv" / "bin" / "python").chmod(0o755)
    started = []

    def start(*words: str) -> subprocess.Popen:
        command = ["bash", "hra_jax/worker.sh", *words]
        env = os.environ | {"HRA_LOG_SECONDS": "1"}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        )
        return started[-1]

    yield start
    (tmp_path / "go").write_text("0")
    for process in started:
        process.communicate(timeout=30)


def await_run(folder: Path, name: str) -> None:
    deadline = time.monotonic() + 30
    log = folder / "hra_jax" / "runs" / name / "log"
    while not (log.exists() and "training" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_outlives_its_connection_and_is_not_started_twice(worker, tmp_path):
    first = worker("run", "one", str(tmp_path / "W"), "CACHE", "-m", "x", "a b")
    await_run(tmp_path, "one")
    first.send_signal(signal.SIGKILL)
    again = worker("run", "one", str(tmp_path / "W"), "CACHE", "-m", "x", "a b")
    other = worker("run", "two", str(tmp_path / "W"), "CACHE", "-m", "x")
    text, _ = other.communicate(timeout=30)
    assert other.returncode == 2 and "busy with run one" in text
    (tmp_path / "go").write_text("134")
    text, _ = again.communicate(timeout=30)
    assert (again.returncode, text) == (134, "training -m x a b CACHE\n")
    (log,) = (tmp_path / "W" / "logs" / "one").glob("*.log")
    assert log.read_text() == text
    late = worker("run", "one", str(tmp_path / "W"), "CACHE")
    assert late.wait(timeout=30) == 134


def test_the_check_before_a_run_that_was_started_without_it_is_left_out(worker, tmp_path):
    run = worker("run", "one", str(tmp_path / "W"), "CACHE", "-m", "x")
    await_run(tmp_path, "one")
    text, _ = (check := worker("run", "one-check", str(tmp_path / "W"), "CACHE", "-m", "y")).communicate(timeout=30)
    assert (check.returncode, text) == (0, "")
    (tmp_path / "go").write_text("0")
    assert run.wait(timeout=30) == 0
    # Before the run it is done.
    check = worker("run", "two-check", str(tmp_path / "W"), "CACHE", "-m", "y")
    assert check.communicate(timeout=30)[0] == "training -m y CACHE\n" and check.returncode == 0


def test_a_run_can_be_told_to_stop(worker, tmp_path):
    run = worker("run", "one", str(tmp_path / "W"), "CACHE")
    await_run(tmp_path, "one")
    text, _ = worker("stop").communicate(timeout=30)
    assert "run one was told" in text
    text, _ = run.communicate(timeout=30)
    assert run.returncode == 75 and text.splitlines()[-1] == "saved"
    text, _ = worker("stop").communicate(timeout=30)
    assert "no run" in text


def test_install_makes_an_environment_once_and_the_package_anew(worker, tmp_path, monkeypatch):
    (tmp_path / "python3").write_text(f'#!/bin/sh\necho "$@" >>{shlex.quote(str(tmp_path / "said"))}\n')
    (tmp_path / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    python = tmp_path / "hra_jax" / "venv" / "bin" / "python"
    for there in (True, False):
        if not there:
            python.chmod(0o644)
        status = worker("install", "3.12", "hra_jax[tpu] @ URL").wait(timeout=30)
        assert (status == 0) == there  # what stands for uv makes no environment
        said = (tmp_path / "said").read_text().splitlines()
        assert [line for line in said if " venv " in line] == (
            [] if there else [f"-m uv venv --quiet --python 3.12 {python.parent.parent}"]
        )
        assert said[-1].endswith(f"--python {python} --reinstall-package hra_jax hra_jax[tpu] @ URL")


def test_an_unknown_act_is_refused(worker):
    process = worker("destroy")
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "'destroy'; allowed: install, run, stop" in text
