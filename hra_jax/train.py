"""Trains an adapter, fine-tunes a backbone, or pre-trains one; the same command again resumes.

python -m hra_jax.train --config quickstart --workdir runs/quickstart
"""

import functools
import json
import sys

import jax
import numpy as np
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.adapters import adapter_folder, methods
from hra_jax.config.files import config_to_json, stored_difference, validate_config
from hra_jax.data.loader import TrainLoader
from hra_jax.errors import UserError
from hra_jax.evaluation.report import evaluate_results
from hra_jax.models import backbone_folder
from hra_jax.run import processes
from hra_jax.run.jax_setup import setup_jax
from hra_jax.run.preparation import (
    Run,
    accounting,
    base_weights,
    data_report,
    prepare,
    score,
    suite_weights,
    write_data_report,
)
from hra_jax.run.saving import restore, save
from hra_jax.storage.files import write_file
from hra_jax.storage.trees import flatten
from hra_jax.tpu import topologies
from hra_jax.training import sharding, train_state
from hra_jax.training.checkpoints import METRIC, Checkpoints
from hra_jax.training.metrics import MetricWriter
from hra_jax.training.preemption import PREEMPTED, PreemptionGuard, stops_at_once
from hra_jax.training.profiling import Profiler
from hra_jax.training.progress import Progress
from hra_jax.training.step import LOST
from hra_jax.training.timing import StepTimes

FLAGS = flags.FLAGS


def train(config, workdir) -> int:
    """Trains as a configuration says, then evaluates, exports and prints the table.

    Args:
      config: a configuration as `hra_jax.config.files.load` gives it.
      workdir: the work directory; one that holds checkpoints of the same configuration is continued.

    Returns:
      The exit status: 0, or 75 after SIGTERM, with everything saved.

    Raises:
      SystemExit: SIGTERM came after the last step; the status is 75.
      UserError: a wrong configuration, bad data, or a work directory of another run.
    """
    validate_config(config)
    workdir = epath.Path(workdir)
    resumed = _claim_workdir(config, workdir)
    with data_report(config, workdir, keep=resumed) as report:
        run = prepare(config, workdir, report)
        with run.checkpoints() as checkpoints:
            if not _loop(run, checkpoints):
                return PREEMPTED
            with stops_at_once("stopped by SIGTERM after the last step; the same command evaluates and exports"):
                finish(run, checkpoints)
    return 0


# ======================================================================================================================
# Before the first step
# ======================================================================================================================


def _claim_workdir(config, workdir: epath.Path) -> bool:
    """Writes W/config.json; returns whether W has checkpoints, which must then be of the same configuration."""
    path, folder = workdir / "config.json", workdir / "checkpoints"
    try:
        # Without a checkpoint there is nothing to continue: a first start that failed may be mended.
        steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()] if folder.exists() else []
        resumed = bool(steps)
        if resumed and path.exists():
            changed = stored_difference(path.read_text(), config, trains=max(steps) < config.steps)
            if changed:
                raise UserError(f"{workdir} belongs to a run with another configuration: {'; '.join(changed)}")
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            write_file(path, config_to_json(config))
        processes.barrier("work directory")
        if not path.exists():
            raise UserError(
                f"workdir = {str(workdir)!r}: process {jax.process_index()} does not see what process 0 wrote there; "
                "allowed: storage that all processes share"
            )
    except OSError as error:
        raise UserError(f"workdir = {str(workdir)!r}: cannot be written ({error.strerror or error})") from error
    return resumed


# ======================================================================================================================
# The loop
# ======================================================================================================================


