"""How much of the batches is padding with so many length buckets, and what a bucket costs: its compilations.

python benchmarks/padding.py --fsdd FSDD --hard runs/data/hard --json benchmarks/results/padding.json

FSDD and the hard set are the training data of the configurations fsdd and quickstart. The lengths of the two large
corpora are drawn. The time of a whole run is put together from CPU seconds, measured here: the compilation of the train
step and the evaluation step for each bucket, and a train step with each. Other processes hardly change them, as they do
the time of a clock, which is put together too: of compiling, what the thread that calls does has one core, and all else
has all. A run with other buckets hears as much speech in each of its steps as the ready-made configuration, so its
batches are smaller where less of them is padding.
"""

import statistics
import time

import harness
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from hra_jax import cli
from hra_jax.config.files import load_config
from hra_jax.config.keys import group
from hra_jax.data.batching import bucket_of, bucket_rows, set_buckets
from hra_jax.data.durations import best_edges, count_durations, padding_share
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.run.layout import open_mesh
from hra_jax.tpu.shapes import Job, Shapes

FLAGS = flags.FLAGS
NUMBERS = (1, 2, 3, 4, 6, 8, 16)  # of buckets
TIMED = (1, 2, 3, 4, 5, 6, 8)
DRAWN = 20_000  # lengths of a corpus that are drawn
STEPS = 3  # timed, of each bucket
LENGTHS = 4  # whose programs are timed; costs grow smoothly between them
FRAMES = {"fsdd": 0.02, "quickstart": 0.02}  # seconds of an encoder frame: of `tiny`, and of larger encoders else
LIMIT = 60.0  # seconds


def drawn_lengths() -> dict[str, np.ndarray]:
    """Lengths as those of large corpora, seconds: read speech cut at 16 s or so, and single sentences."""
    rng = np.random.default_rng(0)
    short = rng.random(DRAWN) < 0.25
    books = np.where(short, rng.uniform(1.5, 14.0, DRAWN), rng.normal(14.6, 1.3, DRAWN)).clip(1.4, 17.0)
    sentences = rng.gamma(6.0, 5.3 / 6.0, DRAWN)
    return {"LibriSpeech-like": books, "Common-Voice-like": sentences[(sentences >= 1.0) & (sentences <= 15.0)]}


def lengths_of(folder: str) -> np.ndarray:
    """The lengths of the training data in a folder, seconds."""
    return np.asarray([row.duration for row in read_manifest(f"{folder}/train.jsonl", report=DataReport())[0]])


def padding_of(lengths: np.ndarray, configured: tuple[float, ...], frame: float) -> dict:
    """Shares of padding by number of buckets, and with the buckets of a configuration."""
    found = count_durations(lengths)
    edges = {number: best_edges(found, number, frame=frame, limit=LIMIT) for number in NUMBERS}
    return {
        "utterances": len(lengths),
        "mean_seconds": float(lengths.mean()),
        "longest_seconds": float(lengths.max()),
        "frame_seconds": frame,
        "edges": edges,
        "padding": {number: padding_share(lengths, found) for number, found in edges.items()},
        "configured": {"edges": configured, "padding": padding_share(lengths, configured)},
    }


# --- What a bucket costs ----------------------------------------------------------------------------------------------


def _compiled(job: Job) -> tuple[jax.stages.Compiled, dict[str, float]]:
    """A program, and what tracing and compiling it took: CPU seconds, and those of them of the thread that calls."""
    start, thread = time.process_time(), time.thread_time()
    compiled = job.trace().lower().compile()
    return compiled, {"cpu": time.process_time() - start, "thread": time.thread_time() - thread}


def _zeros(shapes) -> object:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)


