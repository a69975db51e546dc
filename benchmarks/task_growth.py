"""Error rates and parameters as the number of speakers grows, and what a new speaker costs.

python benchmarks/task_growth.py --data_dir runs/data/accents --cells benchmarks/task_growth --workdir runs/growth \
    --json benchmarks/task_growth.json --plot benchmarks/task_growth.png

8, 64 and 256 synthetic speakers who read English by the rules of 32 languages (rendered into data_dir once), each
method trained on all of them together for the same number of steps, at the better of two learning rates on the
validation sentences of the 64. Then eight newcomers beside the 64: their heads alone on the finished adapter, and all
72 together from the start. Cells that are there are not run again, so the benchmark can be stopped at any time.
"""

import json
import shutil
import sys

import cells as cells_lib
import rich.console
import rich.table
from absl import flags
from etils import epath
from matplotlib.figure import Figure

from hra_jax import cli
from hra_jax.data import synthesize
from hra_jax.run.jax_setup import setup_jax

FLAGS = flags.FLAGS

SIZES, STEPS = (8, 64, 256), 600
BESIDE, NEWCOMERS, HEAD_STEPS = 64, range(256, 264), 300
COMMON = {
    "batch__seconds": 16.0,
    "batch__buckets": (1.3, 2.0, 2.8, 5.0),
    "batch__max_tasks": 16,
    "eval__suite": "speakers",
    "eval__select_suite": "",
    "eval__every_steps": STEPS,
    "export__from": "last",
    "checkpoint__every_steps": 1000,
    "eval__batch_seconds": 96.0,
    "data__threads": 2,
    "augment__time_mask_fraction": 0.05,
}
# Settings whose parameters per speaker are of one order, and two learning rates.
METHODS = {
    "hra": ({"adapter__name": "hra", "hra__width": 128}, (2e-3, 6e-3)),
    "lora": ({"adapter__name": "lora", "lora__rank": 4}, (9e-3, 2.7e-2)),
    "residual": ({"adapter__name": "residual", "residual__width": 16}, (3e-3, 9e-3)),
}


