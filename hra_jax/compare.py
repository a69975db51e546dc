"""Compares evaluations of the same utterances: which of two systems makes fewer errors, and is that more than chance.

python -m hra_jax.compare runs/a/eval/hard runs/b/eval/hard --json differences.json

The first evaluation is A, the reference side; every other one is compared with it as B.
"""

import collections
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.console import listed, percent, points, say, stdout, table
from hra_jax.data.utterance import tag_value
from hra_jax.errors import UserError
from hra_jax.evaluation import bootstrap, error_rates
from hra_jax.evaluation.bootstrap import Sample, joined, make_sample
from hra_jax.evaluation.paired import UNDECIDED, Rates, rate_suite
from hra_jax.evaluation.predictions import Line, read_predictions
from hra_jax.evaluation.results import decoding_words
from hra_jax.evaluation.suites import METRICS
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import COUNT, Kind, check_fields, json_text, read_object
from hra_jax.tasks.names import task_file_names
from hra_jax.text.normalization import versioned

FLAGS = flags.FLAGS
RESULTS_FILE = "results.json"
SAMPLES = 10_000
_BLOCK = "speaker"  # of results that do not say

_PARAMETERS = ("trainable_parameters", "shared_parameters", "parameters_per_task")
_RESULT_FIELDS: dict[str, Kind] = {"suite": str, "normalizer": str, "tasks": dict}
_COUNTS = ("substitutions", "deletions", "insertions", "words")
_HEADER = ("task", "WER A", "WER B", "B - A", "95% interval", "verdict")


class _Row(NamedTuple):
    """An utterance of a task as one side counted it; rows sort by what both sides must share."""

    key: str
    reference: str  # normalised
    words: int  # of the reference; characters where these decide
    errors: int
    block: str | None


class _Side(NamedTuple):
    """One evaluation: the path as given, the content of results.json, and the predictions of each task."""

    path: str
    results: dict[str, Any]
    lines: dict[str, list[Line]]


def compare(
    paths: Sequence[epath.PathLike], *, samples: int = SAMPLES, seed: int = 0, common: bool = False
) -> dict[str, Any]:
    """Differences of error rates between the first evaluation and each of the others.

    Args:
      paths: two or more results.json, or the folders that hold them (`W/eval/<suite>`); the predictions of every task
        lie beside. The first is A, every other one a B.
      samples: resamples of each 95% interval, 1 or more.
      seed: of the resamples, 0 or more.
      common: whether tasks that one side lacks are left out of both; otherwise they are an error.

    Returns:
      What --json writes: {"normalizer", "bootstrap", "reference": side, "comparisons": [side and differences]}. A side
      has "path", "suite", "trainable_parameters", "shared_parameters" and "parameters_per_task" (None where only
      predictions were scored), and "decoding" as in results.json (None where nobody knows); differences are
      "tasks" (by name), "macro" (means over tasks) and "pooled" (all utterances), each with "metric", "utterances",
      "words" (characters where these decide), "wer_a", "wer_b" (or "cer_a", "cer_b"), "difference" (B minus A), "low",
      "high" (all fractions), "significant" (whether 0 is outside), "verdict" ("better" or "worse", of B, or "not
      decidable" where the interval holds 0), "resampled" and "blocks".

    Raises:
      UserError: fewer than two paths; a missing or broken file; predictions that do not belong to their results.json;
        sides that differ in normalizer, tasks, utterances or references; samples or a seed that are not allowed.
    """
    if len(paths) < 2:
        raise UserError(f"{len(paths)} evaluations to compare; needed are 2 or more {RESULTS_FILE}, or their folders")
    reference, *others = (_read_side(path) for path in paths)
    return {
        "normalizer": _stored_normalizer(reference.results),
        "bootstrap": {"samples": samples, "confidence": bootstrap.CONFIDENCE, "seed": seed},
        "reference": _describe(reference),
        "comparisons": [
            _describe(other)
            | _differences(
                *(_in_common(reference, other) if common else (reference, other)), samples=samples, seed=seed
            )
            for other in others
        ],
    }


# --- Reading ----------------------------------------------------------------------------------------------------------


