"""What people read of the results of an evaluation: table, Markdown, plot; and the files they and the page are in.

`write_report` and `print_table` present what `hra_jax.evaluation.results.evaluate_results` returned.
"""

import collections
import dataclasses
import fnmatch
import io
import shlex
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import rich.console
from etils import epath
from matplotlib.figure import Figure

from hra_jax.console import bounds, markdown_cell, percent, points, say, stdout, table
from hra_jax.decoding.language_models import search_digest
from hra_jax.evaluation import error_rates, report_page, shots
from hra_jax.evaluation.predictions import Unscored, UtteranceResult, prediction_line
from hra_jax.evaluation.results import decoding_of, decoding_words, mean_scores
from hra_jax.storage.files import make_folder, remove_file, replaced_name, write_file
from hra_jax.storage.json_files import json_text
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK, task_file_names

_FILES = ("wer.png", "report.md", "report.html", "results.json")  # beside predictions_<task>.jsonl
_MOST_PLOTTED = 30  # tasks; the bars of more would be too thin to read
_MOST_WORST = 30  # utterances listed in a report


# --- For the terminal -------------------------------------------------------------------------------------------------

_NOT_SCORED = "not scored"
_COLUMNS = ("task", "base", "greedy", "adapted", "95% interval", "change", "verdict", "words")
_MOST_SLICES = 30  # rows of slices in a table


def _header(results: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the columns: with what decides, where it is the same everywhere.

    That of greedy decoding is there where not everything is decoded so.
    """
    kinds = {task["metric"] for task in results["tasks"].values()} | {results["metric"]}
    kind = f" {kinds.pop().upper()}" if len(kinds) == 1 else ""
    columns = [name for name in _COLUMNS if name != "greedy" or "greedy_wer" in results]
    return tuple(f"{name}{kind}" if name in ("base", "greedy", "adapted") else name for name in columns)


def _row(name: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a task, of a slice or of all utterances."""
    metric, change = scores["metric"], scores["difference"]
    return (
        name,
        percent(scores[f"base_{metric}"]),
        *([percent(scores[f"greedy_{metric}"])] if f"greedy_{metric}" in scores else []),
        percent(scores[metric]),
        bounds(scores, metric),
        "-" if change is None else points(change["difference"]),
        "-" if change is None else change["verdict"] or "-",
        f"{scores['words']:,}",
    )


def _table_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of every task, then of the mean over tasks and of all utterances, as text."""
    rows = [_row(name, task) for name, task in results["tasks"].items()]
    dashes = ("-",) * (len(_header(results)) - 3)
    rows += [(name, "-", _NOT_SCORED, *dashes) for name in results["tasks_not_scored"]]
    return [*rows, _row("mean of the tasks", mean_scores(results)), _row("all utterances", results)]


def _slice_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the first slices."""
    rows = [
        _row(f"{item.partition(':')[0]}: {scores['value']}", scores)
        for item, slices in results["slices"].items()
        for scores in slices
    ]
    return rows[:_MOST_SLICES]


def _summary_lines(results: Mapping[str, Any]) -> list[str]:
    """What the table says, in sentences: the worst task, the spread, who got worse, what was resampled, how fast."""
    over, lines = results["over_tasks"], []
    if over["tasks"] > 1:
        worst = over["worst"]
        lines.append(
            f"worst task: {worst['task']}, {percent(worst['rate'])}; spread over tasks (standard deviation): "
            f"{100 * over['spread']:.1f} points"
        )
    if over["got_worse"] is not None:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in over["verdicts"].items())
        beside = f"; by the intervals: {verdicts}" if results["bootstrap"]["samples"] else ""
        lines.append(f"{over['got_worse']} of {over['tasks']} tasks have more errors than without the adapter{beside}")
    lines += [f"decoded with {words}"] if (words := decoding_words(results["decoding"])) else []
    lines += _calibration_lines(results)
    if known := results.get("texts_in_training"):
        lines.append(
            f"{known['known']:,} of {known['utterances']:,} utterances have a text that occurs in the training "
            f"({known['texts_known']:,} of {known['texts']:,} different texts)"
        )
    if results["speed"] is not None:
        speed = results["speed"]
        lines.append(
            f"recognised {speed['audio_seconds']:,.0f} s of audio in {speed['seconds']:,.1f} s: real-time factor "
            f"{speed['real_time_factor']:.3g}"
        )
    return lines


