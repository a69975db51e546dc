"""Seconds of CPU and memory from files to the table of a training run, for many utterances.

    python benchmarks/table_rows.py --json benchmarks/results/table_rows.json

Each number is of a process of its own, which reads one source, makes the table of utterances and its digest, and
compares it with a suite: all that a host does with the rows of its data before its first batch. The manifest is drawn:
sentences of 4 to 20 words of 20,000, most with capitals and marks, every tenth with letters beyond ASCII, of as many
speakers as asked for.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from absl import app, flags
from etils import epath

FLAGS = flags.FLAGS
_PART = 10_000  # rows of a manifest that are drawn and written at a time
_SUITE = 1000  # utterances


def _words(random: np.random.Generator, count: int) -> np.ndarray:
    """Distinct words of 1 to 12 letters; every hundredth has one beyond ASCII."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    found: dict[str, None] = {}
    while len(found) < count:
        word = "".join(random.choice(letters, random.integers(1, 13)))
        found.setdefault(word if len(found) % 100 else word + random.choice(list("éüßøčд")))
    return np.array(list(found))


def lines(rows: int, *, speakers: int, seed: int = 0) -> Iterator[str]:
    """The lines of a manifest, without their ends."""
    random = np.random.default_rng(seed)
    words = _words(random, 20_000)
    weights = 1 / np.arange(10, len(words) + 10)
    for start in range(0, rows, _PART):
        lengths = random.integers(4, 21, min(_PART, rows - start))
        spoken = random.choice(words, lengths.sum(), p=weights / weights.sum()).tolist()
        ends = np.cumsum(lengths).tolist()
        for at, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True)):
            number, text = start + at, " ".join(spoken[end - length : end])
            if number % 5:
                text = f"{text[0].upper()}{text[1:]}{'.,?!'[number % 4]}"
            speaker = int(random.integers(speakers))
            yield json.dumps(
                {
                    "audio_filepath": f"clips/{speaker:05d}/utterance_{number:08d}.flac",
                    "duration": round(0.5 + 0.35 * length + number % 1000 / 1000, 3),
                    "text": text,
                    "speaker": f"speaker_{speaker:05d}",
                    "accent": f"accent {speaker % 17}",
                    "number": number,
                },
                ensure_ascii=False,
            )


def write_manifests(folder: epath.Path, *, rows: int, speakers: int) -> None:
    """Writes train.jsonl, and suite.jsonl of other recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", rows, 0), ("suite", _SUITE, 1)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for line in lines(count, speakers=speakers, seed=seed):
                file.write(line.replace("clips/", f"{name}/") + "\n")


def write_index(folder: epath.Path) -> None:
    """Writes shards/columns.parquet of train.jsonl, as for one large shard, which nothing here reads."""
    from hra_jax.data import shards
    from hra_jax.data.manifest import load_manifest
    from hra_jax.data.report import DataReport

    (folder / "shards").mkdir()
    shard = folder / "shards" / shards.shard_name(0)
    shard.write_bytes(b"-")
    rows, tags = [], []
    for number, row in enumerate(load_manifest(folder / "train.jsonl", report=DataReport())):
        rows.append(
            (row.key, row.text, row.duration, row.audio_filepath, row.offset, row.line, 0, number, number, None)
        )
        tags.append(row.tags)
    table = pa.table(list(map(pa.array, zip(*rows, strict=True), shards.ROWS.types)), schema=shards.ROWS)
    described = shards.Shard(str(shard), len(rows), 1, 0, 16000, "int16")
    (folder / "shards" / shards.INDEX).write_bytes(shards.index_bytes(table, tags, [described], made_from={}))


def stages(source: str, suite: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a host does with the rows of its data before the first batch, by name, in order."""
    from hra_jax.data.report import DataReport
    from hra_jax.data.sources import read_sources
    from hra_jax.data.utterance_table import UtteranceTable
    from hra_jax.evaluation.suites import check_disjoint
    from hra_jax.text.vocabularies import CharacterVocabulary

    report, found = DataReport(), {}
    yield "read", lambda: found.update(sources=read_sources([("train", source, 1.0)], report=report))
    yield (
        "table",
        lambda: found.update(
            table=UtteranceTable(
                found["sources"],
                vocabulary=CharacterVocabulary(),
                normalizer="basic@2",
                task_tag="speaker",
                max_seconds=16.0,
                sample_rate=16000,
                output_length=lambda samples: samples // 640,
                report=report,
            )
        ),
    )
    yield "digest", lambda: found.update(digest=found["table"].digest())
    (scored,) = read_sources([("suite", suite, 1.0)], report=report)
    yield "suites", lambda: check_disjoint(scored.utterances, found["table"].utterances, suite="suite")
    table, counts = found["table"], {kind: count for kind, count in report.counts().items() if count}
    yield f"{len(table)} usable of {len(table.task_names)} tasks; {counts}; digest {found['digest'][:16]}", lambda: None


