"""Task suites: which utterances are scored as which task, and with which adapter.

A suite file (`configs/suites/x.py`) has a `get_config()` that returns a ConfigDict with three keys that it needs:

  name: the name of the suite, which is also the folder of its results, `W/eval/<name>/`.
  normalizer: a name as `hra_jax.text.normalization.versioned` takes it, applied to references and hypotheses alike.
  tasks: rows (task, manifest, tag filter, adapter task), each a tuple of four strings:
    task: the name of the evaluation task.
    manifest: its path; `{dir}` stands for `data.dir`.
    tag filter: '' for the whole manifest, 'tag=value' for the utterances with that tag, or 'tag=*' for a task for every
      value of the tag; `*` in the task and in the adapter task then stands for the value.
    adapter task: the adapter that the utterances are recognised with: the name of a task, `__base__` (no adapter),
      `__mean__` (the mean of all heads), or `__few__` (heads that are trained on a few utterances of the task).
    A fifth string, 'wer' or 'cer', is what decides in these tasks, in place of `metric`.

with keys that it may have:

  metric: 'wer' (word error rate, the default) or 'cer' (character error rate): what decides.
  block: the tag of utterances that belong together, by default 'speaker': intervals resample its values.
  slices: tags by whose values results are given as well, and 'seconds:2,5,10', which slices by duration.
  decode: how it is recognised: pairs (key, value) of `decoding.settings.DecodeSettings`, which go before the
    configuration's `decode`, such as ('beam', 16). Another pair, ('chunk_seconds', N), has what is longer than N
    seconds cut at its pauses into parts no longer than that. By default that befalls what fits in no length bucket,
    and the parts are as long as what was trained on.

and, where a row has the adapter task `__few__`, with three more:

  support: the manifest, with the same tags, of the utterances to train on; `{dir}` stands for `data.dir`.
  shots: numbers of utterances, ascending, such as (0, 1, 10, 100).
  draws: how often as many utterances are drawn.
  few: may be left out; how the heads are trained: pairs (configuration key, value), of which ('steps', N) is the number
    of updates of every head.

So `('*', '{dir}/test.jsonl', 'speaker=*', '*')` scores every speaker of a manifest with the adapter of that speaker.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from hra_jax.config.files import load_config
from hra_jax.console import listed, near_matches
from hra_jax.data import overlaps, pauses
from hra_jax.data.report import DataReport
from hra_jax.data.sources import located, read_source
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.decoding.settings import decode_settings
from hra_jax.errors import UserError
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK, FEW_TASK, MEAN_TASK, RESERVED_NAMES
from hra_jax.text.normalization import versioned

WILDCARD = "*"
METRICS = ("wer", "cer")
SECONDS = "seconds"  # the slice by duration
_KEYS = ("name", "normalizer", "tasks")
_FEW_KEYS = ("support", "shots", "draws")  # needed where a row has the adapter task `__few__`
_DECODE, _CHUNKS = "decode", "chunk_seconds"  # may be left out
_TRAINING = "few"  # may stand beside them
_DEFAULTS: dict[str, Any] = {"metric": "wer", "block": "speaker", "slices": (), "session": ""}  # may be left out


@dataclasses.dataclass(frozen=True)
class SuiteTask:
    """One evaluation task.

    Attributes:
      name: the name that results are reported under, unique in the suite.
      manifest: the path of the manifest, `{dir}` filled in.
      tag: the tag that picks utterances of the manifest; '' picks all.
      tag_value: the value that the tag must have; '' where there is no tag.
      adapter_task: the adapter to recognise with: a task, `__base__` or `__mean__`.
      utterances: what is scored, in the order of the manifest.
      refused: its other lines in the manifest, which cannot be.
      metric: what decides in it, 'wer' or 'cer'.
    """

    name: str
    manifest: str
    tag: str
    tag_value: str
    adapter_task: str
    utterances: tuple[Utterance, ...] = dataclasses.field(repr=False)
    refused: tuple[Refused, ...] = dataclasses.field(default=(), repr=False)
    metric: str = "wer"

    @property
    def lines(self) -> list[Utterance | Refused]:
        """The utterances, then the other lines."""
        return [*self.utterances, *self.refused]

    @property
    def size(self) -> int:
        """The number of lines."""
        return len(self.utterances) + len(self.refused)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Evaluation tasks that are reported together, and the normalizer of their texts.

    Attributes:
      name: of the suite file.
      normalizer: of the suite file, with its version.
      tasks: those with utterances.
      lost: those without: no line of theirs can be used. They have no score, and are named in every report.
      metric: what decides over all utterances, 'wer' or 'cer'.
      block: the tag whose values the bootstrap resamples.
      slices: what results are sliced by: tags, or 'seconds:' and edges.
      session: the tag in which utterances of one voice are alike, for tasks that are recognised as `__auto__`.
      support: the manifest of what `__few__` trains on, `{dir}` filled in; '' where no task has that adapter.
      shots: numbers of utterances that it trains on, ascending.
      draws: how often as many are drawn.
      few: configuration keys of that training.
      chunk_seconds: above which an utterance is cut, and of the longest part then; 0: the last length bucket, and what
        was trained on.
      decode: the other pairs of the key `decode`.
      heads: of a suite as it is run, from `shots.scored_suite`: of the tasks that are held out in it the task of the
        suite, the shots and the draw.
    """

    name: str
    normalizer: str
    tasks: tuple[SuiteTask, ...]
    lost: tuple[SuiteTask, ...] = ()
    metric: str = "wer"
    block: str = "speaker"
    slices: tuple[str, ...] = ()
    session: str = ""
    support: str = ""
    shots: tuple[int, ...] = ()
    draws: int = 0
    few: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chunk_seconds: float = 0.0
    decode: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    heads: Mapping[str, tuple[str, int, int]] = dataclasses.field(default_factory=dict)

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        """Every utterance of every task; one that several tasks score occurs several times."""
        return tuple(utterance for task in self.tasks for utterance in task.utterances)