def _calibration_lines(results: Mapping[str, Any]) -> list[str]:
    """By how much confidences of words were off, before they were calibrated and after; one line for each suite.

    Words are calibrated as they are decoded here: nothing is told of tasks that are searched and were not, or that are
    searched with another language model, or other weights, than they were calibrated with.
    """
    by_suite: dict[str, list[tuple[float, float]]] = {}
    for task, facts in results.get("calibration", {}).items():
        decoding = decoding_of(results["decoding"], task)
        searched = decoding.get("method", "greedy") != "greedy"
        if searched and facts.get("search_digest") not in (None, search_digest(decoding)):
            continue
        names = [f"{'search_' if searched else ''}ece_{when}" for when in ("before", "after")]
        if facts.keys() >= set(names):
            by_suite.setdefault(facts["suite"], []).append((facts[names[0]], facts[names[1]]))
    return [
        f"confidences of words were calibrated on suite {suite}: they were off by {percent(fmean(before))}, and are by "
        f"{percent(fmean(after))} (expected calibration error, mean of {len(pairs):,} tasks)"
        for suite, pairs in by_suite.items()
        for before, after in [zip(*pairs, strict=True)]
    ]


def _parameter_lines(results: Mapping[str, Any]) -> list[str]:
    """What is trained, where that is known."""
    total, whole = results["trainable_parameters"], results["backbone_parameters"]
    if total is None or not whole:
        return []
    return [
        f"trained parameters: {results['shared_parameters']:,} shared, {results['parameters_per_task']:,} per task, "
        f"{total:,} in total: {total / whole:.2%} of the backbone's {whole:,}"
    ]


def _left_out_lines(results: Mapping[str, Any]) -> list[str]:
    """A line for each task that has no rate."""
    return [f"task {name!r} was not scored: {why}" for name, why in results.get("tasks_not_scored", {}).items()]


def print_table(results: Mapping[str, Any], *, console: rich.console.Console | None = None) -> None:
    """Prints the results: a line for every task, the means, and what is trained; to standard output by default."""
    console, rows = console or stdout(), _table_rows(results)
    left = ("verdict",)
    console.print(table(_header(results), rows[:-2], rows[-2:], title=f"suite {results['suite']}", left=left))
    if slices := _slice_rows(results):
        console.print(table(("slice", *_header(results)[1:]), slices, left=left))
    for header, rows in _few_tables(results):
        console.print(table(header, rows, title="heads of held-out tasks"))
    for line in (*_left_out_lines(results), *_summary_lines(results), *_parameter_lines(results), *_footnotes(results)):
        say(console, line)


# --- Files ------------------------------------------------------------------------------------------------------------


