"""Trains an adapter, fine-tunes a backbone, or pre-trains one; the same command again resumes.

python -m hra_jax.train --config quickstart --workdir runs/quickstart
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from hra_jax import cli
from hra_jax.config.files import validate_config
from hra_jax.config.keys import group
from hra_jax.console import error_line, listed, tell
from hra_jax.data.batching import BatchSettings
from hra_jax.data.drawn import draw_weights
from hra_jax.data.durations import padding_share
from hra_jax.data.loader import TrainLoader
from hra_jax.data.sources import DataSettings
from hra_jax.errors import DamagedError, UserError
from hra_jax.evaluation.report import evaluation_command
from hra_jax.evaluation.results import evaluate_results
from hra_jax.evaluation.runner import EvaluationSettings, SuiteRunner
from hra_jax.run import mixing, processes, tuning, voices
from hra_jax.run.calibrating import calibrate
from hra_jax.run.exporting import BEST_PER_TASK, ExportSettings, add_results, add_voices, as_stored, export
from hra_jax.run.jax_setup import setup_jax
from hra_jax.run.place import Run
from hra_jax.run.saving import open_checkpoints, restore, restore_step, save
from hra_jax.run.scoring import (
    accounting,
    attempt,
    base_weights,
    check_leaks,
    data_report,
    recognise,
    score,
    suite_weights,
    untrained,
    write_data_report,
)
from hra_jax.run.skipped_steps import SkippedSteps
from hra_jax.run.stages import prepare
from hra_jax.run.workdirs import DATA_REPORT, claim, forget_files, list_files, write_config
from hra_jax.tpu import topologies
from hra_jax.training import agreement, sharding, train_state
from hra_jax.training.checkpoints import Checkpoints
from hra_jax.training.flops import CountedStep
from hra_jax.training.metrics import MetricWriter
from hra_jax.training.optimizer import jump
from hra_jax.training.preemption import PreemptionGuard, stops_at_once
from hra_jax.training.profiling import Profiler, ProfileSettings
from hra_jax.training.progress import Progress
from hra_jax.training.step import LOST
from hra_jax.training.stored_checkpoint import METRIC
from hra_jax.training.timing import Compilations, StepTimes

FLAGS = flags.FLAGS
NOT_SCORED = 4  # exit status: trained and exported, but a validation or the evaluation failed


def train(config: ConfigDict, workdir: epath.PathLike) -> int:
    """Trains as a configuration says, then evaluates, exports and prints the table.

    Args:
      config: a configuration as `hra_jax.config.files.load_config` gives it.
      workdir: the work directory; one that holds checkpoints of the same configuration is continued.

    Returns:
      The exit status: 0; 4 where all is trained and exported, but a validation or the evaluation failed, or another
      checkpoint is exported than the best one, which is damaged; or 75 after SIGTERM and 130 after Ctrl-C, with
      everything saved.

    Raises:
      SystemExit: SIGTERM came after the last step; the status is 75.
      UserError: a wrong configuration, bad data, or a work directory of another run.
    """
    # ------------------------------------------------------------------------------------------------------- validate
    validate_config(config)
    evaluation, exported = group(config, "eval"), group(config, "export")
    with (
        claim(config, workdir) as claimed,
        data_report(claimed.path, strict=config.data.strict, keep=claimed.resumed) as report,
    ):
        if jax.process_index() == 0:
            forget_files(claimed.path)
        # ------------------------------------------------------------------------------------- read, lay out and place
        asked = config.batch.buckets
        run = prepare(config, claimed.path, report, begins=not claimed.resumed)
        tuning.check(run, config)
        if config.batch.buckets != asked:  # they were found in the data: whoever goes on, goes on with them
            write_config(config, claimed.path)
        with open_checkpoints(run, group(config, "checkpoint")) as checkpoints:
            # ---------------------------------------------------------------------------------------- restore and loop
            position = _restore_or_start(run, checkpoints, steps_before=claimed.steps)
            stopped = _loop(
                run,
                checkpoints,
                position=position,
                data=group(config, "data"),
                batch=group(config, "batch"),
                evaluation=evaluation,
                profile=group(config, "profile"),
                keep_best_rows=exported.step == BEST_PER_TASK,
            )
            if stopped:
                return stopped
            # -------------------------------------------------------------------------------------------------- finish
            with stops_at_once("stopped by SIGTERM after the last step; the same command evaluates and exports"):
                finish(run, checkpoints, config=config, exported=exported, bootstrap=evaluation.bootstrap)
            if run.failures and jax.process_index() == 0:
                failed = "; ".join(run.failures)
                error_line(f"everything is trained and exported, but: {failed}")
    if jax.process_index() == 0:
        list_files(claimed.path)
    return NOT_SCORED if run.failures else 0


# ======================================================================================================================
# Before the first step
# ======================================================================================================================


def _restore_or_start(run: Run, checkpoints: Checkpoints, *, steps_before: int) -> dict[str, Any] | None:
    """Restores the newest checkpoint that is whole; returns its data position, None for a run that begins.

    Args:
      run: the run.
      checkpoints: its checkpoints.
      steps_before: how many steps it was to have when it was last started.
    """
    newest = checkpoints.latest_step()
    agreement.check_agreement({"newest checkpoint": str(newest)})
    position = None if newest is None else restore_step(run, checkpoints)[1]
    start, steps = int(run.state.step), run.settings.steps
    _announce(run, start)
    if start > steps:
        raise UserError(f"steps = {steps}: the run is already at step {start}; allowed is {start} or more")
    optimizer = run.layout.programs.optimizer
    found = jump(optimizer, steps_before, step=start) if start < steps != steps_before else None
    if found and jax.process_index() == 0:
        tell(
            f"  steps were {steps_before} and are {steps}, and so the schedule {optimizer.schedule!r} is another one: "
            f"the learning rate of the next step is {found[1]:.3g}; it would have been {found[0]:.3g}"
        )
    return position


def _announce(run: Run, start: int) -> None:
    """Prints what is trained, by name and number, at start and at resume."""
    if jax.process_index() != 0:
        return
    numbers, base, tasks, table = run.layout.accounting, run.material.base, run.layout.tasks, run.layout.table
    tell(f"{'resuming at step ' + str(start) if start else 'starting'}: method {run.settings.method}")
    for line in train_state.describe(run.bank.described(run.state)):
        tell(f"  trained  {line}")
    frozen = 0 if run.frozen is None else numbers["backbone_parameters"]
    tell(
        f"  trained {numbers['trainable_parameters']:,} parameters "
        f"(shared {numbers['shared_parameters']:,}{' kept as they are' if run.state.fixed else ''} + "
        f"{numbers['tasks']} tasks x {numbers['parameters_per_task']:,}), "
        f"frozen {frozen:,} ({base.name}, {base.fingerprint[:12] or 'new'})"
    )
    learning = table.learning
    if len(learning) < len(tasks):
        names = ", ".join(tasks[row] for row in learning[:10]) + (", ..." if len(learning) > 10 else "")
        tell(f"  only {len(learning)} of the {len(tasks)} tasks have data and train: {names}")
    rows, hours = len(table), table.duration.sum() / 3600
    tell(f"  data: {rows:,} utterances, {hours:.2f} h; {run.report.summary()}")


# ======================================================================================================================
# The loop
# ======================================================================================================================


def _loop(
    run: Run,
    checkpoints: Checkpoints,
    *,
    position: dict[str, Any] | None,
    data: DataSettings,
    batch: BatchSettings,
    evaluation: EvaluationSettings,
    profile: ProfileSettings,
    keep_best_rows: bool,
) -> int:
    """Trains to the last step; the exit status where a signal stopped it, else 0. What was trained is left in `run`."""
    layout, start, steps = run.layout, int(run.state.step), run.settings.steps
    if start == steps:
        return 0
    loader = _loader(run, data, batch, position=position)
    writer, progress = MetricWriter(run.workdir, resume_step=start), Progress(steps, start_step=start)
    profiler = Profiler(run.workdir / "profile", start_step=profile.start_step, steps=profile.steps)
    peak = 1e12 * profile.peak_tflops or topologies.peak_flops(layout.mesh.devices.flat[0].device_kind)
    validates, validated = functools.partial(_validates, run, evaluation), False
    flops_of = CountedStep(layout.programs.counted, run.bank.hyper)
    times, last = StepTimes(devices=layout.mesh.size, peak=peak), None
    most = layout.programs.optimizer.max_skipped_steps
    skipped = SkippedSteps(most=most, report=run.report, name_of=layout.table.name, start=start, position=position)
    compiled = Compilations(len(batch.edges), tell=progress.note, about=_tell_batches(run, batch))
    with loader, writer, progress, profiler, PreemptionGuard() as guard:
        times.restart()
        for step in range(start + 1, steps + 1):
            # ------------------------------------------------------------------------------------------------ one step
            profiler.before(step, run.state)
            with times.input_wait(last):
                rows = next(loader)
            arrays = sharding.shard_batch(rows, layout.mesh)
            flops = flops_of(run.bank.as_stepped(run.state), run.frozen, arrays) if peak else 0
            with compiled.step(rows["waveform"].shape[1], last=step == steps):
                run.state, outputs = run.bank.step(run.state, run.frozen, arrays, loader.tasks)
            times.stepped(flops)
            guard.stepped()
            skipped.stepped(step, outputs, rows["utterance"])
            last = outputs["loss"]

            # ------------------------------------------------------------------------------------------- skipped steps
            # Looking waits for the device; where there is something to write, it is waited for anyway.
            written = step == start + 1 or writer.due(step) or step == steps
            if written or validates(step) or checkpoints.due(step):
                skipped.look(progress.note)

            # ------------------------------------------------------------------------------------------------ metrics
            loss = None
            if written:
                metrics = {name: float(value) for name, value in outputs.items()}
                loss = metrics["loss"]
                metrics |= times.take() | {"skipped_steps": skipped.total}
                writer.write(step, {f"train/{name}": value for name, value in metrics.items()})
                _check_tasks(step, metrics, tasks=len(layout.tasks), max_tasks=batch.max_tasks)
            progress.update(step, audio_seconds=loader.audio_seconds, loss=loss)

            # ---------------------------------------------------------------------------------------------- validation
            scores = None
            if layout.select and validates(step) and not skipped.too_many:
                validate = functools.partial(_validate, run, layout.select, step, writer, keep_best_rows=keep_best_rows)
                with times.part("elsewhere"):
                    scores = attempt(run, f"the validation at step {step}", validate)
                validated = True
                if scores is not None:
                    progress.note(f"step {step}: {layout.select.suite.name} macro WER {scores[METRIC]:.2%}")

            # --------------------------------------------------------------------------------------------- checkpoints
            stop = guard.requested(step)
            # What the first validation does to the memory of a machine is not known: the step before it is safe.
            guards = not validated and validates(step + 1)
            force = stop or validates(step) or guards or skipped.too_many or step == steps
            if force or checkpoints.due(step):
                with times.part("checkpoint"):
                    skipped.look(progress.note)
                    mixing.note(run, loader.drawn, writer, step)
                    save(run, checkpoints, step, position=skipped.onto(loader.position()), metrics=scores, force=force)
                    write_data_report(run)
                    if guards:
                        checkpoints.wait()
            if skipped.too_many:
                checkpoints.wait()
                raise skipped.error(step, report=DATA_REPORT)
            if stop:
                checkpoints.wait()
                progress.note(f"stopped by {guard.reason or 'a signal'} at step {step}; everything is saved")
                return guard.status
            if step == start + 1:
                times.restart()  # the first step is mostly compilation
    _tell_used(run, skipped, loader.drawn)
    return 0


def _tell_batches(run: Run, batch: BatchSettings) -> str:
    """Prints what the batches are, and what will be drawn; returns how much of them is padding, and in one bucket."""
    table, weights = run.layout.table, draw_weights(run.layout.table, run.layout.parts)
    share, in_one = (padding_share(table.duration, edges, weights) for edges in (batch.edges, batch.edges[-1:]))
    padded = f"{share:.1%} of the audio in batches is padding"
    if len(batch.edges) > 1:
        padded += f", and would be {in_one:.1%} in one bucket"
    if jax.process_index() == 0:
        edges = ", ".join(f"{edge:g}" for edge in batch.edges)
        tell(f"  batches: {batch.seconds:g} s, in buckets of at most {edges} s; {padded}")
    mixing.foresee(run, batch)
    return padded


def _tell_used(run: Run, skipped: SkippedSteps, drawn: Sequence[int]) -> None:
    """Tells, after the last step, what was drawn, which data could not be used, and how many steps were skipped."""
    never = mixing.undrawn(run, drawn)
    write_data_report(run)
    if jax.process_index() != 0:
        return
    mixing.tell_drawn(run, drawn, never)
    tell(f"data: {run.report.summary()}")
    if skipped.total:
        tell(f"{skipped.total} of {run.settings.steps} steps were skipped, as their loss or a gradient was not finite")


def _loader(run: Run, data: DataSettings, batch: BatchSettings, *, position: dict[str, Any] | None) -> TrainLoader:
    """The training batches from a position on."""
    return TrainLoader(
        run.layout.table,
        seed=run.settings.seed,
        batch_seconds=batch.seconds,
        buckets=batch.edges,
        multiple=batch.multiple,
        max_tasks=batch.max_tasks,
        position=position,
        local_rows=functools.partial(sharding.local_rows, run.layout.mesh),
        threads=data.threads,
        draw=data.draw,
        parts=run.layout.parts,
        report=run.report,
        hashes=run.hashes,
    )


def _validates(run: Run, evaluation: EvaluationSettings, step: int) -> bool:
    """Whether a step ends with a validation."""
    steps = run.settings.steps
    return run.layout.select is not None and step <= steps and (step % evaluation.every_steps == 0 or step == steps)


def _check_tasks(step: int, metrics: dict[str, float], *, tasks: int, max_tasks: int) -> None:
    """Refuses, with a UserError, to go on with utterances whose task has no row."""
    if metrics.get(LOST):
        raise UserError(
            f"step {step}: {metrics[LOST]:.0f} utterances name a task that is not one of the bank's {tasks}, or is "
            f"beyond batch.max_tasks = {max_tasks} of one batch"
        )


def _validate(
    run: Run, select: SuiteRunner, step: int, writer: MetricWriter, *, keep_best_rows: bool
) -> dict[str, float]:
    """Scores the selection suite, and keeps the best macro WER and the best per task in `run.best`."""
    best = run.best
    base = agreement.agreed(lambda: base_weights(run))
    rows, loss, _ = recognise(run, select, suite_weights(run, select), base, again=True)
    results = agreement.agreed(lambda: evaluate_results(rows, select.suite, accounting=accounting(run), bootstrap=0))
    values = {"": results["wer_macro"]} | {name: task["wer"] for name, task in results["tasks"].items()}
    for name, wer in values.items():
        found = best.setdefault("tasks", {}).get(name) if name else best.get("macro")
        if found is None or wer < found["wer"]:
            entry = {"wer": wer, "step": step}
            best["tasks"].update({name: entry}) if name else best.update(macro=entry)
    if keep_best_rows:
        _keep_best_rows(run, step, results)
    suite = select.suite.name
    scalars = {f"{suite}/wer_macro": values.pop(""), f"{suite}/loss": loss}
    scalars |= {f"{suite}/wer/{name}": wer for name, wer in values.items()}
    agreement.agreed(lambda: writer.write(step, scalars))
    return {METRIC: results["wer_macro"]}


def _keep_best_rows(run: Run, step: int, results: dict[str, Any]) -> None:
    """Copies the rows of the tasks that have never been better to `run.best_rows`."""
    rates: dict[str, list[float]] = {}
    for task in results["tasks"].values():
        rates.setdefault(task["adapter_task"], []).append(task["wer"])
    found, numbers = run.best.setdefault("rows", {}), {name: row for row, name in enumerate(run.layout.tasks)}
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


def finish(
    run: Run, checkpoints: Checkpoints, *, config: ConfigDict, exported: ExportSettings, bootstrap: int
) -> dict[str, Any] | None:
    """Exports what was trained, scores the test suite on it, and prints the table.

    Args:
      run: the run after its last step.
      checkpoints: its checkpoints.
      config: its configuration, which an exported backbone tells.
      exported: what is exported.
      bootstrap: resamples of the intervals.

    Returns:
      The results, or None without a test suite, or where its evaluation failed.

    Raises:
      StorageUnavailable: the evaluation failed for that; everything is exported.
    """
    stitched, test = exported.step == BEST_PER_TASK, run.layout.test
    step = _take_exported(run, checkpoints, _checkpoint_to_export(run, checkpoints, exported))
    task_steps = dict.fromkeys(run.layout.tasks, step)
    if stitched:
        run.state = run.best_rows.onto(run.bank, run.state)
        task_steps |= {name: entry["step"] for name, entry in run.best.get("rows", {}).items()}
    export(run, config=config, dtype=exported.dtype, step=step, task_steps=task_steps)
    _tell_untrained(run)
    models = attempt(run, "the language model of the training texts", lambda: tuning.training_models(run, config))
    attempt(run, "tuning how to decode", lambda: tuning.tune(run, config, models, task_steps=task_steps))
    attempt(run, "hearing the tasks", lambda: _add_voices(run, config, task_steps=task_steps), comes_again=True)
    if run.layout.select is not None:
        chosen = run.layout.select.suite
        attempt(run, f"the look at suite {chosen.name!r}", lambda: check_leaks(run, chosen), comes_again=True)
        if config.eval.calibrate:
            decode = group(config, "decode")
            attempt(
                run,
                "the calibration",
                lambda: calibrate(run, chosen, task_steps=task_steps, decode=decode, train=models),
                comes_again=True,
            )
    if test is None:
        return None

    def evaluated() -> dict[str, Any]:
        weights = suite_weights(run, test)
        if "backbone" in weights:
            # What is scored is what is stored.
            weights = {"backbone": as_stored(weights["backbone"], exported.dtype)}
        command = evaluation_command(workdir=str(run.workdir), suite=config.eval.suite, step=str(step))
        decoder = tuning.decoder_of(run, config, test, models)
        # No checkpoint has rows of several steps.
        command = "" if stitched else command
        return score(run, test, weights, step=step, bootstrap=bootstrap, command=command, decoder=decoder)

    results = attempt(run, f"the evaluation of suite {test.suite.name!r}", evaluated, comes_again=True)
    if results is not None:
        add_results(run, results, task_steps=task_steps)
    return results


def _add_voices(run: Run, config: ConfigDict, *, task_steps: Mapping[str, int]) -> None:
    """Tells the exported adapter how its tasks sound, where it is to know and there are recordings of tasks."""
    if config.export.voices and voices.has_any(run):
        data, batch = group(config, "data"), group(config, "batch")
        found = voices.find(run, data=data, batch=batch, batch_seconds=config.eval.batch_seconds)
        add_voices(run, found, task_steps=task_steps)


def _checkpoint_to_export(run: Run, checkpoints: Checkpoints, exported: ExportSettings) -> str:
    """Which checkpoint is exported; the last one where none was scored."""
    if exported.step != "best":
        return "last"
    checkpoints.wait()  # the score of a checkpoint in flight is not there yet
    if checkpoints.best_step() is None:
        run.failures.append("no checkpoint was scored, so the last one is exported in place of the best")
        return "last"
    return "best"


def _take_exported(run: Run, checkpoints: Checkpoints, which: str) -> int:
    """Puts the checkpoint that is exported into the run; the newest whole one where it is damaged. Returns its step."""
    step = checkpoints.resolve(which)
    if step == int(run.state.step):
        return step
    try:
        restore(run, checkpoints, step)
    except DamagedError as error:
        checkpoints.pass_over(step)
        newest, _ = restore_step(run, checkpoints)
        run.failures.append(f"the {which} checkpoint, {step}, is damaged, so {newest} is exported in its place")
        if jax.process_index() == 0:
            error_line(f"{error}; checkpoint {newest} is exported in its place")
        return newest
    return step


def _tell_untrained(run: Run) -> None:
    """Prints the tasks that had no step; all processes must call it."""
    names, tasks = untrained(run), len(run.layout.tasks)
    if names and jax.process_index() == 0:
        tell(f"{len(names)} of {tasks} tasks had no step and are as they started: {listed(names)}")


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "Work directory: checkpoints, metrics, exports, results.", required=True)
    processes.define_flags()


def main(argv: Sequence[str]) -> int:
    """Trains as the flags say."""
    del argv
    processes.initialize(heartbeat_seconds=FLAGS.config.distributed.heartbeat_seconds)
    setup_jax()
    return train(FLAGS.config, FLAGS.workdir)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags, config_flag=True)
