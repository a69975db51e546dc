"""Tuning without a model of speech: what is kept of a suite, which weights are looked for, and what is stored."""

import numpy as np
import pytest

from hra_jax.decoding import grid, tuning
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.language_models import Held
from hra_jax.decoding.settings import DecodeSettings
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary

VOCABULARY = CharacterVocabulary(" ab")
MODEL = ngram.train([[1, 2], [2, 3, 1], [2, 2]], VOCABULARY, order=2, name="train")


def batches():
    rng = np.random.default_rng(0)
    for rows, frames in ((2, 5), (3, 7), (1, 4)):
        yield rng.normal(size=(rows, frames, 4)).astype(np.float32), np.full(rows, frames), np.arange(rows)


def test_log_probabilities_in_a_file_are_those_in_memory():
    kept, stored = tuning.Heard(batches()), tuning.Heard(batches(), most_memory=200)
    maps = [isinstance(log_probs, np.memmap) for log_probs, _, _ in stored]
    assert maps == [False, True, True] and not any(isinstance(one, np.memmap) for one, _, _ in kept)
    for _ in range(2):  # they are gone through again and again
        for first, second, expected in zip(kept, stored, batches(), strict=True):
            for one, other, right in zip(first, second, expected, strict=True):
                np.testing.assert_array_equal(one, right)
                np.testing.assert_array_equal(other, right)


@pytest.mark.parametrize(
    ("settings", "acts", "names"),
    [
        ({"lm": MODEL}, (True, False), ("lm_weight", "token_bonus")),
        ({"lm": MODEL}, (True, True), ("phrase_weight", "lm_weight", "token_bonus")),
        ({"phrases": ("ab",)}, (False, True), ("phrase_weight", "token_bonus")),
        ({"lm": MODEL, "lm_weight": 0.5}, (True, False), ("token_bonus",)),
        ({"lm": MODEL, "lm_weight": 0.5, "token_bonus": 1.0}, (True, False), ()),
        ({"beam": 4}, (False, False), ("token_bonus",)),
        ({}, (False, False), ()),
    ],
)
def test_weights_are_looked_for_that_are_not_given_and_have_something_to_weigh(settings, acts, names):
    found = tuning.axes_of(DecodeSettings(**settings), models=acts[0], phrases=acts[1])
    assert tuple(axis.name for axis in found) == names


@pytest.mark.parametrize(
    ("settings", "beams"),
    [
        ({"lm": MODEL}, (8, 16, 32)),
        ({"lm": MODEL, "beam": 4}, (4,)),  # what is given is not tuned
        ({"lm": MODEL, "n_best": 20}, (20, 32)),
        ({"lm": MODEL, "n_best": 40}, (40,)),
    ],
)
def test_beams_are_compared_that_hold_the_hypotheses_that_are_returned(settings, beams):
    assert tuning.beams_of(DecodeSettings(**settings)) == beams
    assert DecodeSettings(**settings).width(phrases=False) in beams


def test_what_is_stored_gives_the_decoder_the_weights_that_were_found():
    settings = DecodeSettings(lm=MODEL, token_bonus=0.5)
    tuned = grid.Tuned(
        (grid.AXES["lm_weight"],),
        {(0.8,): {"": 0.25, "ann": 0.5}, (1.1,): {"": 0.5, "ann": 0.1}},
        {"": (0.8,), "ann": (1.1,)},
    )
    beams = grid.Beams({16: {"": 0.25, "ann": 0.1}, 32: {"": 0.2, "ann": 0.1}}, {"": 32, "ann": 16})
    found = tuning.entries(tuned, beams, settings, {"ann": MODEL, "bob": None}, suite="validation")
    assert found["ann"] == {
        "lm": {"name": "train", "digest": MODEL.digest},
        "beam": 16,
        "lm_weight": 1.1,
        "token_bonus": 0.5,
        "suite": "validation",
        "wer": 0.1,
    }
    # A task that was not tuned by itself has what is best for all, and here no language model.
    assert found["bob"] == {"beam": 32, "lm_weight": 0.8, "token_bonus": 0.5, "suite": "validation", "wer": 0.2}
    # Tuned together, each task has its own error rate with what is best for all.
    together = grid.Tuned(tuned.axes, {(0.8,): {"": 0.25, "ann": 0.5, "bob": 0.0}}, {"": (0.8,)})
    beams = grid.compare_beams(lambda beam: {"": 0.2, "ann": 0.4, "bob": 0.0}, together, tuned_with=16, others=(16, 32))
    models = dict.fromkeys(("ann", "bob", "cy"), MODEL)
    own = tuning.entries(together, beams, settings, models, suite="validation")
    assert [own[task]["wer"] for task in models] == [0.4, 0.0, 0.2]
    # What all have in common is that of a new task, whatever the error rates of the others are.
    own["cy"]["lm"] = own["cy"]["lm"] | {"name": "the same"}
    assert Held(own, {}, "ADAPTER").tuned_for("new")["beam"] == 32 and Held(found, {}, "").tuned_for("new") is None
    decoder = Decoder(DecodeSettings(lm=MODEL), vocabularies={"ann": VOCABULARY}, adapter=Held(found, {}, "ADAPTER"))
    assert {name: decoder.facts()[name] for name in ("beam", "lm_weight", "token_bonus")} == {
        name: found["ann"][name] for name in ("beam", "lm_weight", "token_bonus")
    }
