"""Every adaptation method on the Free Spoken Digit Dataset, for the same number of steps.

python benchmarks/compare_methods.py --data_dir FSDD --cells benchmarks/compare_methods --workdir runs/compare \
    --json benchmarks/compare_methods.json

Six speakers as six tasks in one run for every method; and one speaker alone, for the two methods that share weights
between tasks (of the others a task moves by its own utterances alone, so one mixed run trains six speakers at once).
One speaker alone has a sixth of the batch, which is what that speaker has in a batch of six.
For each method three learning rates with seed 0, and one more beyond the edge where the best of them lies on it; the
best on the validation set goes on with seeds 1 and 2. The test set takes no part in any choice.
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
from hra_jax.evaluation.error_rates import ErrorCounts, bootstrap_interval
from hra_jax.run.jax_setup import setup_jax

FLAGS = flags.FLAGS

STEPS, SEEDS = 400, (0, 1, 2)
MOST_BEYOND = 1  # learning rates beyond the three
SHARED = {"batch__seconds": 24.0, "steps": STEPS, "eval__every_steps": 100, "checkpoint__every_steps": 1000}
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
ALONE = {"methods": ("hra", "full"), "speakers": ("nicolas", "theo")}
ALONE_SECONDS = 4.0  # of audio in a batch


def manifests_of(speaker: str, data_dir: str, folder: epath.Path) -> str:
    """Writes the three manifests of one speaker, who is then alone in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (epath.Path(data_dir) / f"{split}.jsonl").read_text().splitlines()]
        rows = [row for row in rows if row["speaker"] == speaker]
        for row in rows:
            row["audio_filepath"] = str(epath.Path(data_dir).resolve() / row["audio_filepath"])
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def run(cells: cells_lib.Cells, method: str, rate: float, seed: int, speaker: str | None) -> dict:
    """One cell."""
    settings, _ = METHODS[method]
    slug = method.replace(", R = ", "_")
    name = f"{speaker or 'six'}-{slug}-{rate:g}-{seed}"

    def make(workdir):
        changes = SHARED | settings | {"data__dir": FLAGS.data_dir, "optimizer__learning_rate": rate, "seed": seed}
        if speaker:
            folder = epath.Path(FLAGS.workdir) / "data" / speaker
            changes["data__dir"] = manifests_of(speaker, FLAGS.data_dir, folder)
            changes["batch__seconds"] = ALONE_SECONDS
        return cells_lib.trained(cells_lib.configured("fsdd", **changes), workdir)

    facts = {"method": method, "speaker": speaker, "learning_rate": rate, "seed": seed, "steps": STEPS}
    return cells.get(name, make, facts)


def group(cells: cells_lib.Cells, method: str, speaker: str | None) -> list[dict]:
    """The three seeds of a method at the learning rate that is best on the validation set."""
    rates = list(METHODS[method][1])
    step = rates[1] / rates[0]
    for beyond in range(MOST_BEYOND + 1):
        first = [run(cells, method, rate, SEEDS[0], speaker) for rate in rates]
        best = min(first, key=lambda cell: (cell["validation"], cell["learning_rate"]))
        if beyond == MOST_BEYOND or rates[0] < best["learning_rate"] < rates[-1]:
            break
        # Two significant digits name a cell.
        rates = [rates[0] / step, *rates] if best["learning_rate"] == rates[0] else [*rates, rates[-1] * step]
        rates = [_rounded(rate) for rate in rates]
    return [best] + [run(cells, method, best["learning_rate"], seed, speaker) for seed in SEEDS[1:]]


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


def counts_of(group: list[dict]) -> list[ErrorCounts]:
    """Per utterance, summed over seeds; errors are all counted as substitutions, which the rate does not tell apart."""
    rows = [row for task in cells_lib.pooled(group).values() for row in task.values()]
    return [ErrorCounts(substitutions=errors, words=words, utterances=1) for errors, words in rows]


def summary(groups: dict[tuple[str | None, str], list[dict]]) -> list[dict]:
    """A row for each method and speaker."""
    rows = []
    for (speaker, method), group in groups.items():
        counts = counts_of(group)
        low, high = bootstrap_interval(counts, samples=10_000)
        row = {
            "speakers": speaker or "six",
            "method": method,
            "learning_rate": group[0]["learning_rate"],
            **group[0]["parameters"],
            "base_wer": group[0]["base_wer"],
            "wer": sum(count.errors for count in counts) / sum(count.words for count in counts),
            "wer_low": low,
            "wer_high": high,
            "wer_by_seed": [cell["wer"] for cell in group],
            "validation_by_seed": [cell["validation"] for cell in group],
            "words": sum(count.words for count in counts),
            "seconds": sum(cell["seconds"] for cell in group),
        }
        # One speaker alone is compared with HRA alone, and with its method on six (that speaker's utterances only).
        references = {"hra": groups.get((speaker, "hra"))}
        if speaker:
            references[f"{method}, six"] = groups.get((None, method))
        row["differences"] = {
            name: cells_lib.difference_of(reference, group)
            for name, reference in references.items()
            if reference is not None and reference is not group
        }
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    """Prints the table."""
    table = rich.table.Table(title="Free Spoken Digit Dataset, test set, three seeds pooled", title_justify="left")
    columns = ("speakers", "method", "per task", "total", "rate", "WER", "95%", "by seed")
    for name in (*columns, "minus", "difference", "verdict"):
        table.add_column(name, justify="left" if name in ("speakers", "method", "minus") else "right")
    for row in rows:
        gaps = row["differences"]
        table.add_row(
            row["speakers"],
            row["method"],
            f"{row['parameters_per_task']:,}",
            f"{row['trainable_parameters']:,}",
            f"{row['learning_rate']:g}",
            f"{row['wer']:.1%}",
            f"{row['wer_low']:.1%} to {row['wer_high']:.1%}",
            " ".join(f"{wer:.1%}" for wer in row["wer_by_seed"]),
            "\n".join(gaps),
            "\n".join(
                f"{100 * gap['difference']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
                for gap in gaps.values()
            ),
            "\n".join(gap["verdict"] for gap in gaps.values()),
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
    wanted = [(None, method) for method in METHODS]
    wanted += [(speaker, method) for speaker in ALONE["speakers"] for method in ALONE["methods"]]
    groups = {}
    for speaker, method in wanted:
        try:
            groups[speaker, method] = group(cells, method, speaker)
        except cells_lib.OutOfTime as missing:
            print(f"not run, no time was left: {missing} and what comes after it in {speaker or 'six'}, {method}")
    rows = summary(groups)
    show(rows)
    spent, cpu = (sum(cell[name] for cell in cells.all()) / 60 for name in ("seconds", "cpu_seconds"))
    print(f"{len(cells.all())} cells, {spent:.0f} minutes in all, {cpu:.0f} of processor time")
    if FLAGS.json:
        epath.Path(FLAGS.json).write_text(
            json.dumps({"steps": STEPS, "minutes": spent, "cpu_minutes": cpu, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
