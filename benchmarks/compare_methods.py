"""Every adaptation method on the Free Spoken Digit Dataset, for the same number of steps.

python benchmarks/compare_methods.py --data_dir FSDD --cells benchmarks/results/compare_methods --workdir runs/compare \
    --json benchmarks/results/compare_methods.json

Six speakers as six tasks in one run for every method. For each method three learning rates with seed 0, and one more
beyond the edge where the best of them lies on it; the best on the validation set goes on with seeds 1 and 2, and of
rates that tie the one that is farthest from the edges of what was tried. The test set takes no part in any choice.
Intervals resample speakers, utterances within speakers, and seeds.
Cells that are there are not run again, so the benchmark can be stopped at any time.
"""

import json
import sys

import cells as cells_lib
import rich.console
import rich.table
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.run.jax_setup import setup_jax

FLAGS = flags.FLAGS

STEPS, SEEDS = 400, (0, 1, 2)
MOST_BEYOND = 1  # learning rates beyond the three
SHARED = {"batch__seconds": 24.0, "batch__buckets": (0.5, 0.8, 2.5), "steps": STEPS}
SHARED |= {"eval__every_steps": 100, "checkpoint__every_steps": 1000}
# Settings and three learning rates of each method.
METHODS = {
    "hra": ({"adapter__name": "hra", "hra__width": 128}, (2e-3, 4e-3, 8e-3)),
    "hra, R = 32": ({"adapter__name": "hra", "hra__width": 32}, (2e-3, 4e-3, 8e-3)),
    "residual": ({"adapter__name": "residual", "residual__width": 16}, (1e-3, 3e-3, 9e-3)),
    "lora": ({"adapter__name": "lora", "lora__rank": 4}, (1e-3, 3e-3, 9e-3)),
    "bitfit": ({"adapter__name": "bitfit"}, (3e-3, 1e-2, 3e-2)),
    "output": ({"adapter__name": "output"}, (3e-3, 1e-2, 3e-2)),
    "full": ({"method": "full"}, (2e-4, 5e-4, 1e-3)),
}


def run(cells: cells_lib.Cells, method: str, rate: float, seed: int) -> dict:
    """One cell."""
    settings, _ = METHODS[method]
    name = f"six-{method.replace(', R = ', '_')}-{rate:g}-{seed}"

    def make(workdir: epath.Path) -> dict:
        changes = SHARED | settings | {"data__dir": FLAGS.data_dir, "optimizer__learning_rate": rate, "seed": seed}
        return cells_lib.trained(cells_lib.configured("fsdd", **changes), workdir)

    facts = {"method": method, "speaker": None, "learning_rate": rate, "seed": seed, "steps": STEPS}
    return cells.get(name, make, facts)


def best_of(tried: list[dict]) -> dict:
    """The cell with the lowest validation error; of those that tie, the one farthest from the edges of the rates."""
    inside = {id(cell): min(place, len(tried) - 1 - place) for place, cell in enumerate(tried)}
    return min(tried, key=lambda cell: (cell["validation"], -inside[id(cell)], cell["learning_rate"]))


def group(cells: cells_lib.Cells, method: str) -> list[dict]:
    """The three seeds of a method at the learning rate that is best on the validation set."""
    rates = list(METHODS[method][1])
    step = rates[1] / rates[0]
    for beyond in range(MOST_BEYOND + 1):
        best = best_of([run(cells, method, rate, SEEDS[0]) for rate in rates])
        if beyond == MOST_BEYOND or rates[0] < best["learning_rate"] < rates[-1]:
            break
        # Two significant digits name a cell.
        rates = [rates[0] / step, *rates] if best["learning_rate"] == rates[0] else [*rates, rates[-1] * step]
        rates = [_rounded(rate) for rate in rates]
    return [best] + [run(cells, method, best["learning_rate"], seed) for seed in SEEDS[1:]]


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def summary(groups: dict[str, list[dict]]) -> list[dict]:
    """A row for each method."""
    rows = []
    for method, group in groups.items():
        low, high = cells_lib.interval(cells_lib.clustered_rates([group])[:, 0])
        row = {
            "method": method,
            "learning_rate": group[0]["learning_rate"],
            **group[0]["parameters"],
            "base_wer": group[0]["base_wer"],
            "wer": cells_lib.rate_of(group),
            "wer_low": low,
            "wer_high": high,
            "wer_by_seed": [cell["wer"] for cell in group],
            "validation_by_seed": [cell["validation"] for cell in group],
            "words": sum(words for rows in group[0]["tasks"].values() for _, _, words in rows),
            "seconds": sum(cell["seconds"] for cell in group),
        }
        if method != "hra" and "hra" in groups:
            row["minus_hra"] = cells_lib.difference_of(groups["hra"], group)
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    """Prints the table."""
    table = rich.table.Table(title="Free Spoken Digit Dataset, test set, three seeds pooled", title_justify="left")
    for name in ("method", "per task", "total", "rate", "WER", "95%", "by seed", "minus hra", "verdict"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        gap = row.get("minus_hra")
        table.add_row(
            row["method"],
            f"{row['parameters_per_task']:,}",
            f"{row['trainable_parameters']:,}",
            f"{row['learning_rate']:g}",
            f"{row['wer']:.1%}",
            f"{row['wer_low']:.1%} to {row['wer_high']:.1%}",
            " ".join(f"{wer:.1%}" for wer in row["wer_by_seed"]),
            f"{100 * gap['difference']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})" if gap else "",
            gap["verdict"] if gap else "",
        )
    rich.console.Console(width=160).print(table)


def define_flags() -> None:
    """The flags of this benchmark."""
    cells_lib.define_flags()
    flags.DEFINE_string("data_dir", None, "Folder of the Free Spoken Digit Dataset.", required=True)


def main(argv) -> None:
    """Entry point."""
    del argv
    setup_jax()
    cells = cells_lib.Cells(FLAGS.cells, FLAGS.workdir, minutes=FLAGS.minutes)
    groups = {}
    for method in METHODS:
        try:
            groups[method] = group(cells, method)
        except cells_lib.OutOfTime as missing:
            print(f"not run, no time was left: {missing} and what comes after it in {method}")
    rows = summary(groups)
    show(rows)
    spent, cpu = (sum(cell[name] for cell in cells.all()) / 60 for name in ("seconds", "cpu_seconds"))
    print(f"{len(cells.all())} cells, {spent:.0f} minutes in all, {cpu:.0f} of processor time")
    if FLAGS.json:
        epath.Path(FLAGS.json).write_text(
            json.dumps({"steps": STEPS, "minutes": spent, "cpu_minutes": cpu, "rows": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
