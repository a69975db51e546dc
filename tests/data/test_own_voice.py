"""Recordings of one's own: from files, or from the browser of a notebook, which is asked once."""

import base64
import json
import re
import sys
import types

import numpy as np
import pytest
import soundfile

from hra_jax.data.own_voice import own_voice

TEXTS = ['say "yes"', "say no", "say </script>"]


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def browser(monkeypatch):
    """A browser in which somebody speaks for half a second as often as `answers` says, and then refuses."""
    asked: list[str] = []
    samples = base64.b64encode((32767 * tone(0.5, 16000)).astype("<i2").tobytes()).decode()
    found = types.SimpleNamespace(asked=asked, answers=9)

    def eval_js(script: str) -> str:
        text, rate = re.search(r"\)\((.*), (\d+)\)$", script).groups()
        assert int(rate) == 16000
        asked.append(json.loads(text))
        return samples if len(asked) <= found.answers else ""

    for name in ("google.colab", "google.colab.output"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["google.colab.output"], "eval_js", eval_js, raising=False)
    return found


def test_files_are_found_by_the_number_of_their_text(tmp_path):
    soundfile.write(tmp_path / "03.wav", tone(0.25, 44100), 44100)
    soundfile.write(tmp_path / "01.flac", tone(0.5, 8000), 8000)
    found = own_voice(TEXTS, tmp_path, sample_rate=8000)
    assert [text for _, text in found] == [TEXTS[0], TEXTS[2]]
    assert [len(samples) for samples, _ in found] == [4000, 2000]


def test_the_browser_is_asked_for_what_is_not_there_and_only_once(tmp_path, browser):
    soundfile.write(tmp_path / "02.wav", tone(0.25, 8000), 8000)
    found = own_voice(TEXTS, tmp_path, sample_rate=16000)
    assert browser.asked == [TEXTS[0], TEXTS[2]]
    assert [text for _, text in found] == TEXTS
    np.testing.assert_allclose(found[0][0], tone(0.5, 16000), atol=1e-4)
    again = own_voice(TEXTS, tmp_path, sample_rate=16000)
    assert len(browser.asked) == 2
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(found, again, strict=True))


def test_who_refuses_is_not_asked_for_the_rest(tmp_path, browser):
    browser.answers = 1
    assert [text for _, text in own_voice(TEXTS, tmp_path, sample_rate=8000)] == TEXTS[:1]
    assert browser.asked == TEXTS[:2]
