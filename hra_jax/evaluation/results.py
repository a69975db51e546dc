"""The numbers of an evaluation: counts, rates, intervals, and what results.json says beside them.

Nothing here needs JAX: results can be counted again from predictions alone.
"""

import bisect
import dataclasses
import importlib.metadata
import itertools
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import hra_jax
from hra_jax.data.utterance import tag_value
from hra_jax.errors import UserError
from hra_jax.evaluation import error_rates, shots
from hra_jax.evaluation.bootstrap import CONFIDENCE, LEAST_BLOCKS, Sample, make_sample
from hra_jax.evaluation.error_rates import ErrorCounts
from hra_jax.evaluation.paired import VERDICTS, Rates, rate, rate_suite
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.suites import METRICS, Suite, data_digest, duration_edges, suite_digest
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK
from hra_jax.text.normalization import versioned

FORMAT = 2  # of results.json; 1, which does not say so, has the fields that 0.1 had
ACCOUNTING = (
    "trainable_parameters",
    "shared_parameters",
    "parameters_per_task",
    "backbone_parameters",
    "backbone_fingerprint",
)
_RATES = ("wer", "base_wer", "cer", "base_cer")
_SIDES = {"base": "base_pred_text", "greedy": "greedy_text"}  # what may stand beside what the system recognises
_WEIGHTS = ("lm_weight", "token_bonus", "phrase_weight")
_GREEDY_RATES = ("greedy_wer", "base_greedy_wer", "greedy_cer", "base_greedy_cer")  # where decoding is not greedy


