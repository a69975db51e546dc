"""Ctrl-C and SIGTERM in commands: when they end, with which status, and what is finished before."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hra_jax.run import signals

SETUP = """
import ctypes, os, sys, time
from hra_jax.run import signals
from hra_jax.storage import writing
signals._PATIENCE_SECONDS = 0.8  # to be quick
signals.install()
"""
# A lock that is taken twice: the main thread stays in C, as it does in a compilation, and no handler of Python runs.
STUCK = "lock = ctypes.create_string_buffer(64); [ctypes.CDLL(None).pthread_mutex_lock(lock) for _ in range(2)]"


class Command:
    """A small command that has installed the handlers."""

    def __init__(self, code: str, env: dict[str, str]):
        code = SETUP + "\n" + code.replace("READY", "os.write(1, b'ready\\n')").replace("STUCK", STUCK)
        command = [sys.executable, "-c", code]
        env = {name: value for name, value in env.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        assert self.process.stdout.readline() == "ready\n"
        self.start = time.monotonic()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Status, standard output and standard error; sets `seconds`."""
        printed, errors = self.process.communicate(timeout=30)
        self.seconds = time.monotonic() - self.start
        assert "Traceback" not in errors
        return self.process.returncode, printed, errors


@pytest.fixture
def command(command_env) -> Iterator:
    started = []

    def start(code: str) -> Command:
        started.append(Command(code, command_env))
        return started[-1]

    yield start
    for command in started:
        command.process.kill()
        command.process.wait()


@pytest.mark.parametrize(
    "code",
    [
        "READY; STUCK",
        "try:\n    READY\n    while True: time.sleep(0.01)\nexcept BaseException: STUCK",  # who catches too much
        "import threading; threading.Thread(target=time.sleep, args=[60]).start(); READY",  # who is waited for at exit
    ],
    ids=["in a library", "where all is caught", "at exit"],
)
def test_ctrl_c_ends_a_command_wherever_its_main_thread_is(command, code):
    running = command(code)
    running.send(signal.SIGINT)
    assert running.end() == (130, "", "error: interrupted\n")
    assert running.seconds < 2


def test_sigterm_ends_with_the_status_of_what_goes_on(command):
    running = command("with signals.sigterm_says('nothing is lost'): READY; STUCK")
    running.send(signal.SIGTERM)
    assert running.end() == (75, "nothing is lost\n", "")
    assert running.seconds < 2


def test_a_user_waits_less_than_what_is_promised():
    assert signals._PATIENCE_SECONDS + signals._CLEARING_SECONDS + 2 * signals._LAST_WORDS_SECONDS < 5


def test_what_was_printed_is_not_lost(command):
    running = command("READY; print('a line', end=''); STUCK")
    time.sleep(0.2)
    running.send(signal.SIGINT)
    assert running.end()[:2] == (130, "a line")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_that_is_being_written_is_finished(command, number, tmp_path):
    file = tmp_path / "file"
    running = command(
        "with writing.going_on():\n    READY; time.sleep(0.3)\n"
        f"    open({str(file)!r}, 'w').write('all'); time.sleep(0.1)\nSTUCK"
    )
    running.send(number)
    assert running.end()[0] == (130 if number == signal.SIGINT else 75)
    assert file.read_text() == "all" and 0.3 < running.seconds < 2


def test_a_file_that_takes_too_long_is_cleared_away(command, tmp_path):
    (tmp_path / "half").touch()
    running = command(f"with writing.going_on(lambda: os.unlink({str(tmp_path / 'half')!r})):\n    READY; STUCK")
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert 0.7 < running.seconds < 3 and list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_removed_and_nobody_waits_for_it(command, tmp_path):
    code = "import tempfile\ntempfile.tempdir = {!r}\nwith writing.temporary_folder(): READY; STUCK"
    running = command(code.format(str(tmp_path)))
    assert len(list(tmp_path.iterdir())) == 1
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert running.seconds < 2 and list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_ends_at_once(command):
    code = "signals._PATIENCE_SECONDS = 20\nwith writing.going_on(patience=writing.Patience.ANY): READY; STUCK"
    running = command(code)
    running.send(signal.SIGINT)
    time.sleep(0.2)
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert running.seconds < 4