def write_report(
    folder: epath.PathLike,
    results: Mapping[str, Any],
    rows: Sequence[UtteranceResult],
    unscored: Sequence[Unscored] = (),
    *,
    command: str = "",
    durable: bool = True,
) -> None:
    """Writes results.json, predictions_<task>.jsonl, report.md, report.html and wer.png, each whole or not at all.

    Predictions that an earlier report left in the folder for other tasks are deleted.

    Args:
      folder: `W/eval/<suite>`; made where absent.
      results: what `evaluate_results` returned for `rows`.
      rows: the scored utterances. Those of tasks that have no rate are in no file.
      unscored: the utterances that were not scored.
      command: what repeats the evaluation, for report.html; '' where nobody knows.
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
    worst = _worst(rows, results["normalizer"])
    write_file(folder / "wer.png", wer_plot(results), durable=durable)
    write_file(folder / "report.md", _markdown(results, worst, unscored), durable=durable)
    write_file(folder / "report.html", _page(results, worst, unscored, command=command), durable=durable)
    # The last one: who finds it finds the others.
    write_file(folder / "results.json", json_text(results), durable=durable)


def evaluation_command(**flags: str | Sequence[str] | bool | None) -> str:
    """The command that evaluates with some flags.

    One that is a list is given repeatedly; None is left out, and so is '', but for the keys of decoding.
    """
    words = ["python", "-m", "hra_jax.evaluate"]
    for name, values in flags.items():
        if isinstance(values, bool):
            words += [f"--{name}"] * values
            continue
        if name.startswith("decode."):  # '' is none, in place of what a run or a suite names
            words.append(f"--{name}={values}")
            continue
        for value in [values] if isinstance(values, str) else values or ():
            words += [f"--{name}", value] * bool(value)
    return shlex.join(words)


def is_report_file(name: str) -> bool:
    """Whether `write_report` takes care of a file of the folder, by its name: it writes or removes it."""
    return fnmatch.fnmatchcase(replaced_name(name) or name, "predictions_*.jsonl") or name in _FILES


def _predictions(results: Mapping[str, Any], rows: Sequence[UtteranceResult]) -> dict[str, str]:
    """JSON Lines by file name, one file for every task."""
    names = task_file_names(results["tasks"])
    lines: dict[str, list[str]] = {name: [] for name in results["tasks"]}
    for row in rows:
        counted = _counted(row, row.pred_text, results["normalizer"])
        if row.base_pred_text is not None:
            base = _counted(row, row.base_pred_text, results["normalizer"])
            counted |= {"base_errors": base["errors"], "base_character_errors": base["character_errors"]}
        for name, text in (("greedy", row.greedy_text), ("base_greedy", row.base_greedy_text)):
            if text is not None:
                counted[f"{name}_errors"] = _counted(row, text, results["normalizer"])["errors"]
        lines[row.task].append(prediction_line(row, counted))
    return {f"predictions_{names[task]}.jsonl": "".join(text) for task, text in lines.items()}


def _counted(row: UtteranceResult, text: str, normalizer: str) -> dict[str, int]:
    counts = error_rates.errors_by_metric(row.text, text, normalizer)
    return {
        "words": counts["wer"].words,
        "errors": counts["wer"].errors,
        "characters": counts["cer"].words,
        "character_errors": counts["cer"].errors,
    }


def _worst(rows: Sequence[UtteranceResult], normalizer: str) -> list[UtteranceResult]:
    """The utterances with the most word errors; of as many errors, the higher rate first."""

    def order(row: UtteranceResult) -> tuple[int, int, str, str]:
        counts = error_rates.errors_by_metric(row.text, row.pred_text, normalizer)["wer"]
        return -counts.errors, counts.words, row.task, row.key

    wrong = [row for row in rows if order(row)[0]]
    return sorted(wrong, key=order)


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


def _tables(results: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Headers and rows of the tables: of heads of held-out tasks and of slices where there are any, and of tasks."""
    slices, header = _slice_rows(results), _header(results)
    some = [(("slice", *header[1:]), slices)] if slices else []
    sure = [_calibration_table(results["calibration"])] if results.get("calibration") else []
    return [*_few_tables(results), (header, _table_rows(results)), *some, *sure]


