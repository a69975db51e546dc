"""The decoding of a run: language models of its training texts, weights and a beam tuned on the selection suite.

W/lm holds all; the adapter of the run has weights and beam as well, in tasks.json. They are tuned after the last step,
on `eval.select_suite`, and never on a suite that tests.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from hra_jax.adapters.task_records import DECODE
from hra_jax.config.keys import group
from hra_jax.console import tell
from hra_jax.decoding import tuning
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.grid import MEAN, Rates, compare_beams
from hra_jax.decoding.language_models import NOTHING_HELD, Held, chosen, held
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.evaluation.runner import SuiteRunner
from hra_jax.run import decoders, own_models
from hra_jax.run.decoders import Models
from hra_jax.run.exporting import add_field, decoded_as_before
from hra_jax.run.place import Run
from hra_jax.run.scoring import suite_weights
from hra_jax.text.ngram import LanguageModel
from hra_jax.training.agreement import agreed, first_alone


def check(run: Run, config: ConfigDict) -> None:
    """Refuses decoding that could not be done after the last step; the models of training texts come later.

    Raises:
      UserError: a language model, weights or phrases that are not there or not allowed.
    """
    for runner in (run.layout.test, run.layout.select):
        if runner is not None:
            settings = _settings(config, runner)
            decoders.check_tasks(settings, runner, run.layout.tasks)
            if "lm" not in runner.suite.decode:  # a suite may go without the model of the run
                settings.check_used(["lm_weight"], phrases=True)
            decoders.check(settings, runner, adapter=_held(run))


def training_models(run: Run, config: ConfigDict) -> Models | None:
    """Gives the language models of the training texts, in W/lm, where they are asked for; a collective."""
    runners = [runner for runner in (run.layout.test, run.layout.select) if runner is not None]
    settings = [_settings(config, runner) for runner in runners] or [group(config, "decode")]
    material = run.material
    written = (material.base.vocabulary, material.own, run.layout.tasks)
    return decoders.training_models(
        settings, run.workdir, config, written, lambda: [source.utterances for source in material.sources]
    )


def tune(run: Run, config: ConfigDict, train: Models | None, *, task_steps: Mapping[str, int]) -> None:
    """Tunes on the selection suite what is not given, and keeps it in W/lm and in the adapter; a collective.

    Args:
      run: the run, with the weights that it exports.
      config: its configuration.
      train: from `training_models`.
      task_steps: as for `exporting.export`.
    """
    runner, kept = run.layout.select, decoded_as_before(run)
    found = {} if runner is None else _found(run, config, runner, train)
    if found or run.material.start is not None:
        first_alone(lambda: _write(run, kept, found))
    if found:
        run.fields[DECODE] = found
        if run.settings.method == "adapter":
            add_field(run, DECODE, found, task_steps=task_steps)


def _found(run: Run, config: ConfigDict, runner: SuiteRunner, train: Models | None) -> dict[str, dict[str, Any]]:
    """What is found for the weights of a run on its selection suite; {} for nothing."""
    settings = _settings(config, runner)
    if train is None and decoders.needs_training_texts(settings):
        return {}
    weights = suite_weights(run, runner)
    return tuned_entries(
        runner,
        settings,
        lambda: runner.log_probs(
            run.layout.programs.decoded[1], weights, weights if run.frozen is None else run.frozen, progress=True
        ),
        adapter=_held(run),
        train=train,
        tasks=run.layout.tasks,
    )


def _write(run: Run, kept: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Writes into W/lm what the adapter of the run has: what it kept of the one it started from, and what was found."""
    known = own_models.read_tuned(run.workdir) if not found else {}
    before = _held(run).tuned  # of a task that was trained since, it may be known from when it was not
    now = {task: entry for task, entry in known.items() if entry != before.get(task)} | {**kept, **found}
    if now != known:
        own_models.write_tuned(run.workdir, now)


