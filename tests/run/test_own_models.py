"""Language models of the training texts of a run: one for each vocabulary, made once."""

import json

import pytest

from hra_jax.data.columns import as_columns
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.run import own_models
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text import ngram
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import CharacterVocabulary

TEXTS = {"ann": ("ab ba", "Ab."), "bob": ("cab", "")}
BASE = CharacterVocabulary(" abc")
OTHER = CharacterVocabulary(" cba")


def trained():
    """Two sources, with the task of each utterance in a tag."""
    rows = [
        Utterance(f"{task}{n}.wav", 1.0, text, 0.0, {"speaker": task}, f"{task}{n}", "train.jsonl", n)
        for task, texts in TEXTS.items()
        for n, text in enumerate(texts)
    ]
    return [as_columns(rows[:3]), as_columns(rows[3:])]


def models(workdir, vocabularies, source=trained):
    return own_models.models_of(workdir, source, vocabularies, task_tag="speaker", normalizer="basic")


def expected(vocabulary, *texts):
    return ngram.train([vocabulary.encode(text) for text in texts], vocabulary, name="train").digest


def test_the_model_of_one_vocabulary_is_of_all_normalised_texts_and_is_made_once(tmp_path):
    vocabularies = own_models.vocabularies_of(BASE, None, ["ann", "bob"])
    assert vocabularies == {BASE_TASK: BASE}
    found = models(tmp_path, vocabularies)
    assert found("ann").digest == found("__mean__").digest == expected(BASE, "ab ba", "ab", "cab")
    assert [path.name for path in (tmp_path / "lm").iterdir()] == ["train.lm"]
    written = (tmp_path / "lm" / "train.lm").stat().st_mtime_ns

    def gone():
        raise AssertionError("the texts are not needed again")

    assert models(tmp_path, vocabularies, gone)("bob").digest == found("bob").digest
    assert (tmp_path / "lm" / "train.lm").stat().st_mtime_ns == written


def test_tasks_with_vocabularies_of_their_own_have_models_of_their_own_texts(tmp_path):
    own = OwnVocabularies(BASE, {"ann": BASE, "bob": OTHER}, 5)
    found = models(tmp_path, own_models.vocabularies_of(BASE, own, ["ann", "bob"]))
    assert found("ann").digest == expected(BASE, "ab ba", "ab") and found("bob").digest == expected(OTHER, "cab")
    assert len(list((tmp_path / "lm").iterdir())) == 2
    with pytest.raises(UserError, match="'cy'; there are of: 'ann', 'bob'"):
        found("cy")


def test_a_model_of_another_vocabulary_is_refused_in_one_line(tmp_path):
    models(tmp_path, {BASE_TASK: BASE})
    with pytest.raises(UserError, match=r"train\.lm: a language model of the vocabulary"):
        models(tmp_path, {BASE_TASK: OTHER})


def test_weights_are_read_as_they_were_written_and_damage_is_one_line(tmp_path):
    assert own_models.read_tuned(tmp_path) == {} and own_models.held_in(tmp_path).tuned == {}
    entries = {"ann": {"lm_weight": 0.5, "token_bonus": 1.0, "beam": 16, "suite": "v", "wer": 0.1}}
    own_models.write_tuned(tmp_path, entries)
    assert own_models.read_tuned(tmp_path) == entries
    assert (
        own_models.held_in(tmp_path).tuned_for("ann") == own_models.held_in(tmp_path).tuned_for("bob") == entries["ann"]
    )
    for content in ("{", json.dumps({"tasks": {"ann": 3}}), json.dumps({})):
        (tmp_path / "lm" / "tuned.json").write_text(content)
        with pytest.raises(UserError, match=r"tuned\.json") as error:
            own_models.read_tuned(tmp_path)
        assert "\n" not in str(error.value)