def evaluate_results(
    rows: Sequence[UtteranceResult],
    suite: Suite,
    *,
    accounting: Mapping[str, Any],
    bootstrap: int = 1000,
    seed: int = 0,
    run: Mapping[str, Any] | None = None,
    hardware: Mapping[str, Any] | None = None,
    not_scored: Mapping[str, str] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
      rows: the scored utterances of all tasks of the suite, in any order.
      suite: its tasks give the order of the results.
      accounting: the fields of `ACCOUNTING`: parameters that are trained, shared by all tasks, of one task, and of the
        whole backbone (integers), and the backbone's fingerprint. More fields are kept.
      bootstrap: resamples of the 95% intervals; 0 for none (the bounds are None then).
      seed: of the resamples.
      run: further top-level fields, such as the step and the seed of the run.
      hardware: what the utterances were recognised on, beside the times.
      not_scored: tasks that are to have no rate, each with the reason.
      decoding: how the texts were found, as `decoding.decoder.Decoder.facts` says it; None where nobody knows.

    Returns:
      A dict of JSON values, rates as fractions. What depends on the base is None where a row has no `base_pred_text`.
      "tasks_not_scored" names the tasks that have no rate, and says why: they are in no other number. "versions" has
      what `software_versions` returns. docs/evaluation.md describes every field; those of format 1 have fewer.

    Raises:
      UserError: no task has scored utterances with reference words.
      ValueError: a row of a task that the suite does not have, or a missing or clashing field.
    """
    by_task = _by_task(rows, suite)
    left_out = _without_rate(by_task, suite) | dict(not_scored or {})
    if len(left_out) == len(by_task):
        name, reason = next(iter(left_out.items()))
        more = f", and {len(left_out) - 1} more tasks" if len(left_out) > 1 else ""
        raise UserError(f"suite {suite.name!r}: no task could be scored; task {name!r}: {reason}{more}")
    missing = [field for field in ACCOUNTING if field not in accounting]
    if missing:
        raise ValueError(f"the accounting lacks {missing[0]!r}; needed: {', '.join(ACCOUNTING)}")
    scored = [task for task in suite.tasks if task.name not in left_out]
    rows = [row for task in scored for row in by_task[task.name]]
    known = {name: all(getattr(row, field) is not None for row in rows) for name, field in _SIDES.items()}
    count = _Counter(suite, **known, samples=bootstrap, seed=seed)
    groups = {task.name: count.group(by_task[task.name]) for task in scored}
    rates = rate_suite(
        {task.name: groups[task.name].samples[task.metric] for task in scored},
        samples=bootstrap,
        seed=seed,
        pooled={name: group.samples[suite.metric] for name, group in groups.items()},
    )
    whole = count.group(rows)
    held_out = {task.name: by_task[task.name] for task in scored if task.name in suite.heads}
    tasks = {
        task.name: {
            "adapter_task": task.adapter_task,
            "parameters": 0 if task.adapter_task in (BASE_TASK, MEAN_TASK) else accounting["parameters_per_task"],
            **count.entry(groups[task.name], rates.tasks[task.name], task.metric, name=task.name),
        }
        for task in scored
    }
    fields = (*_RATES, *(_GREEDY_RATES if count.greedy else ()))
    macro = {f"{field}_macro": _mean([task[field] for task in tasks.values()]) for field in fields}
    results = {
        "format": FORMAT,
        "suite": suite.name,
        "normalizer": versioned(suite.normalizer),
        "block": suite.block,
        "decoding": None if decoding is None else dict(decoding),
        "tasks": tasks,
        "tasks_not_scored": left_out,
        **count.entry(whole, rates.pooled, suite.metric, name=next(iter(tasks)) if len(tasks) == 1 else ""),
        **macro,
        "over_tasks": _over_tasks(tasks, rates.macro, base=count.base, greedy=count.greedy),
        "slices": {item: _slices(item, rows, count) for item in suite.slices},
        **({"few_shot": shots.curves(held_out, suite, samples=bootstrap, seed=seed)} if suite.heads else {}),
        "speed": _speed(rows, hardware),
        "bootstrap": {"samples": bootstrap, "confidence": CONFIDENCE, "seed": seed, "least_blocks": LEAST_BLOCKS},
        "suite_digest": suite_digest(suite),
        "data_digest": data_digest(suite),
        "versions": software_versions(),
    }
    for name, value in {**accounting, **(run or {})}.items():
        if name in results:
            raise ValueError(f"the field {name!r} is already one of the results")
        results[name] = value
    return results


def mean_scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over tasks of results.json with the fields that a task has in a table."""
    mean = results["over_tasks"]
    names = {"wer": "rate", "base_wer": "base_rate", "wer_low": "low", "wer_high": "high", "difference": "difference"}
    names |= {"greedy_wer": "greedy_rate"} if "greedy_rate" in mean else {}
    return {name: mean[field] for name, field in names.items()} | {"metric": "wer", "words": results["words"]}


def _by_task(rows: Sequence[UtteranceResult], suite: Suite) -> dict[str, list[UtteranceResult]]:
    """The rows of every task, in an order that does not depend on how they were recognised."""
    by_task: dict[str, list[UtteranceResult]] = {task.name: [] for task in (*suite.tasks, *suite.lost)}
    for row in rows:
        if row.task not in by_task:
            raise ValueError(f"utterance {row.key!r} belongs to {row.task!r}, no task of the suite {suite.name!r}")
        by_task[row.task].append(row)
    return {name: sorted(found, key=lambda row: (row.key, row.text)) for name, found in by_task.items()}


def _without_rate(by_task: Mapping[str, Sequence[UtteranceResult]], suite: Suite) -> dict[str, str]:
    """The tasks that have no error rate, each with the reason."""
    found = {}
    for task in (*suite.tasks, *suite.lost):
        rows = by_task[task.name]
        if not rows:
            found[task.name] = f"none of its {task.size} utterances could be read"
        elif not any(error_rates.words(row.text, suite.normalizer) for row in rows):
            found[task.name] = f"the references of its {len(rows)} utterances hold 0 words"
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


class _Group(NamedTuple):
    """Some utterances together: the counts of the system in them, of the base, and what the bootstrap resamples."""

    counts: dict[str, ErrorCounts]  # by metric
    base_counts: dict[str, ErrorCounts] | None
    samples: dict[str, Sample]
    seconds: float
    greedy: dict[str, ErrorCounts | None]  # of greedy decoding, as `_GREEDY_RATES`; {} where the rest is greedy


@dataclasses.dataclass(frozen=True)
class _Counter:
    """Counts the errors of utterances, and describes them as results.json does.

    `base` is whether there is one, and `greedy` whether there are texts of greedy decoding beside others.
    """

    suite: Suite
    base: bool
    greedy: bool
    samples: int
    seed: int

    def group(self, rows: Sequence[UtteranceResult]) -> _Group:
        texts = [[row.pred_text for row in rows]] + [[row.base_pred_text or "" for row in rows]] * self.base
        counts = [self._count(rows, side) for side in texts]
        totals = [{metric: error_rates.total(row[metric] for row in side) for metric in METRICS} for side in counts]
        names = [(row.key, tag_value(row.tags, self.suite.block)) for row in rows]
        samples = {
            metric: make_sample(
                names,
                np.array([[row[metric].errors for row in side] for side in counts], np.int64).T,
                np.array([row[metric].words for row in counts[0]], np.int64),
            )
            for metric in METRICS
        }
        base = totals[1] if self.base else None
        return _Group(totals[0], base, samples, sum(row.duration for row in rows), self._greedy(rows))

    def _count(self, rows: Sequence[UtteranceResult], texts: Sequence[str]) -> list[dict[str, ErrorCounts]]:
        normalizer = self.suite.normalizer
        return [error_rates.errors_by_metric(row.text, text, normalizer) for row, text in zip(rows, texts, strict=True)]

    def _greedy(self, rows: Sequence[UtteranceResult]) -> dict[str, ErrorCounts | None]:
        """The counts of greedy decoding, where it is not what all else is counted from."""
        if not self.greedy:
            return {}
        sides = {"": [row.greedy_text for row in rows], "base_": [row.base_greedy_text for row in rows]}
        found: dict[str, ErrorCounts | None] = {}
        for side, said in sides.items():
            texts = [text for text in said if text is not None]
            counts = self._count(rows, texts) if len(texts) == len(rows) else None
            for kind in METRICS:
                total = None if counts is None else error_rates.total(row[kind] for row in counts)
                found[f"{side}greedy_{kind}"] = total
        return found

    def entry(self, group: _Group, rates: Rates, metric: str, *, name: str) -> dict[str, Any]:
        """Counts, rates, intervals and the difference from the base of a group that is rated in `metric`."""
        words, characters = group.counts["wer"], group.counts["cer"]
        # Word error rates have an interval everywhere, character error rates where they decide.
        by_metric = {metric: rates}
        if metric != "wer":
            by_metric["wer"] = rate(group.samples["wer"], samples=self.samples, seed=self.seed, name=name)
        entry: dict[str, Any] = {
            "metric": metric,
            "utterances": words.utterances,
            "audio_seconds": round(group.seconds, 6),
            "words": words.words,
            "substitutions": words.substitutions,
            "deletions": words.deletions,
            "insertions": words.insertions,
            "characters": characters.words,
            "character_errors": characters.errors,
            "difference": rates.difference(0, 1) if self.base else None,
            "resampled": "utterances" if group.samples[metric].blocks is None else self.suite.block,
            "blocks": group.samples[metric].block_count,
            **{name: None if counts is None else counts.rate for name, counts in group.greedy.items()},
        }
        for kind in METRICS:
            entry[kind] = group.counts[kind].rate
            entry[f"base_{kind}"] = group.base_counts[kind].rate if group.base_counts else None
        for kind, found in by_metric.items():
            entry[f"{kind}_low"], entry[f"{kind}_high"] = found.interval(0)
            entry[f"base_{kind}_low"], entry[f"base_{kind}_high"] = found.interval(1) if self.base else (None, None)
        return entry


def _over_tasks(tasks: Mapping[str, Mapping[str, Any]], rates: Rates, *, base: bool, greedy: bool) -> dict[str, Any]:
    """Mean, worst and spread over tasks, each in its own metric, and how many got better or worse than the base."""
    own = {name: task[task["metric"]] for name, task in tasks.items()}
    worst = max(own, key=lambda name: own[name])
    verdicts = [(task["difference"] or {}).get("verdict") for task in tasks.values()]
    low, high = rates.interval(0)
    found: dict[str, Any] = {
        "tasks": len(tasks),
        "rate": float(rates.exact[0]),
        "low": low,
        "high": high,
        "base_rate": float(rates.exact[1]) if base else None,
        "difference": rates.difference(0, 1) if base else None,
        "worst": {"task": worst, "rate": own[worst]},
        "spread": float(np.std(list(own.values()))),
        "got_worse": sum(task["difference"]["difference"] > 0 for task in tasks.values()) if base else None,
    }
    for side in ("", "base_") if greedy else ():
        found[f"{side}greedy_rate"] = _mean([task[f"{side}greedy_{task['metric']}"] for task in tasks.values()])
    return found | {"verdicts": {verdict: verdicts.count(verdict) for verdict in VERDICTS} if base else None}


def _slices(item: str, rows: Sequence[UtteranceResult], count: _Counter) -> list[dict[str, Any]]:
    """The scores of each slice of all utterances by a tag or by duration; one without reference words is left out."""
    edges = duration_edges(item, suite=count.suite.name)
    groups: dict[str, list[UtteranceResult]] = {}
    for row in rows:
        value = _seconds_slice(row.duration, edges) if edges else tag_value(row.tags, item)
        if value is not None:
            groups.setdefault(value, []).append(row)
    labels = _seconds_labels(edges) if edges else sorted(groups)
    found = []
    for label in labels:
        if label in groups and (group := count.group(groups[label])).counts["wer"].words:
            name, metric = f"{item}={label}", count.suite.metric
            rates = rate(group.samples[metric], samples=count.samples, seed=count.seed, name=name)
            found.append({"value": label, **count.entry(group, rates, metric, name=name)})
    return found


def _seconds_labels(edges: Sequence[float]) -> list[str]:
    """The names of slices by duration, in order; an utterance at an edge belongs to the slice that begins there."""
    inner = [f"{low:g} to {high:g} s" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]:g} s", *inner, f"{edges[-1]:g} s or more"]


