"""Writes the generated parts of the pages: configuration keys, modules, and the tables of what was measured.

    python docs/generate.py            rewrites the pages at the top level and in docs
    python docs/generate.py --check    only says which pages are out of date; status 1 if one is

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a function of `PARTS`. Tables come from the
committed cells in benchmarks/results, so a new measurement is committed as a cell and this script is run. Only the
tables of configuration keys need the package.
"""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Run as a script, it finds the package of its checkout where none is installed.
sys.path.append(str(ROOT))
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def pages() -> list[Path]:
    """The pages of the project, README.md first."""
    top = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*top, *sorted((ROOT / "docs").glob("*.md"))]


def regenerated(text: str) -> str:
    """A page with its generated parts written anew.

    Raises:
      KeyError: a part of another name than those of `PARTS`.
    """
    return _PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", text)


def table(head: str, rows: list[list[str]], *, left: int = 1) -> str:
    """A Markdown table; columns after the first `left` are right-aligned. `head` has its cells between bars."""
    columns = [cell.strip() for cell in head.split("|")]
    rule = ["---" if place < left else "---:" for place in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" if line is not rule else f"|{'|'.join(line)}|" for line in lines)


def cell(name: str) -> Any:
    """What a committed cell holds."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


# ======================================================================================================================
# Configurations
# ======================================================================================================================


def known_keys() -> list[str]:
    """Every dotted configuration key."""
    from hra_jax.config.keys import settings

    return list(settings())


def keys() -> str:
    """Every configuration key, a table for each group, as `python -m hra_jax.config` prints them."""
    from hra_jax.config.keys import documentation

    return re.sub("^## ", "### ", documentation().strip(), flags=re.MULTILINE)


def _first_line(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]


def configurations() -> str:
    """The ready-made configurations, and the first line of each."""
    paths = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "base"]
    return table("`--config` | what it is", [[f"`{path.stem}`", _first_line(path)] for path in paths], left=2)


def modules() -> str:
    """Every module of the package with the first line of its docstring, a table for each folder."""
    folders: dict[Path, list[list[str]]] = {}
    for path in sorted((ROOT / "hra_jax").rglob("*.py")):
        documented = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if documented and "__pycache__" not in path.parts:
            folders.setdefault(path.parent, []).append([f"`{path.name}`", documented.splitlines()[0]])
    parts = [
        f"`{folder.relative_to(ROOT)}`\n\n{table('file | what it holds', rows, left=2)}"
        for folder, rows in sorted(folders.items())
    ]
    return "\n\n".join(parts)


def suites() -> str:
    """The ready-made suites, and the first line of each."""
    paths = sorted((ROOT / "configs" / "suites").glob("*.py"))
    return table("`--suite` | what it scores", [[f"`{path.stem}`", _first_line(path)] for path in paths], left=2)


# ======================================================================================================================
# Results
# ======================================================================================================================


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


def _interval(row: dict[str, float], name: str = "wer") -> str:
    return f"{_percent(row[f'{name}_low'])} to {_percent(row[f'{name}_high'])}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms"


def quickstart() -> str:
    """What `make quickstart` made of each task, decoded greedily and with a language model."""
    results = cell("quickstart/results.json")
    sides = ("base_greedy_wer", "greedy_wer", "base_wer", "wer")
    rows = [
        [name, *(_percent(task[side]) for side in sides), _interval(task)] for name, task in results["tasks"].items()
    ]
    rows.append(["mean of the tasks", *(_percent(results[f"{side}_macro"]) for side in sides), ""])
    return table("task | base | adapted | base + LM | adapted + LM | its 95% interval", rows)


def quickstart_facts() -> str:
    """The counts beside the table of the quickstart."""
    results = cell("quickstart/results.json")
    shared, task, tasks = results["shared_parameters"], results["parameters_per_task"], len(results["tasks"])
    trained, backbone = results["trainable_parameters"], results["backbone_parameters"]
    found = results["decoding"]
    return (
        f"LM: of the training texts, beam {found['beam']}, weights {found['lm_weight']:g} and "
        f"{found['token_bonus']:g}, tuned. All sentences come from a closed grammar: elsewhere it gains less. "
        f"{results['words']:,} test words, {results['step']:,} steps, seed {results['seed']}. "
        f"Trained: {shared:,} shared + {tasks} x {task:,} = {trained:,} parameters, "
        f"{_percent(trained / backbone)} of the backbone's {backbone:,}."
    )


def comparison() -> str:
    """The methods on the Free Spoken Digit Dataset."""
    rows = []
    for row in sorted(cell("compare_methods.json")["rows"], key=lambda row: row["wer"]):
        gap = row.get("minus_hra")
        points = [f"{100 * gap[end]:+.1f}" for end in ("difference", "low", "high")] if gap else []
        difference = "{} ({} to {})".format(*points) if gap else ""
        own = f"{row['parameters_per_task']:,}" if row["parameters_per_task"] else ""
        counts = (own, f"{row['trainable_parameters']:,}", f"{row['learning_rate']:g}")
        rates = (_percent(row["wer"]), _interval(row), " ".join(map(_percent, row["wer_by_seed"])), difference)
        rows.append([row["method"], *counts, *rates])
    head = "method | a task | trained in all | learning rate | WER | 95% interval | by seed | minus hra"
    return table(head, rows)


def comparison_facts() -> str:
    """The rate without an adapter, and the effort."""
    found = cell("compare_methods.json")
    rows = found["rows"]
    return (
        f"Without an adapter the error rate is {_percent(rows[0]['base_wer'])}. {rows[0]['words']:,} test words, three "
        f"seeds, {found['steps']:,} steps each; {found['cpu_minutes']:.0f} minutes of processor time for all cells."
    )


def held_out() -> str:
    """Speakers whom an adapter has not heard, against the number of their words that a head was trained on."""
    rows = []
    for updates, found in cell("fsdd_heldout.json")["by_updates"].items():
        for name, points in [*found["tasks"].items(), ("**mean**", found["all"])]:
            base = found["base"].get(name, sum(found["base"].values()) / len(found["base"]))
            cells = [
                f"{_percent(point['rate'])} ({_percent(point['low'])} to {_percent(point['high'])})" for point in points
            ]
            rows.append([updates, name, _percent(base), *cells])
    head = ["updates", "speaker", "no adapter", "0, the mean head", *(str(k) for k in found["shots"][1:])]
    return table(" | ".join(head), rows, left=2)


def held_out_facts() -> str:
    """How much is behind the table of held-out speakers."""
    found = cell("fsdd_heldout.json")
    pairs = "; ".join(" and ".join(names) for names in found["held_out"])
    first = next(iter(found["by_updates"].values()))
    words = sum(len(counts) for name, counts in first["counts"].items() if name.endswith("@0"))
    return (
        f"Held out together: {pairs}. Each adapter was trained for {found['steps']} steps; {first['draws']} draws; "
        f"{words} test words."
    )


def _count(number: float) -> str:
    for unit, size in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:,.3g} {unit}"
    return f"{number:,}"


def parameters() -> str:
    """What methods cost at the paper's size as tasks grow."""
    methods = {name: found for name, found in cell("params_usm_2b.json")["methods"].items() if name != "full_joint"}
    rows = []
    for name, found in sorted(methods.items(), key=lambda item: item[1]["parameters_per_task"]):
        shared, each = found["shared_parameters"], found["parameters_per_task"]
        totals = [_count(shared + tasks * each) for tasks in (100, 100_000)]
        rows.append([found["label"], f"`{found['formula']['task']}`" if name != "full" else "", f"{shared:,}"])
        rows[-1] += [f"{each:,}", *totals]
    return table("method | of a task | shared | a task | 100 tasks | 100,000 tasks", rows, left=2)


def scaling() -> str:
    """What a step, memory and a checkpoint cost with 10 and with 100,000 tasks."""
    found = cell("task_scaling.json")
    rows = []
    for name, timing in found["timings"]["step"].items():
        costs = found["costs"][name]
        saved = f"{costs['save_bytes']:,} bytes in {costs['save_s']:.2f} s"
        rows.append([name, _milliseconds(timing["median_s"]), f"{costs['peak_mib']:,.0f} MiB", saved])
    return table("tasks, bank | step, median | peak memory of the process | a checkpoint of 8 changed rows", rows)


_PUBLISHED = {"XL": "Transformer-XL"}


def encoders() -> str:
    """Published encoders beside transformers and PEFT."""
    rows = []
    for name, found in cell("backbones.json")["families"].items():
        median = {side: timing["median_s"] for side, timing in found["timings"].items()}
        peak = {side: f"{value:,.0f}" for side, value in found["peak_mib"].items()}
        ratios = [f"{median['jax forward'] / median['torch forward']:.2f}"]
        ratios += [f"{median[side] / median['torch lora']:.2f}" for side in ("jax hra", "jax lora")]
        title = ", ".join(_PUBLISHED.get(word, word) for word in name.split(", "))
        rows.append([title, f"{1e3 * median['torch forward']:,.0f}", ratios[0], f"{1e3 * median['torch lora']:,.0f}"])
        rows[-1] += [*ratios[1:], f"{peak['torch forward']} / {peak['jax forward']}"]
        rows[-1].append(f"{peak['torch lora']} / {peak['jax hra']} / {peak['jax lora']}")
    head = "encoder | forward, theirs (ms) | forward, ratio | LoRA step, theirs (ms) | HRA, ratio | LoRA, ratio"
    return table(f"{head} | forward (MiB), theirs / ours | step (MiB), LoRA theirs / HRA ours / LoRA ours", rows)


def full_depth() -> str:
    """Published encoders at full depth: how near, and what converting takes."""
    rows = []
    for name, found in cell("full_depth.json")["models"].items():
        here, convert = found["hra_jax"], found["convert"]
        rows.append([name, here["compared"], f"{here['max']:.1e}", f"{here['mean']:.1e}"])
        rows[-1] += [f"{here['root_mean_square']:.2f}", f"{convert['seconds']:.0f} s"]
        rows[-1].append(f"{convert['above_bare_gib']:.2f} GiB")
    head = "encoder | compared | largest difference | mean | root mean square of the values | converted in"
    return table(f"{head} | memory above a bare interpreter", rows, left=2)


_BOUNDS = {"compute": "arithmetic", "memory": "HBM", "ici": "ICI", "dcn": "DCN"}
_BOUNDS |= {"links": "ICI", "network": "DCN"}  # as cells of hra_jax 0.1 say it
_PROGRAMS = {
    "train_v5e-16x16": "v5e:16x16",
    "variant_32_a_chip": "v5e:16x16, 8 times the batch",
    "train_v5p-4x4x4": "v5p:4x4x4",
    "train_v6e-16x16": "v6e:16x16",
    "train_2_x_v5e-16x16": "2 slices of v5e:16x16",
}
_TRIED = {
    "variant_32_a_chip_all_heads_128_queries_at_a_time": "32 a chip, all heads and 128 queries at a time",
    "variant_4_a_chip_all_heads_and_queries_at_a_time": "4 a chip, all heads and queries at a time",
    "variant_32_a_chip_8_micro-batches": "32 a chip in 8 micro-batches",
    "variant_4_a_chip_remat-dots": "4 a chip, `remat=dots`",
    "variant_4_a_chip_mesh_8_x_32": "4 a chip, mesh of 8 x 32",
    "variant_4_a_chip_mesh_64_x_4": "4 a chip, mesh of 64 x 4",
}


def _programs(names: dict[str, str]) -> str:
    rows = []
    for name, title in names.items():
        (program,) = cell(f"tpu_memory/{name}.json")["programs"]
        memory = f"{program['peak'] / 1e9:.1f} GB of {program['memory'] / 1e9:.0f}"
        seconds = {_BOUNDS[bound]: value for bound, value in program["seconds"].items()}
        times = [_milliseconds(seconds[bound]) for bound in ("arithmetic", "HBM", "ICI", "DCN")]
        rows.append([title, f"{program['rows_per_device']:g}", memory, *times, _BOUNDS[program["bound"]]])
    head = "topology | utterances a chip | peak memory a chip | arithmetic | HBM | ICI | DCN | bound by"
    return table(head, rows)


def tpus() -> str:
    """The train step of the paper's size on pods, as compiled."""
    return _programs(_PROGRAMS)


def tpu_variants() -> str:
    """What was tried to move the bound on v5e:16x16."""
    return _programs(_TRIED).replace("topology", "what differs", 1)


def tpu_batches() -> str:
    """The largest batch that fits, by method."""
    rows = []
    for method in ("hra", "full", "lora", "residual"):
        found = cell(f"tpu_memory/search_{method}.json")
        trained = f"{found['parameters']['trainable_parameters']:,}"
        rows.append([method, trained, f"{found['most_rows_per_device']:g}"])
    return table("method | trained | most utterances of 30 s a chip", rows)


def layers() -> str:
    """Alternatives for a layer, timed side by side."""
    rows = []
    for layer, sides in cell("layers.json")["timings"].items():
        base = next(iter(sides.values()))["median_s"]
        for side, timing in sides.items():
            median = timing["median_s"]
            rows.append([layer, side, f"{1e3 * median:.2f} ms", f"{median / base:.1f}"])
    return table("layer | way | forward and backward, median | times the first", rows, left=2)


def input_pipeline() -> str:
    """How much audio is read and put into batches, by us and by others."""
    sides: dict[str, list[str]] = {}
    for row in cell("input_pipeline.json")["rates"]:
        sides.setdefault(row["side"], []).append(f"{row['median']:,.0f}")
    columns = "10 s, int16 or WAV | 10 s, FLAC | 0.4 s, int16 or WAV | 0.4 s, FLAC"
    return table(f"way | {columns}", [[side, *medians] for side, medians in sides.items()])


def input_waiting() -> str:
    """What share of its time a training waits for input."""
    shares = cell("input_pipeline.json")["input_wait_shares"]
    parts = [f"{100 * sum(values) / len(values):.2f}% with {form}" for form, values in shares.items()]
    return f"The share of its time that the configuration `fsdd` waits for input, on two cores: {', '.join(parts)}."


_LENGTHS = {
    "LibriSpeech-like": "read books, drawn, {mean:.1f} s",
    "Common-Voice-like": "single sentences, drawn, {mean:.1f} s",
    "fsdd": "digits, of `fsdd`, {mean:.2f} s",
    "quickstart": "synthetic voices, of `quickstart`, {mean:.1f} s",
}


def padding() -> str:
    """Padding by number of buckets found in the data."""
    sets, rows = cell("padding.json")["padding"], []
    numbers = [number for number in sets["fsdd"]["padding"] if number != "1"]
    for name, found in sets.items():
        shares = [_percent(found["padding"][number]) for number in numbers]
        edges = ", ".join(f"{edge:g}" for edge in found["configured"]["edges"])
        rows.append([_LENGTHS[name].format(mean=found["mean_seconds"]), _percent(found["padding"]["1"]), *shares])
        rows[-1].append(f"{_percent(found['configured']['padding'])} ({edges})")
    head = " | ".join(f"{number} buckets" for number in numbers)
    return table(f"utterances, mean length | 1 bucket | {head} | as configured", rows)


def bucket_times() -> str:
    """What whole runs take by number of buckets."""
    rows = []
    for name, found in cell("padding.json")["runs"].items():
        for choice, entry in found["choices"].items():
            number = f"{len(entry['edges'])}, as configured" if choice == "configured" else choice
            rows.append([f"`{name}`", number, _percent(entry["padding"]), f"{entry['batch_seconds']:.1f} s"])
            rows[-1] += [f"{entry[key]:,.0f} s" for key in ("compiling", "stepping", "clock")]
    head = "run | buckets | padding | batch | compiling, CPU | steps, CPU | together, by the clock of two cores"
    return table(head, rows, left=2)


def table_rows() -> str:
    """From files to the table of a run, for a million utterances."""
    found = cell("table_rows.json")
    sides = {
        "JSON Lines, an object for each utterance": [found["before"]["train.jsonl"]],
        "JSON Lines": found["sources"]["train.jsonl"],
        "index of shards": found["sources"]["shards"],
    }
    rows = []
    for name, runs in sides.items():
        run = sorted(runs, key=lambda run: run["cpu_seconds_in_all"])[len(runs) // 2]
        parts = [run["cpu_seconds"][part] for part in ("read", "table", "digest", "suites")]
        seconds = [*parts, run["cpu_seconds_in_all"]]
        memory = [f"{run[key] / 1e9:.2f} GB" for key in ("start_bytes", "peak_bytes")]
        rows.append([name, *(f"{value:.1f} s" for value in seconds), *memory])
    head = "source | read | table | digest | suite compared | together | memory before | at its peak"
    return table(head, rows)


def decoding() -> str:
    """How fast the beam search is, alone."""
    rows = []
    for row in cell("decoding.json")["search"]:
        error = _percent(row["wer"]) if "wer" in row else "-"
        speed = f"{row['rate']:,.0f} s", f"{row['frame_microseconds']:.1f} µs"
        rows.append([f"{row['vocabulary']:,}", _MODELS[row["model"]], str(row["beam"]), *speed, error])
    head = "tokens | language model | beam | audio per core-second, 20 ms a frame | a frame of an utterance | WER"
    return table(head, rows, left=2)


_MODELS = {"none": "none", "dense": "character 6-gram, a dense table", "arcs": "4-gram, arcs with back-off"}


def decoding_facts() -> str:
    """What bounds the search of a large vocabulary, and the real-time factors of the whole way."""
    found = cell("decoding.json")
    large, whole = found["large"], found["end_to_end"]["sides"]
    factors = ", ".join(f"{row['factor']:.4f} ({name}; WER {_percent(row['wer'])})" for name, row in whole.items())
    return (
        f"With 1,025 tokens a frame of an utterance takes {large['choosing_microseconds']:.1f} µs before anything is "
        f"searched: choosing the 32 likeliest tokens. The 4-gram has {large['states']:,} states and "
        f"{large['arcs']:,} arcs, {large['bytes'] / 1e6:.1f} MB on the device. From waveforms to texts of "
        f"{found['end_to_end']['utterances']} utterances, encoder and alignment included, CPU seconds per second of "
        f"audio: {factors}."
    )


def word_times() -> str:
    """Errors of word boundaries, beside the silence that they may lie in."""
    found, rows = cell("word_times.json"), []
    sides = ("boundary", "boundary_outside_silence", "first_label", "silence_before", "silence_after")
    for clips, times in found["times"].items():
        cells = [f"{times[side]['median_ms']:.0f} ms / {times[side]['p95_ms']:.0f} ms" for side in sides]
        rows.append([clips, str(times["joints"]), f"{found['lag_ms']:.0f} ms", *cells])
    head = "clips put together | joints | lag taken off | boundary | from the nearest silence at the joint"
    return table(f"{head} | the first label alone | silence before the joint | after it", rows)


def word_confidences() -> str:
    """Calibration errors on test suites."""
    rows = []
    for name, what in (("word_times.json", "`fsdd`, 400 steps"), ("word_confidences.json", "`quickstart`")):
        for decoding, found in cell(name)["confidences"].items():
            errors = [_percent(found[key][side]) for key in ("ece", "mean_ece_of_tasks") for side in found["ece"]]
            rows.append([what, decoding, f"{found['words']:,}", _percent(found["right"]), *errors])
    head = "adapter | decoding | words | right | all words, before | after | mean of tasks, before | after"
    return table(head, rows, left=2)


_PHRASES = {
    "greedy": "greedy",
    "none": "beam",
    "none phrases": "beam, phrases",
    "none distractors": "beam, distractors",
    "all": "language model of all training texts",
    "all phrases": "language model of all training texts, phrases",
    "all distractors": "language model of all training texts, distractors",
    "without": "language model of training texts without the words",
    "without phrases": "language model of training texts without the words, phrases",
    "without distractors": "language model of training texts without the words, distractors",
}


def phrases() -> str:
    """What phrases bring for rare words."""
    found, rows = cell("phrases.json"), []
    for name, shown in _PHRASES.items():
        entry = found["test"][name]
        recalled = "-" if entry["recall"] is None else f"{entry['right']} of {entry['said']}"
        weight = f"{found['phrase_weights'][name.split()[0]]:g}" if " " in name else "-"
        rows.append([shown, weight, recalled, str(entry["false_insertions"]), _percent(entry["wer"])])
    return table("decoding | weight | recognised | made up | word error rate", rows)


def phrase_weights() -> str:
    """Rare words by the weight of phrases, with a language model that lacks them."""
    rows = [
        [weight, f"{entry['right']} of {entry['said']}", str(entry["false_insertions"]), _percent(entry["wer"])]
        for weight, entry in cell("phrases.json")["test_by_weight"].items()
    ]
    return table("`decode.phrase_weight` | recognised | made up | word error rate", rows)


def served() -> str:
    """How far an exported program is from the library, and the library with another padding from itself."""
    found, rows = cell("serving.json"), []
    for task in found["same_padding"]:
        entries = [found[side][task] for side in ("same_padding", "other_padding", "library_other_padding")]
        rows.append(
            [
                task,
                *(
                    f"{entry[key]:.1e}" if entry[key] else "0"
                    for key in ("probabilities", "log_probabilities")
                    for entry in entries
                ),
            ]
        )
    sides = ("same padding", "another padding", "the library, another padding")
    head = " | ".join(f"{what}, {side}" for what in ("probabilities", "log-probabilities") for side in sides)
    return table(f"task | {head}", rows)


def served_facts() -> str:
    """Sizes and seconds of an export."""
    found = cell("serving.json")
    size, seconds = found["bytes"], found["seconds"]
    return (
        f"The program has {size['program'] / 1e3:,.0f} kB, the encoder's weights {size['backbone'] / 1e6:,.1f} MB, "
        f"what all tasks share {size['shared'] / 1e3:,.0f} kB, a task {size['row'] / 1e3:,.0f} kB. Exporting takes "
        f"{seconds['export']:.1f} s, a task that is added {1000 * seconds['row']:.0f} ms, loading "
        f"{1000 * seconds['load']:.0f} ms. {found['utterances']} utterances, {found['audio_seconds']:.0f} s, take "
        f"{seconds['first']:.1f} s with the compilation of three shapes, and {seconds['again']:.1f} s after it; "
        f"{found['same_texts']} of the texts are those of the library."
    )


def serving_script() -> str:
    """The script that runs an exported program, as it is put beside it."""
    script = (ROOT / "hra_jax" / "serving" / "standalone.py").read_text(encoding="utf-8")
    return f"```python\n{script}```"


_SETS = {"hard": "eight hard speakers", "accents64": "64 accents"}


def unknown_task() -> str:
    """What `__auto__` costs in errors."""
    rows = []
    for name, found in cell("unknown_task.json")["sets"].items():
        rates = [_percent(found[side] / found["words"]) for side in ("base", "mean", "oracle")]
        for side in ("single", "sessions"):
            heard, plain, count = found[side], found[f"{side}, no base"], found["utterances"]
            shares = [_percent(heard[key] / count) for key in ("right", "among")]
            errors = [_percent(entry["errors"] / found["words"]) for entry in (heard, plain)]
            what = "one by one" if side == "single" else "sessions of 5"
            rows.append([_SETS[name], what, *rates, *errors, f"{heard['recovered']:.2f}", *shares])
            rows[-1].append(str(heard["passes"]))
    head = "speakers | utterances | base | mean head | own task | `__auto__` | without `__base__` | recovered | right"
    return table(f"{head} | among candidates | passes", rows, left=2)


PARTS: dict[str, Callable[[], str]] = (
    {
        part.__name__: part
        for part in (keys, configurations, suites, modules, quickstart, quickstart_facts, comparison, comparison_facts)
    }
    | {
        part.__name__: part
        for part in (parameters, scaling, encoders, full_depth, tpus, tpu_variants, tpu_batches, layers)
    }
    | {part.__name__: part for part in (held_out, held_out_facts, padding, bucket_times)}
    | {
        part.__name__: part
        for part in (input_pipeline, input_waiting, table_rows, serving_script, phrases, phrase_weights)
    }
    | {part.__name__: part for part in (word_times, word_confidences, unknown_task)}
    | {part.__name__: part for part in (decoding, decoding_facts, served, served_facts)}
)


def main(arguments: list[str]) -> int:
    """Rewrites the pages, or checks them; returns the exit status."""
    status = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        written = regenerated(text)
        if written != text:
            print(f"{page.relative_to(ROOT)}: {'out of date' if '--check' in arguments else 'written'}")
            if "--check" in arguments:
                status = 1
            else:
                page.write_text(written, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
