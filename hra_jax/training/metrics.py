"""Where numbers go during training: TensorBoard event files, and the same as JSON Lines.

    WORKDIR/metrics.jsonl  {"step": 10, "train/loss": 1.5, ...}, one object a line
    WORKDIR/metrics/       events.out.tfevents.*

The event files are written with TensorBoard's own record writer and protocol buffers. Its EventFileWriter, and with it
every wrapper around it, imports TensorFlow where TensorFlow is installed; these two modules do not.
"""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar

import jax
from etils import epath
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from hra_jax.errors import UserError
from hra_jax.storage.files import GrowingFile, check_no_link, check_regular, make_folder, write_file
from hra_jax.storage.json_files import parse_json

_MOST_BYTES = 2**30  # of metrics.jsonl


class MetricWriter:
    """Writes scalars by step; process 0 writes, in the others nothing happens.

    A run that resumes from step s goes on as if the steps after s had never been: metrics.jsonl is cut back, and the
    event files are told to forget them. So all numbers of a step must be written before its checkpoint is saved.
    """

    EVERY: ClassVar[int] = 10  # steps between two lines; to read the numbers of a step is to wait for it

    def __init__(self, workdir: epath.PathLike, *, resume_step: int):
        """Opens both files and drops what is newer than `resume_step`.

        Args:
          workdir: any path that epath takes.
          resume_step: step of the restored checkpoint; 0 for a run from the start.

        Raises:
          UserError: the directory cannot be written.
        """
        self._workdir = epath.Path(workdir)
        self._files: list[GrowingFile] = []
        if jax.process_index() != 0:
            return
        try:
            events = self._workdir / "metrics"
            check_no_link(events)
            make_folder(events)
            kept = cut_back(self._workdir / "metrics.jsonl", resume_step)
            self._lines = GrowingFile(self._workdir / "metrics.jsonl", content=kept)
            self._files.append(self._lines)
            name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            event_file = GrowingFile(events / name)
            self._files.append(event_file)
            self._records = RecordWriter(event_file)
            self._event(file_version="brain.Event:2")
            # START at a step makes TensorBoard discard all events of that step and later from earlier files.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._event(step=resume_step + 1, session_log=start)
            self.flush()
        except OSError as error:
            raise self._failure(error) from error

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def due(self, step: int) -> bool:
        """Whether the numbers of a step are to be written."""
        return step % self.EVERY == 0

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the numbers of a step.

        Args:
          step: steps done.
          scalars: Python, numpy or jax scalars by name; `train/loss` puts `loss` into TensorBoard's group `train`. In
            metrics.jsonl a number that is not finite is the string "nan", "inf" or "-inf", for JSON has no such number.

        Raises:
          UserError: the disk is full, or the file cannot be written.
        """
        if not self._files:
            return
        if "step" in scalars:
            raise ValueError("a metric cannot be called 'step'")
        numbers = {name: _number(value) for name, value in scalars.items()}
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        line = json.dumps({"step": int(step)} | {name: _json(value) for name, value in numbers.items()})
        try:
            self._lines.write(line.encode() + b"\n")
            self._event(step=int(step), summary=summary_pb2.Summary(value=values))
            for file in self._files:
                file.flush_if_cheap()
        except OSError as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Makes everything written so far visible to readers."""
        try:
            for file in self._files:
                file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Flushes and closes. May be called twice."""
        files, self._files = self._files, []
        try:
            for file in files:
                file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _event(self, **fields: Any) -> None:
        self._records.write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self._workdir}: metrics could not be written ({error.strerror or error})")


def cut_back(path: epath.PathLike, step: int) -> bytes:
    """Removes from a metrics.jsonl the lines of later steps than `step`, and a line that was never finished.

    The file is replaced in one go: a process killed here leaves either the old file or the new one.

    Returns:
      What is left.

    Raises:
      UserError: it is larger than any run makes it.
      OSError: it cannot be read or written, or is no regular file.
    """
    path = epath.Path(path)
    if not path.exists():
        return b""
    check_regular(path)
    size = path.stat().length
    if size > _MOST_BYTES:
        raise UserError(f"{path}: {size:,} bytes of metrics; allowed: at most {_MOST_BYTES:,}")
    old = path.read_bytes()
    kept = b"".join(line for line in old.splitlines(keepends=True) if _step_of(line) <= step)
    if kept != old:
        write_file(path, kept)
    return kept


def _step_of(line: bytes) -> float:
    """Step of a line; infinity for a line that is not whole."""
    if not line.endswith(b"\n"):
        return math.inf
    try:
        return float(parse_json(line, where="a line of metrics")["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _number(value: Any) -> int | float:
    """A Python number; fetched from the device if need be."""
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int) and not isinstance(number, bool) else float(number)


def _json(number: int | float) -> int | float | str:
    return number if math.isfinite(number) else str(number)
