"""What the paper's size takes on TPU pods: memory, collectives, roofline, and the largest batch, by method.

python benchmarks/tpu_memory.py --cells benchmarks/results/tpu_memory --workdir runs/tpu_memory

Every cell is one call of `hra_jax.aot`, which takes minutes on one core and some 12 GB of memory. Cells that are there
are not compiled again, and the page is written from those that are there.
"""

import json
import math
import subprocess
import sys

from absl import flags
from cells import Cells, OutOfTime
from cells import define_flags as define_cell_flags
from etils import epath

from hra_jax import cli
from hra_jax.aot import DOES_NOT_FIT
from hra_jax.tpu import topologies

FLAGS = flags.FLAGS

BUCKET = "--config.batch.buckets=(30.0,)"
STEPS = ("train", "evaluation", "transcription")
# name -> topology and settings: every step of the hierarchical recurrent adapter at the configuration's batch.
TOPOLOGIES = {
    "v5e:16x16": ("v5e:16x16",),
    "v5p:4x4x4": ("v5p:4x4x4",),
    "v6e:16x16": ("v6e:16x16",),
    "2 x v5e:16x16": ("v5e:16x16", "--config.mesh.slices=2"),
}
# 32 utterances of 30 s on each of 256 chips
FULL_BATCH = "--config.batch.seconds=245760"
METHODS = ("hra", "full", "lora", "residual")
# What was tried to move the bound: topology, batch, and what else differs from the configuration.
VARIANTS = {
    "32 a chip": ("v5e:16x16", (FULL_BATCH,), ()),
    "32 a chip, all heads, 128 queries at a time": ("v5e:16x16", (FULL_BATCH,), ("--config.attention_block=128",)),
    "32 a chip, 8 micro-batches": ("v5e:16x16", (FULL_BATCH,), ("--config.accumulate=8",)),
    "4 a chip, all heads and queries at a time": ("v5e:16x16", (), ("--config.attention_block=0",)),
    "v5p:4x4x4, 4 micro-batches": ("v5p:4x4x4", (), ("--config.accumulate=4",)),
    "4 a chip, remat=dots": ("v5e:16x16", (), ("--config.remat=dots",)),
    "4 a chip, mesh 8 x 32": ("v5e:16x16", (), ("--config.mesh.fsdp=32",)),
    "4 a chip, mesh 64 x 4": ("v5e:16x16", (), ("--config.mesh.fsdp=4",)),
}
# Adapters on published encoders.
PUBLISHED = ("w2v_bert_hra", "parakeet_hra", "medasr_hra")
PUBLISHED_TOPOLOGIES = ("v5e:2x4", "v5e:8x8")
# On public corpora: topology, the longest bucket and the tasks of each, and room for its labels.
CORPORA = {
    "librispeech_hra": ("v5e:4x4", "--config.batch.buckets=(25.0,)", "--tasks=2338", "--labels_per_second=20"),
    "common_voice_hra": ("v5e:2x4", "--config.batch.buckets=(15.0,)", "--tasks=8", "--labels_per_second=20"),
    "user_libri_hra": ("v5e:2x4", "--config.batch.buckets=(35.0,)", "--tasks=107"),
}
# The beam search alone, with a language model and phrases for each row: topology and settings.
DECODED = {"quickstart": ("v5e:1x1", "--config.batch.seconds=30"), "parakeet_hra": ("v5e:2x4",)}


def compile_programs(config: str, topology: str, *settings: str, workdir: epath.Path) -> dict:
    """Runs `hra_jax.aot` once; what it wrote as JSON."""
    workdir.mkdir(parents=True)
    path = workdir / "aot.json"
    command = [sys.executable, "-m", "hra_jax.aot", "--config", config, "--topology", topology, BUCKET, *settings]
    done = subprocess.run([*command, "--parallel=1", f"--json={path}"], check=False)
    if done.returncode not in (0, DOES_NOT_FIT):
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}")
    return json.loads(path.read_text(encoding="utf-8"))


def cell_of(cells: Cells, name: str, config: str, topology: str, *settings: str) -> dict:
    """The cell of one call."""
    facts = {"arguments": [config, topology, BUCKET, *settings]}
    return cells.get(name, lambda workdir: compile_programs(config, topology, *settings, workdir=workdir), facts)


