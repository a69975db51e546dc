"""How far word boundaries are from where they are, and confidences from the share of words that is right.

The lag and the temperatures are measured on a validation suite, and everything else on a test suite of other clips:

python benchmarks/word_times.py --adapter runs/fsdd/adapter --data_dir FSDD_FOLDER \
    --validation fsdd_validation --test fsdd --json benchmarks/results/word_times.json
python benchmarks/word_times.py --adapter runs/quickstart/adapter --data_dir runs/data/hard \
    --validation hard_validation --test hard --texts runs/data/hard/train.jsonl \
    --json benchmarks/results/word_confidences.json

Clips of one speaker are put together as they are, in random order; a joint is where one ends and the next begins. What
was said is aligned, and the boundary between the two words beside each joint compared with it. A joint lies somewhere
in the silence at the ends of its clips, of which the audio does not tell where: how long that is, by the level of the
sound (30 dB below the loudest), stands beside the errors, and so do the errors from the nearest point of it.
"""

import dataclasses

import harness
import numpy as np
from absl import flags

from hra_jax import api, cli
from hra_jax.console import percent, say, stdout, table
from hra_jax.data import audio
from hra_jax.data.manifest import read_manifest
from hra_jax.data.report import DataReport
from hra_jax.decoding import calibration, words
from hra_jax.decoding.calibration import Judged
from hra_jax.evaluation.suites import Suite, load_suite
from hra_jax.models import alignment
from hra_jax.text import ngram
from hra_jax.text.vocabularies import Vocabulary

FLAGS = flags.FLAGS
CLIPS = (2, 4)  # that are put together
_TOGETHER = 16
_LEVEL_SECONDS = 0.005


@dataclasses.dataclass
class Joints:
    """What is known of the joints of clips, seconds, float64 `[N]` each.

    Attributes:
      boundary: the boundary of the words on its two sides, less the time of the joint; without the lag taken off.
      label: the first label of the word after it, less the time of the joint: what an alignment alone says.
      before, after: the silence at the end of the clip before it, and at the beginning of the one after it.
    """

    boundary: np.ndarray
    label: np.ndarray
    before: np.ndarray
    after: np.ndarray

    def errors(self, lag: float) -> dict:
        """Medians and 95th percentiles of errors in ms, a lag taken off."""
        late = self.boundary - lag
        outside = np.maximum(np.maximum(-self.before - late, late - self.after), 0)
        sides = {
            "boundary": np.abs(late),
            "boundary_outside_silence": outside,
            "first_label": np.abs(self.label),
            "silence_before": self.before,
            "silence_after": self.after,
        }
        found = {name: _milliseconds(values) for name, values in sides.items()}
        return {"joints": len(late), "median_late_ms": round(1000 * float(np.median(late)), 1), **found}


def _milliseconds(values: np.ndarray) -> dict[str, float]:
    median, high = np.percentile(1000 * values, [50, 95])
    return {"median_ms": round(float(median), 1), "p95_ms": round(float(high), 1)}