def tuned_entries(
    runner: SuiteRunner,
    settings: DecodeSettings,
    log_probs: Callable[[], Any],
    *,
    adapter: Held,
    train: Models | None,
    tasks: tuple[str, ...],
    per_task: bool = False,
) -> dict[str, dict[str, Any]]:
    """The best weights and beam on a suite by task, as tasks.json has them, with tables; {} where all is given.

    A collective.

    Args:
      runner: of the suite.
      settings: of decoding.
      log_probs: gives those of the suite, as `SuiteRunner.log_probs` does.
      adapter: what is held of decoding with the weights.
      train: gives the language models of training texts.
      tasks: of the adapter, which get an entry if they are searched for; of a backbone, which has none, the entry is
        that of the task ''.
      per_task: whether each task of the suite gets weights and a beam of its own, and no other task any.
    """
    vocabularies = decoders.vocabularies_of(runner)
    models = agreed(lambda: chosen(settings, vocabularies, adapter=adapter, train=train))
    # From here on the models are at hand.
    pairs = tuple((task, models.get(task, "")) for task in vocabularies)
    given = dataclasses.replace(settings, lm=pairs if models else "")
    plain = agreed(lambda: decoders.make_decoder(given, runner))
    axes = tuning.axes_of(given, models=bool(models), phrases=decoders.has_phrases(given, runner))
    widths = tuning.beams_of(given)
    if plain is None or not (axes or len(widths) > 1):
        return {}

    def decoder_of(values: Mapping[str, float], stored: Held = NOTHING_HELD) -> Decoder:
        return Decoder(tuning.with_values(given, values), vocabularies=vocabularies, adapter=stored, like=plain)

    suite, heard = runner.suite.name, tuning.Heard(log_probs())
    tuned = tuning.tune(runner, heard, decoder_of, axes, per_task=per_task, progress=True)

    def rates_of(beam: int) -> Rates:
        found = tuning.rates(runner, heard, decoder_of({**tuned.weights(), "beam": beam}))
        if not per_task:
            return found
        own = tuning.entries(tuned, beams, given, {task: models.get(task) for task in vocabularies}, suite=suite)
        return {**tuning.rates(runner, heard, decoder_of({"beam": beam}, Held(own, {}, ""))), MEAN: found[MEAN]}

    width = given.width(phrases=True)
    beams = compare_beams(rates_of, tuned, tuned_with=width, others=())
    beams = compare_beams(rates_of, tuned, tuned_with=width, others=widths)
    if jax.process_index() == 0:
        tuning.print_tables(tuned, beams, suite=suite)
    found = _models_by_task(
        tasks or ("",), {task: models.get(task) for task in vocabularies}, searched=decoders.searched(plain, runner)
    )
    own = {task: model for task, model in found.items() if task in vocabularies}
    # A task that was to have its own and was not looked at keeps what it has.
    return tuning.entries(tuned, beams, given, own if per_task and own else found, suite=suite)


def _models_by_task(
    tasks: Iterable[str], models: Mapping[str, LanguageModel | None], *, searched: Collection[str]
) -> dict[str, LanguageModel | None]:
    """The tasks for which something was found, each with its language model; None for none.

    Args:
      tasks: of the adapter. One that the suite lacks is decoded with the model of all others, if that is one.
      models: of the tasks of the suite.
      searched: those of the suite that are searched for. What was found with models is nothing for one that has none
        and is decoded greedily.
    """
    used = {model.digest: model for model in models.values() if model is not None}
    common = next(iter(used.values())) if len(used) == 1 else None
    every = {task: models.get(task, common) for task in tasks}
    return {task: model for task, model in every.items() if model is not None or task in searched or not used}


def decoder_of(run: Run, config: ConfigDict, runner: SuiteRunner, train: Models | None) -> Decoder | None:
    """The decoder of a suite of a run; None where that is greedy, or its language model could not be made."""
    settings = _settings(config, runner)
    if train is None and decoders.needs_training_texts(settings):
        return None
    # Tasks that were trained are others than those that were tuned before; what is scored is what is exported.
    adapter = _held(run)._replace(tuned=decoded_as_before(run) | run.fields.get(DECODE, {}))
    decoder = agreed(lambda: decoders.make_decoder(settings, runner, adapter=adapter, train=train))
    if decoder is not None and jax.process_index() == 0 and run.layout.select is None:
        along = ", those that came along with adapter.start" if adapter.tuned else ""
        tell(
            f"decoding is not tuned, as there is no eval.select_suite; weights and beam are those given{along}, or the "
            "defaults"
        )
    return decoder


def _settings(config: ConfigDict, runner: SuiteRunner) -> DecodeSettings:
    return decoders.settings_of(group(config, "decode"), runner.suite)


def _held(run: Run) -> Held:
    """What the adapter holds that the run started from."""
    start = run.material.start
    return NOTHING_HELD if start is None else held(start.tasks_json, start.records, where=run.material.start_folder)