def _read_side(path: epath.PathLike) -> _Side:
    """An evaluation, checked by itself."""
    file = epath.Path(path)
    file = file / RESULTS_FILE if file.is_dir() else file
    results = read_object(file, _RESULT_FIELDS, what="a results.json or the folder that holds one, W/eval/<suite>")
    # All are null where only predictions were scored.
    if any(results.get(name, 0) is not None for name in _PARAMETERS):
        check_fields(results, dict.fromkeys(_PARAMETERS, COUNT), where=str(file))
    _check_metric(results, where=str(file))
    _stored_normalizer(results)
    if not results["tasks"]:
        raise UserError(f"{file}: has 0 tasks; needed are 1 or more")
    names = task_file_names(results["tasks"])
    lines = {}
    for task, scores in results["tasks"].items():
        check_fields(scores, dict.fromkeys(_COUNTS, COUNT), where=f"{file}: task {task!r}")
        _check_metric(scores, where=f"{file}: task {task!r}")
        predictions = file.parent / f"predictions_{names[task]}.jsonl"
        lines[task] = _read_lines(predictions, task)
        found = tuple(sum(line.counts[name] for line in lines[task]) for name in ("errors", "words"))
        *errors, words = (scores[name] for name in _COUNTS)
        if found != (sum(errors), words):
            raise UserError(
                f"{predictions}: holds {found[0]} errors in {found[1]} words, {file} has {sum(errors)} in {words} for "
                f"the task {task!r}; both must come from one evaluation"
            )
    return _Side(str(path), results, lines)


def _check_metric(scores: Mapping[str, Any], *, where: str) -> None:
    if scores.get("metric", "wer") not in METRICS:
        raise UserError(f"{where}: metric is {scores['metric']!r:.80}; allowed: {', '.join(METRICS)}")


def _read_lines(file: epath.Path, task: str) -> list[Line]:
    """The lines of predictions_<task>.jsonl."""
    lines = []
    needed = f"the predictions of the task {task!r}, which an evaluation writes beside {RESULTS_FILE}"
    for line in read_predictions(file, what=needed):
        if line.row.task != task:
            raise UserError(f"{line.where}: belongs to the task {line.row.task!r}; allowed here: {task!r}")
        check_fields(line.counts, {"words": COUNT, "errors": COUNT}, where=line.where)
        lines.append(line)
    return lines


# --- Checks of two sides ----------------------------------------------------------------------------------------------


def _stored_normalizer(results: Mapping[str, Any]) -> str:
    """The normalizer of an evaluation; without a version it is the first, beside `versions` the second."""
    name = str(results["normalizer"])
    found = versioned(name)
    return found if "@" in name else f"{name}@{2 if 'versions' in results else 1}"


def _normalizer_of(a: _Side, b: _Side) -> str:
    """What texts are compared after: of two versions the newer one, in which all are counted again."""
    names = [_stored_normalizer(side.results) for side in (a, b)]
    if names[0].split("@")[0] != names[1].split("@")[0]:
        raise UserError(f"{a.path} has the normalizer {names[0]!r}, {b.path} has {names[1]!r}; they must be the same")
    return max(names, key=lambda name: int(name.split("@")[1]))


def _check_same_tasks(a: _Side, b: _Side) -> None:
    lacking = [
        f"{side.path} lacks the tasks {listed(sorted(missing))}"
        for side, missing in ((a, b.lines.keys() - a.lines.keys()), (b, a.lines.keys() - b.lines.keys()))
        if missing
    ]
    if lacking:
        raise UserError(f"{'; '.join(lacking)}; both sides must have the same tasks")


def _in_common(a: _Side, b: _Side) -> tuple[_Side, _Side]:
    """Both sides with the tasks that both have."""
    tasks = [task for task in a.lines if task in b.lines]
    if not tasks:
        raise UserError(f"{a.path} and {b.path} have no task in common")
    found = []
    for side in (a, b):
        scores = {task: side.results["tasks"][task] for task in tasks}
        found.append(side._replace(results={**side.results, "tasks": scores}, lines={t: side.lines[t] for t in tasks}))
    return found[0], found[1]


def _counted(side: _Side, task: str, *, normalizer: str, metric: str, block: str) -> list[_Row]:
    """The rows of a task in the order in which both sides have them."""
    rows = []
    for line in side.lines[task]:
        row, words, errors = line.row, line.counts["words"], line.counts["errors"]
        if metric != "wer" or normalizer != _stored_normalizer(side.results):
            counts = error_rates.errors_by_metric(row.text, row.pred_text, normalizer)[metric]
            words, errors = counts.words, counts.errors
        reference = " ".join(error_rates.words(row.text, normalizer))
        rows.append(_Row(row.key, reference, words, errors, tag_value(row.tags, block)))
    # By key and reference only: sorting by errors too would pair the best of one side with the best of the other.
    return sorted(rows, key=lambda row: row[:2])


