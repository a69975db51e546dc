"""How much audio a core reads and puts into batches: shards and files, beside the loaders of other libraries.

python benchmarks/input_pipeline.py --data_dir FSDD_FOLDER --json benchmarks/results/input_pipeline.json

All sides have the same utterances in random order and take turns. What counts is seconds of audio per second of CPU, of
all threads and processes, which other work on the machine changes less than the time that passes. Nothing decoded is
kept. The long utterances are spoken digits one after the other, with noise. At the end the configuration `fsdd` trains
for some steps, which says what share of its time it waits for input.

Lhotse is measured where it can be imported. Its requirements are older than those of hra_jax, so that it needs a folder
of its own: `pip install --target F --no-deps lhotse lilcom intervaltree sortedcontainers cytoolz toolz tabulate
audioread`, and PYTHONPATH=F.
"""

import contextlib
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import harness
import numpy as np
import soundfile
import torch
from absl import flags
from cells import configured
from etils import epath

from hra_jax import cli, train
from hra_jax.console import say, stdout, table
from hra_jax.data import audio, cache
from hra_jax.data.loader import TrainLoader
from hra_jax.data.report import DataReport
from hra_jax.data.sample_hashes import UtteranceHashes
from hra_jax.data.sources import TableSource, read_source
from hra_jax.data.utterance import Utterance
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.run import foundation
from hra_jax.text.vocabularies import CharacterVocabulary

FLAGS = flags.FLAGS
SAMPLES = 9
THREADS = 2
LONG, LONG_SECONDS = 200, 10.0  # utterances, and how long each is
SHARDS = {"wav": "int16", "flac": "flac"}  # how the sound of files of a kind lies in shards, and their folder
STEPS = 60  # of the training


class Corpus(NamedTuple):
    """Utterances in a folder, which holds them as wav.jsonl, flac.jsonl, int16/, flac/ and, for Lhotse, shar_*/."""

    folder: epath.Path
    rate: int  # Hz
    buckets: tuple[float, ...]  # seconds
    batch_seconds: float


# ======================================================================================================================
# Audio
# ======================================================================================================================


