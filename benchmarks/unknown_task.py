"""What `__auto__` costs in errors: single utterances, and sessions of five, against the oracle and the mean head.

python -m hra_jax.tasks centroids runs/quickstart/adapter --manifest runs/data/hard/train.jsonl
python benchmarks/unknown_task.py --set hard=runs/quickstart/adapter,runs/data/hard/test.jsonl \
    --set accents64=runs/accents64/adapter,runs/data/accents64/test.jsonl \
    --json benchmarks/results/unknown_task.json

The adapter `accents64` is that of the configuration quickstart on the first 64 training speakers of the synthetic set
`accents`. A session is drawn at random among the utterances of a speaker. Passes are counted for each utterance: the
one without a head, one for each candidate, and the one that recognises.
"""

from collections.abc import Hashable

import harness
import numpy as np
from absl import flags
from etils import epath

from hra_jax import api, cli
from hra_jax.console import percent, stdout, table
from hra_jax.data import audio
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.decoding import unknown_task
from hra_jax.decoding.unknown_task import Choice, Heard
from hra_jax.evaluation import error_rates
from hra_jax.models import ctc
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK

FLAGS = flags.FLAGS
NORMALIZER = "basic"
SESSION = 5  # utterances


class Passes:
    """Passes of a model over utterances, each run once: what is asked for again is remembered.

    Attributes:
      errors: of an utterance with a task, by (number of the utterance, task).
      without_base: whether `__base__` is no candidate.
    """

    def __init__(self, model: api.Model, waveforms: list[np.ndarray], texts: list[str]):
        self._model, self._waveforms, self._texts = model, waveforms, texts
        self._number = {id(waveform): n for n, waveform in enumerate(waveforms)}
        self._heard: dict[int, Heard] = {}
        self._log_probs: dict[tuple[int, str], np.ndarray] = {}
        self.without_base = False

    def listen(self, waves: list[np.ndarray]) -> Heard:
        """The pass without a head, as `unknown_task.choose` asks for it."""
        numbers = [self._number[id(wave)] for wave in waves]
        if any(n not in self._heard for n in numbers):
            found = self._model.voices(waves, sample_rate=self._model.backbone.sample_rate)
            for row, n in enumerate(numbers):
                length = int(found.lengths[row])
                self._log_probs[n, BASE_TASK] = found.log_probs[row, :length]
                self._heard[n] = Heard(found.voices[row], None, found.lengths[row])
        log_probs, lengths = self._padded([self._log_probs[n, BASE_TASK] for n in numbers])
        voices = np.array([self._heard[n].voices for n in numbers])
        return Heard(voices, None if self.without_base else log_probs, lengths)

    def recognise(self, waves: list[np.ndarray], tasks: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """A pass through the heads of tasks."""
        keys = [(self._number[id(wave)], task) for wave, task in zip(waves, tasks, strict=True)]
        if any(key not in self._log_probs for key in keys):
            model = self._model.mean() if tasks[0] == MEAN_TASK else self._model
            found, lengths = model.log_probs(waves, sample_rate=model.backbone.sample_rate, tasks=tasks)
            self._log_probs |= {key: found[row, : lengths[row]] for row, key in enumerate(keys)}
        return self._padded([self._log_probs[key] for key in keys])

    @staticmethod
    def _padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(row) for row in rows])
        padded = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), np.float32)
        for row, found in enumerate(rows):
            padded[row, : len(found)] = found
        return padded, lengths

    def choose(self, sessions: list[Hashable]) -> list[Choice]:
        """The choice for every utterance."""
        model = self._model
        voices = unknown_task.voices_of(model.records, model.tasks, where=model.folder, aside=model.set_aside)
        return unknown_task.choose(
            [[waveform] for waveform in self._waveforms],
            sessions,
            voices=voices,
            listen=self.listen,
            recognise=self.recognise,
            blank_of=lambda task: model.vocabulary(task).blank_id,
        )

    def errors(self, tasks: list[str]) -> tuple[int, int]:
        """Word errors and words with a task for each utterance, decoded greedily."""
        total = words = 0
        order = sorted(range(len(tasks)), key=lambda n: len(self._waveforms[n]))
        missing = [n for n in order if (n, tasks[n]) not in self._log_probs]
        for start in range(0, len(missing), 16):
            some = missing[start : start + 16]
            self.recognise([self._waveforms[n] for n in some], [tasks[n] for n in some])
        vocabulary = self._model.backbone.vocabulary
        for n, task in enumerate(tasks):
            labels = ctc.labels_of_path(self._log_probs[n, task].argmax(axis=-1), vocabulary.blank_id)
            counts = error_rates.word_errors(self._texts[n], vocabulary.decode(labels), normalizer=NORMALIZER)
            total, words = total + counts.errors, words + counts.words
        return total, words


