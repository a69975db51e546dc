"""What a list of phrases brings: how many rare words are recognised with and without it, and how many are made up.

python benchmarks/phrases.py --adapter runs/quickstart/adapter --hard runs/data/hard --json phrases.json

The rare words of the test set are the 50 of its words that its training texts have least, those first in the alphabet
where as many have the same count. Two language models are made of training texts: of all of them, and of those without
any of the 50 words, which then are names that nobody has told it. Phrases are all 50 words, for every utterance. A list
of distractors has 50 words of the training texts that no test text has. Recall is the share of the words' occurrences
in references that are recognised there; a false insertion is one of the words where it is not said. The weight of
phrases is the one with the fewest word errors on the validation set, with its own rare words, chosen in the same way.
"""

import collections
from collections.abc import Sequence
from typing import Any

import harness
import kaldialign
import numpy as np
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.api import Model, load_adapter, load_backbone
from hra_jax.data.audio import decode_file
from hra_jax.data.manifest import load_manifest
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.evaluation import error_rates
from hra_jax.text import ngram
from hra_jax.text.normalization import normalize_text

FLAGS = flags.FLAGS
NORMALIZER = "basic"
WORDS = 50
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
TOGETHER = 16  # utterances
NONE = "-"  # what the alignment has where a word is missing


class Speech:
    """A split: its texts as words, and the log-probabilities of its utterances by the adapters of their speakers."""

    def __init__(self, utterances: Sequence[Utterance], model: Model):
        """Recognises all of it."""
        rows = sorted(utterances, key=lambda row: row.duration)
        self.texts = [normalize_text(row.text, NORMALIZER) for row in rows]
        self.tasks = [str(row.tag("speaker")) for row in rows]
        rate = model.backbone.sample_rate
        self.batches = []
        for start in range(0, len(rows), TOGETHER):
            waveforms = [decode_file(row.audio_filepath, rate) for row in rows[start : start + TOGETHER]]
            tasks = self.tasks[start : start + TOGETHER]
            self.batches.append((*model.log_probs(waveforms, sample_rate=rate, tasks=tasks), tasks))

    def decoded(self, model: Model, **settings: Any) -> list[str]:
        """The texts, as settings decode them."""
        vocabularies = {task: model.vocabulary(task) for task in set(self.tasks)}
        decoder = Decoder(DecodeSettings(**settings), vocabularies=vocabularies)
        texts = []
        for log_probs, lengths, tasks in self.batches:
            for path, task in zip(decoder.paths(log_probs, lengths, tasks).paths, tasks, strict=True):
                vocabulary = model.vocabulary(task)
                changes = path[np.flatnonzero(np.diff(path, prepend=-1))]
                texts.append(vocabulary.decode(i for i in changes if i != vocabulary.blank_id))
        return texts


def rarest(texts: Sequence[str], training: collections.Counter) -> list[str]:
    """The words of some texts that the training texts have least."""
    words = {word for text in texts for word in text.split()}
    return sorted(words, key=lambda word: (training[word], word))[:WORDS]


def scores(references: Sequence[str], hypotheses: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """Word error rate; of some words the occurrences, how many were recognised, and how many were made up."""
    known, said, right, made_up = set(words), 0, 0, 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for wanted, found in kaldialign.align(reference.split(), hypothesis.split(), NONE):
            said += wanted in known
            right += wanted in known and found == wanted
            made_up += found in known and found != wanted
    errors = error_rates.total(
        error_rates.word_errors(reference, hypothesis, normalizer=NORMALIZER)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    )
    recall = right / said if said else None
    return {"wer": errors.rate, "said": said, "right": right, "recall": recall, "false_insertions": made_up}


def language_model(texts: Sequence[str], model: Model, name: str) -> ngram.LanguageModel:
    """A language model of the backbone's characters."""
    vocabulary = model.backbone.vocabulary
    return ngram.train([vocabulary.encode(text) for text in texts], vocabulary, name=name)


def measured(model: Model, splits: dict[str, list[Utterance]]) -> dict:
    """All cells of the table."""
    training = [normalize_text(row.text, NORMALIZER) for row in splits["train"]]
    counts = collections.Counter(word for text in training for word in text.split())
    speech = {name: Speech(splits[name], model) for name in ("validation", "test")}
    rare = {name: rarest(found.texts, counts) for name, found in speech.items()}
    said = {word for found in speech.values() for text in found.texts for word in text.split()}
    distractors = sorted(set(counts) - said, key=lambda word: (counts[word], word))[:WORDS]
    models = {}
    for name, words in (("all", ()), *rare.items()):
        kept = [text for text in training if not set(words).intersection(text.split())]
        models[name] = language_model(kept, model, f"training texts, {len(kept)} of {len(training)}")

    def row(split: str, words: Sequence[str], **settings: Any) -> dict[str, Any]:
        return scores(speech[split].texts, speech[split].decoded(model, **settings), words)

    grid = {
        lm: {
            str(weight): row(
                "validation",
                rare["validation"],
                lm=models["all" if lm == "all" else "validation"],
                phrases=tuple(rare["validation"]),
                phrase_weight=weight,
            )
            for weight in WEIGHTS
        }
        for lm in ("all", "without")
    }
    words, found = rare["test"], {}
    found["greedy"] = row("test", words)
    found["beam"] = row("test", words, beam=16)
    chosen = {"none": 1.0} | {
        lm: float(min(cells, key=lambda weight: (cells[weight]["wer"], float(weight)))) for lm, cells in grid.items()
    }
    for lm in ("none", "all", "without"):
        used = {"none": "", "all": models["all"], "without": models["test"]}[lm]
        for name, given in (("", ()), ("phrases", words), ("distractors", distractors)):
            settings = {"lm": used, "phrases": tuple(given), "phrase_weight": chosen[lm], "beam": 16}
            scored = words if name != "distractors" else distractors
            found[" ".join(filter(None, (lm, name)))] = row("test", scored, **settings)
            print(lm, name, found[" ".join(filter(None, (lm, name)))], flush=True)
    every = {
        str(weight): row("test", words, lm=models["test"], phrases=tuple(words), phrase_weight=weight)
        for weight in WEIGHTS
    }
    return {
        "words": {word: counts[word] for word in words},
        "distractors": {word: counts[word] for word in distractors},
        "texts": {name: model.texts for name, model in models.items()},
        "utterances": len(speech["test"].texts),
        "phrase_weights": chosen,
        "validation": grid,
        "test": found,
        "test_by_weight": every,
    }


def main(argv: list[str]) -> None:
    """Measures, prints and writes everything down."""
    del argv
    model = load_adapter(FLAGS.adapter, load_backbone("builtin:tiny"))
    report = DataReport(strict=True)
    names = ("train", "validation", "test")
    splits = {name: list(load_manifest(epath.Path(FLAGS.hard) / f"{name}.jsonl", report=report)) for name in names}
    found = measured(model, splits)
    for weight, cells in found["test_by_weight"].items():
        print(weight, cells)
    harness.write("phrases", FLAGS.json, **found)


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("adapter", None, "The adapter that the configuration quickstart exports.", required=True)
    flags.DEFINE_string("hard", None, "Folder of the synthetic set `hard`.", required=True)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
