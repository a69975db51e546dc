"""No harm: tasks that an adapter makes worse than no adapter are found on a validation suite, and set aside.

A task that is set aside keeps its parameters; whoever recognises it does so with the backbone alone, and says so.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.console import percent
from hra_jax.errors import UserError
from hra_jax.storage.json_files import Kind, check_fields, read_object
from hra_jax.storage.writing import temporary_folder
from hra_jax.tasks import library
from hra_jax.tasks.backbone import resolve_backbone
from hra_jax.tasks.names import RESERVED_NAMES, check_tasks

_RESULTS: dict[str, Kind] = {"suite": str, "tasks": dict, "backbone_fingerprint": str}
_NOT_SCORED = "tasks_not_scored"


class Decision(NamedTuple):
    """What a suite says of a task of an adapter.

    Attributes:
      task: the task of the adapter.
      metric: 'wer' or 'cer'.
      rate, base_rate: with the adapter and without, fractions; the means where several tasks of the suite use it.
      low, high, verdict: the 95% interval of the paired difference and what it says, as `evaluation.paired` has them;
        None where several tasks of the suite use the adapter.
      worse: whether the rate is above the base's by more than the tolerance.
    """

    task: str
    metric: str
    rate: float
    base_rate: float
    low: float | None
    high: float | None
    verdict: str | None
    worse: bool

    @property
    def line(self) -> str:
        """The decision in words."""
        shown = f"{self.metric.upper()} {percent(self.base_rate)} without the adapter, {percent(self.rate)} with it"
        if self.verdict is not None and self.low is not None and self.high is not None:
            bounds = f"{100 * self.low:+.1f} to {100 * self.high:+.1f} points"
            shown += f"; paired 95% interval of the difference {bounds}: {self.verdict}"
        return f"task {self.task!r}: {shown}"


def scored(
    exported: ExportedAdapter, suite: str, *, backbone: str | None = None, data_dir: str | None = None
) -> dict[str, Any]:
    """The results of a suite that is recognised with an adapter and without, as results.json has them.

    Args:
      exported: the adapter; tasks that are set aside are recognised with it all the same.
      suite: name or path of the suite.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.
      data_dir: what `{dir}` in the manifests of the suite stands for.

    Raises:
      UserError: as `evaluate.evaluate_systems`.
    """
    # Late: what only looks at stored results needs neither JAX nor the readers of audio.
    from hra_jax.evaluate import evaluate_systems
    from hra_jax.run.jax_setup import setup_jax

    setup_jax()
    location = resolve_backbone(exported, backbone)
    with temporary_folder() as place:
        folder = epath.Path(place)
        library.write(folder / "adapter", in_use(exported))
        (found,) = evaluate_systems(
            [suite],
            folder / "results",
            adapters=[f"adapter={folder / 'adapter'}"],
            backbones=[location],
            data_dir=data_dir,
        ).values()
    results: dict[str, Any] = found["adapter"]
    return results


def stored_results(path: str, exported: ExportedAdapter) -> dict[str, Any]:
    """The content of a results.json, of an evaluation of an adapter on its backbone.

    Raises:
      UserError: no such file, another file, or the results of another backbone.
    """
    found = read_object(epath.Path(path), _RESULTS, what="the results.json that an evaluation wrote")
    fingerprint = exported.config["backbone"]["fingerprint"]
    if found["backbone_fingerprint"] != fingerprint:
        raise UserError(
            f"{path}: results on the backbone {found['backbone_fingerprint'][:12]!r}; that of the adapter has the "
            f"fingerprint {fingerprint[:12]}"
        )
    for name, task in found["tasks"].items():
        where = f"{path}: task {name!r:.80}"
        task.setdefault("metric", "wer")  # before there was another one
        rates: dict[str, Kind] = (
            {} if task.get("base_wer") is None else {task["metric"]: float, f"base_{task['metric']}": float}
        )
        check_fields(task, rates | {"adapter_task": str, "metric": str}, where=where)
    found.setdefault(_NOT_SCORED, {})  # as in 0.1
    check_fields(found, {_NOT_SCORED: dict}, where=path)
    return found


def not_decided(results: Mapping[str, Any]) -> list[str]:
    """A line for each task of a suite that has no score, and of which it so says nothing."""
    return [
        f"task {name!r} of {results['suite']!r} decides nothing: {why}" for name, why in results[_NOT_SCORED].items()
    ]


def decide(results: Mapping[str, Any], *, tasks: Collection[str], tolerance: float) -> list[Decision]:
    """What the results of a suite say of the tasks of an adapter, in the order of the results.

    Args:
      results: the content of results.json, of a suite that was recognised with the adapter and without.
      tasks: those of the adapter.
      tolerance: by how much a task may be worse, as a fraction of words or characters.

    Raises:
      UserError: results without the base, or without a task of an adapter, or of another adapter's.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, task in results["tasks"].items():
        if task["adapter_task"] not in RESERVED_NAMES:
            if task.get(f"base_{task['metric']}") is None:
                raise UserError(f"suite {results['suite']!r}, task {name!r}: there is no base to compare with")
            groups.setdefault(task["adapter_task"], []).append(task)
    check_tasks(list(groups), tasks)
    if not groups:
        raise UserError(f"suite {results['suite']!r}: it scores no task of an adapter; allowed: a suite that does")
    return [_decision(task, entries, tolerance) for task, entries in groups.items()]


def _decision(task: str, entries: list[Mapping[str, Any]], tolerance: float) -> Decision:
    metric = entries[0]["metric"]
    rate, base_rate = (sum(entry[field] for entry in entries) / len(entries) for field in (metric, f"base_{metric}"))
    nothing = {"low": None, "high": None, "verdict": None}
    alone = nothing if len(entries) > 1 else entries[0].get("difference") or nothing  # 0.1 stored no differences
    worse = rate - base_rate > tolerance
    return Decision(task, metric, rate, base_rate, alone["low"], alone["high"], alone["verdict"], worse)


def gated(exported: ExportedAdapter, decisions: Iterable[Decision], *, suite: str, tolerance: float) -> ExportedAdapter:
    """The adapter with the tasks set aside that are worse, and those in use again that no longer are.

    Tasks that the suite does not score stay as they are.
    """
    found = {decision.task: decision for decision in decisions}
    entries = []
    for entry in exported.tasks_json:
        decision = found.get(entry["name"])
        if decision is not None:
            entry = {name: value for name, value in entry.items() if name != task_records.SET_ASIDE}
            if decision.worse:
                rates = {"rate": decision.rate, "base_rate": decision.base_rate}
                why = {"suite": suite, "metric": decision.metric, **rates, "tolerance": tolerance}
                entry = entry | {task_records.SET_ASIDE: why}
        entries.append(entry)
    return ExportedAdapter(exported.config, exported.shared, exported.tasks, entries, exported.records)


def in_use(exported: ExportedAdapter) -> ExportedAdapter:
    """The adapter with no task set aside."""
    entries = [{k: v for k, v in entry.items() if k != task_records.SET_ASIDE} for entry in exported.tasks_json]
    return ExportedAdapter(exported.config, exported.shared, exported.tasks, entries, exported.records)


def reason(entry: Mapping[str, Any]) -> str:
    """Why a task is set aside, from its entry in tasks.json."""
    why = entry[task_records.SET_ASIDE]
    known = all(isinstance(why.get(name), int | float) for name in ("rate", "base_rate"))
    rates = f"{percent(why['rate'])} with its adapter, {percent(why['base_rate'])} without" if known else "worse"
    return f"{rates} on {why.get('suite', 'a suite')!r:.80}"
