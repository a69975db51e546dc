"""Recognition from Python with language models and phrases, of arrays and of files, greedy where nothing is given."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reference import micro as world

import hra_jax
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import decode_settings
from hra_jax.errors import UserError
from hra_jax.models import ctc
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary

TEXTS = ("fad cab", "b", "dead", "abcdefabc")
TASKS = ["cy", "__base__", "ann", "cy"]
WHOLE = {"sample_rate": world.RATE, "tasks": TASKS, "chunk_seconds": 2.0}  # none is cut


@pytest.fixture(scope="module")
def model(trained, micro):
    return hra_jax.load_adapter(trained.workdir / "adapter", hra_jax.load_backbone(micro.backbone))


@pytest.fixture(scope="module")
def waveforms():
    return [world.tones(text, pitch=1.1, seed=number) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def lm(model):
    vocabulary = model.vocabulary("ann")
    texts = ["fad cab", "dead", "cab", "bead a fad", "dead cab"] * 3
    return ngram.train([vocabulary.encode(text) for text in texts], vocabulary, order=3, name="small")


def test_nothing_given_is_the_likeliest_label_of_each_frame(model, waveforms):
    log_probs, lengths = model.log_probs(waveforms, sample_rate=world.RATE, tasks=TASKS)
    greedy = ctc.greedy_decode(log_probs, lengths, model.vocabulary("ann").blank_id)
    expected = [model.vocabulary(task).decode(row) for task, row in zip(TASKS, greedy, strict=True)]
    found = model.recognise(waveforms, **WHOLE)
    assert [one.text for one in found] == expected == model.transcribe(waveforms, **WHOLE)
    assert [(one.task, one.words, one.alternatives) for one in found] == [(task, (), ()) for task in TASKS]
    assert found[0].seconds == len(waveforms[0]) / world.RATE


def test_files_are_what_their_samples_are(model, waveforms, tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    for path, waveform in zip(paths, waveforms, strict=True):
        soundfile.write(path, waveform, world.RATE, subtype="FLOAT")
    mixed = [paths[0], waveforms[1], str(paths[2]), paths[3]]
    expected = model.transcribe(waveforms, sample_rate=world.RATE, tasks=TASKS)
    assert model.transcribe(mixed, sample_rate=world.RATE, tasks=TASKS) == expected
    with pytest.raises(UserError, match=r"none\.wav: missing_file"):
        model.transcribe([tmp_path / "none.wav"], tasks=["ann"])
    with pytest.raises(UserError, match="sample_rate = None"):
        model.transcribe(waveforms)


def test_models_and_phrases_decode_as_the_decoder_does(model, waveforms, lm):
    decode, phrases = {"lm": {"cy": lm, "ann": "", "__base__": ""}, "n_best": 2}, [["bead"], [], ["fad"], []]
    found = model.recognise(waveforms, decode=decode, phrases=phrases, **WHOLE)
    log_probs, lengths = model.log_probs(waveforms, sample_rate=world.RATE, tasks=TASKS)
    decoder = Decoder(decode_settings(decode), vocabularies={task: model.vocabulary(task) for task in TASKS})
    expected = decoder.paths(log_probs, lengths, TASKS, phrases=phrases)
    for one, path, alternatives in zip(found, expected.paths, expected.alternatives, strict=True):
        np.testing.assert_array_equal(one.paths[0], path)
        assert [a.text for a in one.alternatives] == [a.text for a in alternatives]
        assert one.text == one.alternatives[0].text
    made = model.decoder(decode, TASKS)
    assert made is model.decoder(decode, TASKS) and made.facts()["lm"]["cy"]["name"] == "small"
    again = model.transcribe(waveforms, decode=made, phrases=phrases, **WHOLE)
    assert again == [one.text for one in found]


def test_words_are_those_of_the_text_and_lie_in_the_recording(model, waveforms, lm):
    long = np.concatenate([waveforms[0], np.zeros(world.RATE, np.float32), waveforms[2]])
    for decode, chunk_seconds in ((None, 5.0), ({"lm": lm}, 0.8)):
        (one,) = model.recognise(
            [long], sample_rate=world.RATE, tasks=["cy"], decode=decode, words=True, chunk_seconds=chunk_seconds
        )
        assert [word.text for word in one.words] == one.text.split()
        times = [time for word in one.words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= one.seconds for time in times)
        assert one.confidence is None or 0 <= one.confidence <= 1


def test_a_task_that_is_set_aside_keeps_its_language_model(model, waveforms, lm):
    aside = dataclasses.replace(model, set_aside=frozenset({"ann"}))
    decode = {"lm": {"ann": lm, "__base__": lm}}
    mine, base = (
        aside.transcribe(waveforms, sample_rate=world.RATE, tasks=[task] * 4, decode=decode)
        for task in ("ann", "__base__")
    )
    assert mine == base


def test_what_cannot_be_decoded_is_refused_before_anything_runs(model, lm):
    def refusal(**given):
        with pytest.raises(UserError) as caught:
            model.transcribe(["none.wav"], **{"tasks": ["ann"], **given})  # a file that nobody gets to
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for single in ("none.wav", Path("none.wav"), np.zeros(800)):
        with pytest.raises(UserError, match="waveforms is a single recording; allowed: a list of recordings"):
            model.transcribe(single, sample_rate=world.RATE)
    assert "tasks = 'ann': allowed: a list" in refusal(tasks="ann")
    foreign = CharacterVocabulary(" xyz")
    other = ngram.train([foreign.encode("xyz zyx")], foreign, order=2, name="foreign")
    assert "decode.lm, task 'ann': foreign" in refusal(decode={"lm": other})
    assert "for task 'ann', but for 'cy'" in refusal(decode={"lm": {"cy": lm}})
    assert "holds no language model for task 'ann'" in refusal(decode={"lm": "adapter"})
    assert "decode.lm_weight = nan" in refusal(decode={"lm": lm, "lm_weight": float("nan")})
    assert "unknown key 'beams'; did you mean 'beam'?" in refusal(decode={"beams": 3})
    assert "2 lists of phrases for 1 recordings" in refusal(phrases=[[], []])
    assert "phrases[0]: 'xyz' cannot be written" in refusal(phrases=[["xyz"]])
    assert "phrases[0]: an empty phrase" in refusal(phrases=[[" "]])
