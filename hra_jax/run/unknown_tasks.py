"""Suites whose tasks are recognised as `__auto__`: the task of every utterance is found before the suite is run.

The suite is then one with a task for every adapter that was chosen, and with what the own task makes of the same
utterances beside it; its results are given back under the names of the suite that was asked for.
"""

import collections
import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hra_jax import api
from hra_jax.console import listed, tell
from hra_jax.data import audio, pauses
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.decoding import unknown_task
from hra_jax.decoding.unknown_task import Choice
from hra_jax.errors import UserError, printable
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run.systems import System
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK
from hra_jax.training import sharding
from hra_jax.training.agreement import shared_out

_TOGETHER = 64  # utterances whose samples are in memory, and more where a session has more


class Found(NamedTuple):
    """An utterance of a suite, and what was found of it."""

    task: SuiteTask
    utterance: Utterance
    choice: Choice


class Expanded(NamedTuple):
    """A suite with the tasks that were found.

    Attributes:
      suite: it.
      names: {the name of a task in it: that of the suite that was asked for}; of other tasks none.
      own: those of `names` that are recognised with the own task.
      found: of every utterance.
    """

    suite: Suite
    names: dict[str, str]
    own: frozenset[str]
    found: list[Found]


def check(suite: Suite, system: System) -> bool:
    """Whether a suite has tasks that are to be found on a system.

    Raises:
      UserError: this system or this evaluation cannot do that.
    """
    if not system.is_adapter or all(task.adapter_task != AUTO_TASK for task in suite.tasks):
        return False
    where = f"suite {suite.name!r}, adapter task {AUTO_TASK!r}"
    if system.own is not None:
        raise UserError(f"{where}: the tasks have vocabularies of their own; allowed: tasks that have the backbone's")
    unknown_task.voices_of(system.voices, system.tasks, where=system.where, aside=system.set_aside)
    return True


def expand(
    suite: Suite, system: System, weights: Mapping[str, Any], frozen: dict[str, Any], *, dtype: str, report: DataReport
) -> Expanded:
    """Finds the tasks of a suite; a collective, in which each process hears its share of the sessions.

    Args:
      suite: with `__auto__` among its adapter tasks.
      system: what recognises it.
      weights: of the system, all of its rows.
      frozen: those of the base.
      dtype: `backbone_dtype`.
      report: gets what cannot be read.
    """
    assert system.base.files is not None, "an adapter on a backbone that is read"
    model = api.Model(
        api.Backbone(system.base.files, sharding.by_itself(frozen), compute_dtype(dtype)),
        *(system.method, weights["shared"], weights["tasks"], system.tasks),
        folder=system.where,
        trained_seconds=system.trained_seconds,
        set_aside=system.set_aside,
        records=system.voices,
    )
    entries = [(task, row) for task in suite.tasks if task.adapter_task == AUTO_TASK for row in task.utterances]
    found = _found(model, entries, suite, report)
    tasks = [task for task in suite.tasks if task.adapter_task != AUTO_TASK]
    names: dict[str, str] = {}
    own: set[str] = set()
    for task in (task for task in suite.tasks if task.adapter_task == AUTO_TASK):
        mine = [entry for entry in found if entry.task is task]
        groups: dict[tuple[bool, str], list[Utterance]] = {}
        for entry in mine:
            groups.setdefault((False, entry.choice.task), []).append(entry.utterance)
            if task.tag_value in system.tasks:
                groups.setdefault((True, task.tag_value), []).append(entry.utterance)
        for (is_own, adapter), rows in groups.items():
            name = f"{task.name} {'own' if is_own else 'found'} {adapter}"
            names[name] = task.name
            own |= {name} if is_own else set()
            more: dict[str, Any] = {"name": name, "adapter_task": adapter, "utterances": tuple(rows), "refused": ()}
            tasks.append(dataclasses.replace(task, **more))
    return Expanded(dataclasses.replace(suite, tasks=tuple(tasks)), names, frozenset(own), found)


def sessions_of(entries: Sequence[tuple[SuiteTask, Utterance]], suite: Suite) -> dict[Hashable, list[int]]:
    """The numbers of the utterances of each session; one without the tag is a session by itself.

    Sessions that utterances of several own tasks have are told of: what is pooled there may not be one voice.
    """
    sessions: dict[Hashable, list[int]] = {}
    for number, (_, row) in enumerate(entries):
        value = row.tag(suite.session) if suite.session else None
        sessions.setdefault(number if value is None else value, []).append(number)
    own = {session: {entries[number][0].tag_value for number in members} for session, members in sessions.items()}
    mixed = [session for session, values in own.items() if len(values) > 1]
    if mixed and jax.process_index() == 0:
        tell(
            f"suite {suite.name!r}: {len(mixed)} of {len(sessions)} sessions are of several tasks, and each is taken "
            f"for one voice; {suite.session}={printable(mixed[0], most=80)!r} is of {listed(sorted(own[mixed[0]]))}"
        )
    return sessions


