"""Tuning how to decode what is stored already: an exported adapter, or a run with what it has exported.

What a run tunes after its last step is the same; this is for other language models, phrases, beams and suites.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hra_jax.adapters import adapter_folder
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.adapters.task_records import CALIBRATION, DECODE
from hra_jax.config.keys import default_config, group
from hra_jax.console import listed, tell
from hra_jax.data.report import DataReport
from hra_jax.data.sources import read_sources
from hra_jax.data.utterance import Utterance
from hra_jax.decoding.language_models import search_digest
from hra_jax.errors import UserError
from hra_jax.evaluation import suites
from hra_jax.evaluation.suites import Suite, load_suite
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import decoders, evaluating, foundation, own_exports, own_models, scoring, systems, tuning, workdirs
from hra_jax.run.place import backbone_weights
from hra_jax.run.systems import System
from hra_jax.storage import folders, locks
from hra_jax.storage.json_files import read_object
from hra_jax.tasks import library
from hra_jax.tasks.backbone import resolve_backbone


def tune_stored(
    *,
    adapter: str | None = None,
    workdir: str | None = None,
    suite: str | None = None,
    backbone: str | None = None,
    data_dir: str | None = None,
    decode: Mapping[str, Any] | None = None,
    per_task: bool = False,
) -> dict[str, dict[str, Any]]:
    """Finds the weights and the beam of decoding that are best on a validation suite, and stores them.

    They go into tasks.json of the adapter, or of W/adapter, and into W/lm.

    Args:
      adapter: folder of an exported adapter.
      workdir: in place of it, a run: what it has exported is decoded.
      suite: name or path of the suite: that a work directory names is not run, as it may be a stranger's.
      backbone: folder of the backbone, or builtin:NAME; None takes what the adapter or the run names.
      data_dir: what `{dir}` in the manifests of the suite stands for; None takes the run's, if any.
      decode: keys `decode.*` with their values, which go before those of the suite and of the run.
      per_task: whether each task gets weights and a beam of its own.

    Returns:
      {task: its entry `decode`}.

    Raises:
      UserError: nothing to tune, a suite that tests, something that is not there, or an adapter that was changed since
        the run exported it.
    """
    if (adapter is None) == (workdir is None):
        raise UserError("tune needs --adapter DIR, or else --workdir W")
    config = default_config() if workdir is None else workdirs.stored_config(workdir)
    if not suite:
        raise UserError("--suite is missing; allowed: the name or path of a validation suite")
    place = (config.data.dir if workdir is not None else "") if data_dir is None else data_dir
    report = DataReport()
    found = load_suite(suite, data_dir=place, report=report)
    settings = decoders.settings_of(group(config, "decode"), found, decode)
    with _changing(adapter, workdir, config):
        # --------------------------------------------------------------------------------------------------------- read
        system, exported = _system(adapter, workdir, backbone, config)
        _check_no_test(found, workdir, exported)
        setup = evaluating.setup_of(config, free=workdir is None)
        runner = evaluating.make_runner(system, found, setup, report)
        written = (system.base.vocabulary, system.own, system.tasks)
        decoders.check_tasks(settings, runner, system.tasks)
        train = None
        if workdir is not None:
            train = decoders.training_models([settings], workdir, config, written, lambda: _trained(config))
        if decoders.make_decoder(settings, runner, adapter=system.held, train=train) is None:
            raise UserError(
                "decoding is greedy and has no weights; needed: --decode.lm, --decode.phrases or --decode.beam"
            )
        scoring.check_not_trained_on(found, system.trained_on)

        # --------------------------------------------------------------------------------------------------------- tune
        def log_probs() -> Iterator[Any]:
            weights = systems.suite_weights(
                system.weights(setup.mesh), system.averaged or len(system.tasks), runner, setup.mesh
            )
            dtype = compute_dtype(setup.settings.backbone_dtype)
            frozen = backbone_weights(system.base, setup.mesh, dtype=dtype) if system.beside else weights
            return runner.log_probs(
                evaluating.steps_of(system, setup, log_probs=True)[1], weights, frozen, progress=True
            )

        entries = tuning.tuned_entries(
            runner, settings, log_probs, adapter=system.held, train=train, tasks=system.tasks, per_task=per_task
        )
        if not entries:
            raise UserError(
                "every weight is given, and a beam: none is left to tune; allowed: 'tuned' for one of the weights, or "
                "0 for decode.beam"
            )

        _store(adapter, workdir, exported, entries)
    return entries


@contextlib.contextmanager
def _changing(adapter: str | None, workdir: str | None, config: ConfigDict) -> Iterator[None]:
    """Holds the adapter that gets the weights, if it is one: what others did to it meanwhile would be lost."""
    folder = adapter if workdir is None else workdirs.named(workdir) / workdirs.ADAPTER
    if (workdir is not None and config.method != "adapter") or not epath.Path(str(folder)).exists():
        yield
        return
    with locks.hold_beside(str(folder), "lm tune"):
        folders.recover(str(folder), last=adapter_folder.CONFIG_FILE)
        yield


def _check_no_test(suite: Suite, workdir: str | None, exported: ExportedAdapter | None) -> None:
    """Refuses a suite by whose name, or on whose data, a run or an adapter is tested."""
    entries = [] if exported is None else exported.tasks_json
    names = {str(entry["suite"]) for entry in entries if entry.get("suite")}
    digests = set()
    if workdir is not None:
        folder = workdirs.named(workdir)
        asked = read_object(folder / workdirs.CONFIG, {"eval": dict})["eval"].get("suite")
        names |= {epath.Path(asked).stem} if isinstance(asked, str) and asked else set()
        for path in (folder / workdirs.EVALUATIONS / name / "results.json" for name in sorted(names)):
            digests |= {read_object(path, {}).get("data_digest")} if path.exists() else set()
    if suite.name in names:
        raise _tests(suite, f"{'the run' if workdir is not None else 'the adapter'} is tested on it")
    if suites.data_digest(suite) in digests:
        raise _tests(suite, "its data are those that the run is tested on")


def _tests(suite: Suite, why: str) -> UserError:
    return UserError(
        f"suite {suite.name!r}: {why}; what is tuned on it would look better than it is; allowed: a validation suite"
    )


def _system(
    adapter: str | None, workdir: str | None, backbone: str | None, config: ConfigDict
) -> tuple[System, ExportedAdapter | None]:
    """What is decoded, and the adapter that gets the weights, if it is one."""
    dtype = config.backbone_dtype
    if workdir is not None and config.method != "adapter":
        if backbone is not None:
            raise UserError(
                f"--backbone={backbone!r} would do nothing: the run {workdir} has exported a backbone itself"
            )
        base = foundation.load(str(workdirs.named(workdir) / workdirs.BACKBONE))
        return systems.of_backbone("", base, dtype=dtype), None
    folder = adapter or str(workdirs.named(str(workdir)) / workdirs.ADAPTER)
    exported = adapter_folder.read_adapter(folder)
    named = backbone or (config.backbone if workdir is not None else None)
    base = foundation.load(resolve_backbone(exported, named))
    return systems.of_adapter("", folder, base), exported


def _trained(config: ConfigDict) -> list[Sequence[Utterance]]:
    """What a run trains on, by source."""
    # Not `data.modules`: the work directory may be a stranger's, and none of its modules is run.
    sources = read_sources(config.data.sources, report=DataReport(), data_dir=config.data.dir)
    return [source.utterances for source in sources]


def _with_entries(exported: ExportedAdapter, entries: Mapping[str, Mapping[str, Any]]) -> ExportedAdapter:
    changed = [
        {**entry, DECODE: dict(entries[entry["name"]])} if entry["name"] in entries else entry
        for entry in exported.tasks_json
    ]
    return ExportedAdapter(exported.config, exported.shared, exported.tasks, changed, exported.records)


def _store(
    adapter: str | None,
    workdir: str | None,
    exported: ExportedAdapter | None,
    entries: Mapping[str, Mapping[str, Any]],
) -> None:
    """Writes what was found into W/lm and into the adapter, if it is one, and tells it."""
    if workdir is not None:
        with workdirs.changing_files(workdir):
            own_models.write_tuned(workdir, {**own_models.read_tuned(workdir), **entries})
            if exported is not None:
                _store_in_run(epath.Path(workdir), exported, entries)
    elif exported is not None:
        library.write(str(adapter), _with_entries(exported, entries))
    tell(f"stored with {adapter or workdir}")
    stale = [] if exported is None else _calibrated_otherwise(exported, entries)
    if stale:
        tell(
            f"the confidences of {listed(stale)} were calibrated for words that were searched for otherwise; python -m "
            "hra_jax.tasks calibrate does it again for an adapter that holds its language model"
        )


def _calibrated_otherwise(exported: ExportedAdapter, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tasks with new entries whose searched words were calibrated with another language model, or other weights."""
    return [
        entry["name"]
        for entry in exported.tasks_json
        if entry["name"] in entries
        and "search_temperature" in (facts := entry.get(CALIBRATION) or {})
        and facts.get("search_digest") not in (None, search_digest(entries[entry["name"]]))
    ]


def _store_in_run(workdir: epath.Path, exported: ExportedAdapter, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the weights into W/adapter, which stays the run's own."""
    folder, changed = workdir / workdirs.ADAPTER, _with_entries(exported, entries)
    own = own_exports.replace_adapter(
        workdir, lambda fresh: library.write_files(fresh, changed), tasks=list(changed.tasks)
    )
    if not own:
        # Somebody has changed it since: their changes stay, and the weights come to them.
        library.write(folder, changed)
