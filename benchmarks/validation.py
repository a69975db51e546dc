"""What a validation costs with the frozen base kept, and with the base run beside every batch.

python benchmarks/validation.py --json benchmarks/results/validation.json

Both sides recognise the same suite with the same adapter and count its errors, as training does; the base was
recognised before the first sample. The recordings are noise: what an encoder costs does not depend on what it hears.
"""

import tempfile

import harness
import jax
import numpy as np
import soundfile
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.adapters import initial, methods
from hra_jax.config.keys import default_config, group
from hra_jax.data.batching import BatchSettings
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.evaluation.results import evaluate_results
from hra_jax.evaluation.runner import EvaluationSettings, SuiteRunner
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.run import foundation, layout, programs
from hra_jax.run.place import backbone_weights
from hra_jax.training import sharding, train_state

SAMPLES = 3
TASKS, EACH = 8, 50  # tasks, and utterances of each: as many as the quickstart validates on
SECONDS = (1.2, 3.8)  # of the shortest and the longest
BUCKETS, BATCH_SECONDS = (2.0, 4.0), 32.0
WORDS = ("one", "two", "three", "four", "five", "six")


def make_suite(folder: epath.Path, rate: int) -> Suite:
    """Recordings of noise with texts of a word for every half second."""
    rng, tasks = np.random.default_rng(0), []
    for task in range(TASKS):
        utterances = []
        for number, seconds in enumerate(rng.uniform(*SECONDS, EACH)):
            name = f"{task}-{number}.wav"
            soundfile.write(folder / name, 0.1 * rng.standard_normal(int(seconds * rate)), rate)
            text = " ".join(rng.choice(WORDS, int(2 * seconds)))
            utterances.append(Utterance(str(folder / name), int(seconds * rate) / rate, text, key=name))
        tasks.append(SuiteTask(f"task {task}", "", "", "", f"task {task}", tuple(utterances)))
    return Suite("noise", "basic", tuple(tasks))


def main(argv: list[str]) -> None:
    """Times both sides and writes them down."""
    del argv
    config, base = default_config(), foundation.load("builtin:tiny")
    settings, adapter = group(config, ""), group(config, "adapter")
    own = methods.own_settings(config, adapter.name)
    method = layout.adapter_method(settings, adapter, own=own)
    mesh = layout.open_mesh(group(config, "mesh"), multiple=1)
    model = programs.model_on(mesh, base, method, settings=settings)
    both, alone = programs.evaluation_steps(model, mesh, blank_id=programs.blank_of(base, method))
    frozen = backbone_weights(base, mesh, dtype=np.float32)
    rng = np.random.default_rng(1)
    weights = initial.new_weights_on_host(method, jax.random.key(0), base.encoder, TASKS)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf + 0.01 * rng.standard_normal(leaf.shape), np.float32), weights)
    numbers = train_state.accounting(weights, TASKS, train_state.count(base.shapes()))
    accounting = {name: value for name, value in numbers.items() if name != "tasks"}
    weights = sharding.place(weights, sharding.replicated(mesh))
    with tempfile.TemporaryDirectory() as place:
        suite = make_suite(epath.Path(place), base.features.sample_rate)
        runner = SuiteRunner(
            suite,
            base=base,
            tasks=[task.name for task in suite.tasks],
            mesh=mesh,
            data=group(config, "data"),
            batch=BatchSettings(buckets=BUCKETS, seconds=BATCH_SECONDS),
            evaluation=EvaluationSettings(batch_seconds=BATCH_SECONDS),
            report=DataReport(),
        )

        def validate(step_alone) -> float:
            rows, _, _ = runner.run(both, weights, frozen, alone=step_alone)
            results = evaluate_results(
                rows, suite, accounting=accounting | {"backbone_fingerprint": base.fingerprint}, bootstrap=0
            )
            return results["wer_macro"]

        sides = {"base beside": lambda: validate(None), "base kept": lambda: validate(alone)}
        timings = harness.interleave(sides, samples=SAMPLES, busy=flags.FLAGS.busy)
    seconds = sum(utterance.duration for utterance in suite.utterances)
    harness.report(
        "validation", {"validation": timings}, flags.FLAGS.json, tasks=TASKS, utterances=TASKS * EACH, seconds=seconds
    )


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_bool("busy", False, "Keeps samples during which other processes were busy; CPU seconds tell then.")


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
