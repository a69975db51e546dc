"""Processes that die with the one that starts them, however that ends: kill -9 and a closed terminal included.

This file is also the program that makes them so, `python children.py PARENT WORD ...`: it asks the kernel to be killed
when its parent ends, and becomes the command. It imports nothing but what comes with Python, and takes some 20 ms.

The kernel takes the thread that has started a process for its parent: that thread must live as long. Only Linux has
this; elsewhere a child ends when it finds its pipes closed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # here: a forked process may not load libraries


def start(command: Sequence[str | os.PathLike[str]], **settings: Any) -> subprocess.Popen[Any]:
    """Starts a process that is killed when the calling thread ends.

    Args:
      command: the program, as a path, and its arguments.
      **settings: of `subprocess.Popen`.
    """
    # Not `preexec_fn`, which would fork this process with the locks that its other threads hold.
    helper = [sys.executable, "-P", "-S", __file__, str(os.getpid())]
    return subprocess.Popen([*helper, *(os.fspath(word) for word in command)], **settings)


def signals_to_pass_on() -> list[int]:
    """Takes the signals that a launcher passes on to its processes; to be called before there are any.

    Returns:
      A list to which each signal is added when it comes: SIGINT; SIGTERM, also where the terminal has been closed.
    """
    received: list[int] = []
    terminals = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream.isatty()]

    def hung_up(number: int, frame: FrameType | None) -> None:
        for descriptor in terminals:  # where nothing can be written any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        received.append(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: received.append(number))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, hung_up)
    return received


def die_with(parent: int) -> None:
    """Has this process killed when its parent ends; ends it at once if the parent is not `parent` any more."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