def costs_of(name: str, edges: tuple[float, ...]) -> list[dict]:
    """CPU seconds of the programs of each bucket of a configuration: compiled, and of one train step.

    What a step costs does not depend on what it hears: all inputs are zero.
    """
    config = load_config(name)
    set_buckets(config, edges)
    mesh = open_mesh(group(config, "mesh"), multiple=1, devices=jax.devices()[:1])
    shapes = Shapes(config, mesh, tasks=8)
    batch, evaluation = group(config, "batch"), group(config, "eval")
    rows = bucket_rows(edges, batch_seconds=batch.seconds, multiple=1)
    evaluated = bucket_rows(edges, batch_seconds=evaluation.batch_seconds, multiple=1)
    found = []
    for seconds, count, others in zip(edges, rows, evaluated, strict=True):
        job = shapes.job("train", seconds, count)
        step, train_compile = _compiled(job)
        _, evaluation_compile = _compiled(shapes.job("evaluation", seconds, others))
        state, *arguments = _zeros(job.arguments)
        times = []
        for _ in range(STEPS + 1):
            start = time.process_time()
            state, outputs = step(state, *arguments)
            jax.block_until_ready((state, outputs))
            times.append(time.process_time() - start)
        found.append(
            {
                "seconds": seconds,
                "rows": count,
                "compile": {"train": train_compile, "evaluation": evaluation_compile},
                "step_samples": times[1:],
            }
        )
        print(f"{name}, {seconds:g} s x {count}: {found[-1]}", flush=True)
    return found


def run_times(lengths: np.ndarray, name: str, frame: float) -> dict:
    """CPU seconds of whole runs by number of buckets, and with those of the configuration."""
    config = load_config(name)
    batch, counted = group(config, "batch"), count_durations(lengths)
    choices = {"configured": batch.edges}
    choices |= {str(number): best_edges(counted, number, frame=frame, limit=LIMIT) for number in TIMED}
    heard = batch.seconds * (1 - padding_share(lengths, batch.edges))  # speech in a step, seconds
    shortest = min(edges[0] for edges in choices.values())
    grid = np.unique(np.round(np.geomspace(shortest, max(lengths) + frame, LENGTHS), 2))
    costs = costs_of(name, tuple(grid.tolist()))
    steps = [statistics.median(cost["step_samples"]) / (cost["rows"] * cost["seconds"]) for cost in costs]
    cpu, thread = (
        [sum(program[kind] for program in cost["compile"].values()) for cost in costs] for kind in ("cpu", "thread")
    )
    cores, found = harness.environment()["cores"], {}
    for choice, edges in choices.items():
        inside = bucket_of(lengths, edges)
        padded = np.bincount(inside[inside < len(edges)], minlength=len(edges)) * np.asarray(edges)
        share = padding_share(lengths, edges)
        compiling, alone = (float(np.interp(edges, grid, values).sum()) for values in (cpu, thread))
        second = float(np.sum(np.interp(edges, grid, steps) * padded / padded.sum()))
        stepping = config.steps * heard / (1 - share) * second
        found[choice] = {
            "edges": edges,
            "padding": share,
            "batch_seconds": heard / (1 - share),
            "compiling": compiling,
            "stepping": stepping,
            "clock": alone + (compiling - alone + stepping) / cores,
        }
    return {"steps": config.steps, "costs": costs, "choices": found}


def main(argv: list[str]) -> None:
    """Measures, prints and writes everything down."""
    del argv
    sets = {name: (lengths, group(load_config("base"), "batch").edges) for name, lengths in drawn_lengths().items()}
    for name, folder in (("fsdd", FLAGS.fsdd), ("quickstart", FLAGS.hard)):
        sets[name] = lengths_of(folder), group(load_config(name), "batch").edges
    padding = {name: padding_of(*found, FRAMES.get(name, 0.04)) for name, found in sets.items()}
    for name, found in padding.items():
        shares = ", ".join(f"{number}: {share:.1%}" for number, share in found["padding"].items())
        print(f"{name}: {shares}; as configured {found['configured']['padding']:.1%}", flush=True)
    runs = {name: run_times(sets[name][0], name, FRAMES[name]) for name in FRAMES} if FLAGS.timed else {}
    for name, found in runs.items():
        for choice, entry in found["choices"].items():
            print(
                f"{name}, {choice}: {entry['compiling']:.0f} s of CPU compiling, {entry['stepping']:.0f} s stepping; "
                f"{entry['clock']:.0f} s by the clock"
            )
    harness.write("padding", FLAGS.json, padding=padding, runs=runs)


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("fsdd", None, "Folder of the Free Spoken Digit Dataset with its manifests.", required=True)
    flags.DEFINE_string("hard", None, "Folder of the synthetic set `hard`.", required=True)
    flags.DEFINE_bool("timed", True, "Whether programs are compiled and timed.")


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