def test_sigterm_waits_for_a_checkpoint_as_long_as_it_takes_and_says_so(command):
    running = command(
        "with writing.going_on(patience=writing.Patience.ANY): READY; time.sleep(1.5); print('saved')\nSTUCK"
    )
    running.send(signal.SIGTERM)
    status, printed, errors = running.end()
    assert (status, printed) == (75, "saved\nstopped by SIGTERM; the same command goes on\n")
    assert "SIGTERM: this ends, with status 75, when" in errors and 1.5 <= running.seconds < 5


def test_ctrl_c_while_sigterm_waits_ends_within_seconds(command):
    running = command("with writing.going_on(patience=writing.Patience.ANY): READY; STUCK")
    running.send(signal.SIGTERM)
    time.sleep(0.2)
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert running.seconds < 5


LOOP = """
signals.loop_has_steps()
READY
{step}
signals.loop_stops()
print("saved", flush=True)
signals.loop_is_over()
sys.exit({status})
"""


@pytest.mark.parametrize(("number", "status", "seconds"), [(signal.SIGINT, 130, 0.3), (signal.SIGTERM, 75, 1.2)])
def test_a_loop_finishes_its_step_and_ends_the_command_by_itself(command, number, status, seconds):
    running = command(LOOP.format(step=f"time.sleep({seconds})", status=status))
    running.send(number)
    ended, printed, errors = running.end()
    assert (ended, printed) == (status, "saved\n")
    assert ("interrupted: saving" if number == signal.SIGINT else "SIGTERM: this ends, with status 75") in errors
    assert running.seconds >= seconds


def test_a_loop_that_has_saved_after_ctrl_c_does_not_wait_for_the_ends_of_libraries(command):
    ends = "class Library:\n    def __del__(self): time.sleep(6)\nlibrary = Library()\n"
    running = command(ends + LOOP.format(step="time.sleep(0.1)", status=130))
    running.send(signal.SIGINT)
    assert running.end()[:2] == (130, "saved\n")
    assert running.seconds < 3


def test_ctrl_c_ends_in_time_whatever_takes_too_long(command):
    code = "signals._AT_MOST_SECONDS, signals._PATIENCE_SECONDS = 0.5, 20\nwith writing.going_on():\n    READY; STUCK"
    running = command(code)
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert 0.5 < running.seconds < 3


def test_a_step_that_takes_too_long_does_not_keep_ctrl_c_waiting(command):
    running = command(LOOP.format(step="STUCK", status=130))
    running.send(signal.SIGINT)
    assert running.end()[:2] == (130, "")
    assert running.seconds < 5


def test_a_library_that_takes_the_pipe_of_signals_for_itself_does_not_keep_ctrl_c(command):
    running = command("import signal; signal.set_wakeup_fd(-1); READY\nwhile True: time.sleep(0.01)")
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert running.seconds < 2


def test_ctrl_c_counts_where_a_shell_has_it_ignored(command, command_env):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        running = command("READY; STUCK")
    finally:
        signal.signal(signal.SIGINT, before)
    running.send(signal.SIGINT)
    assert running.end()[0] == 130


def test_a_lock_is_given_up_by_a_command_that_a_signal_ends(command, tmp_path):
    running = command(f"from hra_jax.storage import locks\nwith locks.hold({str(tmp_path)!r}, 'a test'): READY; STUCK")
    assert len(list(tmp_path.iterdir())) == 1
    running.send(signal.SIGINT)
    assert running.end()[0] == 130
    assert running.seconds < 3 and list(tmp_path.iterdir()) == []


def test_ctrl_c_after_the_end_of_a_command_does_not_change_its_status(command):
    # Called when Python clears its modules, after its own handlers are gone.
    slow = "def __del__(self, write=os.write, sleep=time.sleep): write(1, b'ready\\n'); sleep(0.3)"
    running = command(f"class Slow:\n    {slow}\nslow = Slow()")
    running.send(signal.SIGINT)
    assert running.end() == (0, "", "")
