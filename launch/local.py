"""Runs one command as several processes on this machine, each with CPU devices of its own.

    python launch/local.py --processes 2 --devices 4 -- -m hra_jax.train --config quickstart --workdir W

What follows `--` goes to this interpreter, once for each process; HRA_COORDINATOR_ADDRESS, HRA_NUM_PROCESSES and
HRA_PROCESS_ID say which process each one is. What process 0 prints goes through as it is, lines of process i > 0 begin
with `[i] `. SIGTERM, SIGINT and SIGHUP (as SIGTERM) go to all of them. However this launcher ends, by kill -9 too, none
of them stays behind.

Exit status:

    0      all processes ended with 0
    75     they were told to stop, and stopped with 75: everything is saved
    130    Ctrl-C, where they did not all end with 0 or 75; those that have not ended 4 seconds later, or at a second
           Ctrl-C, are killed
    other  that of the process that failed first, or 1 where a signal killed it; one line says which process that was
           and how the others ended, and those that do not end by themselves are killed
"""

# ruff: noqa: E402

import os
import signal

if __name__ == "__main__":  # already while the rest is imported, Ctrl-C ends this in a word

    def _interrupted(*_: object) -> None:
        try:
            os.write(2, b"error: interrupted\n")
        finally:
            os._exit(130)

    signal.signal(signal.SIGINT, _interrupted)

import argparse
import queue
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from hra_jax.run import children

