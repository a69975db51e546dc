"""Trains once for every combination of configuration values.

    python launch/sweep.py --workdir runs/sweep --set optimizer.learning_rate=1e-3,3e-3 --set seed=0,1 -- --config fsdd

What follows `--` goes to `python -m hra_jax.train`, with the values of one combination and a work directory that is
named by them. The same command again goes on: what is finished is not run again, what was stopped resumes. A run that
fails is reported and the others go on. At the end a table of the word error rates, best first. SIGTERM, and a terminal
that is closed, have the runs save and stop; however the sweep itself ends, none of them stays behind.

A folder has one sweep at a time, and every work directory in it one training.

Exit status: 0 all finished, 1 some failed, 2 a mistake in the command, 75 told to stop, 130 after Ctrl-C.
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
import dataclasses
import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from hra_jax.errors import UserError
from hra_jax.run import children
from hra_jax.storage import locks
from hra_jax.storage.files import check_no_link, check_output, make_folder, open_to_grow, write_file
from hra_jax.storage.json_files import read_object

USER_ERROR = 2
STOPPED = 75
INTERRUPTED = 130
_NAME = "launch/sweep.py"
_STATUS = "sweep.json"  # in a work directory: status and command of the last try
_OUTPUT = "output.txt"  # what all tries printed
_INTERRUPTED_SECONDS = 4.0  # that runs have after Ctrl-C
_OPEN, _CLOSE = "([{", ")]}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Ends with one line in place of argparse's usage."""
        print(f"{_NAME}: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR)


@dataclasses.dataclass
class Combination:
    """One run of the sweep."""

    values: dict[str, str]
    workdir: Path
    command: list[str]
    status: int | None = None  # None: not ended
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The name of its work directory."""
        return self.workdir.name

    def finished(self) -> bool:
        """Whether this very command has ended with status 0 before."""
        stored = _read(self.workdir / _STATUS)
        return stored.get("status") == 0 and stored.get("command") == self.command[1:]

    def store(self) -> None:
        """Writes down how it ended."""
        # Without the interpreter, which may be another one next time.
        content = {"status": self.status, "seconds": round(self.seconds, 1), "command": self.command[1:]}
        write_file(self.workdir / _STATUS, json.dumps(content, indent=2) + "\n")

    def last_line(self) -> str:
        """The last line that it printed."""
        lines = (self.workdir / _OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")

    def results(self) -> list[dict]:
        """Its evaluations: suite, wer and wer_macro of each."""
        found = []
        for path in sorted(self.workdir.glob("eval/[!.]*/results.json")):  # hidden ones are unfinished
            content = _read(path)
            if all(isinstance(content.get(name), (int, float)) for name in ("wer", "wer_macro")):
                found.append({"suite": path.parent.name, "wer": content["wer"], "wer_macro": content["wer_macro"]})
        return found


def _read(path: Path) -> dict:
    """The JSON object in a file; {} where there is none."""
    try:
        return read_object(path)
    except UserError:
        return {}


def split_values(text: str) -> list[str]:
    """Splits at the commas that are in no brackets: `(1,2),(3,)` is two values."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", key) or "" in split_values(values):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: KEY=VALUE,VALUE,... with the key of a configuration")
    return key, split_values(values)


