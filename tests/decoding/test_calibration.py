"""Calibration: temperatures and errors against plain loops, the lag of an encoder that is late by design, and a run."""

import dataclasses
import json
import types

import numpy as np
import pytest
from absl import flags
from reference import micro as world

import hra_jax
from hra_jax.adapters import adapter_folder
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.data.utterance import Recording, Utterance
from hra_jax.decoding import calibration, recognition, words
from hra_jax.decoding.calibration import Judged
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.words import Word
from hra_jax.errors import UserError
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.tasks import commands
from hra_jax.text.vocabularies import CharacterVocabulary


def drawn(count, *, temperature, seed=0):
    """Words whose posteriors have odds `temperature` times as far from even as the share of them that is right."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(1.0, 1.5, count)
    return Judged(1 / (1 + np.exp(-temperature * odds)), rng.uniform(size=count) < 1 / (1 + np.exp(-odds)))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_words_were_drawn_with_is_found_and_repairs_others(temperature):
    found = calibration.fit_temperature(drawn(20000, temperature=temperature))
    assert found == pytest.approx(temperature, rel=0.06)
    others = drawn(20000, temperature=temperature, seed=1)
    assert calibration.calibration_error(others, temperature=found) < 0.012
    if temperature != 1.0:
        assert calibration.calibration_error(others) > 0.05


def test_few_words_move_a_temperature_little_and_one_kind_of_them_does_not_break_it():
    nothing = Judged(np.zeros(0), np.zeros(0, bool))
    assert calibration.fit_temperature(nothing, near=1.7) == pytest.approx(1.7, rel=0.01)
    few, many = (calibration.fit_temperature(drawn(n, temperature=3.0), near=1.0) for n in (5, 2000))
    assert abs(few - 1) < abs(many - 1)
    sure = Judged(np.array([0.0, 0.6, 1.0] * 50), np.ones(150, bool))
    assert 0.04 < calibration.fit_temperature(sure) < 21
    assert 0.04 < calibration.fit_temperature(Judged(sure.posteriors, ~sure.right)) < 21


def test_the_calibration_error_is_the_mean_over_words_of_what_their_bin_is_off():
    found = drawn(300, temperature=2.0)
    expected = 0.0
    for low in np.arange(0, 1, 0.1):
        inside = (found.posteriors >= low) & (found.posteriors < low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(found.posteriors[inside].mean() - found.right[inside].mean())
    assert calibration.calibration_error(found) == pytest.approx(expected)
    assert calibration.calibration_error(Judged(np.array([1.0, 0.0]), np.array([True, False]))) < 1e-12
    assert calibration.calibration_error(Judged(np.array([1.0, 0.0]), np.array([False, True]))) > 1 - 1e-12
    cool = [words.calibrated(p, temperature=0.3) for p in found.posteriors]
    as_told = Judged(np.array(cool), found.right)
    assert calibration.calibration_error(found, temperature=0.3) == pytest.approx(
        calibration.calibration_error(as_told)
    )
    assert calibration.calibration_error(found, temperature=0.3) != pytest.approx(expected)


def test_a_word_is_right_where_the_least_errors_have_it():
    said = [Word(text, 0.0, 0.0, float(at)) for at, text in enumerate(["the", "cat", "sat", "um", "mat"])]
    found = calibration.judge("The cat, sat on the mat!", said, normalizer="basic")
    assert found == [(0.0, True), (1.0, True), (2.0, True), (3.0, False), (4.0, True)]
    # One that the normalizer takes away says nothing; one that it splits must be right in all its parts.
    marks = [Word(text, 0.0, 0.0, confidence) for text, confidence in (("--", 0.1), ("well-known", 0.2), ("a-x", 0.3))]
    assert calibration.judge("well known a y", marks, normalizer="basic") == [(0.2, True), (0.3, False)]
    assert calibration.judge("", said[:1], normalizer="basic") == [(0.0, False)]


def test_silence_at_one_end_is_taken_off():
    sound = np.concatenate([np.full(800, 1e-4), np.full(1600, 0.3), np.full(400, 1e-4)]).astype(np.float32)
    assert len(calibration.trimmed(sound, 8000, end=True)) == 2400
    assert len(calibration.trimmed(sound, 8000, end=False)) == 2000
    assert len(calibration.trimmed(np.zeros(30, np.float32), 8000, end=True)) == 30


@dataclasses.dataclass(frozen=True)
class LateListener:
    """Hears the tones of the micro world, each as one frame in the middle of it, some frames late."""

    late: int
    entries: dict = dataclasses.field(default_factory=dict)
    tasks, set_aside, records, chunk_seconds = ("ann",), frozenset(), {}, 3.0
    backbone = types.SimpleNamespace(sample_rate=world.RATE, hop=160)
    _vocabulary = CharacterVocabulary(world.LETTERS)

    def vocabulary(self, task):
        return self._vocabulary

    def recognise(self, waveforms, *, sample_rate, tasks, decode, words):
        return recognition.recognise(
            waveforms,
            tasks,
            lambda heard, rows: self.log_probs(heard, sample_rate=sample_rate, tasks=tasks),
            decoder=Decoder(vocabularies={"ann": self._vocabulary}),
            vocabularies={"ann": self._vocabulary},
            phrases=None,
            hop=160,
            sample_rate=sample_rate,
            longest_seconds=self.chunk_seconds,
            words=words,
        )

    def log_probs(self, waveforms, *, sample_rate, tasks):
        size = round(0.12 * sample_rate)
        frames = [-(-len(waveform) // 160) for waveform in waveforms]
        found = np.full((len(waveforms), max(frames), self._vocabulary.size), -9.0, np.float32)
        found[:, :, 0] = -0.01
        for row, waveform in enumerate(waveforms):
            for start in range(0, len(waveform) - size // 2, size):
                part = waveform[start : start + size]
                hertz = np.abs(np.fft.rfft(part)).argmax() * sample_rate / len(part)
                label = 1 + round((hertz - 300) / 250)
                at = min((start + size // 2) // 160 + self.late, frames[row] - 1)
                found[row, at, 0], found[row, at, label] = -9.0, -0.01
        return found, np.array(frames, np.int32)


@pytest.mark.parametrize("late", [0, 2])
def test_joined_utterances_tell_by_how_much_labels_come_late(late):
    texts = ["ab", "fad", "cab", "bed", "dad", "feed"] * 4
    rows = [
        Recording(f"{number}", len(sound) / world.RATE, text, samples=sound, sample_rate=world.RATE)
        for number, text in enumerate(texts)
        for sound in [world.tones(text, seed=number)]
    ]
    suite = Suite("v", "basic", (SuiteTask("ann", "m", "", "", "ann", tuple(rows)),))
    found = calibration.measure(LateListener(late), suite)["ann"]
    # A label stands for the frame of 20 ms in which the middle of its tone lies.
    assert found["lag_seconds"] == pytest.approx(0.02 * late, abs=0.0101)
    assert (found["joints"], found["words"], found["right"]) == (12, 24, 1.0)
    assert found["ece_after"] <= found["ece_before"]
    few = Suite("v", "basic", (SuiteTask("ann", "m", "", "", "ann", tuple(rows[:4])),))
    assert "lag_seconds" not in calibration.measure(LateListener(late), few)["ann"]


def test_a_suite_without_a_word_of_a_task_is_refused():
    gone = Utterance("nowhere.wav", 1.0, "ab")
    long = Utterance("nowhere.wav", 1000.0, "ab")
    for task, rows in (("ann", (gone, long)), ("bob", (gone,)), ("__base__", (gone,))):
        suite = Suite("v", "basic", (SuiteTask("x", "m", "", "", task, rows),))
        with pytest.raises(UserError, match="suite 'v': no word is recognised in its utterances as a task"):
            calibration.measure(LateListener(0), suite)


def test_the_command_measures_and_recognition_uses_what_it_found(micro, tmp_path, capsys, monkeypatch):
    adapter = str(world.write_adapter(tmp_path / "adapter", HierarchicalRecurrentAdapter(width=5), micro))
    values = flags.FlagValues()
    commands.define_flags(values)
    monkeypatch.setattr(commands, "FLAGS", values)
    line = ["calibrate", adapter, "--suite", micro.suite("validation"), "--data_dir", str(micro.data)]
    commands.main(values(["tasks", *line, "--backbone", micro.backbone]))
    printed = capsys.readouterr().out
    entries = {entry["name"]: entry for entry in adapter_folder.read_tasks(adapter)}
    facts = entries["ann"]["calibration"]
    assert entries.keys() == {"ann", "bob", "cy"}
    assert f"task 'ann': {facts['words']} words" in printed
    assert "calibrated on 'validation': 'ann', 'bob', 'cy'" in printed

    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    sound = world.tones("fade", seed=3)
    (found,) = model.recognise([sound], sample_rate=world.RATE, tasks=["ann"], words=True)
    (raw,) = dataclasses.replace(model, entries={}).recognise(
        [sound], sample_rate=world.RATE, tasks=["ann"], words=True
    )
    assert [word.text for word in found.words] == [word.text for word in raw.words] == found.text.split()
    assert found.calibrated and not raw.calibrated
    for word, before in zip(found.words, raw.words, strict=True):
        assert word.confidence == pytest.approx(words.calibrated(before.confidence, temperature=facts["temperature"]))
    # What is no calibration is an error before anything is recognised.
    content = json.loads((tmp_path / "adapter" / "tasks.json").read_text())
    content["tasks"][0]["calibration"]["temperature"] = -1
    broken = dataclasses.replace(model, entries={entry["name"]: entry for entry in content["tasks"]})
    with pytest.raises(UserError, match="task 'ann': calibration has temperature -1"):
        broken.recognise([sound], sample_rate=world.RATE, tasks=["ann"], words=True)
