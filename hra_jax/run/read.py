"""The first stage of a run: everything that it reads. Nothing is laid out or put on a device here."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hra_jax.adapters import adapter_folder, initial, methods
from hra_jax.adapters.output_kinds import OWN_VOCABULARIES, SHARED_VOCABULARIES
from hra_jax.adapters.settings import AdapterSettings
from hra_jax.data import synthesize
from hra_jax.data.columns import texts_of
from hra_jax.data.learnt_vocabularies import own_vocabularies
from hra_jax.data.report import DataReport
from hra_jax.data.sounds import read_sounds
from hra_jax.data.sources import DataSettings, TableSource, read_sources
from hra_jax.errors import UserError
from hra_jax.evaluation.runner import EvaluationSettings
from hra_jax.evaluation.suites import Suite, load_suite
from hra_jax.models.augmentation import AugmentConfig
from hra_jax.run import foundation
from hra_jax.run.settings import PretrainSettings, RunSettings
from hra_jax.text.normalization import normalize_texts
from hra_jax.text.task_vocabularies import OwnVocabularies, stored_vocabularies
from hra_jax.text.vocabularies import Vocabulary
from hra_jax.training import agreement


@dataclasses.dataclass(frozen=True)
class Material:
    """What a run has read.

    Attributes:
      sources: the training manifests.
      base: the backbone: geometry, vocabulary, and the files of its weights.
      start: the exported adapter that the run starts from, if any.
      start_folder: where that is; '' for none.
      new_task: what a task starts as that `start` lacks.
      own: the vocabularies of tasks that do not write in the backbone's, if any.
      test, select: the suites `eval.suite` and `eval.select_suite`, with their utterances.
      sounds: the recordings that augmentation draws from, {kind: float32 [K, R]}.
    """

    sources: Sequence[TableSource]
    base: foundation.Foundation
    start: adapter_folder.ExportedAdapter | None
    start_folder: str
    new_task: str
    own: OwnVocabularies | None
    test: Suite | None
    select: Suite | None
    sounds: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read_material(
    settings: RunSettings,
    *,
    data: DataSettings,
    adapter: AdapterSettings,
    pretrain: PretrainSettings,
    augment: AugmentConfig,
    evaluation: EvaluationSettings,
    report: DataReport,
    suite_dir: str | None = None,
    render: bool = True,
) -> Material:
    """Reads data, backbone, the adapter to start from, and suites; renders the synthetic set first where one is named.

    Args:
      settings: the top-level keys of a validated configuration.
      data, adapter, pretrain, augment, evaluation: its groups.
      report: where unusable data goes.
      suite_dir: what `{dir}` in the manifests of suites stands for; None means `data.dir`.
      render: whether a synthetic set may be rendered; otherwise it must be there.

    Raises:
      UserError: anything that cannot be read, or that does not go together.
    """
    if settings.method != "pretrain":
        foundation.check_has_weights(settings.backbone)
    if data.synthetic:
        if not data.dir:
            raise UserError(f"data.synthetic = {data.synthetic!r} needs data.dir, the folder to render into")
        if render:
            _render(data.synthetic, data.dir)
        else:
            synthesize.check_rendered(data.synthetic, data.dir)
    sources = training_sources(data, report)
    if settings.method == "pretrain":
        base = foundation.new(pretrain, _texts(sources, data.text_normalizer))
    else:
        base = foundation.load(settings.backbone)
    start, own = None, None
    if settings.method == "adapter":
        start = _start(adapter, base)
        own = _own_vocabularies(adapter, base, sources, start, data=data)
    test, select = (
        load_suite(place, data_dir=data.dir if suite_dir is None else suite_dir, report=report, modules=data.modules)
        if place
        else None
        for place in (evaluation.suite, evaluation.select_suite)
    )
    rate = base.features.sample_rate
    sounds = read_sounds(augment, folder=data.dir, sample_rate=rate, report=report, modules=data.modules)
    return Material(sources, base, start, adapter.start if start else "", adapter.new_task, own, test, select, sounds)


def _render(name: str, folder: str) -> None:
    """Renders the synthetic set, once: process 0 does, and the others wait. Where they see other disks, each does."""
    agreement.first_alone(lambda: synthesize.render(name, folder))
    synthesize.render(name, folder, progress=False)


def training_sources(data: DataSettings, report: DataReport) -> list[TableSource]:
    """The training data of a configuration, read, but for its audio.

    Raises:
      UserError: there is none, or some cannot be read.
    """
    if not data.sources:
        raise UserError("data.sources = (): allowed is at least one (name, source, rate)")
    sources = read_sources(data.sources, report=report, data_dir=data.dir, modules=data.modules)
    if data.draw == "tasks" and len(sources) > len(data.sources):
        raise UserError("data.draw = 'tasks': a Mixture in data.sources has rates; allowed: 'utterances', or its Tasks")
    return sources


def _texts(sources: Sequence[TableSource], normalizer: str) -> list[str]:
    """The normalised training texts."""
    written = texts_of(source.utterances for source in sources)
    return [text for texts in written for text in normalize_texts(texts, normalizer)]


def _start(adapter: AdapterSettings, base: foundation.Foundation) -> adapter_folder.ExportedAdapter | None:
    if adapter.start:
        return initial.read_start(adapter.start, fingerprint=base.fingerprint, encoder=base.encoder)
    if adapter.new_task != "zero":
        raise UserError(f"adapter.new_task = {adapter.new_task!r}: needs adapter.start, which is ''")
    return None


def _own_vocabularies(
    adapter: AdapterSettings,
    base: foundation.Foundation,
    sources: Sequence[TableSource],
    start: adapter_folder.ExportedAdapter | None,
    *,
    data: DataSettings,
) -> OwnVocabularies | None:
    if adapter.output not in OWN_VOCABULARIES:
        return None
    given: dict[str, Vocabulary] = {}
    shared: Vocabulary | None = None
    size, pieces = adapter.output_size, adapter.output_pieces
    # A start with another kind of output layer is refused with all else that differs, see `initial.check_start`.
    if start is not None and methods.from_folder(start.config).output == adapter.output:
        if adapter.new_task != "zero" and adapter.output not in SHARED_VOCABULARIES:
            value = adapter.new_task
            raise UserError(f"adapter.new_task = {value!r}: allowed is 'zero' where tasks have their own vocabulary")
        given, shared = stored_vocabularies(start.config, start.tasks_json, where=adapter.start)
        size = size or start.config["method"]["output_size"]
        # As many as the tasks there have; `adapter.output_pieces` is refused beside a start.
        pieces = max((vocabulary.size for vocabulary in given.values()), default=size)
    return own_vocabularies(
        sources,
        base=base.vocabulary,
        task_tag=data.task_tag,
        normalizer=data.text_normalizer,
        tasks=data.tasks,
        size=size,
        given=given,
        shared=shared,
        kind=adapter.output,
        pieces=pieces,
    )
