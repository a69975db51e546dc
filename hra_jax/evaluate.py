"""Scores a checkpoint of a run on a task suite.

python -m hra_jax.evaluate --workdir runs/quickstart --suite hard --step best
"""

from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from hra_jax import cli
from hra_jax.config.files import validate_config
from hra_jax.config.keys import group
from hra_jax.console import listed, tell
from hra_jax.run import processes
from hra_jax.run.jax_setup import setup_jax
from hra_jax.run.saving import open_checkpoints, restore_step
from hra_jax.run.scoring import data_report, score, suite_weights
from hra_jax.run.stages import prepare
from hra_jax.run.workdirs import CONFIG, DATA_REPORT, EVALUATIONS, changing_files, check_links, named, stored_config

FLAGS = flags.FLAGS


def evaluate(
    workdir: epath.PathLike, suite: str, *, step: str | int = "last", data_dir: str | None = None
) -> dict[str, Any]:
    """Scores a checkpoint; writes W/eval/<suite>/ and prints the table.

    Args:
      workdir: the work directory of a run.
      suite: name or path of a suite; it must share no utterance with the training data.
      step: 'last', 'best', or the number of a checkpoint.
      data_dir: what `{dir}` in the suite's manifests stands for; None means the run's own `data.dir`.

    Returns:
      The results, as in results.json.

    Raises:
      UserError: no run there, an unknown suite or step, or an adapter that does nothing.
    """
    workdir, config = named(workdir), _configuration(workdir, suite)
    check_links(workdir, [EVALUATIONS, DATA_REPORT])
    if jax.process_index() == 0:
        _tell_what_is_read(workdir, config)
    with changing_files(workdir), data_report(workdir, strict=config.data.strict, keep=True) as report:
        run = prepare(config, workdir, report, suite_dir=data_dir, render=False)
        with open_checkpoints(run, group(config, "checkpoint"), read_only=True) as checkpoints:
            wanted = int(step) if str(step).isdigit() else step
            number, _ = restore_step(run, checkpoints, wanted, weights_only=True)
        test = run.layout.test
        assert test is not None, "the configuration names the suite"
        return score(run, test, suite_weights(run, test), step=number, bootstrap=config.eval.bootstrap)


def _configuration(workdir: epath.PathLike, suite: str, *, notify: bool = True) -> ConfigDict:
    """The run's configuration with the suite in it, and no other: the selection suite may itself be scored."""
    config = stored_config(workdir, notify=notify)
    with config.unlocked():
        config.eval.suite = suite
    validate_config(config, stored=True)
    return config


def _tell_what_is_read(workdir: epath.Path, config: ConfigDict) -> None:
    """Prints the places that the work directory, which may be a stranger's, names and that are read for it."""
    manifests = [manifest for _, manifest, _ in config.data.sources]
    places = {"backbone": config.backbone, "data.dir": config.data.dir, "adapter.start": config.adapter.start}
    said = [f"{key} {place!r}" for key, place in places.items() if place] + [f"manifests {listed(manifests)}"]
    tell(f"{workdir / CONFIG} names, to be read: {', '.join(said)}")


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "Work directory of the run.", required=True)
    flags.DEFINE_string("suite", None, "Name or path of a suite.", required=True)
    flags.DEFINE_string("step", "last", "Which checkpoint: last, best, or its number.")
    flags.DEFINE_string(
        "data_dir", None, "What {dir} in the suite's manifests stands for; default: the run's data.dir."
    )
    processes.define_flags()


def main(argv: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    del argv
    config = _configuration(FLAGS.workdir, FLAGS.suite, notify=False)  # `evaluate` tells of old keys
    processes.initialize(heartbeat_seconds=config.distributed.heartbeat_seconds, resumable=False)
    setup_jax()
    evaluate(FLAGS.workdir, FLAGS.suite, step=FLAGS.step, data_dir=FLAGS.data_dir)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
