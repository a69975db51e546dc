"""What people read of the results of an evaluation: table, Markdown, HTML, plot; and the files they are in.

`write_report` and `print_table` present what `hra_jax.evaluation.results.evaluate_results` returned.
"""

import base64
import dataclasses
import fnmatch
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import kaldialign
import rich.console
from etils import epath
from matplotlib.figure import Figure

from hra_jax.console import bounds, html_text, markdown_cell, percent, say, stdout, table
from hra_jax.evaluation import error_rates
from hra_jax.evaluation.predictions import Unscored, UtteranceResult, prediction_line
from hra_jax.evaluation.results import base_errors
from hra_jax.storage.files import make_folder, remove_file, replaced_name, write_file
from hra_jax.storage.json_files import json_text
from hra_jax.tasks.names import task_file_names

_FILES = ("wer.png", "report.md", "report.html", "results.json")  # beside predictions_<task>.jsonl
_MOST_PLOTTED = 30  # tasks; the bars of more would be too thin to read
_MOST_WORST = 30  # utterances listed in a report


# --- For the terminal -------------------------------------------------------------------------------------------------

_NOT_SCORED = "not scored"
_HEADER = ("task", "base WER", "adapted WER", "95% interval", "CER", "words", "parameters")


def _table_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of every task, then of the mean over tasks and of all utterances, as text."""
    rows: list[tuple[str, ...]] = [
        (
            name,
            percent(task["base_wer"]),
            percent(task["wer"]),
            bounds(task),
            percent(task["cer"]),
            f"{task['words']:,}",
            f"{task['parameters']:,}",
        )
        for name, task in results["tasks"].items()
    ]
    rows += [(name, "-", _NOT_SCORED, "", "-", "-", "") for name in results.get("tasks_not_scored", ())]
    means = (percent(results[f"{field}_macro"]) for field in ("base_wer", "wer", "cer"))
    base, adapted, characters = means
    rows.append(("mean of the tasks", base, adapted, "", characters, f"{results['words']:,}", ""))
    corpus = (percent(results["base_wer"]), percent(results["wer"]), bounds(results), percent(results["cer"]))
    rows.append(("all utterances", *corpus, f"{results['words']:,}", ""))
    return rows


def _parameter_line(results: Mapping[str, Any]) -> str:
    total, whole = results["trainable_parameters"], results["backbone_parameters"]
    return (
        f"trained parameters: {results['shared_parameters']:,} shared, {results['parameters_per_task']:,} per task, "
        f"{total:,} in total: {total / whole:.2%} of the backbone's {whole:,}"
    )


def _left_out_lines(results: Mapping[str, Any]) -> list[str]:
    """A line for each task that has no rate."""
    return [f"task {name!r} was not scored: {why}" for name, why in results.get("tasks_not_scored", {}).items()]


def print_table(results: Mapping[str, Any], *, console: rich.console.Console | None = None) -> None:
    """Prints the results: a line for every task, the means, and what is trained; to standard output by default."""
    console, rows = console or stdout(), _table_rows(results)
    console.print(table(_HEADER, rows[:-2], rows[-2:], title=f"suite {results['suite']}"))
    for line in _left_out_lines(results):
        say(console, line)
    say(console, _parameter_line(results))


# --- Files ------------------------------------------------------------------------------------------------------------


def write_report(
    folder: epath.PathLike,
    results: Mapping[str, Any],
    rows: Sequence[UtteranceResult],
    unscored: Sequence[Unscored] = (),
    *,
    durable: bool = True,
) -> None:
    """Writes results.json, predictions_<task>.jsonl, report.md, report.html and wer.png, each whole or not at all.

    Predictions that an earlier report left in the folder for other tasks are deleted.

    Args:
      folder: `W/eval/<suite>`; made where absent.
      results: what `evaluate_results` returned for `rows`.
      rows: the scored utterances. Those of tasks that have no rate are in no file.
      unscored: the utterances that were not scored.
      durable: as for `files.Replacement`; `folders.replace_folder` puts its files on the disk itself.
    """
    rows = [row for row in rows if row.task in results["tasks"]]
    folder = epath.Path(folder)
    make_folder(folder)
    predictions = _predictions(results, rows)
    for old in folder.glob("predictions_*.jsonl"):
        if old.name not in predictions:
            remove_file(old)
    for name, text in predictions.items():
        write_file(folder / name, text, durable=durable)
    plot, worst = wer_plot(results), _worst(rows, results["normalizer"])
    write_file(folder / "wer.png", plot, durable=durable)
    write_file(folder / "report.md", _markdown(results, worst, unscored), durable=durable)
    write_file(folder / "report.html", _html(results, worst, plot, unscored), durable=durable)
    # The last one: who finds it finds the others.
    write_file(folder / "results.json", json_text(results), durable=durable)


def is_report_file(name: str) -> bool:
    """Whether `write_report` takes care of a file of the folder, by its name: it writes or removes it."""
    return fnmatch.fnmatchcase(replaced_name(name) or name, "predictions_*.jsonl") or name in _FILES


def _predictions(results: Mapping[str, Any], rows: Sequence[UtteranceResult]) -> dict[str, str]:
    """JSON Lines by file name, one file for every task."""
    names = task_file_names(results["tasks"])
    lines: dict[str, list[str]] = {name: [] for name in results["tasks"]}
    for row in rows:
        counts = error_rates.word_errors(row.text, row.pred_text, normalizer=results["normalizer"])
        base = base_errors(row, results["normalizer"])
        counted = {
            "words": counts.words,
            "errors": counts.errors,
            "base_errors": None if base is None else base.errors,
        }
        lines[row.task].append(prediction_line(row, counted))
    return {f"predictions_{names[task]}.jsonl": "".join(text) for task, text in lines.items()}


def _worst(rows: Sequence[UtteranceResult], normalizer: str) -> list[UtteranceResult]:
    """The utterances with the most word errors; of as many errors, the higher rate first."""

    def order(row: UtteranceResult) -> tuple[int, int, str, str]:
        counts = error_rates.word_errors(row.text, row.pred_text, normalizer=normalizer)
        return -counts.errors, counts.words, row.task, row.key

    wrong = [row for row in rows if order(row)[0]]
    return sorted(wrong, key=order)[:_MOST_WORST]


def wer_plot(results: Mapping[str, Any]) -> bytes:
    """A PNG: for each task a bar of the base's and of the adapted word error rate, with their 95% intervals."""
    chosen = sorted(results["tasks"], key=lambda name: -results["tasks"][name]["wer"])[:_MOST_PLOTTED]
    chosen = [name for name in results["tasks"] if name in chosen]
    figure = Figure(figsize=(max(5.0, 1.5 + 0.7 * len(chosen)), 4.0), dpi=120, layout="constrained")
    axes = figure.subplots()
    for prefix, label, shift, color in (("base_", "base", -0.2, "#b3b3b3"), ("", "adapted", 0.2, "#2f6db3")):
        bars = [(at + shift, results["tasks"][name]) for at, name in enumerate(chosen)]
        bars = [(at, task) for at, task in bars if task[f"{prefix}wer"] is not None]
        heights = [100 * task[f"{prefix}wer"] for _, task in bars]
        axes.bar([at for at, _ in bars], heights, 0.4, color=color, label=label if bars else None)
        for at, task in bars:
            if task[f"{prefix}wer_low"] is not None:
                axes.vlines(at, 100 * task[f"{prefix}wer_low"], 100 * task[f"{prefix}wer_high"], color="black", lw=1)
    # A `$` would start mathematics in a label.
    labels = [_shortened(name).replace("$", r"\$") for name in chosen]
    axes.set_xticks(
        range(len(chosen)), labels, rotation=30 if len(chosen) > 4 else 0, ha="right" if len(chosen) > 4 else "center"
    )
    axes.set_ylabel("word error rate (%)")
    of = "" if len(chosen) == len(results["tasks"]) else f", the worst {len(chosen)} of {len(results['tasks'])} tasks"
    axes.set_title(f"suite {results['suite']}{of}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _shortened(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _markdown(results: Mapping[str, Any], worst: Sequence[UtteranceResult], unscored: Sequence[Unscored]) -> str:
    """The content of report.md."""
    lines = [f"# Suite {markdown_cell(results['suite'])}", "", f"| {' | '.join(_HEADER)} |", "|---" + "|---:" * 6 + "|"]
    lines += [f"| {' | '.join(map(markdown_cell, row))} |" for row in _table_rows(results)]
    for line in _left_out_lines(results):
        lines += ["", markdown_cell(line)]
    lines += ["", _parameter_line(results), "", "![Word error rates by task](wer.png)", "", "## Worst utterances", ""]
    lines += ["| task | utterance | reference | adapted | base |", "|---|---|---|---|---|"]
    for row in worst:
        cells = (row.task, row.key, row.text, row.pred_text, row.base_pred_text or "")
        lines.append(f"| {' | '.join(map(markdown_cell, cells))} |")
    if unscored:
        lines += ["", "## Utterances that were not scored", "", _unscored_line(unscored), ""]
        lines += ["| task | utterance | why |", "|---|---|---|"]
        lines += [f"| {' | '.join(map(markdown_cell, dataclasses.astuple(row)))} |" for row in unscored[:_MOST_WORST]]
    return "\n".join([*lines, "", _footnote(results), ""])


def _unscored_line(unscored: Sequence[Unscored]) -> str:
    shown = f"; the first {_MOST_WORST} of them" if len(unscored) > _MOST_WORST else ""
    return f"The rates leave out {len(unscored):,} utterances{shown}."


def _footnote(results: Mapping[str, Any]) -> str:
    samples = results["bootstrap"]["samples"]
    intervals = f"intervals hold 95% of {samples:,} resamples of the utterances" if samples else "no intervals"
    return f"Texts were compared after the normalizer {results['normalizer']}; {intervals}."


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
.numbers td:not(:first-child), .numbers th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums; }
.numbers tr:nth-last-child(2) td { border-top: 2px solid #888; }
del { color: #a33; background: #fdeaea; } ins { color: #176; background: #e6f6ef; text-decoration: none; }
img { max-width: 100%; } .key, footer { color: #777; font-size: 90%; }
"""


def _html(
    results: Mapping[str, Any], worst: Sequence[UtteranceResult], plot: bytes, unscored: Sequence[Unscored]
) -> str:
    """The content of report.html: one file that needs no other."""
    title = f"suite {html_text(results['suite'])}"
    numbers = "\n".join(_html_row(map(html_text, row)) for row in _table_rows(results))
    utterances = "\n".join(_html_utterance(row, results["normalizer"]) for row in worst)
    left_out = "\n".join(f"<p>{html_text(line)}</p>" for line in _left_out_lines(results))
    image = base64.b64encode(plot).decode("ascii")
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<table class="numbers">
{_html_row(_HEADER, tag="th")}
{numbers}
</table>
{left_out}
<p>{html_text(_parameter_line(results))}</p>
<p><img alt="Word error rates by task" src="data:image/png;base64,{image}"></p>
<h2>Worst utterances</h2>
<p><del>Struck out</del>: said but not recognised. <ins>Green</ins>: recognised but not said.</p>
<table>
{_html_row(("task", "adapted", "base"), tag="th")}
{utterances}
</table>
{_html_unscored(unscored)}
<footer>{html_text(_footnote(results))}</footer>
</body>
</html>
"""


def _html_unscored(unscored: Sequence[Unscored]) -> str:
    """The section on utterances that were not scored; '' where all were."""
    if not unscored:
        return ""
    lines = [_html_row(("task", "utterance", "why"), tag="th")]
    lines += [_html_row(map(html_text, dataclasses.astuple(row))) for row in unscored[:_MOST_WORST]]
    cells = "\n".join(lines)
    return (
        f"<h2>Utterances that were not scored</h2>\n<p>{html_text(_unscored_line(unscored))}</p>\n"
        f"<table>\n{cells}\n</table>"
    )


def _html_row(cells: Iterable[str], *, tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _html_utterance(row: UtteranceResult, normalizer: str) -> str:
    task = f'{html_text(row.task)}<br><span class="key">{html_text(row.key)}</span>'
    reference = error_rates.words(row.text, normalizer)
    hypotheses = [text for text in (row.pred_text, row.base_pred_text) if text is not None]
    marked = [_marked(reference, error_rates.words(text, normalizer)) for text in hypotheses]
    return _html_row([task, *marked])


def _marked(reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """The words of both texts in one line of HTML, those of one text alone marked."""
    pieces = []
    # No word is empty, so the empty string can stand for "nothing here".
    for said, recognised in kaldialign.align(reference, hypothesis, ""):
        if said == recognised:
            pieces.append(html_text(said))
        else:
            pieces += [f"<del>{html_text(said)}</del>"] * bool(said)
            pieces += [f"<ins>{html_text(recognised)}</ins>"] * bool(recognised)
    return " ".join(pieces)