def _rounded_key(key: str) -> str:
    """A key as results of hra_jax before 0.2 have it: offset and duration rounded to 6 digits."""
    found = re.fullmatch(r"(.*)@([\d.e+-]+?)\+([\d.e+-]+)", key, flags=re.DOTALL)
    try:
        return key if found is None else f"{found[1]}@{float(found[2]):g}+{float(found[3]):g}"
    except ValueError:
        return key


def _paired_rows(
    a: _Side, b: _Side, task: str, *, normalizer: str, metric: str, block: str
) -> tuple[list[_Row], list[_Row]]:
    """The rows of a task on both sides, which are of the same utterances."""
    rows_a, rows_b = (_counted(side, task, normalizer=normalizer, metric=metric, block=block) for side in (a, b))
    if sorted(row.key for row in rows_a) != sorted(row.key for row in rows_b):
        rounded = [[row._replace(key=_rounded_key(row.key)) for row in rows] for rows in (rows_a, rows_b)]
        if sorted(row.key for row in rounded[0]) == sorted(row.key for row in rounded[1]):
            rows_a, rows_b = (sorted(rows, key=lambda row: row[:2]) for rows in rounded)
    keys_a, keys_b = (collections.Counter(row.key for row in rows) for rows in (rows_a, rows_b))
    lacking = [
        f"{side.path} lacks {missing.total()} utterances, such as {listed(sorted(missing), most=3)}"
        for side, missing in ((a, keys_b - keys_a), (b, keys_a - keys_b))
        if missing
    ]
    if lacking:
        raise UserError(f"task {task!r}: {'; '.join(lacking)}; both sides must score the same utterances")
    for row, other in zip(rows_a, rows_b, strict=True):
        if row.reference != other.reference:
            raise UserError(
                f"task {task!r}: the reference of {row.key!r} is {row.reference!r:.80} in {a.path} and "
                f"{other.reference!r:.80} in {b.path}; it must be the same"
            )
        if row.words != other.words:
            raise UserError(
                f"task {task!r}: {row.key!r} has {row.words} words in {a.path} and {other.words} in {b.path}; "
                "they must be as many"
            )
    return rows_a, rows_b


# --- Differences ------------------------------------------------------------------------------------------------------


def _describe(side: _Side) -> dict[str, Any]:
    # What does not say it is of an earlier version, which decoded greedily; how others do is not known.
    former = None if side.results["trainable_parameters"] is None else {"method": "greedy"}
    decoding = side.results.get("decoding", former)
    named = {name: side.results[name] for name in ("suite", *_PARAMETERS)}
    return {"path": side.path} | named | {"decoding": decoding}


def _differences(a: _Side, b: _Side, *, samples: int, seed: int) -> dict[str, Any]:
    """What `compare` returns of two sides: "tasks", "macro", "pooled"."""
    if samples < 1:
        raise UserError(f"bootstrap samples must be 1 or more; got {samples}")
    normalizer, block = _normalizer_of(a, b), str(a.results.get("block", b.results.get("block", _BLOCK)))
    _check_same_tasks(a, b)
    metrics = {task: str(scores.get("metric", "wer")) for task, scores in a.results["tasks"].items()}
    whole = str(a.results.get("metric", "wer"))
    kinds = {task: {metric, whole} for task, metric in metrics.items()}
    pairs = {
        (task, metric): _sample(*_paired_rows(a, b, task, normalizer=normalizer, metric=metric, block=block))
        for task in a.lines
        for metric in sorted(kinds[task])
    }
    own = {task: pairs[task, metric] for task, metric in metrics.items()}
    pooled = {task: pairs[task, whole] for task in own}
    rates = rate_suite(own, samples=samples, seed=seed, pooled=pooled)
    together = joined(list(pooled.values()))
    entry = functools.partial(_entry, block=block)
    return {
        "tasks": {task: entry(own[task], rates.tasks[task], metrics[task]) for task in own},
        "macro": entry(together, rates.macro, whole) | {"resampled": "tasks", "blocks": len(own)},
        "pooled": entry(together, rates.pooled, whole),
    }


def _sample(rows_a: Sequence[_Row], rows_b: Sequence[_Row]) -> Sample:
    """What the bootstrap resamples; a side that an earlier version wrote has no tags, and so no blocks."""
    pairs = list(zip(rows_a, rows_b, strict=True))
    return make_sample(
        [(row.key, row.block or other.block) for row, other in pairs],
        np.array([(row.errors, other.errors) for row, other in pairs], np.int64),
        np.array([row.words for row in rows_a], np.int64),
    )


