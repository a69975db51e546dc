"""Commands in several processes on this machine, through the launcher that users have."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

TRAIN, EVALUATE = "hra_jax.train", "hra_jax.evaluate"
# Some steps with a small learning rate: the adapter acts, and the texts are not empty yet.
SETTINGS = dict(
    steps=10,
    batch__multiple=8,
    batch__seconds=8.0,
    eval__batch_seconds=8.0,
    checkpoint__every_steps=2,
    checkpoint__keep_latest=3,
    optimizer__learning_rate=3e-3,
    distributed__heartbeat_seconds=10,
)
LAUNCHER = Path(__file__).resolve().parents[2] / "launch" / "local.py"
TIMEOUT = 300.0  # seconds; a run that hangs must fail its test

# `python -m MODULE` that says in a file which process it is, and can be given other arguments in one of the processes.
_START = """
import os, runpy, sys
number = os.environ["HRA_PROCESS_ID"]
open(os.path.join(sys.argv[1], "pid" + number), "w").write(str(os.getpid()))
mine = [word for word in sys.argv[2:] if word[:2] not in ("0=", "1=") or word[0] == number]
sys.argv = [word.removeprefix(number + "=") for word in mine]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


_REMEMBERING = """#!/bin/sh
PATH=/usr/bin:/bin
answer={folder}/$(printf '%s\\n' "$@" | cksum | tr ' ' -)
if [ ! -e "$answer.status" ]; then
  {python} "$@" >"$answer.out" 2>"$answer.err"
  echo $? >"$answer.status"
fi
cat "$answer.out"
cat "$answer.err" >&2
exit "$(cat "$answer.status")"
"""


def remembering_python(folder: Path) -> Path:
    """Python, which says to the same words what it said at first: plans take seconds, and most are of one pod."""
    path = folder / "python"
    path.write_text(_REMEMBERING.format(folder=folder, python=sys.executable))
    path.chmod(0o755)
    return path


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Waits until no other process holds the lock: compiling for TPUs takes half of the memory of a small machine."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Launched:
    """A command that the launcher runs.

    Attributes:
      folder: where the numbers of its processes and what they print are kept.
    """

    def __init__(
        self, words: list, *, folder: Path, env: dict, processes: int, devices: int, grace: float | None = None
    ):
        """Starts `python -m MODULE ...` for `words` = [MODULE, ...]; `0=word` and `1=word` go to that process alone."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        own = ["--processes", processes, "--devices", devices] + ([] if grace is None else ["--grace", grace])
        command = [sys.executable, LAUNCHER, *own, "--", "-c", _START, folder, *words]
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            self.process = subprocess.Popen(list(map(str, command)), env=env, stdout=out, stderr=err)

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.process.kill()
            for file in self.folder.glob("pid*"):
                subprocess.run(["kill", "-9", file.read_text()], capture_output=True, check=False)
        self.process.wait()

    def signal(self, number: int, which: int) -> None:
        """Sends a signal to process `which`."""
        os.kill(int((self.folder / f"pid{which}").read_text()), number)

    def until(self, reached: Callable[[], bool]) -> None:
        """Waits; fails where the launcher ends first, or nothing comes."""
        deadline = time.monotonic() + TIMEOUT
        while not reached():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The launcher's exit status."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"no end after {timeout} s\n{self.said()}") from error

    @property
    def errors(self) -> str:
        """What came on stderr."""
        return (self.folder / "err").read_text()

    @property
    def printed(self) -> str:
        """What came on stdout."""
        return (self.folder / "out").read_text()

    def said(self) -> str:
        """The end of both, for a failing assertion."""
        return f"{self.printed[-3000:]}\n{self.errors[-6000:]}"


def run(words: list, **settings) -> Launched:
    """Runs a command to its end; it must end with status 0."""
    with Launched(words, **settings) as launched:
        assert launched.wait() == 0, launched.said()
    return launched


def logged_losses(workdir: Path) -> dict[int, float]:
    """The training losses that are in metrics.jsonl so far, by step."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    # The last line may still be on its way.
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def same_losses(found: list[float], expected: list[float]) -> None:
    """Checks 1e-5 at the first step and 1e-4 afterwards, relative."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
