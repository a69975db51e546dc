"""The decoder of a suite: what its settings name is looked up in a run, in an adapter, or in files, before it runs."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hra_jax.config.keys import group
from hra_jax.data.utterance import Utterance
from hra_jax.decoding import phrases
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.language_models import NOTHING_HELD, Held
from hra_jax.decoding.settings import TRAIN, DecodeSettings, decode_settings
from hra_jax.evaluation.runner import SuiteRunner
from hra_jax.evaluation.suites import Suite
from hra_jax.run import own_models
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK
from hra_jax.text.ngram import LanguageModel
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import Vocabulary

GREEDY = {"method": "greedy"}  # as results say it
Models = Callable[[str], LanguageModel]  # of the training texts, by task


def settings_of(settings: DecodeSettings, suite: Suite, asked: Mapping[str, Any] | None = None) -> DecodeSettings:
    """How a suite is decoded: as it says itself, and else as the configuration does; what was asked for goes before.

    Args:
      settings: those of the configuration.
      suite: the suite.
      asked: keys and values of the command.

    Raises:
      UserError: what is asked for would do nothing.
    """
    own = decode_settings(suite.decode, where=f"suite {suite.name!r}, decode", base=settings)
    found = decode_settings(asked or {}, base=own)
    if asked:
        found.check_used(asked, phrases=any(phrases.of_line(row.tags) for row in suite.utterances))
    return found


def check_tasks(settings: DecodeSettings, runner: SuiteRunner, tasks: Iterable[str]) -> None:
    """Refuses settings that name tasks which are neither of a suite nor among those of what it is run with."""
    settings.check_tasks({*tasks, *runner.adapters, BASE_TASK, MEAN_TASK})


def needs_training_texts(settings: DecodeSettings) -> bool:
    """Whether the language model of any task is that of the training texts of a run."""
    return TRAIN in ([settings.lm] if not isinstance(settings.lm, tuple) else [model for _, model in settings.lm])


def training_models(
    settings: Iterable[DecodeSettings],
    workdir: epath.PathLike,
    config: ConfigDict,
    written: tuple[Vocabulary, OwnVocabularies | None, Sequence[str]],
    trained: Callable[[], Sequence[Sequence[Utterance]]],
) -> Models | None:
    """Gives the language models of what a run trains on, in W/lm, where any settings ask for them; a collective.

    Args:
      settings: of all that is to be decoded.
      workdir: the work directory of the run.
      config: its configuration.
      written: the vocabulary of its backbone, those that tasks have of their own, and its tasks.
      trained: gives what it trains on, by source, where a model is still to be made.
    """
    if not any(map(needs_training_texts, settings)):
        return None
    return own_models.models_of(
        workdir,
        trained,
        own_models.vocabularies_of(*written),
        task_tag=config.data.task_tag,
        normalizer=group(config, "data").text_normalizer,
    )


def vocabularies_of(runner: SuiteRunner) -> dict[str, Vocabulary]:
    """The vocabulary of everything that a suite is recognised with, with the ids of a batch."""
    names = [*runner.adapters, *(runner.tasks if runner.finds_tasks else ())]
    return {name: runner.table.vocabulary_of(name) for name in dict.fromkeys(names)}


def make_decoder(
    settings: DecodeSettings,
    runner: SuiteRunner,
    *,
    adapter: Held = NOTHING_HELD,
    train: Models | None = None,
) -> Decoder | None:
    """The decoder of a suite; None where all of it is greedy.

    Args:
      settings: from `settings_of`.
      runner: of the suite.
      adapter: what is held of decoding with the weights that the suite is run with.
      train: gives the language model of the training texts, by task; None where there is no run.

    Raises:
      UserError: a language model, weights or phrases that are not there or not allowed.
    """
    vocabularies = vocabularies_of(runner)
    decoder = Decoder(settings, vocabularies=vocabularies, adapter=adapter, train=train)
    searches = _check_phrases(decoder, runner) or any(decoder.searches(name) for name in vocabularies)
    return decoder if searches else None


def searched(decoder: Decoder, runner: SuiteRunner) -> set[str]:
    """The tasks of which any utterance of a suite is searched for, and not decoded greedily."""
    sources = enumerate(runner.table.source.tolist())
    own = {runner.adapters[source] for number, source in sources if runner.phrases_of(number)}
    return own | {name for name in vocabularies_of(runner) if decoder.searches(name)}


def has_phrases(settings: DecodeSettings, runner: SuiteRunner) -> bool:
    """Whether any utterance of a suite has phrases, its own or those of its task."""
    of_tasks = any(settings.phrases_of(name) for name in vocabularies_of(runner))
    return of_tasks or any(runner.phrases_of(number) for number in range(len(runner.table)))


def check(settings: DecodeSettings, runner: SuiteRunner, *, adapter: Held = NOTHING_HELD) -> None:
    """Refuses what `make_decoder` would refuse, but for the models of training texts, which may be made later."""
    vocabularies = vocabularies_of(runner)
    if needs_training_texts(settings):
        given = {task: model for task in vocabularies if (model := settings.model_of(task)) is not None}
        pairs = tuple((task, "" if model == TRAIN else model) for task, model in given.items())
        settings = dataclasses.replace(settings, lm=pairs)
    _check_phrases(Decoder(settings, vocabularies=vocabularies, adapter=adapter), runner)


def _check_phrases(decoder: Decoder, runner: SuiteRunner) -> bool:
    """Whether there are utterances with phrases, all of which can be written."""
    found = False
    for number, source in enumerate(runner.table.source.tolist()):
        if phrases := runner.phrases_of(number):
            decoder.check_phrases(runner.adapters[source], phrases, where=runner.table.utterances[number].key)
            found = True
    return found


def facts_of(decoder: Decoder | None, runner: SuiteRunner) -> dict[str, Any]:
    """How a suite is decoded, as results have it."""
    if decoder is None:
        return dict(GREEDY)
    facts = decoder.facts()
    own = [number for number in range(len(runner.table)) if runner.phrases_of(number)]
    if own:
        # What decodes one of them; the number of its phrases is its own.
        task = runner.adapters[runner.table.source[own[0]]]
        one = decoder.facts_of(task, runner.phrases_of(own[0]))
        if facts == GREEDY:
            facts = {"others": "greedy"} if len(own) < len(runner.table) else {}
        facts = {name: value for name, value in one.items() if name != "phrases"} | facts
        whole = {(int(runner.table.source[number]), runner.table.utterances[number].key) for number in own}
        facts |= {"utterances_with_phrases": len(whole)}  # not their parts
    return facts
