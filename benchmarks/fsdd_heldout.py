"""Speakers whom an adapter has not heard: heads trained on 1, 10 and 100 of their words, each speaker held out once.

python benchmarks/fsdd_heldout.py --data_dir FSDD --workdir runs/fsdd_heldout \
    --json benchmarks/results/fsdd_heldout.json --plot benchmarks/results/fsdd_heldout.png

Three folds: an adapter is trained on four of the six speakers of the Free Spoken Digit Dataset, and `evaluate` trains
the heads of the other two, all shots and draws as rows of one run. The same command goes on where it was stopped.
"""

import io
import json
import sys
from collections.abc import Mapping
from typing import Any

import cells as cells_lib
from absl import flags
from etils import epath
from harness import environment
from matplotlib.figure import Figure

from hra_jax import cli, train
from hra_jax.data.report import DataReport
from hra_jax.evaluate import evaluate_systems
from hra_jax.evaluation import shots
from hra_jax.evaluation.error_rates import word_errors
from hra_jax.evaluation.predictions import UtteranceResult, read_predictions
from hra_jax.evaluation.suites import Suite, load_suite
from hra_jax.run.jax_setup import setup_jax
from hra_jax.tasks.names import task_file_names

FLAGS = flags.FLAGS

SUITE, STEPS = "fsdd_heldout", 400
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
HELD_OUT = (("george", "nicolas"), ("lucas", "theo"), ("jackson", "yweweler"))  # by fold
SAMPLES = 1000


def adapter_of(fold: int, folder: epath.Path) -> str:
    """The adapter of the four speakers that a fold does not hold out; trained where it is not there."""
    workdir = folder / f"fold{fold}"
    if not (workdir / "adapter" / "tasks.json").exists():
        config = cells_lib.configured(
            "fsdd",
            data__dir=FLAGS.data_dir,
            data__tasks=tuple(name for name in SPEAKERS if name not in HELD_OUT[fold]),
            data__threads=1,
            steps=STEPS,
            eval__suite="",
            eval__select_suite="",
            export__step="last",
            checkpoint__every_steps=100,
        )
        status = train.train(config, workdir)
        if status:
            sys.exit(status)
    return str(workdir / "adapter")


def recognised(folder: epath.Path, results: Mapping[str, Mapping[str, Any]]) -> dict[str, list[UtteranceResult]]:
    """What was recognised with every head of every fold, by the name of the head."""
    found = {}
    for fold in range(len(HELD_OUT)):
        for task, file in task_file_names(results[f"fold{fold}"]["tasks"]).items():
            lines = read_predictions(folder / "R" / SUITE / f"fold{fold}" / f"predictions_{file}.jsonl")
            found[task] = [line.row for line in lines]
    return found


def of_all_folds(suite: Suite, by_task: Mapping[str, list[UtteranceResult]]) -> dict[str, Any]:
    """The curves of all speakers, and of their mean."""
    tasks = shots.few_tasks(suite)
    heads = shots.draw_heads(suite, tasks, seed=0, report=DataReport())
    scored = shots.scored_suite(suite, tasks, heads, has_mean=True)
    return shots.curves(by_task, scored, samples=SAMPLES, seed=0)


def counted(suite: Suite, by_task: Mapping[str, list[UtteranceResult]]) -> dict[str, list[list[int]]]:
    """[errors, reference words] of every utterance with every head, by key of the utterance."""
    return {
        name: [
            [found.errors, found.words]
            for row in sorted(rows, key=lambda row: row.key)
            for found in [word_errors(row.text, row.pred_text, normalizer=suite.normalizer)]
        ]
        for name, rows in sorted(by_task.items())
    }


def plot(found: Mapping[str, Any]) -> bytes:
    """Error rates against shots, as a PNG: a line for every speaker, and their mean with its interval."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    places = range(len(found["shots"]))
    for mark, (name, points) in zip("osD^vP", found["tasks"].items(), strict=False):
        axes.plot(places, [100 * point["rate"] for point in points], marker=mark, lw=1, ms=4, alpha=0.7, label=name)
    rates = [100 * point["rate"] for point in found["all"]]
    ends = [[100 * abs(point["rate"] - point[end]) for point in found["all"]] for end in ("low", "high")]
    axes.errorbar(places, rates, yerr=ends, color="black", lw=2, capsize=4, label="mean")
    axes.set_xticks(places, [str(k) for k in found["shots"]])
    axes.set(xlabel="utterances of the speaker", ylabel="word error rate, %", ylim=(0, None))
    axes.legend(fontsize=8, ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    return png.getvalue()


def define_flags() -> None:
    """The flags."""
    flags.DEFINE_string("data_dir", None, "The Free Spoken Digit Dataset with its manifests.", required=True)
    flags.DEFINE_string("workdir", None, "Where runs and results are kept, to go on from.", required=True)
    flags.DEFINE_string("json", "", "Where the curves are written; '' for nowhere.")
    flags.DEFINE_string("plot", "", "PNG file for the curves; '' for none.")


def main(argv: list[str]) -> None:
    """Trains, scores and writes."""
    del argv
    setup_jax()
    folder = epath.Path(FLAGS.workdir)
    adapters = [f"fold{fold}={adapter_of(fold, folder)}" for fold in range(len(HELD_OUT))]
    results = evaluate_systems([SUITE], folder / "R", adapters=adapters, data_dir=FLAGS.data_dir)[SUITE]
    suite = load_suite(SUITE, data_dir=FLAGS.data_dir, report=DataReport())
    by_task = recognised(folder, results)
    found = of_all_folds(suite, by_task)
    print(*(" | ".join(row) for row in shots.table_of(found)[1]), sep="\n")
    facts = {
        "held_out": [list(names) for names in HELD_OUT],
        "steps": STEPS,
        "updates": suite.few["steps"],
        "words": {name: len(by_task[shots.head_name(name, 0)]) for name in SPEAKERS},
        "bootstrap": SAMPLES,
    }
    if FLAGS.json:
        content = {**facts, **found, "environment": environment(), "counts": counted(suite, by_task)}
        epath.Path(FLAGS.json).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    if FLAGS.plot:
        epath.Path(FLAGS.plot).write_bytes(plot(found))


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