def load_suite(suite: str, *, data_dir: str, report: DataReport, modules: Sequence[str] = ()) -> Suite:
    """The suite of a file, its manifests read.

    Args:
      suite: a path of a suite file, or the name of one in `configs/suites`.
      data_dir: what `{dir}` in a manifest path stands for.
      report: where bad manifest lines go, and utterances without the tag that a row of the suite asks for.
      modules: as `data.modules`, which know how the shards are made that are not there.

    Raises:
      UserError: an unknown suite, normalizer, manifest, tag or tag value; a row that is not four strings; two tasks of
        one name; a task without a line, or no task with a usable one.
    """
    return build_suite(load_config(suite, kind="suites"), data_dir=data_dir, report=report, modules=modules)


def trains_heads(suite: str) -> bool:
    """Whether a suite, by path or name, has a row that trains heads; nothing but its file is read.

    Raises:
      UserError: an unknown suite, or keys or rows that are not allowed.
    """
    config = load_config(suite, kind="suites")
    _checked_settings(config)
    for row in config.tasks:
        _check_row(row, config.name)
    return any(row[3] == FEW_TASK for row in config.tasks)


def build_suite(
    config: ml_collections.ConfigDict, *, data_dir: str, report: DataReport, modules: Sequence[str] = ()
) -> Suite:
    """As `load_suite`, from the config that a suite file returns (keys: see the top of this module)."""
    settings = _checked_settings(config)
    manifests: dict[str, list[Utterance | Refused]] = {}
    tasks: list[SuiteTask] = []
    for row in config.tasks:
        _check_row(row, config.name)
        metric = row[4] if len(row) > 4 else settings["metric"]
        path = located(row[1], data_dir=data_dir, key=f"suite {config.name!r}", modules=modules)
        if path not in manifests:
            utterances, refused = read_source(path, report=report)
            manifests[path] = [*utterances, *refused]
        found = _row_tasks((row[0], path, row[2], row[3]), manifests[path], suite=config.name, report=report)
        tasks += [dataclasses.replace(task, metric=metric) for task in found]
    _check_task_names([task.name for task in tasks], config.name)
    lost = tuple(task for task in tasks if not task.utterances)
    if len(lost) == len(tasks):
        row = lost[0].refused[0]
        raise UserError(
            f"suite {config.name!r}, task {lost[0].name!r}: none of its {lost[0].size} utterances is usable, such as "
            f"{row.key} ({row.why}), nor is one of any other task; mend the manifest {lost[0].manifest}"
        )
    asked = [item for item in settings["slices"] if not duration_edges(item, suite=config.name)]
    asked += [settings["session"]] if settings["session"] else []
    _check_tags([*asked, *([config.block] if "block" in config else [])], tasks, config.name)
    return Suite(
        config.name,
        _versioned(config.normalizer, config.name),
        tuple(task for task in tasks if task.utterances),
        lost,
        **settings,
        **_decode(config),
        **_few_settings(config, data_dir, modules),
    )