def _entry(sample: Sample, rates: Rates, metric: str, *, block: str) -> dict[str, Any]:
    difference = rates.difference(1, 0)
    return {
        "metric": metric,
        "utterances": len(sample.units),
        "words": int(sample.units.sum()),
        **{f"{metric}_{side}": float(rate) for side, rate in zip("ab", rates.exact, strict=True)},
        **difference,
        "significant": difference["verdict"] != UNDECIDED,
        "resampled": "utterances" if sample.blocks is None else block,
        "blocks": sample.block_count,
    }


# --- For the terminal -------------------------------------------------------------------------------------------------


def _cells(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    bounds = f"{points(entry['low'])} to {points(entry['high'])}"
    rates = (percent(entry[f"{entry['metric']}_{side}"]) for side in "ab")
    return (name, *rates, points(entry["difference"]), bounds, entry["verdict"])


def _resampled_line(comparison: Mapping[str, Any]) -> str:
    """What the intervals of a table hold for."""
    kinds = collections.Counter(entry["resampled"] for entry in comparison["tasks"].values())
    pooled = comparison["pooled"]["resampled"]
    shown = ", ".join(f"{kind} in {count} tasks" for kind, count in sorted(kinds.items()))
    return f"resampled: {shown}; {pooled} of all utterances; for the mean, tasks as well"


def _side_line(letter: str, side: Mapping[str, Any]) -> str:
    total, shared, per_task = (side[name] for name in _PARAMETERS)
    start = f"{letter}: {side['path']}, suite {side['suite']}"
    if None in (total, shared, per_task):
        return f"{start}; what it trained is not known"
    return f"{start}; trained parameters: {shared:,} shared, {per_task:,} per task, {total:,} in total"


def _decoding_line(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """That two sides are decoded differently, where that is known."""
    if None in (a["decoding"], b["decoding"]) or a["decoding"] == b["decoding"]:
        return []
    words = {letter: decoding_words(side["decoding"]) or "greedy decoding" for letter, side in (("A", a), ("B", b))}
    return [f"decoded differently: {'; '.join(f'{letter} with {how}' for letter, how in words.items())}"]


def print_tables(compared: Mapping[str, Any], *, console: rich.console.Console | None = None) -> None:
    """Prints what `compare` returned, a table for every side B; to standard output by default."""
    console = console or stdout()
    for comparison in compared["comparisons"]:
        for letter, side in (("A", compared["reference"]), ("B", comparison)):
            say(console, _side_line(letter, side))
        for line in _decoding_line(compared["reference"], comparison):
            say(console, line)
        tasks = [_cells(name, entry) for name, entry in comparison["tasks"].items()]
        means = [
            _cells("mean of the tasks", comparison["macro"]),
            _cells("all utterances", comparison["pooled"]),
        ]
        metrics = {entry["metric"] for entry in comparison["tasks"].values()} | {comparison["pooled"]["metric"]}
        kind = metrics.pop().upper() if len(metrics) == 1 else "rate"
        console.print(table([name.replace("WER", kind) for name in _HEADER], tasks, means, left=("verdict",)))
        say(console, _resampled_line(comparison))
    samples = compared["bootstrap"]["samples"]
    say(
        console,
        "B - A is in percentage points, below 0 where B makes fewer errors. B is better or worse where 0 is outside "
        f"the interval, which holds 95% of {samples:,} paired resamples.",
    )


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("json", None, "File to write all numbers to.")
    flags.DEFINE_integer("samples", SAMPLES, "Resamples of the 95% intervals.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the resamples.", lower_bound=0)


def _check_output(output: str, paths: Sequence[str]) -> None:
    """Refuses a --json that is a folder, or a file that is read."""
    cli.check_output("json", output)
    file = epath.Path(output)
    for path in map(epath.Path, paths):
        if file.resolve() in (path.resolve(), (path / RESULTS_FILE).resolve()):
            raise UserError(f"--json={output!r} is one of the evaluations to compare; allowed: any other file")


def main(argv: Sequence[str]) -> None:
    """Compares, prints, and writes the numbers where that is asked for."""
    if FLAGS.json is not None:
        _check_output(FLAGS.json, argv[1:])
    compared = compare(argv[1:], samples=FLAGS.samples, seed=FLAGS.seed)
    print_tables(compared)
    if FLAGS.json is not None:
        write_file(FLAGS.json, json_text(compared))


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
