"""A process that has imported everything, and runs commands in forks of itself: importing takes most of their time.

What a fork runs is what `python -m` would run, but for the handlers of signals. `python commands.py` reads a line for
each command, a JSON list of the module and its arguments, and answers with the number of the process, then its status.
"""

import ast
import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_IMPORTED = (
    "hra_jax.train",
    "hra_jax.evaluate",
    "hra_jax.transcribe",
    "hra_jax.tasks.commands",
    "hra_jax.run.checkpoint_export",
    "hra_jax.convert.conversion",
    "hra_jax.data.synthesize",
    "hra_jax.data.manifest",
)
_NO_COMMANDS = ("hra_jax.data.synthetic.voice_worker", "hra_jax.run.children")  # commands start these


def modules() -> list[str]:
    """Every command: the modules of the package that can be run."""
    library, found = Path(__file__).resolve().parents[2] / "hra_jax", []
    for path in sorted(library.rglob("*.py")):
        names = path.relative_to(library.parent).with_suffix("").parts
        body = ast.parse(path.read_text()).body
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in body):
            found.append(".".join(names[:-1] if names[-1] == "__main__" else names))
    return [name for name in found if name not in _NO_COMMANDS]


def _serve(output: int) -> None:
    for module in _IMPORTED:
        __import__(module)
    os.write(output, b"ready\n")
    for line in sys.stdin:
        module, *words = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.argv = [module, *words]
            if not hasattr(sys.modules.get(module), "__path__"):
                sys.modules.pop(module, None)  # it is run, not imported
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            raise SystemExit
        os.write(output, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(output, f"{os.waitstatus_to_exitcode(status)}\n".encode())


class Commands:
    """Runs commands, or kills them."""

    def __init__(self, folder: Path, env: dict[str, str]):
        """Starts the process; what commands print goes to `folder / "printed"`."""
        self.printed = folder / "printed"
        with self.printed.open("w") as printed:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
            )
        assert self._answer() == "ready"

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def run(
        self,
        words: list[str],
        *,
        killed_after: float | None = None,
        killed_when: Callable[[], bool] | None = None,
    ) -> tuple[int, float, str]:
        """Runs `python -m WORDS`, and kills it some seconds later, or when something is so, if it has not ended.

        Returns:
          Its status, minus 9 where it was killed; the seconds that it ran; what it printed.
        """
        before = self.printed.stat().st_size
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        child, start = int(self._answer()), time.monotonic()
        if killed_after is not None:
            time.sleep(killed_after)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
        if killed_when is not None:
            with contextlib.suppress(ProcessLookupError):
                while not killed_when():
                    os.kill(child, 0)  # it is still there
                    time.sleep(0.002)
                os.kill(child, signal.SIGKILL)
        status = int(self._answer())
        return status, time.monotonic() - start, self.printed.read_bytes()[before:].decode(errors="replace")


if __name__ == "__main__":
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    _serve(answers)