def _check_tags(asked: Iterable[str], tasks: Iterable[SuiteTask], suite: str) -> None:
    """Refuses tags that no utterance has."""
    utterances = [row for task in tasks for row in task.utterances]
    for tag in asked:
        if all(row.tag(tag) is None for row in utterances):
            known = sorted({name for row in utterances for name in row.tags})
            raise UserError(f"suite {suite!r}: no utterance has the tag {tag!r}; {near_matches(tag, known)}")


def suite_digest(suite: Suite) -> str:
    """A hash of what a suite asks for: normalizer, what decides, what is resampled and sliced, and its tasks.

    It is the same wherever the manifests lie; `data_digest` has what they hold.
    """
    tasks = [(task.name, task.tag, task.tag_value, task.adapter_task, task.metric) for task in suite.tasks]
    asked = (suite.name, suite.normalizer, suite.metric, suite.block, suite.slices, suite.shots, suite.draws)
    more: list[object] = [suite.chunk_seconds] if suite.chunk_seconds or suite.decode else []
    more += [dict(suite.decode)] if suite.decode else []
    return sha256_of_json([asked, tasks, *more, *([["session", suite.session]] if suite.session else [])])


def data_digest(suite: Suite) -> str:
    """A hash of the utterances of a suite, as the manifests have them: keys, texts, durations, tags; not of audio."""
    return sha256_of_json(
        [
            [task.name, [(row.key, row.text, row.duration, row.tags) for row in task.utterances]]
            for task in sorted(suite.tasks, key=lambda task: task.name)
        ]
    )


def _few_settings(config: ml_collections.ConfigDict, data_dir: str, modules: Sequence[str]) -> dict[str, Any]:
    """The settings of the adapter task `__few__`, checked; {} where no row has it."""
    wanted = any(row[3] == FEW_TASK for row in config.tasks)
    given = [key for key in (*_FEW_KEYS, _TRAINING) if key in config]
    if not wanted:
        if given:
            raise UserError(f"suite {config.name!r}: {given[0]} needs a row with the adapter task {FEW_TASK!r}")
        return {}
    for key in _FEW_KEYS:
        if key not in config:
            raise UserError(f"suite {config.name!r}: the adapter task {FEW_TASK!r} needs the key {key!r}")
    support, shots, draws = (config[key] for key in _FEW_KEYS)
    if not isinstance(support, str) or not support:
        raise UserError(f"suite {config.name!r}: support = {support!r}; allowed: the path of a manifest")
    numbers = isinstance(shots, tuple | list) and all(type(k) is int and k >= 0 for k in shots)
    if not numbers or not shots or any(low >= high for low, high in itertools.pairwise(shots)):
        raise UserError(f"suite {config.name!r}: shots = {shots!r}; allowed: ascending integers from 0, at least one")
    if type(draws) is not int or draws < 1:
        raise UserError(f"suite {config.name!r}: draws = {draws!r}; allowed: an integer of at least 1")
    few = {**config}.get(_TRAINING, ())
    pairs = isinstance(few, tuple | list) and all(isinstance(row, tuple | list) and len(row) == 2 for row in few)
    if not pairs or not all(isinstance(key, str) for key, _ in few):
        raise UserError(f"suite {config.name!r}: few = {few!r}; allowed: a tuple of pairs (configuration key, value)")
    path = located(support, data_dir=data_dir, key=f"suite {config.name!r}", modules=modules)
    return {"support": path, "shots": tuple(shots), "draws": draws, "few": dict(few)}