def _seconds_slice(duration: float, edges: Sequence[float]) -> str:
    return _seconds_labels(edges)[bisect.bisect_right(edges, duration)]


def _speed(rows: Sequence[UtteranceResult], hardware: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Seconds of audio, of recognising it, and the second per the first, where it was measured; None where nowhere."""
    measured = [(row.duration, row.time) for row in rows if row.time is not None]
    audio, seconds = (sum(values) for values in zip(*measured, strict=True)) if measured else (0, 0)
    if not audio:
        return None
    measured_on = {} if hardware is None else {"hardware": dict(hardware)}
    factor = {"real_time_factor": seconds / audio, **measured_on}
    return {"audio_seconds": round(audio, 6), "seconds": round(seconds, 6), **factor}


def decoding_words(decoding: Mapping[str, Any] | None) -> str:
    """How texts were found, in words; '' where that is greedy decoding, or nobody knows.

    Args:
      decoding: the field of results.json, see `decoding.decoder.Decoder.facts`.
    """
    if decoding is None or decoding.get("method") == "greedy":
        return ""
    said = [f"a beam of {decoding['beam']}" if isinstance(decoding.get("beam"), int) else "beams by task"]
    model = decoding.get("lm")
    if isinstance(model, Mapping):
        one = isinstance(model.get("name"), str) and isinstance(model.get("digest"), str)
        said.append(
            f"the language model {model['name']!r} ({model['digest'][:12]})" if one else "language models by task"
        )
    said += [f"{name} {_number(decoding[name])}" for name in _WEIGHTS if name in decoding]
    if "phrases" in decoding:
        said.append(f"{count} phrases" if isinstance(count := decoding["phrases"], int) else "phrases by task")
    if isinstance(count := decoding.get("utterances_with_phrases"), int):
        said.append(f"phrases of {count:,} utterances")
    if decoding.get("others") == "greedy":
        said.append("and all other utterances greedily")
    return ", ".join(said)


def decoding_of(decoding: Mapping[str, Any] | None, task: str) -> dict[str, Any]:
    """What of a field `decoding` is true of one task, as `decoding.decoder.Decoder.facts_of` says it."""

    def own(name: str, value: Any) -> Any:
        for_all = not isinstance(value, Mapping) or (name == "lm" and isinstance(value.get("digest"), str))
        return value if for_all else value.get(task)

    found = {name: own(name, value) for name, value in (decoding or {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "by task"


def software_versions() -> dict[str, str]:
    """The versions that results depend on: of Python, of hra_jax, and of the packages that compute."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "kaldialign")}
    return {"python": platform.python_version(), "hra_jax": hra_jax.__version__, **packages}