def silence(samples: np.ndarray, rate: int, *, end: bool) -> float:
    """Seconds at an end of a clip that lie 30 dB or more below the loudest."""
    size = round(_LEVEL_SECONDS * rate)
    powers = np.square(samples[: len(samples) // size * size].reshape(-1, size)).mean(axis=1)
    (loud,) = np.nonzero(powers > 1e-3 * powers.max())
    return (len(samples) - (int(loud[-1]) + 1) * size if end else int(loud[0]) * size) / rate


def first_label(path: np.ndarray, vocabulary: Vocabulary, number: int) -> int:
    """The frame in which the word of this number has its first label."""
    starts = np.flatnonzero((path != vocabulary.blank_id) & np.diff(path, prepend=-1).astype(bool))
    return int(starts[words.word_labels(path[starts].tolist(), vocabulary)[number].first])


def joints_of(model: api.Model, suite: Suite, clips: int) -> Joints:
    """The joints of the utterances of each task, in random order, some at a time, together no longer than a chunk."""
    rng, rate, found = np.random.default_rng(0), model.backbone.sample_rate, []
    for task in suite.tasks:
        order = rng.permutation(len(task.utterances))
        groups = [[task.utterances[n] for n in order[at : at + clips]] for at in range(0, len(order), clips)]
        read = [[audio.decode(row, rate) for row in group] for group in groups]
        fitting = [n for n, sounds in enumerate(read) if sum(map(len, sounds)) <= model.chunk_seconds * rate]
        for start in range(0, len(fitting), _TOGETHER):
            part = fitting[start : start + _TOGETHER]
            texts = [[row.text for row in groups[n]] for n in part]
            found += _of_batch(model, task.adapter_task, texts, [read[n] for n in part])
    return Joints(*np.array(found).T)


def _of_batch(model: api.Model, task: str, texts: list[list[str]], sounds: list[list[np.ndarray]]) -> list[tuple]:
    vocabulary, rate = model.vocabulary(task), model.backbone.sample_rate
    together = [np.concatenate(parts) for parts in sounds]
    log_probs, lengths = model.log_probs(together, sample_rate=rate, tasks=[task] * len(together))
    labels = [vocabulary.encode(" ".join(group)) for group in texts]
    paths, scores = alignment.align(log_probs, lengths, labels, vocabulary.blank_id)
    frame, found = model.backbone.hop / rate, []
    for group, parts, path, score in zip(texts, sounds, paths, scores, strict=True):
        if not np.isfinite(score):
            continue
        counts = np.cumsum([len(text.split()) for text in group])
        ends = np.cumsum([len(part) for part in parts]) / rate
        for at in range(len(group) - 1):
            boundary = calibration.boundary_after(path, vocabulary, int(counts[at]), frame_seconds=frame)
            label = first_label(path, vocabulary, int(counts[at])) * frame
            before, after = silence(parts[at], rate, end=True), silence(parts[at + 1], rate, end=False)
            found.append((boundary - ends[at], label - ends[at], before, after))
    return found


def confidences(model: api.Model, suites: tuple[Suite, Suite], decode: dict | None) -> dict:
    """The calibration error on the test suite, before and after temperatures that were fitted on validation."""
    validation, test = (
        calibration.judged_words(
            model, calibration.utterances_of(model, suite), normalizer=suite.normalizer, decode=decode
        )
        for suite in suites
    )
    whole = calibration.fit_temperature(calibration.joined(validation.values()))
    fitted = {task: calibration.fit_temperature(rows, near=whole) for task, rows in validation.items() if task in test}
    rows = {task: test[task] for task in fitted}
    after = {
        task: Judged(
            np.array([words.calibrated(float(one), temperature=fitted[task]) for one in found.posteriors]), found.right
        )
        for task, found in rows.items()
    }
    sides = {"before": rows, "after": after}
    return {
        "words": sum(len(found.right) for found in rows.values()),
        "right": round(float(calibration.joined(rows.values()).right.mean()), 4),
        "validation_words": sum(len(found.right) for found in validation.values()),
        "temperatures": {task: round(value, 3) for task, value in fitted.items()},
        "ece": {
            name: round(calibration.calibration_error(calibration.joined(side.values())), 4)
            for name, side in sides.items()
        },
        "mean_ece_of_tasks": {
            name: round(float(np.mean([calibration.calibration_error(found) for found in side.values()])), 4)
            for name, side in sides.items()
        },
    }


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("adapter", None, "Folder of an exported adapter.", required=True)
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")
    flags.DEFINE_string("data_dir", None, "What {dir} in the suites stands for.", required=True)
    flags.DEFINE_string("validation", None, "Name or path of the validation suite.", required=True)
    flags.DEFINE_string("test", None, "Name or path of the test suite.", required=True)
    flags.DEFINE_string("texts", None, "A manifest; a character 6-gram of its texts then decodes as well.")


def main(argv) -> None:
    """Measures all, and prints the tables."""
    del argv
    model = api.load_adapter(FLAGS.adapter, api.load_backbone(FLAGS.backbone))
    model = calibration.not_calibrated(model)
    suites = tuple(
        load_suite(name, data_dir=FLAGS.data_dir, report=DataReport()) for name in (FLAGS.validation, FLAGS.test)
    )
    late = calibration.lateness(model, calibration.utterances_of(model, suites[0]))
    lag = float(np.median(late))
    times = {str(clips): joints_of(model, suites[1], clips).errors(lag) for clips in CLIPS}
    decodings: dict[str, dict | None] = {"greedy": None}
    if FLAGS.texts:
        utterances, _ = read_manifest(FLAGS.texts, report=DataReport())
        vocabulary = model.backbone.vocabulary
        decodings["beam 16, 6-gram"] = {
            "lm": ngram.train([vocabulary.encode(row.text) for row in utterances], vocabulary, order=6, name="train")
        }
    sure = {name: confidences(model, suites, decode) for name, decode in decodings.items()}
    say(stdout(), f"lag {1000 * lag:+.0f} ms, of {len(late)} joints of {suites[0].name}; errors on {suites[1].name}")
    sides = ["boundary", "boundary_outside_silence", "first_label", "silence_before", "silence_after"]
    rows = [
        [clips, str(found["joints"]), *(f"{found[s]['median_ms']:.0f} / {found[s]['p95_ms']:.0f}" for s in sides)]
        for clips, found in times.items()
    ]
    stdout().print(table(["clips", "joints", *(f"{side}, ms" for side in sides)], rows))
    rows = [
        [name, str(found["words"]), percent(found["right"])]
        + [percent(found[key][side]) for key in ("ece", "mean_ece_of_tasks") for side in ("before", "after")]
        for name, found in sure.items()
    ]
    stdout().print(table(["decoding", "words", "right", "ECE before", "after", "of tasks before", "after"], rows))
    harness.write(
        "word_times",
        FLAGS.json,
        suites=[suite.name for suite in suites],
        lag_ms=round(1000 * lag, 1),
        lag_joints=len(late),
        chunk_seconds=model.chunk_seconds,
        times=times,
        confidences=sure,
    )


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