def _decode(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the key `decode` says: `Suite.chunk_seconds` and `Suite.decode`."""
    pairs, where = {**config}.get(_DECODE, ()), f"suite {config.name!r}, decode"
    if not isinstance(pairs, tuple | list) or not all(isinstance(row, tuple | list) and len(row) == 2 for row in pairs):
        raise UserError(f"{where} = {pairs!r}; allowed: pairs such as (('beam', 16), ('chunk_seconds', 10.0))")
    lengths = [value for key, value in pairs if key == _CHUNKS]
    others = [(key, value) for key, value in pairs if key != _CHUNKS]
    if len(lengths) > 1:
        raise UserError(f"{where}: the key {_CHUNKS!r} is given twice; allowed: once")
    decode_settings(others, where=where)
    try:
        return {"chunk_seconds": pauses.check_seconds(lengths[0]) if lengths else 0.0, "decode": dict(others)}
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _checked_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys that a suite may leave out; all keys are checked."""
    for key in config:
        if key not in (known := (*_KEYS, *_DEFAULTS, _DECODE, *_FEW_KEYS, _TRAINING)):
            raise UserError(f"a suite has no key {key!r}; allowed: {', '.join(known)}")
    for key in _KEYS:
        if key not in config:
            raise UserError(f"a suite needs the key {key!r}; this one has: {', '.join(config) or 'none'}")
    if not isinstance(config.name, str) or not re.fullmatch(r"[\w-]+", config.name):
        raise UserError(f"the name of a suite is {config.name!r}; allowed: letters, digits, '_' and '-'")
    _versioned(config.normalizer, config.name)
    if not isinstance(config.tasks, tuple | list) or not config.tasks:
        raise UserError(f"suite {config.name!r}: tasks must be a tuple of rows; got {config.tasks!r}")
    settings = _DEFAULTS | {key: config[key] for key in config if key in _DEFAULTS}
    metric, block, slices, session = (settings[key] for key in _DEFAULTS)
    _check_metric(metric, config.name)
    if not isinstance(block, str) or not block:
        raise UserError(f"suite {config.name!r}: block must be the name of a tag, such as 'speaker'; got {block!r}")
    if not isinstance(slices, tuple | list) or not all(isinstance(item, str) and item for item in slices):
        raise UserError(f"suite {config.name!r}: slices must be a tuple of tags or '{SECONDS}:2,5'; got {slices!r}")
    for item in slices:
        duration_edges(item, suite=config.name)
    if not isinstance(session, str):
        raise UserError(f"suite {config.name!r}: session must be the name of a tag, or ''; got {session!r}")
    return settings | {"slices": tuple(slices)}


def _versioned(normalizer: object, suite: str) -> str:
    try:
        return versioned(str(normalizer))
    except UserError as error:
        raise UserError(f"suite {suite!r}: {error}") from error


def _check_metric(metric: object, suite: str) -> None:
    if metric not in METRICS:
        raise UserError(f"suite {suite!r}: metric {metric!r} is unknown; allowed: {', '.join(METRICS)}")


def duration_edges(item: str, *, suite: str) -> tuple[float, ...]:
    """The edges of a slice by duration, 'seconds:2,5,10', ascending; () for a slice by a tag.

    Raises:
      UserError: edges that are not ascending numbers above 0.
    """
    kind, colon, text = item.partition(":")
    if kind != SECONDS or not colon:
        return ()
    try:
        edges = [float(edge) for edge in text.split(",")]
    except ValueError:
        edges = []
    if not edges or edges != sorted(set(edges)) or not 0 < edges[0] <= edges[-1] < math.inf:
        raise UserError(f"suite {suite!r}: slice {item!r}; allowed are ascending seconds above 0: '{SECONDS}:2,5,10'")
    return tuple(edges)


def _check_row(row: object, suite: str) -> None:
    if not isinstance(row, tuple | list) or len(row) not in (4, 5) or not all(isinstance(item, str) for item in row):
        raise UserError(
            f"suite {suite!r}: a row of tasks is (task, manifest, tag filter, adapter task), four strings; got {row!r}"
        )
    name, _, tag_filter, adapter_task, *metric = row
    for one in metric:
        _check_metric(one, suite)
    tag, equals, value = tag_filter.partition("=")
    if tag_filter and not (tag and equals and value):
        raise UserError(f"suite {suite!r}: tag filter {tag_filter!r} must be '', 'tag=value' or 'tag={WILDCARD}'")
    if value == WILDCARD and WILDCARD not in name:
        raise UserError(f"suite {suite!r}: {tag_filter!r} gives many tasks; the task {name!r} needs a {WILDCARD!r}")
    if value != WILDCARD and WILDCARD in name + adapter_task:
        raise UserError(
            f"suite {suite!r}: {WILDCARD!r} in {name!r} or {adapter_task!r} needs the tag filter 'tag={WILDCARD}'; "
            f"got {tag_filter!r}"
        )


def _row_tasks(
    row: tuple[str, str, str, str], lines: list[Utterance | Refused], *, suite: str, report: DataReport
) -> list[SuiteTask]:
    """The tasks of one row of a suite, whose manifest holds the given lines."""
    name, path, tag_filter, adapter_task = row
    tag, _, wanted = tag_filter.partition("=")
    groups: dict[str, list[Utterance | Refused]] = {}
    for line in lines:
        if not tag:
            groups.setdefault("", []).append(line)
        elif (value := line.tag(tag)) is not None:
            groups.setdefault(value, []).append(line)
        elif wanted == WILDCARD and isinstance(line, Utterance):
            report.add("missing_field", f"{path}:{line.line}", f"no tag {tag!r}, which suite {suite!r} needs")
    values = sorted(groups) if wanted == WILDCARD else [wanted]
    if not values or not all(value in groups for value in values):
        found = f"values of {tag!r} there: {listed(sorted(groups))}" if tag else "it has no usable line"
        raise UserError(f"suite {suite!r}, task {name!r}: no utterance of {path} has {tag_filter!r}; {found}")
    return [
        SuiteTask(
            name=name.replace(WILDCARD, value) if wanted == WILDCARD else name,
            manifest=path,
            tag=tag,
            tag_value=value,
            adapter_task=adapter_task.replace(WILDCARD, value) if wanted == WILDCARD else adapter_task,
            utterances=tuple(line for line in groups[value] if isinstance(line, Utterance)),
            refused=tuple(line for line in groups[value] if isinstance(line, Refused)),
        )
        for value in values
    ]


def _check_task_names(names: list[str], suite: str) -> None:
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(f"suite {suite!r} has {times} tasks named {name!r}; each needs a name of its own")
        if name in RESERVED_NAMES:
            raise UserError(
                f"suite {suite!r} has a task named {name!r}, which cannot be the name of an evaluation task"
            )


def check_adapter_tasks(suite: Suite, adapter_tasks: Iterable[str]) -> None:
    """Checks that every task of the suite has its adapter among `adapter_tasks`, `__base__` and `__mean__`.

    Raises:
      UserError: an adapter task that does not exist; the message lists near matches.
    """
    known = {*adapter_tasks, BASE_TASK, MEAN_TASK}
    for task in suite.tasks:
        if task.adapter_task == AUTO_TASK and AUTO_TASK not in known:
            raise UserError(
                f"suite {suite.name!r}: the adapter of task {task.name!r} is to be found; allowed with: python -m "
                "hra_jax.evaluate --output R"
            )
        if task.adapter_task == FEW_TASK:
            raise UserError(
                f"suite {suite.name!r}: task {task.name!r} needs heads that are trained on a few utterances; allowed "
                "with: python -m hra_jax.evaluate --output R"
            )
        if task.adapter_task not in known:
            hint = near_matches(task.adapter_task, sorted(known))
            raise UserError(f"suite {suite.name!r}: task {task.name!r} needs the adapter {task.adapter_task!r}; {hint}")


def check_disjoint(
    suite_utterances: Iterable[Utterance], other_utterances: Iterable[Utterance], *, suite: str, other: str = "training"
) -> None:
    """Checks that no utterance of a suite shares audio with other utterances: the same file, at times that overlap.

    Links to a file are that file. Keys are not compared: they are relative to the manifest, and two corpora may both
    have an `audio/1.wav`. Nor are texts: the same words said twice are no leak.

    Args:
      suite_utterances: what is scored.
      other_utterances: what training or selection reads.
      suite: the name of the suite, for the message.
      other: what the others are, for the message.

    Raises:
      UserError: they share utterances; the message has their number and names the first few.
    """
    shared = [utterance.key for utterance in overlaps.shared(suite_utterances, other_utterances)]
    if shared:
        raise UserError(
            f"suite {suite!r} shares {len(shared)} utterances with {other} data, such as "
            f"{listed(sorted(shared), most=3)}; an utterance may be on one side only"
        )
