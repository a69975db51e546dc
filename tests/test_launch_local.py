"""The local launcher: what it would run, what it passes on, and what it says when a process dies."""

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).resolve().parent.parent / "launch" / "local.py"


def launch(*words, env=None, timeout=60):
    command = [sys.executable, str(LAUNCHER), *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def script(code: str, *, processes: int = 2, own: tuple = ()):
    """Runs code in several processes; `me` is the number of the process."""
    code = f"import os, signal, sys, time\nme = int(os.environ['HRA_PROCESS_ID'])\n{code}"
    return launch("--processes", processes, "--devices", 1, *own, "--", "-c", code)


# --- What it would run ------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_a_command_for_each_process_and_runs_nothing(tmp_path, command_env):
    command = ["-m", "hra_jax.train", "--config", "quickstart", "--workdir", str(tmp_path / "W 1")]
    env = command_env | {"XLA_FLAGS": "--xla_foo=1 --xla_force_host_platform_device_count=8"}
    env.pop("JAX_PLATFORMS", None)
    done = launch("--processes", 3, "--devices", 4, "--dry-run", "--", *command, env=env)
    assert done.returncode == 0 and not (tmp_path / "W 1").exists()
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    addresses = set()
    for number, line in enumerate(lines):
        words = shlex.split(line)
        settings = dict(word.split("=", 1) for word in words[: words.index(sys.executable)])
        assert words[words.index(sys.executable) + 1 :] == command
        addresses.add(settings.pop("HRA_COORDINATOR_ADDRESS"))
        assert settings.pop("JAX_COORDINATOR_BIND_ADDRESS") in addresses
        assert settings == {
            "HRA_NUM_PROCESSES": "3",
            "HRA_PROCESS_ID": str(number),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_foo=1 --xla_force_host_platform_device_count=4",
        }
    (address,) = addresses
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)


def test_another_platform_that_the_user_set_stays(command_env):
    words = ("--processes", 1, "--devices", 1, "--dry-run", "--", "a.py")
    assert "JAX_PLATFORMS=cuda" in launch(*words, env=command_env | {"JAX_PLATFORMS": "cuda"}).stdout


def test_processes_get_the_environment_that_the_dry_run_shows():
    done = script("print(os.environ['XLA_FLAGS'].split()[-1], os.environ['HRA_NUM_PROCESSES'], flush=True)")
    expected = "--xla_force_host_platform_device_count=1 2"
    assert sorted(done.stdout.splitlines()) == sorted([expected, f"[1] {expected}"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--processes", "0", "--devices", "1", "--", "a.py"], r"--processes: '0'; allowed: an integer of at least 1"),
        (["--processes", "2", "--devices", "x", "--", "a.py"], r"--devices: 'x'; allowed: an integer of at least 1"),
        (["--devices", "1", "--", "a.py"], r"required: --processes"),
        (["--processes", "2", "--devices", "1"], r"no command; give it behind --"),
        (["--processes", "2", "--devices", "1", "--"], r"no command; give it behind --"),
        (["--processes", "2", "--devices", "1", "--hosts", "3", "--", "a.py"], r"unrecognized arguments: --hosts 3"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message):
    done = launch(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf"launch/local\.py: error: .*{message}.*\n", done.stderr), done.stderr


# --- Output and ends --------------------------------------------------------------------------------------------------


def test_lines_of_other_processes_have_their_number_and_stay_whole():
    # A line in one write: what process 0 writes does not pass through the launcher.
    code = "for n in range(200): os.write(1 + n % 2, b'x' * 50 + b' %d %d\\n' % (me, n))"
    done = script(code, processes=3)
    assert done.returncode == 0
    for stream, odd in ((done.stdout, 0), (done.stderr, 1)):
        expected = [f"{f'[{me}] ' if me else ''}{'x' * 50} {me} {n}" for me in range(3) for n in range(odd, 200, 2)]
        assert sorted(stream.splitlines()) == sorted(expected)


@pytest.mark.parametrize("code, status", [("", 0), ("sys.exit(75)", 75), ("sys.exit(75 * me)", 75)])
def test_good_ends_say_nothing(code, status):
    done = script(code)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_the_process_that_died_first_is_named_and_the_others_that_hang_are_killed():
    started = time.monotonic()
    code = "os.kill(os.getpid(), signal.SIGKILL) if me == 1 else time.sleep(100)"
    done = script(code, processes=3, own=("--grace", 2))
    assert time.monotonic() - started < 20 and done.returncode == 1
    assert done.stderr == (
        "launch/local.py: process 1 died (SIGKILL); the others were killed (137); "
        "the same command resumes from the last checkpoint\n"
    )


def test_others_that_end_by_themselves_are_not_killed():
    code = "if me == 0: sys.exit(3)\ntime.sleep(1)\nos.kill(os.getpid(), signal.SIGABRT)"
    done = script(code)
    assert done.returncode == 3
    assert done.stderr == (
        "launch/local.py: process 0 ended (status 3); the others ended (134); "
        "the same command resumes from the last checkpoint\n"
    )


def test_after_a_users_error_the_line_does_not_say_that_the_same_command_helps():
    done = script("time.sleep(0.5 * me)\nsys.exit(2)")
    assert done.returncode == 2
    assert done.stderr == "launch/local.py: process 0 ended (status 2); the others ended (2); see its error\n"


@pytest.mark.parametrize(
    "sent, received",
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_signals_reach_all_processes(sent, received):
    code = (
        "import os, signal, sys, time\n"
        "def stop(number, frame):\n    os.write(1, signal.Signals(number).name.encode() + b'\\n')\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\nsignal.signal(signal.SIGINT, stop)\n"
        "os.write(1, b'ready\\n')\ntime.sleep(60)"
    )
    command = [sys.executable, str(LAUNCHER), "--processes", "3", "--devices", "1", "--", "-c", code]
    # nohup, under which these tests may run, has a closed terminal ignored; here it is meant.
    heard = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        try:
            assert sorted(process.stdout.readline() for _ in range(3)) == ["[1] ready\n", "[2] ready\n", "ready\n"]
            os.kill(process.pid, sent)
            rest, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 75
    assert sorted(rest.split()) == sorted(["[1]", "[2]"] + [received.name] * 3)
