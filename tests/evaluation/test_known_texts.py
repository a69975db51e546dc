"""Texts of a suite that were trained on."""

from hra_jax.data.utterance import Utterance
from hra_jax.evaluation.known_texts import known_texts
from hra_jax.evaluation.suites import Suite, SuiteTask


def test_texts_are_known_however_they_are_written_and_whoever_says_them():
    texts = ["Turn it on!", "turn it on", "Turn it off.", "..."]
    rows = tuple(Utterance(f"{at}.wav", 1.0, text, key=str(at)) for at, text in enumerate(texts))
    tasks = [SuiteTask(name, "m.jsonl", "", "", "a", some) for name, some in (("a", rows[:2]), ("b", rows[2:]))]
    suite = Suite("s", "basic@2", tuple(tasks))
    training = [[Utterance("x.wav", 1.0, text) for text in texts] for texts in (["TURN it on", "..."], ["another"])]
    assert known_texts(suite, training) == {
        "utterances": 3,
        "known": 2,
        "texts": 2,
        "texts_known": 1,
    }
    assert known_texts(suite, [])["known"] == 0