def sessions_of(speakers: list[str], *, seed: int) -> list[tuple[str, int]]:
    """The session of each utterance: `SESSION` at random of its speaker, the last one of a speaker may be shorter."""
    rng = np.random.default_rng(seed)
    found: list[tuple[str, int]] = [("", 0)] * len(speakers)
    for speaker in sorted(set(speakers)):
        mine = rng.permutation([n for n, other in enumerate(speakers) if other == speaker])
        for place, n in enumerate(mine):
            found[n] = (speaker, place // SESSION)
    return found


def measured(model: api.Model, manifest: str, *, tag: str) -> dict:
    """Rates of the oracle, the mean head, the base and `__auto__`."""
    utterances, _ = read_manifest(manifest, report=DataReport())
    utterances = [row for row in utterances if row.tag(tag) in model.tasks]
    speakers = [str(row.tag(tag)) for row in utterances]
    waveforms = [audio.decode(row, model.backbone.sample_rate) for row in utterances]
    passes = Passes(model, waveforms, [row.text for row in utterances])
    found: dict = {"utterances": len(utterances), "tasks": len(model.tasks), "manifest": epath.Path(manifest).name}
    groups = {"single": list(range(len(utterances))), "sessions": sessions_of(speakers, seed=0)}
    for without in (True, False):
        passes.without_base = without
        for name, sessions in groups.items():
            choices = passes.choose(sessions)
            tasks = [choice.task for choice in choices]
            pairs = list(zip(choices, speakers, strict=True))
            found[f"{name}, no base" if without else name] = {
                "errors": passes.errors(tasks)[0],
                "right": sum(choice.task == speaker for choice, speaker in pairs),
                "base": tasks.count(BASE_TASK),
                "among": sum(speaker in choice.candidates for choice, speaker in pairs),
                "passes": 1 + max(choice.passes for choice in choices),
            }
    everyone = {"oracle": speakers, "mean": [MEAN_TASK] * len(speakers), "base": [BASE_TASK] * len(speakers)}
    for name, tasks in everyone.items():
        found[name], found["words"] = passes.errors(tasks)
    for name in groups:
        for side in (name, f"{name}, no base"):
            found[side]["recovered"] = (found["mean"] - found[side]["errors"]) / (found["mean"] - found["oracle"])
    return found


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_multi_string("set", None, "NAME=ADAPTER,MANIFEST, may be given repeatedly.", required=True)
    flags.DEFINE_string("tag", "speaker", "Tag of the manifests that names the task.")
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")


def main(argv) -> None:
    """Counts all, and prints the table."""
    del argv
    backbone = api.load_backbone(FLAGS.backbone)
    found, rows = {}, []
    for given in FLAGS.set:
        name, _, rest = given.partition("=")
        adapter, _, manifest = rest.partition(",")
        one = measured(api.load_adapter(adapter, backbone), manifest, tag=FLAGS.tag)
        found[name] = one
        rates = [percent(one[side] / one["words"]) for side in ("base", "mean", "oracle")]
        for side in ("single", "single, no base", "sessions", "sessions, no base"):
            mine, count = one[side], one["utterances"]
            shares = [percent(mine[key] / count) for key in ("right", "base", "among")]
            rate = percent(mine["errors"] / one["words"])
            rows.append([name, side, *rates, rate, f"{mine['recovered']:.2f}", *shares, str(mine["passes"])])
    header = ("set", "heard", "base", "mean head", "oracle", "auto", "recovered", "right", "as base", "among", "passes")
    stdout().print(table(header, rows))
    settings = {name.lower(): getattr(unknown_task, name) for name in ("CANDIDATES", "DISTANCE_WEIGHT", "BASE_MARGIN")}
    harness.write("unknown_task", FLAGS.json, settings=settings, session=SESSION, sets=found)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
