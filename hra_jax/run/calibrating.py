"""The calibration of what a run has exported, on the suite that its checkpoints were picked by."""

from collections.abc import Mapping

import jax

from hra_jax.adapters import task_records
from hra_jax.api import Backbone, Model, load_adapter
from hra_jax.console import tell
from hra_jax.decoding import calibration
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.evaluation.suites import Suite
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import workdirs
from hra_jax.run.decoders import Models, needs_training_texts, settings_of
from hra_jax.run.exporting import add_field
from hra_jax.run.place import Run
from hra_jax.tasks import calibrating
from hra_jax.training import sharding
from hra_jax.training.agreement import agreed


def calibrate(
    run: Run, suite: Suite, *, task_steps: Mapping[str, int], decode: DecodeSettings, train: Models | None
) -> None:
    """Writes into W/adapter how sure the words of its tasks are; all processes must call it.

    Each of several processes recognises its share of the utterances by itself.

    Args:
      run: the run after its export.
      suite: of validation.
      task_steps: as for `exporting.export`.
      decode: settings of the configuration; words that they search for are calibrated as well.
      train: gives the language models of the training texts; None where there are none.
    """
    files, folder = run.material.base.files, run.workdir / workdirs.ADAPTER
    if run.settings.method != "adapter" or files is None or run.frozen is None:
        return
    base = Backbone(files, sharding.by_itself(run.frozen), compute_dtype(run.settings.backbone_dtype))
    model = agreed(lambda: load_adapter(folder, base))
    decoder = agreed(lambda: _decoder(model, settings_of(decode, suite), train))
    try:
        found = calibration.measure(model, suite, decoder=decoder)
    except calibration.NothingSaid as error:
        if jax.process_index() == 0:
            tell(f"words are not calibrated: {error}")
        return
    if jax.process_index() == 0:
        tell(calibrating.summary(found), calibrating.lines(found)[-1])
    add_field(run, task_records.CALIBRATION, found, task_steps=task_steps)


def _decoder(model: Model, settings: DecodeSettings, train: Models | None) -> Decoder | None:
    """The decoder of the tasks of a model, with the weights that were tuned for it; None without its language model."""
    if train is None and needs_training_texts(settings):
        return None
    vocabularies = {task: model.vocabulary(task) for task in model.tasks}
    return Decoder(settings, vocabularies=vocabularies, adapter=model.held, train=train)