def all_cells() -> dict[str, tuple[str, ...]]:
    """name -> arguments of every cell, the most wanted first."""
    found = {}
    for place, where in TOPOLOGIES.items():
        found[f"train {place}"] = ("usm_2b_hra", *where, "--steps=train")
    for config in PUBLISHED:
        for place in PUBLISHED_TOPOLOGIES:
            found[f"{config} {place}"] = (config, place, "--steps=train")
    for config, (place, *settings) in CORPORA.items():
        found[f"{config} {place}"] = (config, place, "--steps=train", *settings)
    for method in METHODS:
        found[f"search {method}"] = (f"usm_2b_{method}", "v5e:16x16", "--search=batch")
    for name, (place, batch, settings) in VARIANTS.items():
        found[f"variant {name}"] = ("usm_2b_hra", place, *batch, "--steps=train", *settings)
    for place, where in TOPOLOGIES.items():
        for step in STEPS[1:]:
            found[f"{step} {place}"] = ("usm_2b_hra", *where, f"--steps={step}")
    for config, (place, *settings) in DECODED.items():
        found[f"decode {config} {place}"] = (config, place, "--steps=decode", *settings)
    return found


def file_name(name: str) -> str:
    """The name of a cell's file."""
    return name.replace(",", "").replace(" ", "_").replace(":", "-").replace("=", "-")


# ======================================================================================================================
# The page
# ======================================================================================================================

_COLUMNS = (
    "arguments", "temporaries", "peak", "of memory", "TFLOPs", "HBM traffic", "moved", "compute", "HBM", "ICI", "DCN",
    "bound",
)  # fmt: skip
# What bounds a step, in the words of the page; cells of hra_jax 0.1 say "links" and "network".
_RESOURCES = {"compute": "compute", "memory": "HBM", "ici": "ICI", "dcn": "DCN", "links": "ICI", "network": "DCN"}


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms"


def row_of(entry: dict, cell: dict) -> list[str]:
    """The columns of one program of a cell."""
    if not entry["fits"]:
        needed = "" if entry["needed"] is None else f": {_gigabytes(entry['needed'])}"
        return [f"does not fit{needed}", *[""] * (len(_COLUMNS) - 1)]
    known = [_gigabytes(entry[name]) for name in ("arguments", "temporaries", "peak")]
    known += [f"{entry['peak'] / memory_of(cell):.0%}", f"{entry['flops'] / devices_of(cell) / 1e12:.1f}"]
    moved = sum(collective["moved"] for collective in entry["collectives"])
    seconds = {_RESOURCES[name]: value for name, value in entry["seconds"].items()}
    times = [_milliseconds(seconds[name]) for name in ("compute", "HBM", "ICI", "DCN")]
    return [*known, _gigabytes(entry["traffic"]), _gigabytes(moved), *times, _RESOURCES[entry["bound"]]]


