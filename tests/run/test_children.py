"""Processes that die with the one that started them."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")

REPOSITORY = Path(__file__).resolve().parents[2]
CHILD = "import os, time; os.write(1, f'{os.getpid()} '.encode()); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
from hra_jax.run import children
child = children.start([sys.executable, "-c", {CHILD!r}], start_new_session=True)
time.sleep(60)
"""


def is_there(process: int) -> bool:
    """Whether a process exists and has not ended; it may wait for who asks after it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(processes: list[int], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_there, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_there, processes))


def read_numbers(process: subprocess.Popen, count: int) -> list[int]:
    text = b""
    while text.count(b" ") < count:
        text += os.read(process.stdout.fileno(), 100)
    return [int(word) for word in text.decode().replace("[1]", "").split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_child_in_a_session_of_its_own_ends_with_its_parent(number, command_env):
    # nohup, under which these tests may run, has a closed terminal ignored; here it is meant.
    heard = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, env=command_env, stdout=subprocess.PIPE, preexec_fn=heard)
    (child,) = read_numbers(parent, 1)
    assert is_there(child)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    assert gone([child])


def test_a_child_that_is_late_does_not_start(command_env):
    helper = REPOSITORY / "hra_jax" / "run" / "children.py"
    stranger = [sys.executable, str(helper), "1", sys.executable, "-c", "print('started')"]
    done = subprocess.run(stranger, env=command_env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, "")


def test_status_and_arguments_of_a_child_are_its_own():
    from hra_jax.run import children

    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    child = children.start([sys.executable, "-c", code, "a b", "-m"], stdout=subprocess.PIPE, text=True)
    assert child.communicate()[0] == "['a b', '-m']\n" and child.returncode == 7


def test_the_processes_of_the_local_launcher_end_when_it_is_killed(command_env):
    words = [REPOSITORY / "launch" / "local.py", "--processes", "2", "--devices", "1", "--", "-c", CHILD]
    launcher = subprocess.Popen([sys.executable, *map(str, words)], env=command_env, stdout=subprocess.PIPE)
    # What process 1 prints passes through the launcher, line by line.
    (first,) = read_numbers(launcher, 1)
    tasks = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    children = [int(word) for word in tasks.read_text().split()]
    assert len(children) == 2 and first in children
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert gone(children)


def test_a_voice_worker_that_nobody_listens_to_ends_without_a_word(command_env):
    job = '{"number": 0, "speaker": {"name": "a", "voice": "nobody", "variant": "", "rate": 1, "pitch": 1, '
    job += '"pitch_range": 1, "word_gap": 1}, "seed": [1], "text": "a"}\n'
    command = [sys.executable, "-m", "hra_jax.data.synthetic.voice_worker"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command, env=command_env, text=True, **pipes) as worker:
        worker.stdout.close()
        worker.stdin.write(job)
        worker.stdin.close()
        assert worker.stderr.read() == "" and worker.wait(30) == 1
