"""Being told to stop."""

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from hra_jax.training.preemption import INTERRUPTED, PREEMPTED, PreemptionGuard, stops_at_once


def test_nothing_is_requested_before_a_signal():
    with PreemptionGuard() as guard:
        assert not guard.requested(1) and guard.reason == ""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, PREEMPTED), (signal.SIGINT, INTERRUPTED)])
def test_a_signal_is_noted_and_the_process_goes_on(number, status):
    with PreemptionGuard() as guard:
        os.kill(os.getpid(), number)
        assert guard.requested(1) and guard.requested(2)
        assert guard.reason == number.name and guard.status == status


def test_any_number_of_sigterms_is_one_request():
    with PreemptionGuard() as guard:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert guard.requested(1)


def test_who_cannot_wait_presses_ctrl_c_twice():
    with PreemptionGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        assert guard.requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_earlier_handlers_are_put_back_also_after_an_error():
    def mine(number, frame):
        raise AssertionError("not during this test")

    earlier = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(ZeroDivisionError), PreemptionGuard():
            assert signal.getsignal(signal.SIGTERM) is not mine
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) == earlier[signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, earlier[signal.SIGTERM])


def test_a_guard_used_again_has_forgotten_the_earlier_signal():
    guard = PreemptionGuard()
    with guard:
        os.kill(os.getpid(), signal.SIGTERM)
    with guard:
        assert not guard.requested(1)


def test_outside_the_main_thread_a_guard_leaves_the_handlers_alone():
    before, during = signal.getsignal(signal.SIGTERM), []

    def run():
        with PreemptionGuard() as guard:
            during.append((signal.getsignal(signal.SIGTERM), guard.requested(1)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == [(before, False)]


def test_where_nothing_is_left_to_save_sigterm_ends_with_the_same_status(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, stops_at_once("all is saved"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == PREEMPTED and capsys.readouterr().out == "all is saved\n"
    assert signal.getsignal(signal.SIGTERM) is before


# A trainer of two processes: the steps are barriers, as the collectives of a real step are.
PROCESS = """
import sys, time, jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from hra_jax.training.preemption import PREEMPTED, PreemptionGuard
from jax._src.distributed import global_state
with PreemptionGuard() as guard:
    for step in range(1, 2001):
        global_state.client.wait_at_barrier(f"step {step}", 60_000)
        time.sleep(0.01)  # jax looks for the signal once a second
        if step == 3:
            print("ready", flush=True)
        if guard.requested(step):
            print(step, flush=True)
            status = PREEMPTED
            break
    else:
        status = 0
jax.distributed.shutdown()
sys.exit(status)
"""


@pytest.mark.parametrize(("number", "receiver"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_all_processes_stop_at_the_same_step_when_one_is_told_to(number, receiver, command_env):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PROCESS, port]
    processes = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=command_env)
        for i in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
        processes[receiver].send_signal(number)
        steps = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [PREEMPTED] * 2, steps
    assert steps[0][0] == steps[1][0] != ""


def test_the_exit_status_is_that_of_the_contract():
    assert PREEMPTED == 75