def table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """A Markdown table; columns after the first are right-aligned."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def devices_of(cell: dict) -> int:
    """Chips of all slices."""
    return math.prod(cell["mesh"].values())


def memory_of(cell: dict) -> float:
    """Bytes of HBM of one chip. Cells of hra_jax before 0.2 took a gigabyte for a gibibyte."""
    chip = topologies.parse(cell["topology"]).chip
    assert chip is not None, "the cells are of TPUs"
    return chip.hbm_bytes


def collectives_of(entry: dict) -> list[list[str]]:
    """The rows of the table of collectives."""
    return [
        [
            collective["kind"] + (" between slices" if collective["between_slices"] else ""),
            str(collective["group"]),
            f"{collective['count']:,}",
            _gigabytes(collective["payload"]),
            _gigabytes(collective["moved"]),
        ]
        for collective in entry["collectives"]
    ]


def programs_of(cells: dict[str, dict]) -> list[list[str]]:
    """The rows of all programs of the cells."""
    return [
        [
            name if len(cell["programs"]) == 1 else f"{name}, {entry['step']}",
            f"{entry['rows_per_device']:g}",
            *row_of(entry, cell),
        ]
        for name, cell in cells.items()
        for entry in cell["programs"]
    ]


def searches_of(cells: dict[str, dict]) -> list[list[str]]:
    """The rows of the beam searches of the cells."""
    rows = []
    for name, cell in cells.items():
        (entry,) = cell["programs"]
        sizes = [f"{entry[part] / 1e6:.1f} MB" for part in ("arguments", "temporaries", "peak")]
        work = [f"{entry['flops'] / devices_of(cell) / 1e6:.1f}", f"{entry['traffic'] / 1e6:.1f} MB"]
        seconds = f"{1e3 * entry['seconds']['memory']:.3f} ms"
        rows.append([name, f"{entry['rows_per_device']:g}", *sizes, *work, seconds])
    return rows


def page(done: dict[str, dict]) -> str:
    """The whole page from the cells that are there."""
    lines = [
        "# The paper's size on TPU pods, as compiled",
        "",
        "Written by `benchmarks/tpu_memory.py` from the cells in `benchmarks/results/tpu_memory/`, which the compiler",
        "for TPUs made without a TPU: 1.83 billion frozen parameters (except for the published encoders) in bfloat16,",
        "1,024 tasks, utterances of 30 s. Bytes, FLOPs and times are those of one chip and one step; times are the",
        "least that the chip's peak rates allow, for arithmetic, for HBM, for the links between chips of a slice (ICI)",
        "and for the network between slices (DCN). Nothing here was measured on a TPU.",
        "",
    ]
    on_published = {name: cell for name, cell in done.items() if name.split(" ")[0] in PUBLISHED}
    on_corpora = {name: cell for name, cell in done.items() if name.split(" ")[0] in CORPORA}
    decoded = {name: cell for name, cell in done.items() if name.startswith("decode")}
    other = on_published | on_corpora | decoded
    rest = {name: cell for name, cell in done.items() if name not in other and not name.startswith("search")}
    head = ("program", "utterances a chip", *_COLUMNS)
    lines += ["## Programs", "", *table(head, programs_of(rest))]
    if on_published:
        lines += ["## Adapters on published encoders", "", *table(head, programs_of(on_published))]
    if on_corpora:
        lines += ["## Adapters on public corpora: their own tasks, and the longest of their utterances", ""]
        lines += table(head, programs_of(on_corpora))
    searches = {name: cell for name, cell in done.items() if name.startswith("search")}
    if searches:
        rows = []
        for name, cell in searches.items():
            most, counts = cell["most_rows_per_device"], cell["parameters"]
            best = next((entry for entry in cell["programs"] if entry["rows_per_device"] == most), None)
            first = [name.removeprefix("search "), f"{counts['trainable_parameters']:,}", f"{most:g}"]
            rows.append(first + (row_of(best, cell) if best else [""] * len(_COLUMNS)))
        head = ("method", "trained", "most utterances a chip", *_COLUMNS)
        lines += ["## The largest training batch on v5e:16x16", "", *table(head, rows)]
    if decoded:
        head = ("program", "utterances a chip", "arguments", "temporaries", "peak", "MFLOPs", "HBM traffic", "HBM")
        lines += [
            "## The beam search",
            "",
            "A beam of 16, with a language model and phrases for each row. FLOPs are those",
        ]
        lines += [
            "of matrix products, of which a search has few; what bounds it is one short round after another, one for"
        ]
        lines += ["each frame, which these times leave out.", "", *table(head, searches_of(decoded))]
    for name, cell in done.items():
        for entry in cell["programs"]:
            if name.startswith("train") and entry.get("collectives"):
                head = ("collective", "chips in a group", "times", "payload", "moved")
                lines += [f"## Collectives, {name}", "", *table(head, collectives_of(entry))]
    return "\n".join(lines)


def define_flags() -> None:
    """The flags of this benchmark."""
    define_cell_flags()
    flags.DEFINE_string("output", "benchmarks/results/tpu_memory.md", "Where the page is written.")
    flags.DEFINE_bool("page", False, "Only writes the page, from the cells that are there.")


def main(argv) -> None:
    """Entry point."""
    del argv
    cells, done = Cells(FLAGS.cells, FLAGS.workdir, minutes=FLAGS.minutes), {}
    for name, arguments in all_cells().items():
        if FLAGS.page and not (cells.folder / f"{file_name(name)}.json").exists():
            print(f"{name}: not there")
            continue
        try:
            done[name] = cell_of(cells, file_name(name), *arguments)
        except OutOfTime:
            print(f"{name}: not compiled, the time is over", flush=True)
    epath.Path(FLAGS.output).write_text(page(done), encoding="utf-8")
    print(f"{len(done)} of {len(all_cells())} cells; written to {FLAGS.output}")
    if FLAGS.json:
        epath.Path(FLAGS.json).write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