def _found(
    model: api.Model, entries: Sequence[tuple[SuiteTask, Utterance]], suite: Suite, report: DataReport
) -> list[Found]:
    """What is found of the utterances that can be read, session after session."""
    sessions = sessions_of(entries, suite)
    parts: list[list[tuple[int, int]]] = [[]]  # the utterances of a few sessions, each with the number of its session
    for session, members in enumerate(sessions.values()):
        if len(parts[-1]) >= _TOGETHER:
            parts.append([])
        parts[-1] += [(session, number) for number in members]
    lengths: dict[str, Any] = {"sample_rate": model.backbone.sample_rate, "longest_seconds": model.chunk_seconds}

    def chosen(part: Sequence[tuple[int, int]]) -> list[tuple[int, Choice]]:
        waiting: list[tuple[int, int, list[np.ndarray]]] = []
        for session, number in part:
            task, row = entries[number]
            try:
                waveform = audio.decode(row, model.backbone.sample_rate)
            except audio.AudioError as error:
                report.add(error.kind, f"{task.name}: {row.key}", error.detail)
                continue
            chunks = pauses.chunks(waveform, model.backbone.hop, **lengths)
            waiting.append((session, number, [waveform[chunk.start : chunk.stop] for chunk in chunks]))
        choices = model.choose_tasks([waves for *_, waves in waiting], [session for session, *_ in waiting])
        return [(number, choice) for (_, number, _), choice in zip(waiting, choices, strict=True)]

    return [
        Found(*entries[number], Choice(task, tuple(candidates), passes))
        for part in shared_out(parts, chosen)
        for number, (task, candidates, passes) in part
    ]


def kept_of(expanded: Expanded, kept: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """What the base recognises, by task and key, under the names of the expanded suite too."""
    by_task: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for (task, key), text in kept.items():
        by_task[task].append((key, text))
    return {**kept, **{(new, key): text for new, old in expanded.names.items() for key, text in by_task[old]}}


def given_back(
    rows: Sequence[UtteranceResult], differences: Mapping[str, float], expanded: Expanded
) -> tuple[list[UtteranceResult], dict[str, float], dict[str, Any]]:
    """The results of an expanded suite as those of the suite that was asked for, and what results.json says of it."""
    mine = [row for row in rows if row.task not in expanded.own]
    results = [dataclasses.replace(row, task=expanded.names.get(row.task, row.task)) for row in mine]
    asked: dict[str, float] = {}
    for name, value in differences.items():
        name = expanded.names.get(name, name)
        asked[name] = float(np.maximum(asked.get(name, 0.0), value))
    return results, asked, section_of(rows, expanded)


def section_of(rows: Sequence[UtteranceResult], expanded: Expanded) -> dict[str, Any]:
    """What `__auto__` costs.

    Returns:
      {"session", "candidates", "passes" (the most of an utterance, that which recognises included), "tasks"}; by task,
      and "" for all of them: "utterances", "right" and "among" (shares of the utterances whose own task was taken, and
      was a candidate), "base" (the share of `__base__`), "wer" and "own_wer" (None where there is no own task).
    """
    suite = expanded.suite
    counts: dict[str, list[error_rates.ErrorCounts]] = collections.defaultdict(list)
    own: dict[str, list[error_rates.ErrorCounts]] = collections.defaultdict(list)
    for row in rows:
        if row.task in expanded.names:
            side = own if row.task in expanded.own else counts
            errors = error_rates.word_errors(row.text, row.pred_text, normalizer=suite.normalizer)
            for name in (expanded.names[row.task], ""):
                side[name].append(errors)
    tasks = {}
    for name in ("", *dict.fromkeys(expanded.names.values())):
        mine = [entry for entry in expanded.found if name in ("", entry.task.name)]
        known = {entry.task.tag_value for entry in mine} <= {
            task.adapter_task for task in suite.tasks if task.name in expanded.own
        }
        tasks[name] = {
            "utterances": len(mine),
            "right": float(np.mean([entry.choice.task == entry.task.tag_value for entry in mine])),
            "among": float(np.mean([entry.task.tag_value in entry.choice.candidates for entry in mine])),
            "base": float(np.mean([entry.choice.task == BASE_TASK for entry in mine])),
            "wer": _rate(counts[name]),
            "own_wer": _rate(own[name]) if known else None,
        }
    passes = max((entry.choice.passes for entry in expanded.found), default=0) + 1
    return {"session": suite.session, "candidates": unknown_task.CANDIDATES, "passes": passes, "tasks": tasks}


def _rate(counts: Sequence[error_rates.ErrorCounts]) -> float | None:
    found = error_rates.total(counts)
    return found.rate if found.words else None