STOPPED = 75  # of processes that were told to stop and have saved
USER_ERROR = 2
INTERRUPTED = 130
_DEVICE_COUNT = "--xla_force_host_platform_device_count"
_NAME = "launch/local.py"
_DRAIN_SECONDS = 2.0  # for the last lines of processes that have ended
_INTERRUPTED_SECONDS = 4.0  # that processes have after Ctrl-C


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Ends with one line in place of argparse's usage."""
        print(f"{_NAME}: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def _at_least(low: float, kind: type) -> Callable[[str], float]:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = low - 1
        if value < low:
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: {noun} of at least {low}")
        return value

    return parse


def parse(words: list[str]) -> argparse.Namespace:
    """Reads the command line; the command behind `--` is `.command`, a list.

    Raises:
      SystemExit: 2, with one line on stderr, where it is wrong.
    """
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = _Parser(prog=f"python {_NAME}", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=_at_least(1, int), required=True, help="how many processes")
    parser.add_argument("--devices", type=_at_least(1, int), required=True, help="CPU devices of each process")
    parser.add_argument(
        "--grace",
        type=_at_least(0, float),
        default=45.0,
        help="seconds that the others have to end once a process has failed; more than the heartbeat of the run (45)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run, a process a line; run nothing")
    arguments = parser.parse_args(own)
    if not command:
        parser.error("no command; give it behind --, such as: -- -m hra_jax.train --config NAME --workdir W")
    arguments.command = command
    return arguments


def environment(number: int, *, processes: int, devices: int, port: int) -> dict[str, str]:
    """The variables that process `number` gets beside those of this process."""
    # A count that is there already would go first or last, as XLA likes it.
    others = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(f"{_DEVICE_COUNT}=")]
    return {
        "HRA_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "HRA_NUM_PROCESSES": str(processes),
        "HRA_PROCESS_ID": str(number),
        # Or jax would listen on every address of the machine.
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or "cpu",
        "XLA_FLAGS": " ".join([*others, f"{_DEVICE_COUNT}={devices}"]),
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _prefixed(source: BinaryIO, target: BinaryIO, prefix: bytes, lock: threading.Lock) -> None:
    """Copies lines, each with a prefix, until the source ends."""
    for line in source:
        with lock:
            target.write(prefix + line.rstrip(b"\n") + b"\n")
            target.flush()


class _Group:
    """The processes of one run."""

    def __init__(self, command: list[str], environments: list[dict[str, str]]):
        self.ended: queue.Queue[tuple[int, int]] = queue.Queue()  # (number, return code), in the order of their ends
        self._readers: list[threading.Thread] = []
        self._processes: list[subprocess.Popen] = []
        lock = threading.Lock()
        for number, extra in enumerate(environments):
            pipe = subprocess.PIPE if number else None
            process = children.start(
                [sys.executable, *command],
                env={**os.environ, **extra},
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                # Or Ctrl-C would reach the processes twice: from the terminal, and from here.
                start_new_session=True,
            )
            self._processes.append(process)
            if number:
                for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                    arguments = (source, target.buffer, f"[{number}] ".encode(), lock)
                    self._readers.append(threading.Thread(target=_prefixed, args=arguments, daemon=True))
                    self._readers[-1].start()
            threading.Thread(target=self._watch, args=(number, process), daemon=True).start()

    def _watch(self, number: int, process: subprocess.Popen) -> None:
        self.ended.put((number, process.wait()))

    def send(self, number: int) -> None:
        """Sends a signal to the processes that are there."""
        for process in self._processes:
            process.send_signal(number)

    def drain(self) -> None:
        """Waits for the last lines. Whom a process has started may hold its output open for longer."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))


def _signal_name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _status(code: int) -> int:
    """The exit status as a shell gives it."""
    return code if code >= 0 else 128 - code


def verdict(ends: list[tuple[int, int]], *, killed: bool = False) -> tuple[int, str]:
    """The launcher's exit status, and the line that says what happened, '' where nothing did.

    Args:
      ends: (process, return code) in the order in which the processes ended; minus the signal's number after a signal.
      killed: whether the launcher had to kill some of them.
    """
    bad = [(number, code) for number, code in ends if code not in (0, STOPPED)]
    if not bad:
        return (STOPPED if any(code == STOPPED for _, code in ends) else 0), ""
    number, code = bad[0]
    how = _signal_name(code) if code < 0 else f"status {code}"
    others = sorted({_status(code) for other, code in ends if other != number})
    rest = f"; the others {'were killed' if killed else 'ended'} ({', '.join(map(str, others))})" if others else ""
    advice = "see its error" if code == USER_ERROR else "the same command resumes from the last checkpoint"
    what = "died" if code < 0 else "ended"
    return (1 if code < 0 else code), f"{_NAME}: process {number} {what} ({how}){rest}; {advice}"


def run(command: list[str], environments: list[dict[str, str]], *, grace: float) -> int:
    """Runs a command once for each environment, and waits for all.

    Args:
      command: arguments of this interpreter.
      environments: the further variables of each process.
      grace: seconds that the others have once a process has ended with another status than 0.

    Returns:
      The exit status, as the module describes it.
    """
    # Before there are processes: a signal that came while they start would end the launcher and leave them alone.
    waiting = children.signals_to_pass_on()
    group = _Group(command, environments)
    ends: list[tuple[int, int]] = []
    deadline, killed, interrupted = None, False, False
    while len(ends) < len(environments):
        while waiting:
            number = waiting.pop(0)
            group.send(number)
            if number == signal.SIGINT:
                deadline = time.monotonic() + (0.0 if interrupted else _INTERRUPTED_SECONDS)
                interrupted = True
        try:
            # In short waits, for the signals.
            ends.append(group.ended.get(timeout=0.1))
        except queue.Empty:
            if deadline is not None and time.monotonic() > deadline and not killed:
                group.send(signal.SIGKILL)
                killed = True
            continue
        if ends[-1][1] != 0 and deadline is None:
            deadline = time.monotonic() + grace
    group.drain()
    if interrupted and any(code not in (0, STOPPED) for _, code in ends):
        return INTERRUPTED
    status, line = verdict(ends, killed=killed)
    if line:
        print(line, file=sys.stderr, flush=True)
    return status


def main(words: list[str]) -> int:
    """Entry point; returns the exit status."""
    arguments = parse(words)
    port = _free_port()
    environments = [
        environment(number, processes=arguments.processes, devices=arguments.devices, port=port)
        for number in range(arguments.processes)
    ]
    if arguments.dry_run:
        for extra in environments:
            settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in extra.items())
            print(f"{settings} {shlex.join([sys.executable, *arguments.command])}")
        return 0
    return run(arguments.command, environments, grace=arguments.grace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
