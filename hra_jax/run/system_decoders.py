"""The decoders of systems and suites that are evaluated together."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hra_jax.config.keys import group
from hra_jax.data.utterance import Utterance
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import TRAIN, DecodeSettings
from hra_jax.errors import UserError
from hra_jax.evaluation.runner import SuiteRunner
from hra_jax.evaluation.suites import Suite
from hra_jax.run.decoders import Models, check_tasks, make_decoder, settings_of, training_models
from hra_jax.run.systems import BASE, System
from hra_jax.run.workdirs import LANGUAGE


@dataclasses.dataclass(frozen=True)
class SystemDecoders:
    """Decoders of systems and suites that are evaluated together.

    Attributes:
      settings: by suite.
      beside: the first system that is compared with the frozen base, which is decoded as that one is; None for none.
      train: the language models of the run whose checkpoints are among them.
      tasks: those of all systems.
    """

    settings: Mapping[str, DecodeSettings]
    beside: System | None
    train: Models | None
    tasks: frozenset[str] = frozenset()

    def of(self, system: System, runner: SuiteRunner, suite: Suite) -> Decoder | None:
        """The decoder of a suite on a system; arguments and errors are those of `make_decoder`."""
        as_system = self.beside if system.name == BASE and self.beside is not None else system
        if as_system is not system and as_system.own is not None:
            return None  # the base has another vocabulary
        check_tasks(self.settings[suite.name], runner, self.tasks)
        return make_decoder(self.settings[suite.name], runner, adapter=as_system.held, train=self.train)


def for_systems(
    known: Sequence[System],
    suites: Sequence[Suite],
    config: ConfigDict,
    asked: Mapping[str, Any] | None,
    *,
    workdir: epath.PathLike | None,
    trained: Sequence[Sequence[Utterance]] | None,
) -> SystemDecoders:
    """What is known of decoding before the runners are made; a collective.

    Args:
      known: the systems.
      suites: what is evaluated.
      config: of the run, or the default one.
      asked: keys and values of the command.
      workdir: of the run, if any.
      trained: what it trained on, by source; None where that is not all here.
    """
    settings = {suite.name: settings_of(group(config, "decode"), suite, asked) for suite in suites}

    def utterances() -> Sequence[Sequence[Utterance]]:
        if trained is None:
            raise UserError(
                f"decode.lm = {TRAIN!r}: {workdir}/{LANGUAGE} has no language model, and it cannot be made, as not all "
                "manifests of the training data are here; allowed: a file of python -m hra_jax.lm, or '' for none"
            )
        return trained

    of_run = next((system for system in known if "step" in system.facts), None)
    train = None
    if workdir is not None and of_run is not None:
        written = (of_run.base.vocabulary, of_run.own, of_run.tasks)
        train = training_models(settings.values(), workdir, config, written, utterances)
    tasks = frozenset(task for system in known for task in system.tasks)
    return SystemDecoders(settings, next((system for system in known if system.beside), None), train, tasks)