def manifests(train: set[int], test: set[int]) -> str:
    """A folder with the manifests of some speakers, by number."""
    folder = epath.Path(FLAGS.workdir) / "data" / f"{len(train)}-{min(train)}-{len(test)}-{min(test)}"
    folder.mkdir(parents=True, exist_ok=True)
    for split, speakers in (("train", train), ("validation", train), ("test", test)):
        lines = []
        for line in (epath.Path(FLAGS.data_dir) / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            if int(row["speaker"].removeprefix("accent-")) in speakers:
                row["audio_filepath"] = str(epath.Path(FLAGS.data_dir).resolve() / row["audio_filepath"])
                lines.append(json.dumps(row) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return str(folder)


def adapter_folder(method: str, rate: float) -> epath.Path:
    """Where the adapter of the 64 speakers is kept for the newcomers."""
    return epath.Path(FLAGS.workdir) / "adapters" / f"{method}-{rate:g}"


def joint(workdir, method: str, rate: float, train: set[int], test: set[int]) -> dict:
    """All speakers together, from the start."""
    changes = COMMON | METHODS[method][0] | {"optimizer__learning_rate": rate, "data__dir": manifests(train, test)}
    if len(train) == BESIDE:
        changes["eval__select_suite"] = "speakers_validation"
    found = cells_lib.trained(cells_lib.configured("own", **changes, steps=STEPS), workdir)
    if len(train) == BESIDE:
        shutil.copytree(workdir / "adapter", adapter_folder(method, rate), dirs_exist_ok=True)
    return {"speakers": len(train), **found}


def newcomers(workdir, method: str, rate: float, new_task: str) -> dict:
    """The heads of the newcomers alone, on the adapter of the 64."""
    start = adapter_folder(method, rate)
    if not start.exists():
        everyone = set(range(BESIDE))
        joint(epath.Path(FLAGS.workdir) / f"again-{method}", method, rate, everyone, everyone)
    changes = COMMON | METHODS[method][0] | {"optimizer__learning_rate": rate, "steps": HEAD_STEPS}
    changes |= {"adapter__start": str(start), "adapter__train": "tasks", "adapter__new_task": new_task}
    changes["data__dir"] = manifests(set(NEWCOMERS), set(NEWCOMERS))
    return {"start": new_task, **cells_lib.trained(cells_lib.configured("own", **changes), workdir)}


def run_joint(cells: cells_lib.Cells, name: str, method: str, rate: float, train: set[int], test: set[int]) -> dict:
    """The cell of speakers who are trained together."""
    facts = {"method": method, "steps": STEPS, "learning_rate": rate}
    return {"cell": name, **cells.get(name, lambda workdir: joint(workdir, method, rate, train, test), facts)}


def run_newcomers(cells: cells_lib.Cells, name: str, method: str, rate: float, new_task: str) -> dict:
    """The cell of newcomers whose heads alone are trained."""
    facts = {"method": method, "steps": HEAD_STEPS, "learning_rate": rate}
    return {"cell": name, **cells.get(name, lambda workdir: newcomers(workdir, method, rate, new_task), facts)}


def run(cells: cells_lib.Cells) -> tuple[list[dict], list[dict]]:
    """All cells that there is time for: the growth, and the newcomers."""
    growth, added, best = [], [], {}
    beside = set(range(BESIDE))
    try:
        for method, (_, rates) in METHODS.items():
            found = [run_joint(cells, f"64-{method}-{rate:g}", method, rate, beside, beside) for rate in rates]
            growth.append(min(found, key=lambda cell: cell["validation"]))
            best[method] = growth[-1]["learning_rate"]
        for size in (size for size in SIZES if size != BESIDE):
            for method, rate in best.items():
                everyone = set(range(size))
                growth.append(run_joint(cells, f"{size}-{method}", method, rate, everyone, everyone))
        for method, rate in best.items():
            added.append(run_newcomers(cells, f"new-{method}", method, rate, "zero"))
        added.append(run_newcomers(cells, "new-hra-mean", "hra", best["hra"], "mean"))
        both = beside | set(NEWCOMERS)
        added.append(run_joint(cells, "new-hra-joint", "hra", best["hra"], both, set(NEWCOMERS)))
    except cells_lib.OutOfTime as missing:
        print(f"not run, no time was left: {missing} and what comes after it")
    return sorted(growth, key=lambda cell: (list(METHODS).index(cell["method"]), cell["speakers"])), added


def compare(growth: list[dict]) -> None:
    """Adds to the other methods' rows the difference of the pooled error rates from HRA's for as many speakers."""
    references = {row["speakers"]: row for row in growth if row["method"] == "hra"}
    for row in growth:
        if row["method"] != "hra":
            row["minus_hra"] = cells_lib.difference_of([references[row["speakers"]]], [row])


def show(growth: list[dict], added: list[dict]) -> None:
    """Prints both tables."""
    for title, rows in (("Speakers together", growth), ("Eight newcomers beside 64", added)):
        table = rich.table.Table(title=title, title_justify="left")
        for name in (
            "cell",
            "steps",
            "rate",
            "base WER",
            "WER",
            "shared",
            "per speaker",
            "trained",
            "minus hra",
            "minutes",
        ):
            table.add_column(name, justify="left" if name == "cell" else "right")
        for row in rows:
            parameters = row["parameters"]
            table.add_row(
                row["cell"],
                f"{row['steps']:,}",
                f"{row['learning_rate']:g}",
                f"{row['base_wer_macro']:.1%}",
                f"{row['wer_macro']:.1%}",
                f"{parameters['shared_parameters']:,}",
                f"{parameters['parameters_per_task']:,}",
                f"{parameters['trainable_parameters']:,}",
                _difference(row.get("minus_hra")),
                f"{row['seconds'] / 60:.1f}",
            )
        rich.console.Console(width=140).print(table)


def _difference(found: dict | None) -> str:
    if found is None:
        return ""
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f}) {found['verdict']}"


def plot(growth: list[dict], path: str) -> None:
    """Macro word error rate, and trained parameters, against the number of speakers."""
    figure = Figure(figsize=(9.0, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in METHODS:
        rows = [row for row in growth if row["method"] == method]
        counts = [row["speakers"] for row in rows]
        left.plot(counts, [100 * row["wer_macro"] for row in rows], marker="o", label=method)
        right.plot(counts, [row["parameters"]["trainable_parameters"] for row in rows], marker="o", label=method)
    if growth:
        right.axhline(growth[0]["parameters"]["backbone_parameters"], color="#888888", ls="--", label="backbone")
    left.set_ylabel("macro word error rate (%)")
    right.set_ylabel("trained parameters")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.set_xlabel("speakers")
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})


def define_flags() -> None:
    """The flags of this benchmark."""
    cells_lib.define_flags()
    flags.DEFINE_string("data_dir", None, "Where the speakers are rendered, once.", required=True)
    flags.DEFINE_string("plot", "", "Where the plot is written; '' for nowhere.")


def main(argv) -> None:
    """Entry point."""
    del argv
    setup_jax()
    synthesize.render("accents", FLAGS.data_dir)
    cells = cells_lib.Cells(FLAGS.cells, FLAGS.workdir, minutes=FLAGS.minutes)
    growth, added = run(cells)
    compare(growth)
    show(growth, added)
    spent, cpu = (sum(cell[name] for cell in cells.all()) / 60 for name in ("seconds", "cpu_seconds"))
    print(f"{len(cells.all())} cells, {spent:.0f} minutes in all, {cpu:.0f} of processor time")
    if FLAGS.plot:
        plot(growth, FLAGS.plot)
    if FLAGS.json:
        rows = [{key: value for key, value in row.items() if key != "tasks"} for row in growth + added]
        epath.Path(FLAGS.json).write_text(
            json.dumps({"minutes": spent, "cpu_minutes": cpu, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
