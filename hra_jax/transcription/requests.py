"""What is to be recognised: files, folders of recordings, and the lines of a manifest, each with its task.

What cannot be recognised is a request as well, with the reason, so that nothing is lost without a word.
"""

import dataclasses
import itertools
import os
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from etils import epath

from hra_jax.console import listed
from hra_jax.data import audio, recordings, sources
from hra_jax.data.columns import as_columns
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.decoding import phrases
from hra_jax.decoding.phrases import Weighted
from hra_jax.errors import UserError
from hra_jax.tasks.names import AUTO_TASK

TASK_TAG: Final = "task"
ALL: Final = "__all__"  # the session of everything in one call


class Request(NamedTuple):
    """One utterance to be recognised.

    Attributes:
      key: what names it: the path as it was given, or `Utterance.key`.
      path: of the audio.
      task: what recognises it.
      name: its path below a folder of results, without a way out of it.
      utterance: the line of a manifest; None for a whole file.
      phrases: its own.
      session: the utterances of one voice have the same; '' for none.
      error: why it cannot be recognised, "kind: detail"; '' where nothing is known against it.
    """

    key: str
    path: str
    task: str
    name: str
    utterance: Utterance | None = None
    phrases: tuple[Weighted, ...] = ()
    session: str = ""
    error: str = ""

    @property
    def file(self) -> str:
        """What names its file, as `key` names it."""
        if self.utterance is None:
            return self.key
        return self.key.removesuffix(f"@{self.utterance.offset:.15g}+{self.utterance.duration:.15g}")

    @property
    def offset(self) -> float:
        """Where it begins in its file, seconds."""
        return 0.0 if self.utterance is None else self.utterance.offset

    def samples(self, sample_rate: int) -> np.ndarray:
        """float32 [S] at a rate, mono. Raises `audio.AudioError`."""
        if self.utterance is None:
            return audio.decode_file(self.path, sample_rate)
        return audio.decode(self.utterance, sample_rate)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests, made as they are asked for.

    Attributes:
      count: how many there are.
      tasks: of those without an error.
      make: gives them, in their order, each time it is called.
    """

    count: int
    tasks: frozenset[str]
    make: Callable[[], Iterator[Request]]

    def then(self, other: "Requests") -> "Requests":
        """These and the others after them."""
        tasks = self.tasks | other.tasks
        return Requests(self.count + other.count, tasks, lambda: itertools.chain(self.make(), other.make()))


# --- Files and folders ------------------------------------------------------------------------------------------------


def of_paths(paths: Sequence[str], *, task: str, session: str = "") -> Requests:
    """The files that are named, and the recordings in the folders that are.

    Args:
      paths: files, whatever they are, and folders, in which recordings are looked for as `recordings.find` does.
      task: what recognises all of them.
      session: of all of them.

    Raises:
      UserError: a folder without audio; a manifest, which is given otherwise.
    """
    found: list[Request] = []
    for path in paths:
        if not recordings.is_utf8(path):
            shown, error = os.fsencode(path).decode("utf-8", "backslashreplace"), "the name is not UTF-8; rename it"
            name = posixpath.basename(shown)
            found.append(Request(shown, shown, task, name, session=session, error=f"undecodable_audio: {error}"))
        elif epath.Path(path).is_dir():
            found += _of_folder(path, task, session)
        elif path.lower().endswith((".jsonl", ".json")):
            raise UserError(f"{path} is no audio; allowed: --manifest {path}, where it is a manifest")
        else:
            found.append(Request(path, path, task, posixpath.basename(path), session=session))
    return Requests(len(found), frozenset([task]), lambda: iter(found))


def _of_folder(folder: str, task: str, session: str) -> Iterator[Request]:
    report = DataReport()
    found, _ = recordings.find(folder, report=report, transcripts=False)
    for recording in found:
        path = os.path.join(folder, recording.name)
        yield Request(path, path, task, recording.name, session=session)
    for kind, rows in report.to_json()["utterances"].items():
        for row in rows:
            path = os.path.join(folder, row["name"])
            yield Request(path, path, task, row["name"], error=f"{kind}: {row['detail']}")


# --- Manifests --------------------------------------------------------------------------------------------------------


def of_manifest(
    source: str,
    *,
    task: str | None,
    known: Collection[str],
    unknown: Callable[[str], UserError],
    missing: UserError | None = None,
    task_tag: str = TASK_TAG,
    session_tag: str = "",
) -> Requests:
    """The lines of a manifest, or of whatever else `sources.read_source` reads.

    Args:
      source: the manifest or the folder of shards.
      task: of the lines that name none; None where each must.
      known: the tasks that there are.
      unknown: the error of another one.
      missing: the error where a line names none, and `task` is None.
      task_tag: the field whose value is the task.
      session_tag: the field whose value is the session; `ALL` for one session of all.

    Returns:
      The requests in the order of the lines, then those of lines that cannot be used. Where `__auto__` is among the
      tasks, those of a session stand together.

    Raises:
      UserError: it cannot be read or is empty; no line has a task that there is, or a field that is asked for.
    """
    utterances, refused = sources.read_source(source, report=DataReport(), texts=False)
    columns = as_columns(utterances)
    if not len(columns) and not refused:
        raise UserError(f"the manifest {source} is empty; needed: a line for each utterance")
    numbers, values = columns.tag(task_tag)
    if task is None and missing is not None and (numbers < 0).any():
        raise missing
    others = {value: str(unknown(value)) for value in values if value not in known}
    if len(columns) and len(others) == len(values) and (numbers >= 0).all():
        shown = f"{task_tag} = {listed(values, most=3)}"
        raise UserError(f"{source}: no line has a task that there is ({shown}): {others[values[0]]}")

    for flag, tag, usual in (("task_tag", task_tag, TASK_TAG), ("session", session_tag, ALL)):
        if tag not in ("", usual) and len(columns) and (columns.tag(tag)[0] < 0).all():
            raise UserError(f"--{flag}={tag!r}: no line of {source} has that field; allowed: one that lines have")
    tasks = frozenset(values) - others.keys() | ({task} if task is not None and (numbers < 0).any() else set())
    order = np.arange(len(columns))
    if session_tag and AUTO_TASK in tasks:
        order = np.argsort(columns.tag(session_tag)[0], kind="stable")  # a voice is found from what is heard together

    def make() -> Iterator[Request]:
        for row in columns.at(order):
            yield _of_line(row, task=row.tag(task_tag) or task or "", unknown=others, tag=session_tag)
        for line in refused:
            yield _of_refused(line, task=line.tag(task_tag) or task or "")

    return Requests(len(columns) + len(refused), tasks, make)


def _of_line(row: Utterance, *, task: str, unknown: Mapping[str, str], tag: str) -> Request:
    session = ALL if tag == ALL else (row.tag(tag) or "") if tag else ""
    request = Request(row.key, row.audio_filepath, task, "", row, (), session)
    request = request._replace(name=_name(request.file))
    if task in unknown:
        return request._replace(error=f"unknown_task: {unknown[task]}")
    return request._replace(phrases=phrases.of_line(row.tags))


def _of_refused(line: Refused, *, task: str) -> Request:
    return Request(line.key, line.key, task, _name(line.key), error=line.why)


def _name(path: str) -> str:
    """The path of a result below its folder, from one that somebody else may have written."""
    parts = path.partition("://")[2] or path
    return "/".join(part for part in parts.split("/") if part not in ("", ".", "..")) or "_"