def _loop(run: Run, checkpoints: Checkpoints) -> bool:
    """Trains to the last step; False after SIGTERM. What was restored and trained is left in `run.state`."""
    config = run.config

    # ------------------------------------------------------------------------------------------------ restore or start
    position, start = None, 0
    if checkpoints.latest_step() is not None:
        position = restore(run, checkpoints, "last")
        start = int(run.state.step)
    _announce(run, start)
    if start > config.steps:
        raise UserError(f"steps = {config.steps}: the run is already at step {start}; allowed is {start} or more")
    if start == config.steps:
        return True

    loader = TrainLoader(
        run.table,
        seed=config.seed,
        batch_seconds=config.batch.seconds,
        buckets=config.batch.buckets,
        multiple=config.batch.multiple,
        max_tasks=config.batch.max_tasks,
        position=position,
        local_rows=functools.partial(sharding.local_rows, run.mesh),
        threads=config.data.threads,
        report=run.report,
    )
    writer = MetricWriter(run.workdir, resume_step=start)
    progress = Progress(config.steps, start_step=start)
    profiler = Profiler(run.workdir / "profile", start_step=config.profile.start_step, steps=config.profile.steps)
    peak = 1e12 * config.profile.peak_tflops or topologies.peak_flops(run.mesh.devices.flat[0].device_kind)
    times, last = StepTimes(devices=run.mesh.size, peak=peak), None
    with loader, writer, progress, profiler, PreemptionGuard() as guard:
        times.restart()
        for step in range(start + 1, config.steps + 1):
            # ------------------------------------------------------------------------------------------------ one step
            profiler.before(step, run.state)
            with times.input_wait(last):
                batch = next(loader)
            batch = sharding.shard_batch(batch, run.mesh)
            operations = run.counted(run.bank.as_stepped(run.state), run.frozen, batch) if peak else 0
            run.state, metrics = run.bank.step(run.state, run.frozen, batch, loader.tasks)
            times.stepped(operations)
            last = metrics["loss"]

            # ------------------------------------------------------------------------------------------------ metrics
            loss = None
            if step == start + 1 or writer.due(step) or step == config.steps:
                metrics = {name: float(value) for name, value in metrics.items()}
                loss = metrics["loss"]
                metrics |= times.take()
                writer.write(step, {f"train/{name}": value for name, value in metrics.items()})
                if not np.isfinite(loss):
                    raise UserError(
                        f"step {step}: the loss is {loss}; lower optimizer.learning_rate, or check the data"
                    )
                if metrics.get(LOST):
                    raise UserError(
                        f"step {step}: {metrics[LOST]:.0f} utterances name a task that is not one of the bank's "
                        f"{len(run.tasks)}, or is beyond batch.max_tasks = {config.batch.max_tasks} of one batch"
                    )
            progress.update(step, audio_seconds=loader.audio_seconds, loss=loss)

            # ---------------------------------------------------------------------------------------------- validation
            scores = None
            if run.select and (step % config.eval.every_steps == 0 or step == config.steps):
                with times.part("elsewhere"):
                    scores = _validate(run, step, writer)
                progress.note(f"step {step}: {run.select.suite.name} macro WER {scores[METRIC]:.2%}")

            # --------------------------------------------------------------------------------------------- checkpoints
            stop = guard.requested(step)
            force = stop or scores is not None or step == config.steps
            if force or checkpoints.due(step):
                with times.part("checkpoint"):
                    save(run, checkpoints, step, position=loader.position(), metrics=scores, force=force)
                    write_data_report(run)
            if stop:
                checkpoints.wait()
                progress.note(f"stopped by {guard.reason or 'a signal'} at step {step}; everything is saved")
                return False
            if step == start + 1:
                times.restart()  # the first step is mostly compilation
    write_data_report(run)
    if jax.process_index() == 0:
        print(f"data: {run.report.summary()}", flush=True)
    return True


def _announce(run: Run, start: int) -> None:
    """Prints what is trained, by name and number, at start and at resume."""
    if jax.process_index() != 0:
        return
    numbers = run.accounting
    print(f"{'resuming at step ' + str(start) if start else 'starting'}: method {run.config.method}", flush=True)
    for line in train_state.describe(run.bank.described(run.state)):
        print(f"  trained  {line}")
    frozen = 0 if run.frozen is None else numbers["backbone_parameters"]
    print(
        f"  trained {numbers['trainable_parameters']:,} parameters "
        f"(shared {numbers['shared_parameters']:,}{' kept as they are' if run.state.fixed else ''} + "
        f"{numbers['tasks']} tasks x {numbers['parameters_per_task']:,}), "
        f"frozen {frozen:,} ({run.base.name}, {run.base.fingerprint[:12] or 'new'})"
    )
    learning = run.table.learning
    if len(learning) < len(run.tasks):
        names = ", ".join(run.tasks[row] for row in learning[:10]) + (", ..." if len(learning) > 10 else "")
        print(f"  only {len(learning)} of the {len(run.tasks)} tasks have data and train: {names}")
    rows = len(run.table)
    print(f"  data: {rows:,} utterances, {run.table.duration.sum() / 3600:.2f} h; {run.report.summary()}", flush=True)


def _validate(run: Run, step: int, writer) -> dict:
    """Scores the selection suite, and keeps the best macro WER and the best per task in `run.best`."""
    best = run.best
    rows, loss, _ = run.select.run(run.evaluation_step, suite_weights(run, run.select), base_weights(run))
    results = evaluate_results(rows, run.select.suite, accounting=accounting(run), bootstrap=0)
    values = {"": results["wer_macro"]} | {name: task["wer"] for name, task in results["tasks"].items()}
    for name, wer in values.items():
        found = best.setdefault("tasks", {}).get(name) if name else best.get("macro")
        if found is None or wer < found["wer"]:
            entry = {"wer": wer, "step": step}
            best["tasks"].update({name: entry}) if name else best.update(macro=entry)
    if run.config.export.step == "best_per_task":
        _keep_best_rows(run, step, results)
    suite = run.select.suite.name
    scalars = {f"{suite}/wer_macro": values.pop(""), f"{suite}/loss": loss}
    writer.write(step, scalars | {f"{suite}/wer/{name}": wer for name, wer in values.items()})
    return {METRIC: results["wer_macro"]}


def _keep_best_rows(run: Run, step: int, results: dict) -> None:
    """Copies the rows of the tasks that have never been better to `run.best_rows`."""
    rates: dict[str, list[float]] = {}
    for task in results["tasks"].values():
        rates.setdefault(task["adapter_task"], []).append(task["wer"])
    found, numbers = run.best.setdefault("rows", {}), {name: row for row, name in enumerate(run.tasks)}
    improved = []
    for name, values in rates.items():
        wer = sum(values) / len(values)
        if name in numbers and (name not in found or wer < found[name]["wer"]):
            found[name] = {"wer": wer, "step": step}
            improved.append(numbers[name])
    if improved:
        ids = np.array(sorted(improved))
        run.best_rows.put(ids, run.bank.rows(run.state, ids)["tasks"])


