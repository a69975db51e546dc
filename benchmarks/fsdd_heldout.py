"""Speakers whom an adapter has not heard: heads trained on 1, 10 and 100 of their words, each speaker held out once.

python benchmarks/fsdd_heldout.py --data_dir FSDD --workdir runs/fsdd_heldout \
    --json benchmarks/results/fsdd_heldout.json --plot benchmarks/results/fsdd_heldout.png

Three folds: an adapter is trained on four of the six speakers of the Free Spoken Digit Dataset, and `evaluate` trains
the heads of the other two, all shots and draws as rows of one run; once as the suite says, and once with fewer updates
of every head. The same command goes on where it was stopped.
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
from hra_jax.config.files import find_config
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
UPDATES = (100, 20)  # of every head; the first is that of the suite
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


def suite_of(updates: int, folder: epath.Path) -> str:
    """The suite with that many updates of every head: its name, or the path of a copy."""
    if updates == UPDATES[0]:
        return SUITE
    text = find_config(SUITE, kind="suites").read_text(encoding="utf-8")
    for old, new in ((f'("steps", {UPDATES[0]})', f'("steps", {updates})'), (f'"{SUITE}"', f'"{SUITE}_{updates}"')):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / f"{SUITE}_{updates}.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def recognised(
    folder: epath.Path, suite: str, results: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[UtteranceResult]]:
    """What was recognised with every head of every fold, by the name of the head."""
    found = {}
    for fold in range(len(HELD_OUT)):
        for task, file in task_file_names(results[f"fold{fold}"]["tasks"]).items():
            lines = read_predictions(folder / "R" / suite / f"fold{fold}" / f"predictions_{file}.jsonl")
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


def plot(by_updates: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Error rates against shots, as a PNG: a line for every speaker, and their means with intervals."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    most, *fewer = (str(count) for count in UPDATES)
    places = range(len(by_updates[most]["shots"]))
    for mark, (name, points) in zip("osD^vP", by_updates[most]["tasks"].items(), strict=False):
        axes.plot(places, [100 * point["rate"] for point in points], marker=mark, lw=1, ms=4, alpha=0.7, label=name)
    for updates, style in zip((most, *fewer), ("-", "--"), strict=True):
        points = by_updates[updates]["all"]
        rates = [100 * point["rate"] for point in points]
        ends = [[100 * abs(point["rate"] - point[end]) for point in points] for end in ("low", "high")]
        axes.errorbar(places, rates, yerr=ends, color="black", ls=style, capsize=4, label=f"mean, {updates} updates")
    axes.set_xticks(places, [str(k) for k in by_updates[most]["shots"]])
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
    names = [suite_of(updates, folder) for updates in UPDATES]
    results = evaluate_systems(names, folder / "R", adapters=adapters, data_dir=FLAGS.data_dir)
    by_updates = {}
    for updates, name in zip(UPDATES, names, strict=True):
        suite = load_suite(name, data_dir=FLAGS.data_dir, report=DataReport())
        by_task = recognised(folder, suite.name, results[suite.name])
        by_updates[str(updates)] = {**of_all_folds(suite, by_task), "counts": counted(suite, by_task)}
        print(f"{updates} updates", *(" | ".join(row) for row in shots.table_of(by_updates[str(updates)])[1]), sep="\n")
    write(by_updates)


def write(by_updates: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what is asked for."""
    facts = {"held_out": [list(names) for names in HELD_OUT], "steps": STEPS, "bootstrap": SAMPLES}
    if FLAGS.json:
        content = {**facts, "by_updates": by_updates, "environment": environment()}
        epath.Path(FLAGS.json).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    if FLAGS.plot:
        epath.Path(FLAGS.plot).write_bytes(plot(by_updates))


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
