"""How fast log-probabilities are searched, and what decoding adds to the encoder, on one core of a CPU.

python benchmarks/decoding.py --adapter runs/quickstart/adapter --data runs/data/hard \
    --json benchmarks/results/decoding.json

The search alone runs on the test utterances of the quickstart, in batches of like length, with the default weights and
a model of the texts of its training set; and for a vocabulary of 1,025 tokens on drawn log-probabilities, with a model
of drawn texts. From sound files in memory to texts, the same utterances go through the encoder too. All is in CPU
seconds, which other processes hardly change.
"""

import functools
import os
import tempfile

import harness
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from hra_jax import api, cli
from hra_jax.console import percent, stdout, table
from hra_jax.data import audio
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.decoding.settings import DEFAULT_BEAM, DEFAULT_WEIGHTS
from hra_jax.evaluation import error_rates
from hra_jax.models import beam
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary, Vocabulary

FLAGS = flags.FLAGS
BEAMS = (8, 16, 32)
ROWS = 16  # of a batch
FRAME = 0.02  # seconds
SAMPLES = 5
PIECES, DRAWN_FRAMES, DRAWN_TEXTS = 1025, 500, 4000  # of the large vocabulary
END_TO_END = 64  # utterances


class Batch:
    """Log-probabilities on the device, padded to a multiple of 64 frames, and what a search of them is given."""

    def __init__(self, log_probs: np.ndarray, lengths: np.ndarray):
        frames = -(-log_probs.shape[1] // 64) * 64
        padded = np.pad(log_probs, ((0, 0), (0, frames - log_probs.shape[1]), (0, 0)))
        self.log_probs, self.lengths = jnp.asarray(padded), jnp.asarray(lengths)
        weights = (DEFAULT_WEIGHTS[name] for name in beam.Weights._fields)
        self.weights = beam.Weights(*(jnp.full(len(lengths), weight) for weight in weights))
        self.plain = beam.Weights(*[jnp.zeros(len(lengths))] * 3)

    def search(self, width: int, model: tuple[beam.Tables | beam.Arcs, int] | None) -> beam.Hypotheses:
        """Its best prefixes, with a model and its start state or without."""
        given = {"weights": self.plain}
        if model:
            starts = jnp.full(len(self.lengths), model[1], jnp.int32)
            given = {"weights": self.weights, "model": model[0], "model_start": starts}
        return beam.search(self.log_probs, self.lengths, 0, width=width, **given)

    def texts(self, vocabulary: Vocabulary, width: int, model: tuple[beam.Tables | beam.Arcs, int] | None) -> list[str]:
        """The best text of each row."""
        found = self.search(width, model)
        best, lengths = np.asarray(found.tokens[:, 0]), np.asarray(found.lengths[:, 0])
        return [vocabulary.decode(row[:length].tolist()) for row, length in zip(best, lengths, strict=True)]


def searched(batches: list[Batch], models: dict[str, tuple | None]) -> list[dict]:
    """The speed of the search of all batches, with each model and beam."""

    def search(width: int, model: tuple | None) -> list[beam.Hypotheses]:
        return [batch.search(width, model) for batch in batches]

    frames = sum(int(batch.lengths.sum()) for batch in batches)
    sides = {(name, width): functools.partial(search, width, models[name]) for name in models for width in BEAMS}
    found = []
    for (name, width), timing in harness.interleave(sides, samples=SAMPLES, busy=True).items():
        cpu = timing.to_json()["cpu_median"]
        row = {"model": name, "beam": width, "rate": frames * FRAME / cpu, "frame_microseconds": 1e6 * cpu / frames}
        found.append(row | {"cpu_s": timing.cpu})
    return found


def drawn() -> tuple[list[Batch], dict[str, tuple | None], dict]:
    """A batch for the large vocabulary, models for it, and what choosing the tokens takes that are tried."""
    rng = np.random.default_rng(0)
    # What may follow a token: few tokens often, any seldom.
    followers = rng.zipf(1.3, (PIECES, 64)) % (PIECES - 1) + 1
    texts = []
    for _ in range(DRAWN_TEXTS):
        text = [int(rng.integers(1, PIECES))]
        for _ in range(rng.integers(4, 25)):
            usual = followers[text[-1], min(63, rng.zipf(1.4) - 1)]
            text.append(int(usual if rng.random() < 0.9 else rng.integers(1, PIECES)))
        texts.append(text)
    vocabulary = CharacterVocabulary([chr(0x4E00 + i) for i in range(PIECES - 1)])
    model = ngram.train(texts, vocabulary, order=4)
    arcs, starts = beam.tables([model.automaton], vocabulary_size=PIECES, dense=False)
    logits = 1.5 * rng.standard_normal((ROWS, DRAWN_FRAMES, PIECES)).astype(np.float32)
    for row in range(ROWS):
        said = np.concatenate([texts[row + ROWS * i] for i in range(50)])[: DRAWN_FRAMES // 5]
        peaks = np.zeros((len(said), 5), np.int64)
        peaks[:, 0] = said
        logits[row, np.arange(5 * len(said)), peaks.ravel()] += 12
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    batch = Batch(log_probs, np.full(ROWS, DRAWN_FRAMES, np.int32))
    choose = jax.jit(lambda given: jax.lax.top_k(given, beam.PRUNED_TOKENS))
    sides = {"choose": lambda: choose(batch.log_probs)}
    chosen = harness.interleave(sides, samples=SAMPLES, busy=True)["choose"].to_json()["cpu_median"]
    models = {"none": None, "arcs": (arcs, int(starts[0]))}
    sizes = {"states": model.automaton.states, "arcs": model.automaton.arcs, "bytes": sum(x.nbytes for x in arcs)}
    return [batch], models, {"choosing_microseconds": 1e6 * chosen / (ROWS * DRAWN_FRAMES), **sizes}


def end_to_end(model: api.Model, waveforms: list, tasks: list[str], texts: list[str], lm: str) -> dict:
    """Real-time factors in CPU seconds, from waveforms to texts, and word error rates."""
    settings = {"greedy": None, "beam": {"beam": DEFAULT_BEAM}, "beam, model": {"beam": DEFAULT_BEAM, "lm": lm}}
    seconds = sum(map(len, waveforms)) / model.backbone.sample_rate
    said: dict[str, list[str]] = {}
    decoders = {name: model.decoder(given, tasks) for name, given in settings.items()}

    def recognise(name: str) -> int:
        rate = model.backbone.sample_rate
        said[name] = model.transcribe(waveforms, sample_rate=rate, tasks=tasks, decode=decoders[name])
        return 0

    sides = {name: functools.partial(recognise, name) for name in settings}
    timings = harness.interleave(sides, samples=SAMPLES, busy=True)
    found = {}
    for name, timing in timings.items():
        cpu = timing.to_json()["cpu_median"]
        found[name] = {"factor": cpu / seconds, "wer": _wer(texts, said[name]), "cpu_s": timing.cpu}
    return {"utterances": len(waveforms), "seconds": seconds, "sides": found}


def _wer(texts: list[str], said: list[str]) -> float:
    counts = [error_rates.word_errors(*pair, normalizer="basic") for pair in zip(texts, said, strict=True)]
    return sum(count.errors for count in counts) / sum(count.words for count in counts)


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("adapter", None, "Folder of the quickstart's adapter.", required=True)
    flags.DEFINE_string("data", None, "Folder of its manifests.", required=True)
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")


def main(argv) -> None:
    """Measures all, and prints the tables."""
    del argv
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    model = api.load_adapter(FLAGS.adapter, api.load_backbone(FLAGS.backbone))
    vocabulary, rate = model.backbone.vocabulary, model.backbone.sample_rate
    test, train = (
        read_manifest(epath.Path(FLAGS.data) / f"{name}.jsonl", report=DataReport())[0] for name in ("test", "train")
    )
    test = sorted(test, key=lambda utterance: utterance.duration)[: len(test) // ROWS * ROWS]
    texts, tasks = [utterance.text for utterance in test], [utterance.tag("speaker") for utterance in test]
    waveforms = [audio.decode(utterance, rate) for utterance in test]
    lm = ngram.train([vocabulary.encode(utterance.text) for utterance in train], vocabulary)

    parts = [slice(begin, begin + ROWS) for begin in range(0, len(test), ROWS)]
    batches = [Batch(*model.log_probs(waveforms[part], sample_rate=rate, tasks=tasks[part])) for part in parts]
    dense, starts = beam.tables([lm.automaton], vocabulary_size=vocabulary.size)
    models = {"none": None, "dense": (dense, int(starts[0]))}
    found = [{"vocabulary": vocabulary.size, **row} for row in searched(batches, models)]
    for row in found:
        said = [text for batch in batches for text in batch.texts(vocabulary, row["beam"], models[row["model"]])]
        row["wer"] = _wer(texts, said)
    large, large_models, facts = drawn()
    found += [{"vocabulary": PIECES, **row} for row in searched(large, large_models)]
    some = slice(None, None, len(test) // END_TO_END)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "train.lm")
        ngram.write(path, lm)
        whole = end_to_end(model, waveforms[some], tasks[some], texts[some], path)

    show(found, whole["sides"])
    counts = {"utterances": len(test), "states": lm.automaton.states}
    harness.write("decoding", FLAGS.json, **counts, search=found, large=facts, end_to_end=whole)


def show(found: list[dict], sides: dict[str, dict]) -> None:
    """Prints the tables."""
    rows = []
    for row in found:
        speed = f"{row['rate']:,.0f}", f"{row['frame_microseconds']:.1f}"
        error = percent(row["wer"]) if "wer" in row else "-"
        rows.append([str(row["vocabulary"]), row["model"], str(row["beam"]), *speed, error])
    head = ("tokens", "model", "beam", "s of audio per core-second", "us a frame", "WER")
    stdout().print(table(head, rows))
    rows = [[name, f"{row['factor']:.4f}", percent(row["wer"])] for name, row in sides.items()]
    stdout().print(table(("decoding", "real-time factor", "WER"), rows))


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