# ======================================================================================================================
# After the last step
# ======================================================================================================================


def finish(run: Run, checkpoints: Checkpoints) -> dict | None:
    """Scores the test suite on what is exported, exports it, and prints the table.

    Returns:
      The results, or None without a test suite.
    """
    config, stitched = run.config, run.config.export.step == "best_per_task"
    step = checkpoints.resolve("last" if stitched else config.export.step)
    if step != int(run.state.step):
        restore(run, checkpoints, step)
    task_steps = dict.fromkeys(run.tasks, step)
    if stitched:
        run.state = run.best_rows.onto(run.bank, run.state)
        task_steps |= {name: entry["step"] for name, entry in run.best["rows"].items()}
    results = None
    if run.test:
        weights = suite_weights(run, run.test)
        if "backbone" in weights:
            # What is scored is what is stored.
            weights = {"backbone": jax.tree.map(lambda leaf: _as_stored(leaf, config), weights["backbone"])}
        results = score(run, weights, step)
    # Every process takes part in reading what may be split over them, and one writes.
    rows = run.bank.rows(run.state, np.arange(len(run.tasks))) if run.tasks else {}
    if config.method == "adapter":
        shared = sharding.to_host(run.state.weights["shared"])
        if jax.process_index() == 0:
            _export_adapter(run, shared, rows, step, task_steps, results)
    else:
        _export_backbone(run, step, results)
    processes.barrier("exported")
    return results


def _as_stored(leaf, config):
    return leaf.astype(config.export.dtype).astype(leaf.dtype)


def _export_adapter(run: Run, shared, rows: dict, step: int, task_steps: dict[str, int], results: dict | None) -> None:
    """Writes W/adapter from `shared`, what the tasks share, and the rows of the bank."""
    folder, scored = run.workdir / "adapter", _scores(results)
    earlier = {} if run.start is None else {entry["name"]: entry for entry in run.start.tasks_json}
    entries = []
    for row, (name, trained) in enumerate(zip(run.tasks, rows["count"] > 0, strict=True)):
        # A task that only came along says what it said where it was trained.
        entry = {"step": task_steps[name]} if trained or name not in earlier else earlier[name]
        if name in scored:
            entry = {**entry, "wer": scored[name], "suite": results["suite"]}
        if run.own is not None and run.own.shared is None:
            entry = {**entry, "vocabulary": run.own.of(name).to_json()}
        entries.append({**entry, "name": name, "row": row})
    in_common = run.own is not None and run.own.shared is not None
    adapter_folder.write_adapter(
        folder,
        method=methods.settings(run.method),
        weights={"shared": shared, "tasks": rows["tasks"]},
        tasks=entries,
        backbone={"name": run.base.name, "fingerprint": run.base.fingerprint},
        vocabulary=(run.own.shared if in_common else run.base.vocabulary).to_json(),
        accounting=accounting(run),
        results=results,
    )
    print(f"exported step {step} to {folder}", flush=True)


def _export_backbone(run: Run, step: int, results: dict | None) -> None:
    """Writes W/backbone from the state, a weight at a time; all processes must call it, and process 0 writes."""
    weights = flatten(run.state.weights["backbone"], separator=".")

    def read(name: str) -> np.ndarray:
        return sharding.to_host(weights[name])

    if jax.process_index():
        # In the order in which process 0 asks for them.
        for name in sorted(weights):
            read(name)
        return
    config, folder = run.config, run.workdir / "backbone"
    wer = None if results is None else {run.test.suite.name: results["wer"]}
    source_license = "" if run.base.files is None else run.base.files.info.get("license", "")
    made_by = {"method": config.method, "config": json.loads(config_to_json(config)), "step": step}
    backbone_folder.write(
        folder,
        read,
        features=run.base.features,
        encoder=run.base.encoder,
        vocabulary=run.base.vocabulary.to_json(),
        dtype=config.export.dtype,
        info={"name": run.base.name, "source": made_by, "license": source_license, "wer": wer},
    )
    print(f"exported step {step} to {folder}", flush=True)


def _scores(results: dict | None) -> dict[str, float]:
    """The word error rate of each adapter task that one task of the suite is recognised with."""
    rates: dict[str, list[float]] = {}
    for task in () if results is None else results["tasks"].values():
        rates.setdefault(task["adapter_task"], []).append(task["wer"])
    return {name: wers[0] for name, wers in rates.items() if len(wers) == 1}


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "Work directory: checkpoints, metrics, exports, results.", required=True)
    processes.define_flags()


def main(argv) -> int:
    """Entry point."""
    del argv
    processes.initialize(heartbeat_seconds=FLAGS.config.distributed.heartbeat_seconds)
    setup_jax()
    return train(FLAGS.config, FLAGS.workdir)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, config_flag=True))
