"""How sure the words of an adapter's tasks are, and when they were said, measured on a suite and kept in tasks.json."""

from collections.abc import Mapping
from typing import Any

from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.console import listed, percent, tell
from hra_jax.tasks.backbone import resolve_backbone


def measured(
    adapter: str, exported: ExportedAdapter, suite: str, *, backbone: str | None = None, data_dir: str | None = None
) -> dict[str, dict[str, Any]]:
    """What `decoding.calibration.measure` finds of each task.

    Args:
      adapter: the folder.
      exported: its content.
      suite: name or path of a validation suite.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter names.
      data_dir: what `{dir}` in the manifests of the suite stands for.

    Raises:
      UserError: an unknown suite, one that the adapter was trained on or that has nothing of its tasks, or another
        backbone.
    """
    # Late: the other commands need neither JAX nor the readers of audio.
    from hra_jax.api import load_adapter
    from hra_jax.api import load_backbone as load
    from hra_jax.data.report import DataReport
    from hra_jax.decoding import calibration
    from hra_jax.evaluation.suites import load_suite
    from hra_jax.run.jax_setup import setup_jax
    from hra_jax.run.scoring import check_not_trained_on

    setup_jax()
    location = resolve_backbone(exported, backbone)
    found = load_suite(suite, data_dir=data_dir or "", report=DataReport(strict=False))
    trained_on = {f"the adapter {adapter!r}": task_records.all_hashes(exported.records)}
    check_not_trained_on(found, {what: hashes for what, hashes in trained_on.items() if len(hashes)})
    return calibration.measure(load_adapter(adapter, load(location)), found)


def with_calibrations(exported: ExportedAdapter, found: Mapping[str, Mapping[str, Any]]) -> ExportedAdapter:
    """The adapter with the calibrations of some tasks; the others keep theirs.

    What was measured of searched words on the same suite stays, where it is not measured again: as a run does it with a
    language model that its adapter does not hold. Of another suite it goes, which is told.
    """
    entries: list[dict[str, Any]] = []
    lost: list[str] = []
    for entry in exported.tasks_json:
        if (name := entry["name"]) in found:
            facts, earlier = dict(found[name]), entry.get(task_records.CALIBRATION) or {}
            searched = {key: value for key, value in earlier.items() if key.startswith("search_")}
            if searched and "search_temperature" not in facts:
                if earlier.get("suite") == facts["suite"]:
                    facts |= searched
                else:
                    lost.append(name)
            entry = {**entry, task_records.CALIBRATION: facts}
        entries.append(entry)
    if lost:
        tell(
            f"words that are searched for are calibrated no longer, as the adapter holds no language model to search "
            f"with: {listed(lost)}; that was measured on another suite"
        )
    return ExportedAdapter(exported.config, exported.shared, exported.tasks, entries, exported.records)


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was found, for people."""
    told = [
        f"task {task!r}: {facts['words']} words, {percent(facts['right'])} of them right; confidence is off by "
        f"{percent(facts['ece_before'])}, with temperature {facts['temperature']:.2f} by {percent(facts['ece_after'])}"
        for task, facts in found.items()
    ]
    facts = next(iter(found.values()))
    if "lag_seconds" not in facts:
        return [*told, f"{facts['joints']} joints of utterances are too few to tell by how much words come late"]
    lag, joints = 1000 * facts["lag_seconds"], facts["joints"]
    return [*told, f"words come {lag:+.0f} ms late, as {joints} joints of utterances tell; that is taken off"]


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The tasks that are calibrated."""
    return f"calibrated on {next(iter(found.values()))['suite']!r}: {listed(found)}"