def spoken_digits(folder: str) -> tuple[list[dict], list[np.ndarray], int]:
    """The training rows of FSDD, their samples and their rate."""
    place = epath.Path(folder)
    rows = [json.loads(line) for line in (place / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    read = [soundfile.read(place / row["audio_filepath"], dtype="float32") for row in rows]
    return rows, [samples for samples, _ in read], read[0][1]


def joined(rows: list[dict], digits: list[np.ndarray], rate: int) -> tuple[list[dict], list[np.ndarray]]:
    """Utterances of `LONG_SECONDS` of one speaker each."""
    rng, size = np.random.default_rng(0), round(LONG_SECONDS * rate)
    speakers = sorted({row["speaker"] for row in rows})
    found: list[tuple[dict, np.ndarray]] = []
    for number in range(LONG):
        speaker = speakers[number % len(speakers)]
        mine = rng.permutation([place for place, row in enumerate(rows) if row["speaker"] == speaker])
        samples = np.concatenate([digits[place] for place in mine])[:size]
        ends = np.cumsum([len(digits[place]) for place in mine])
        text = " ".join(rows[place]["text"] for place in mine[ends <= size])
        noise = 0.003 * rng.standard_normal(size).astype(np.float32)
        found.append(({"speaker": speaker, "text": text}, samples + noise))
    return [row for row, _ in found], [samples for _, samples in found]


def write(corpus: Corpus, rows: list[dict], waveforms: list[np.ndarray]) -> None:
    """Files, manifests and shards of some utterances."""
    for form in ("wav", "flac"):
        lines = []
        for number, (row, samples) in enumerate(zip(rows, waveforms, strict=True)):
            path = corpus.folder / "files" / f"{number}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.clip(samples, -1, 1), corpus.rate, subtype="PCM_16")
            fields = {"audio_filepath": str(path), "duration": len(samples) / corpus.rate}
            lines.append(json.dumps(row | fields) + "\n")
        manifest = corpus.folder / f"{form}.jsonl"
        manifest.write_text("".join(lines), encoding="utf-8")
        utterances = utterances_of(corpus, manifest.name)
        cache.cache(
            cache.Items(str(manifest), None, utterances, len(utterances)),
            corpus.folder / SHARDS[form],
            settings=cache.ShardSettings(sample_rate=corpus.rate, encoding=SHARDS[form]),
            report=DataReport(strict=True),
        )


def utterances_of(corpus: Corpus, source: str) -> Sequence[Utterance]:
    """What a source of a corpus holds."""
    return read_source(corpus.folder / source, report=DataReport(strict=True))[0]


# ======================================================================================================================
# Sides: functions that give the seconds of audio that they have gone through
# ======================================================================================================================


def reading(corpus: Corpus, source: str) -> Callable[[], float]:
    """Decodes every utterance by itself, in random order."""
    utterances, rng = utterances_of(corpus, source), np.random.default_rng(0)
    row = np.zeros(round(corpus.buckets[-1] * corpus.rate), np.float32)

    def run() -> float:
        total = 0
        for place in rng.permutation(len(utterances)):
            samples = audio.decode(utterances[place], corpus.rate)
            row[: samples.size] = samples
            total += samples.size
        return total / corpus.rate

    return run


def training(corpus: Corpus, source: str, opened: contextlib.ExitStack) -> Callable[[], float]:
    """The batches that training takes, with references, labels, and hashes of what it meets for the first time.

    The loader goes on where it was, until `opened` is closed.
    """
    base = foundation.load("builtin:tiny")
    utterances = utterances_of(corpus, source)
    table = UtteranceTable(
        [TableSource("corpus", utterances, "proportional")],
        vocabulary=CharacterVocabulary(),
        normalizer="basic",
        task_tag="speaker",
        max_seconds=corpus.buckets[-1],
        sample_rate=corpus.rate,
        output_length=base.output_length,
        report=DataReport(strict=True),
    )
    hashes = UtteranceHashes(len(table))
    batches = TrainLoader(
        table,
        seed=0,
        batch_seconds=corpus.batch_seconds,
        buckets=corpus.buckets,
        multiple=1,
        max_tasks=32,
        threads=THREADS,
        report=DataReport(strict=True),
        hashes=hashes,
    )
    loader = opened.enter_context(batches)
    epoch = float(table.duration.sum())

    def run() -> float:
        hashes.clear()
        total = 0.0
        while total < epoch:
            next(loader)
            total += loader.audio_seconds
        return total

    return run


class _Files(torch.utils.data.Dataset):
    """The utterances of a manifest, as PyTorch's own loader takes them."""

    def __init__(self, manifest: epath.Path):
        lines = manifest.read_text(encoding="utf-8").splitlines()
        self.rows, self.vocabulary = [json.loads(line) for line in lines], CharacterVocabulary()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[place]
        samples, _ = soundfile.read(row["audio_filepath"], dtype="float32")
        return torch.from_numpy(samples), torch.tensor(self.vocabulary.encode(row["text"]))


def _padded(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    waveforms, labels = zip(*rows, strict=True)
    return {
        "waveform": torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        "num_samples": torch.tensor([len(samples) for samples in waveforms]),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
    }


def pytorch(corpus: Corpus, manifest: str) -> Callable[[], float]:
    """An epoch of PyTorch's DataLoader with soundfile, in this process: workers would add the way between processes."""
    files = _Files(corpus.folder / manifest)
    seconds = sum(row["duration"] for row in files.rows)
    rows = max(1, int(corpus.batch_seconds * len(files) / seconds))
    loader = torch.utils.data.DataLoader(files, batch_size=rows, shuffle=True, collate_fn=_padded)
    return lambda: sum(float(batch["num_samples"].sum()) for batch in loader) / corpus.rate


class _Cuts(torch.utils.data.Dataset):
    """Batches of Lhotse."""

    def __init__(self) -> None:
        self.vocabulary = CharacterVocabulary()

    def __getitem__(self, cuts: Any) -> dict[str, Any]:
        from lhotse.dataset.collation import collate_audio

        waveform, sizes = collate_audio(cuts)
        labels = [torch.tensor(self.vocabulary.encode(cut.supervisions[0].text)) for cut in cuts]
        return {
            "waveform": waveform,
            "num_samples": sizes,
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
        }


def _lhotse_cuts(corpus: Corpus, manifest: str) -> Iterator[Any]:
    import lhotse

    for line in (corpus.folder / manifest).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = epath.Path(row["audio_filepath"]).stem
        recording = lhotse.Recording.from_file(row["audio_filepath"], recording_id=name)
        said = lhotse.SupervisionSegment(name, name, 0.0, recording.duration, text=row["text"], speaker=row["speaker"])
        yield lhotse.MonoCut(name, 0.0, recording.duration, 0, supervisions=[said], recording=recording)


def has_lhotse() -> bool:
    """Whether Lhotse can be imported."""
    return importlib.util.find_spec("lhotse") is not None


def lhotse_shar(corpus: Corpus, manifest: str, form: str) -> Callable[[], float]:
    """An epoch of Lhotse: Shar archives of `form`, bucketed by length, read in this process."""
    import lhotse
    from lhotse.dataset import DynamicBucketingSampler, IterableDatasetWrapper

    folder = corpus.folder / f"shar_{form}"
    folder.mkdir()
    cuts = lhotse.CutSet.from_cuts(_lhotse_cuts(corpus, manifest))
    cuts.to_shar(str(folder), fields={"recording": form}, shard_size=500)

    def run() -> float:
        sampler = DynamicBucketingSampler(
            lhotse.CutSet.from_shar(in_dir=str(folder), shuffle_shards=True),
            max_duration=corpus.batch_seconds,
            num_buckets=max(2, len(corpus.buckets)),
            shuffle=True,
        )
        loader = torch.utils.data.DataLoader(IterableDatasetWrapper(_Cuts(), sampler), batch_size=None)
        return sum(float(batch["num_samples"].sum()) for batch in loader) / corpus.rate

    return run


def sides_of(corpus: Corpus, opened: contextlib.ExitStack) -> dict[str, dict[str, Callable[[], float]]]:
    """{side: {what lies in shards: function}}, until `opened` is closed."""
    found: dict[str, dict[str, Callable[[], float]]] = {}
    for kind, shards in SHARDS.items():
        manifest = f"{kind}.jsonl"
        sides = {
            "read shards": reading(corpus, shards),
            "read files": reading(corpus, manifest),
            "TrainLoader, shards": training(corpus, shards, opened),
            "TrainLoader, files": training(corpus, manifest, opened),
            "PyTorch DataLoader, files": pytorch(corpus, manifest),
        }
        if has_lhotse():
            sides["Lhotse Shar"] = lhotse_shar(corpus, manifest, kind)
        for name, function in sides.items():
            found.setdefault(name, {})[shards] = function
    return found


def rates(sides: dict[Any, Callable[[], float]], samples: int) -> dict[Any, list[float]]:
    """Seconds of audio per second of CPU of each side, which take turns; the first turn is not counted."""
    found: dict[Any, list[float]] = {name: [] for name in sides}
    for turn in range(samples + 1):
        for name, function in sides.items():
            before = harness.own_seconds()
            seconds = function()
            if turn:
                found[name].append(seconds / (harness.own_seconds() - before))
    return found


def show(found: dict[tuple[str, str, str], list[float]]) -> None:
    """Prints the medians of (side, corpus, what lies in shards)."""
    columns = list(dict.fromkeys((corpus, form) for _, corpus, form in found))
    lines = [
        [name, *(f"{statistics.median(found[name, *column]):,.0f}" for column in columns)]
        for name in dict.fromkeys(name for name, *_ in found)
    ]
    say(stdout(), "seconds of audio per second of CPU, medians")
    stdout().print(table(["", *(", ".join(column) for column in columns)], lines))


# ======================================================================================================================
# Waiting
# ======================================================================================================================


def waiting(source: epath.Path, workdir: epath.Path) -> list[float]:
    """The shares of its time that a training of the configuration `fsdd` waits, for 10 steps each.

    Those of the first ten steps are left out, in which it compiles.
    """
    config = configured(
        "fsdd",
        data__sources=(("fsdd", str(source), 1.0),),
        steps=STEPS,
        eval__suite="",
        eval__select_suite="",
        export__step="last",
    )
    status = train.train(config, workdir)
    if status:
        raise RuntimeError(f"{workdir}: training ended with status {status}")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["train/input_wait_share"] for line in lines if line["step"] > 10 and "train/loss" in line]


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("data_dir", None, "Folder of FSDD, which holds train.jsonl.", required=True)
    flags.DEFINE_integer("samples", SAMPLES, "Of each side.")


def main(argv: list[str]) -> None:
    """Measures all, and prints the table."""
    del argv
    torch.set_num_threads(1)  # as its workers do; threads that wait for work would count as busy
    rows, digits, rate = spoken_digits(FLAGS.data_dir)
    with tempfile.TemporaryDirectory() as place:
        folder = epath.Path(place)
        corpora = {
            "10 s": Corpus(folder / "long", 16_000, (LONG_SECONDS,), 80.0),
            "FSDD": Corpus(folder / "fsdd", rate, (0.5, 0.8, 2.5), 32.0),
        }
        write(corpora["FSDD"], rows, digits)
        doubled = [audio.resample(samples, rate, 16_000) for samples in digits]
        write(corpora["10 s"], *joined(rows, doubled, 16_000))
        with contextlib.ExitStack() as opened:
            sides = {
                (name, corpus, form): function
                for corpus, settings in corpora.items()
                for name, forms in sides_of(settings, opened).items()
                for form, function in forms.items()
            }
            found = rates(sides, FLAGS.samples)
        show(found)
        waits = {
            form: waiting(corpora["FSDD"].folder / source, folder / "runs" / source)
            for form, source in (("int16 shards", "int16"), ("FLAC files", "flac.jsonl"))
        }
    harness.write(
        "input_pipeline",
        FLAGS.json,
        packages=("torch", "soundfile", "array_record", "tensorflow", "seqio"),
        lhotse=metadata.version("lhotse") if has_lhotse() else None,
        rates=[
            {"side": name, "corpus": corpus, "form": form, "median": statistics.median(values), "samples": values}
            for (name, corpus, form), values in found.items()
        ],
        input_wait_shares=waits,
    )
    for form, shares in waits.items():
        say(stdout(), f"training on {form} waits for input {statistics.mean(shares):.2%} of its time")


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
