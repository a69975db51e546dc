"""What is wrong with decoding is told from the small files of folders, before any weight is loaded."""

import dataclasses

import pytest
from reference import micro as world

import hra_jax
from hra_jax.adapters import adapter_folder
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.task_records import DECODE
from hra_jax.decoding.folders import decoder_of
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.tasks import library
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary

LETTERS = CharacterVocabulary(world.LETTERS)
LM = ngram.train([LETTERS.encode(text) for text in ("cab", "fad")], LETTERS, order=2, name="small")


@pytest.fixture
def adapter(micro, tmp_path, monkeypatch):
    folder = world.write_adapter(tmp_path / "adapter", LowRankAdapter(rank=2), micro)
    exported = adapter_folder.read_adapter(folder)
    tuned = {"lm": {"name": LM.name, "digest": LM.digest}, "lm_weight": 0.25}
    entries = [entry | ({DECODE: tuned} if entry["name"] == "bob" else {}) for entry in exported.tasks_json]
    library.write(folder, dataclasses.replace(exported, tasks_json=entries))
    return folder


def test_the_decoder_of_folders_is_that_of_the_loaded_model(micro, adapter):
    tasks, decode = ["ann", "bob", "__base__"], {"lm": LM, "phrases": {"ann": ["cab"]}}
    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    found = decoder_of(decode, tasks, backbone=micro.backbone, adapter=adapter).facts()
    assert found == model.decoder(decode, tasks).facts()
    assert found["phrases"] == {"ann": 1}
    # What was tuned for the one task that says so holds for those that say nothing.
    assert found["lm_weight"] == 0.25
    assert decoder_of(decode, tasks, backbone=micro.backbone).facts()["lm_weight"] == 0.8


def test_errors_need_no_weights(micro, adapter, monkeypatch):
    monkeypatch.setattr(backbone_folder.BackboneFiles, "read", None)
    monkeypatch.setattr(backbone_folder.BackboneFiles, "reading", None)

    def refusal(decode, tasks, **more) -> str:
        with pytest.raises(UserError) as caught:
            decoder_of(decode, tasks, backbone=micro.backbone, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "unknown task 'bib'; did you mean 'bob'?" in refusal(None, ["bib"], adapter=adapter)
    message = refusal({"lm": "adapter"}, ["bob"], adapter=adapter)
    assert f"'bob'; its weights were tuned with 'small' ({LM.digest[:12]})" in message
    assert "'xyz' cannot be written" in refusal({"phrases": ["xyz"]}, ["__base__"])