def _jobs(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number of at least 1")
    return int(text)


def parse(words: list[str]) -> argparse.Namespace:
    """Reads the command line; `.training` is what stands behind `--`.

    Raises:
      SystemExit: 2, with one line on stderr, where it is wrong.
    """
    own, training = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = _Parser(
        prog=f"python {_NAME}",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="folder of the runs' work directories, on this machine")
    parser.add_argument(
        "--set",
        dest="axes",
        action="append",
        type=_axis,
        required=True,
        metavar="KEY=A,B,...",
        help="values of a configuration key; several --set make all combinations",
    )
    parser.add_argument("--jobs", type=_jobs, default=1, help="runs at the same time; default: 1")
    parser.add_argument("--json", type=Path, help="file for the table, as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, a command a line; touch nothing")
    arguments = parser.parse_args(own)
    arguments.training = training
    if not arguments.workdir or "://" in arguments.workdir:
        parser.error(f"--workdir {arguments.workdir!r}; allowed: a folder of this machine")
    keys = [key for key, _ in arguments.axes]
    if len(set(keys)) < len(keys):
        parser.error(f"--set {max(keys, key=keys.count)} is given twice; allowed: all its values in one")
    if not any(re.match(r"--?config(=|$)", word) for word in training):
        parser.error("no configuration; give it behind --, such as: -- --config fsdd --config.data.dir=FSDD")
    for word in training:
        if re.match(r"--?workdir(=|$)", word):
            parser.error(f"{word} behind --: every run has a work directory of its own; allowed: --workdir before --")
        if re.match(r"--?config\.(.*?)=", word) and word.lstrip("-").split("=")[0].removeprefix("config.") in keys:
            parser.error(f"{word} behind --: --set sets it")
    return arguments


def combinations(arguments: argparse.Namespace) -> list[Combination]:
    """All runs, in the order in which they start.

    Raises:
      SystemExit: 2, with one line on stderr, where two of them would share a work directory.
    """
    runs = []
    keys = [key for key, _ in arguments.axes]
    for values in itertools.product(*(values for _, values in arguments.axes)):
        pairs = dict(zip(keys, values, strict=True))
        name = re.sub(r"[^\w.,=+-]", "_", ",".join(f"{key}={value}" for key, value in pairs.items()))
        folder = Path(arguments.workdir) / name
        command = [sys.executable, "-m", "hra_jax.train", *arguments.training]
        command += [f"--config.{key}={value}" for key, value in pairs.items()]
        runs.append(Combination(pairs, folder, [*command, "--workdir", str(folder)]))
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1 or len(name) > 200:
            why = "names two runs" if len(name) <= 200 else "is too long for a folder"
            print(f"{_NAME}: error: --set: {name!r} {why}; allowed: other values", file=sys.stderr)
            raise SystemExit(USER_ERROR)
    return runs


def _start(run: Combination) -> subprocess.Popen:
    make_folder(run.workdir)
    with open_to_grow(run.workdir / _OUTPUT) as output:
        # In a session of its own: Ctrl-C reaches it from here, once.
        return children.start(
            run.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def check_paths(runs: list[Combination], table_file: Path | None) -> None:
    """Refuses what cannot be written, before anything runs. Raises UserError."""
    if table_file is not None:
        check_output(table_file, name="--json")
    for run in runs:
        for path in (run.workdir, run.workdir / _OUTPUT):
            check_no_link(path)


def run_all(runs: list[Combination], *, jobs: int) -> int:
    """Runs what is not finished, `jobs` at a time, and fills in how each ended; 0, STOPPED or INTERRUPTED."""
    waiting = []
    for run in runs:
        if run.finished():
            run.status = 0
            print(f"{run.name}: finished before", flush=True)
        else:
            waiting.append(run)
    going: list[tuple[Combination, subprocess.Popen, float]] = []
    signals = children.signals_to_pass_on()
    told, deadline = 0, float("inf")
    while going or (waiting and not signals):
        while waiting and len(going) < jobs and not signals:
            going.append((waiting[0], _start(waiting[0]), time.monotonic()))
            print(f"{waiting.pop(0).name}: started", flush=True)
        if len(signals) > told:
            if not told:
                print(f"{_NAME}: stopping; runs that are going on save, the same command goes on", file=sys.stderr)
            if signal.SIGINT in signals[told:]:
                deadline = time.monotonic() + (_INTERRUPTED_SECONDS if signal.SIGINT not in signals[:told] else 0.0)
            for _, process, _ in going:
                process.send_signal(signals[-1])
            told = len(signals)
        if time.monotonic() > deadline:
            for _, process, _ in going:
                process.kill()
        for entry in [entry for entry in going if entry[1].poll() is not None]:
            going.remove(entry)
            _ended(*entry)
        time.sleep(0.1)
    return INTERRUPTED if signal.SIGINT in signals else STOPPED if signals else 0


def _ended(run: Combination, process: subprocess.Popen, start: float) -> None:
    code = process.returncode
    run.status, run.seconds = (code if code >= 0 else 128 - code), time.monotonic() - start
    run.store()
    if run.status == 0:
        print(f"{run.name}: finished after {run.seconds:.0f} s", flush=True)
    else:
        print(f"{run.name}: status {run.status} after {run.seconds:.0f} s: {run.last_line()}", flush=True)


def table(runs: list[Combination]) -> list[dict]:
    """A row for each evaluation of a finished run, best first, then a row for each run without one.

    Of equal means over the tasks the lower rate of all utterances comes first; of runs that are equal in both, the one
    whose numbers lie farthest from the edges of what was tried, since the best may lie beyond an edge.
    """
    rows = []
    for run in runs:
        facts = {"name": run.name, "values": run.values, "status": run.status, "workdir": str(run.workdir)}
        found = run.results() if run.status == 0 else []
        rows += [facts | result for result in found or [{"suite": None, "wer": None, "wer_macro": None}]]
    inside = {run.name: distance_from_edges(run.values, [other.values for other in runs]) for run in runs}
    return sorted(
        rows,
        key=lambda row: (row["wer_macro"] is None, row["wer_macro"] or 0.0, row["wer"] or 0.0, -inside[row["name"]]),
    )


def distance_from_edges(values: dict[str, str], tried: list[dict[str, str]]) -> int:
    """How many places the numbers of a combination lie from the edges of what was tried, all keys together."""
    total = 0
    for key, value in values.items():
        try:
            numbers = sorted({float(other[key]) for other in tried})
        except ValueError:
            continue
        place = numbers.index(float(value))
        total += min(place, len(numbers) - 1 - place) if key != "seed" else 0
    return total


def print_table(rows: list[dict]) -> None:
    """Prints what `table` returns in columns."""
    keys = list(rows[0]["values"])
    lines = [[*keys, "suite", "wer", "wer_macro", "status"]]
    for row in rows:
        rates = ["" if row[name] is None else f"{row[name]:.2%}" for name in ("wer", "wer_macro")]
        status = "not run" if row["status"] is None else "" if row["status"] == 0 else f"status {row['status']}"
        lines.append([*row["values"].values(), row["suite"] or "", *rates, status])
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main(words: list[str]) -> int:
    """Entry point; returns the exit status."""
    arguments = parse(words)
    runs = combinations(arguments)
    if arguments.dry_run:
        for run in runs:
            print(f"{'# finished: ' if run.finished() else ''}{shlex.join(run.command)}")
        return 0
    try:
        check_paths(runs, arguments.json)
        with locks.hold(arguments.workdir, "sweep"):
            stopped = run_all(runs, jobs=arguments.jobs)
            rows = table(runs)
    except UserError as error:
        print(f"{_NAME}: error: {error}", file=sys.stderr)
        return USER_ERROR
    print_table(rows)
    if arguments.json:
        write_file(arguments.json, json.dumps(rows, indent=2) + "\n")
    if stopped:
        return stopped
    return 0 if all(run.status == 0 for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