def _status(field: str) -> int:
    """Bytes, of what the kernel says of this process."""
    status = epath.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def measured(source: str, suite: str) -> dict:
    """CPU seconds by stage and in all, and bytes of memory, of this process."""
    import hra_jax.data.utterance_table
    import hra_jax.evaluation.suites  # noqa: F401  (imports are no part of what is measured)

    seconds: dict[str, float] = {}
    before, note = _status("VmRSS"), ""
    for note, stage in stages(source, suite):
        start = time.process_time()
        stage()
        seconds[note] = time.process_time() - start
    del seconds[note]
    found = {"cpu_seconds": seconds, "cpu_seconds_in_all": sum(seconds.values()), "note": note}
    return found | {"start_bytes": before, "peak_bytes": _status("VmHWM")}


def in_a_process(source: epath.Path, *, code: str = "") -> dict:
    """As `measured`, of a new process; `code` is the checkout whose code it runs."""
    command = [sys.executable, str(epath.Path(__file__).resolve()), f"--only={source}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **({"PYTHONPATH": code} if code else {})}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measures each source in a process of its own, or one in this."""
    del argv
    if FLAGS.only:
        print(json.dumps(measured(FLAGS.only, str(epath.Path(FLAGS.only).parent / "suite.jsonl"))))
        return
    import harness

    with tempfile.TemporaryDirectory() as given:
        folder = epath.Path(FLAGS.folder or given)
        if not (folder / "shards").exists():
            write_manifests(folder, rows=FLAGS.rows, speakers=FLAGS.speakers)
            write_index(folder)
        cell = {"benchmark": "table_rows", "rows": FLAGS.rows, **harness.environment(("pyarrow",)), "sources": {}}
        for name in ("train.jsonl", "shards"):
            cell["sources"][name] = [in_a_process(folder / name) for _ in range(FLAGS.samples)]
        if FLAGS.before:
            cell["before"] = {
                "what": FLAGS.before_what,
                "train.jsonl": in_a_process(folder / "train.jsonl", code=FLAGS.before),
            }
    digests = {one["note"].rpartition(" ")[2] for runs in cell["sources"].values() for one in runs}
    if len(digests) != 1:
        raise RuntimeError(f"the sources give several tables: {sorted(digests)}")
    print(json.dumps(cell, indent=1))
    if FLAGS.json:
        epath.Path(FLAGS.json).write_text(json.dumps(cell, sort_keys=True, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "", "Where the sources are, or are written; '' for a temporary folder.")
    flags.DEFINE_integer("rows", 1_000_000, "Utterances of the training source.")
    flags.DEFINE_integer("speakers", 1000, "Speakers of the training source.")
    flags.DEFINE_integer("samples", 3, "Processes that measure each source.")
    flags.DEFINE_string("only", "", "A source to measure in this process.")
    flags.DEFINE_string("before", "", "A checkout of an earlier version, whose code is measured too.")
    flags.DEFINE_string("before_what", "", "What that version is.")
    flags.DEFINE_string("json", "", "Where the numbers are written.")
    app.run(main)
