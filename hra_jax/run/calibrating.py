"""The calibration of what a run has exported, on the suite that its checkpoints were picked by."""

from collections.abc import Mapping

import jax

from hra_jax.adapters import task_records
from hra_jax.api import Backbone, load_adapter
from hra_jax.console import tell
from hra_jax.decoding import calibration
from hra_jax.decoding.decoder import Decoder
from hra_jax.evaluation.suites import Suite
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import workdirs
from hra_jax.run.exporting import add_field
from hra_jax.run.place import Run
from hra_jax.tasks import calibrating


def calibrate(run: Run, suite: Suite, *, task_steps: Mapping[str, int], decoder: Decoder | None = None) -> None:
    """Writes into W/adapter how sure the words of its tasks are; all processes must call it.

    Several processes would have to recognise together, which recognition from Python does not: they say which command
    does it.

    Args:
      run: the run after its export.
      suite: of validation.
      task_steps: as for `exporting.export`.
      decoder: of which the tasks that are searched are calibrated as well.
    """
    files, folder = run.material.base.files, run.workdir / workdirs.ADAPTER
    if run.settings.method != "adapter" or files is None or run.frozen is None:
        return
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            tell(f"words are not calibrated: python -m hra_jax.tasks calibrate {folder} --suite {suite.name} does that")
        return
    base = Backbone(files, run.frozen, compute_dtype(run.settings.backbone_dtype))
    try:
        found = calibration.measure(load_adapter(folder, base), suite, decoder=decoder)
    except calibration.NothingSaid as error:
        tell(f"words are not calibrated: {error}")
        return
    tell(calibrating.summary(found), calibrating.lines(found)[-1])
    add_field(run, task_records.CALIBRATION, found, task_steps=task_steps)