def _few_tables(results: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Error rates against the number of utterances that heads were trained on, where there are any."""
    found = [shots.table_of(results["few_shot"])] if "few_shot" in results else []
    return found + ([_auto_table(results["auto"])] if "auto" in results else [])


def _calibration_table(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the expected calibration error of each task's words."""
    keys = ["ece_before", "ece_after"]
    header = ["task", "calibrated on", "confidence off by", "calibrated"]
    if any("search_ece_before" in facts for facts in found.values()):
        keys += ["search_ece_before", "search_ece_after"]
        header += ["searched, off by", "searched, calibrated"]
    rows = [(name, facts["suite"], *(percent(facts.get(key)) for key in keys)) for name, facts in found.items()]
    return tuple(header), rows


def _auto_table(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of what `__auto__` costs, all tasks together last."""
    header = ("task", AUTO_TASK, "own task", "right", "among candidates", f"as {BASE_TASK}")
    keys = ("wer", "own_wer", "right", "among", "base")
    names = [name for name in found["tasks"] if name]
    shown = names if len(names) == 1 else [*names, ""]
    return header, [(name or "all", *(percent(found["tasks"][name][key]) for key in keys)) for name in shown]


def _markdown(results: Mapping[str, Any], worst: Sequence[UtteranceResult], unscored: Sequence[Unscored]) -> str:
    """The content of report.md."""
    lines = [f"# Suite {markdown_cell(results['suite'])}", ""]
    for header, rows in _tables(results):
        lines += [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
        lines += [f"| {' | '.join(map(markdown_cell, row))} |" for row in rows]
        lines.append("")
    for line in (*_left_out_lines(results), *_summary_lines(results), *_parameter_lines(results)):
        lines += [markdown_cell(line), ""]
    lines += ["![Word error rates by task](wer.png)", "", "## Worst utterances", ""]
    lines += ["| task | utterance | reference | adapted | base |", "|---|---|---|---|---|"]
    for row in worst[:_MOST_WORST]:
        cells = (row.task, row.key, row.text, row.pred_text, row.base_pred_text or "")
        lines.append(f"| {' | '.join(map(markdown_cell, cells))} |")
    if unscored:
        lines += ["", "## Utterances that were not scored", "", _unscored_line(unscored), ""]
        lines += ["| task | utterance | why |", "|---|---|---|"]
        lines += [f"| {' | '.join(map(markdown_cell, dataclasses.astuple(row)))} |" for row in unscored[:_MOST_WORST]]
    return "\n".join([*lines, "", " ".join(_footnotes(results)), ""])


def _page(
    results: Mapping[str, Any], worst: Sequence[UtteranceResult], unscored: Sequence[Unscored], *, command: str
) -> str:
    """The content of report.html."""
    return report_page.page_of(
        results,
        worst,
        (_unscored_line(unscored), unscored[:_MOST_WORST]),
        lines=[*_left_out_lines(results), *_summary_lines(results), *_parameter_lines(results)],
        notes=_footnotes(results),
        command=command,
    )


def _unscored_line(unscored: Sequence[Unscored]) -> str:
    shown = f"; the first {_MOST_WORST} of them" if len(unscored) > _MOST_WORST else ""
    return f"The rates leave out {len(unscored):,} utterances{shown}."


def _footnotes(results: Mapping[str, Any]) -> list[str]:
    """How texts were compared, and what the intervals hold for."""
    compared = f"Texts were compared after the normalizer {results['normalizer']}"
    samples = results["bootstrap"]["samples"]
    if not samples:
        return [f"{compared}; no intervals."]
    of_slices = [scores for slices in results["slices"].values() for scores in slices]
    kinds = collections.Counter(scores["resampled"] for scores in (*results["tasks"].values(), *of_slices))
    alone = kinds.pop("utterances", 0)
    shown = [f"by {kind} in {count} tasks and slices" for kind, count in sorted(kinds.items())]
    if alone:
        least = results["bootstrap"]["least_blocks"]
        shown.append(f"by utterance in {alone} with fewer than {least} values of {results['block']}")
    pooled = "utterance" if results["resampled"] == "utterances" else results["resampled"]
    return [
        f"{compared}.",
        "The change is in percentage points, below 0 where the adapter makes fewer errors.",
        f"Intervals hold 95% of {samples:,} resamples, {', '.join(shown)}.",
        f"All utterances are resampled by {pooled}; for the mean of the tasks, tasks are resampled as well.",
    ]
