"""Language models are in an exported adapter where somebody has asked for it, and in no other."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from reference import micro as world

import hra_jax
from hra_jax import fitting, verify
from hra_jax.adapters import adapter_folder, task_records
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.task_records import DECODE, LM, SHARED
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.tasks import commands, library
from hra_jax.text import ngram
from hra_jax.text.vocabularies import CharacterVocabulary

LETTERS = CharacterVocabulary(world.LETTERS)


def language_model(*texts: str, name: str) -> ngram.LanguageModel:
    return ngram.train([LETTERS.encode(text) for text in texts], LETTERS, order=2, name=name)


FIRST, SECOND = language_model("cab", "fad", name="first"), language_model("bed", "dab", name="second")
ENTRIES = {
    task: {"lm": {"name": model.name, "digest": model.digest}, "lm_weight": 0.5, "token_bonus": 1.5}
    for task, model in (("ann", FIRST), ("bob", SECOND), ("cy", FIRST))
}


@pytest.fixture
def adapter(micro, tmp_path) -> str:
    """An adapter whose tasks were tuned with the models of the run that lies around it."""
    (tmp_path / "W" / "lm").mkdir(parents=True)
    folder = world.write_adapter(tmp_path / "W" / "adapter", LowRankAdapter(rank=2), micro)
    exported = adapter_folder.read_adapter(folder)
    entries = [entry | {DECODE: ENTRIES[entry["name"]]} for entry in exported.tasks_json]
    library.write(folder, dataclasses.replace(exported, tasks_json=entries))
    for model in (FIRST, SECOND):
        ngram.write(tmp_path / "W" / "lm" / f"{model.name}.lm", model)
    return str(folder)


def models_in(folder) -> dict[str, str]:
    """{task: name of its language model}."""
    records = adapter_folder.read_adapter(folder).records.get(LM, {})
    return {task: ngram.from_bytes(content.tobytes(), where="").name for task, content in records.items()}


def tuned_in(folder) -> dict[str, dict]:
    return {entry["name"]: entry[DECODE] for entry in adapter_folder.read_adapter(folder).tasks_json}


def test_models_go_with_an_export_that_asks_for_them_and_with_no_other(adapter, micro, tmp_path):
    def export(name: str, *tasks: str, source: str = adapter, **more) -> str:
        commands.export_tasks(source, *tasks, output=str(tmp_path / name), **more)
        return str(tmp_path / name)

    plain = export("plain", "ann", "bob")
    assert models_in(plain) == {} and tuned_in(plain) == {task: ENTRIES[task] for task in ("ann", "bob")}
    both = export("both", "ann", "bob", with_lm=True)
    assert models_in(both) == {"ann": "first", "bob": "second"}
    assert models_in(export("same", "ann", "cy", with_lm=True)) == {SHARED: "first"}
    assert verify.verify(both)[0].faults == []
    # From there, where no run lies beside it: what it has stays, unless nobody asks.
    assert models_in(export("again", "bob", source=both, with_lm=True)) == {SHARED: "second"}
    assert models_in(export("none", "bob", source=both)) == {}
    # A file that is named goes before what the weights were tuned with.
    named = export("named", "bob", with_lm=True, models=[str(tmp_path / "W" / "lm" / "first.lm")])
    assert models_in(named) == {SHARED: "first"}
    commands.specialize(both, "ann", output=str(tmp_path / "merged"), backbone=micro.backbone)
    assert LM not in backbone_folder.load(tmp_path / "merged").records


def test_models_and_weights_follow_their_tasks(adapter, micro, tmp_path, capsys):
    commands.export_tasks(adapter, "ann", "bob", output=str(tmp_path / "both"), with_lm=True)
    commands.export_tasks(adapter, "cy", output=str(tmp_path / "one"), with_lm=True)
    both, one = str(tmp_path / "both"), str(tmp_path / "one")
    commands.rename(both, "bob", "rob")
    commands.add(both, "new", init="ann")
    commands.import_tasks(both, one, new_name="guest")  # that of all tasks there is the guest's here
    assert models_in(both) == {"ann": "first", "rob": "second", "guest": "first"}
    assert {entry["name"]: entry.get(DECODE) for entry in adapter_folder.read_adapter(both).tasks_json} == {
        "ann": ENTRIES["ann"],
        "rob": ENTRIES["bob"],
        "new": None,
        "guest": ENTRIES["cy"],
    }
    capsys.readouterr()
    commands.list_tasks(both)
    assert "with a language model for: 'ann', 'guest', 'rob'" in capsys.readouterr().out
    commands.show(both, "rob")
    assert f"language model 'second' ({SECOND.digest[:12]})" in capsys.readouterr().out
    card = Path(both, "README.md").read_text()
    assert "a language model for ann, guest, rob" in card and "texts that it was made from" in card
    assert "language model" not in Path(adapter, "README.md").read_text()
    commands.remove(both, "ann", "new")
    assert models_in(both) == {"rob": "second", "guest": "first"}
    fitting.save_adapter(hra_jax.load_adapter(both, hra_jax.load_backbone(micro.backbone)), tmp_path / "stored")
    assert models_in(tmp_path / "stored") == {"rob": "second", "guest": "first"}
    assert tuned_in(tmp_path / "stored") == {"rob": ENTRIES["bob"], "guest": ENTRIES["cy"]}


def test_an_adapter_with_models_decodes_with_them_and_with_the_weights_that_were_tuned_for_them(
    adapter, micro, tmp_path
):
    commands.export_tasks(adapter, "ann", "bob", output=str(tmp_path / "both"), with_lm=True)
    backbone = hra_jax.load_backbone(micro.backbone)
    model = hra_jax.load_adapter(tmp_path / "both", backbone)
    facts = model.decoder({"lm": "adapter"}, ["ann", "bob"]).facts()
    assert {task: lm["name"] for task, lm in facts["lm"].items()} == {"ann": "first", "bob": "second"}
    assert (facts["lm_weight"], facts["token_bonus"], facts["method"]) == (0.5, 1.5, "beam")
    waves = [world.tones("cab"), world.tones("bed")]
    found = model.transcribe(waves, sample_rate=world.RATE, tasks=["ann", "bob"], decode={"lm": "adapter"})
    given = {"lm": {"ann": FIRST, "bob": SECOND}}
    assert found == model.transcribe(waves, sample_rate=world.RATE, tasks=["ann", "bob"], decode=given)
    bare = hra_jax.load_adapter(adapter, backbone)
    with pytest.raises(UserError, match=f"task 'bob'; its weights were tuned with 'second' .{SECOND.digest[:12]}"):
        bare.transcribe(waves[:1], sample_rate=world.RATE, tasks=["bob"], decode={"lm": "adapter"})


def test_what_cannot_be_put_there_is_refused_in_one_line_and_nothing_is_written(adapter, tmp_path):
    def refusal(*tasks: str, **more) -> str:
        with pytest.raises(UserError) as caught:
            commands.export_tasks(adapter, *tasks, output=str(tmp_path / "out"), **more)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
        return str(caught.value)

    lm = tmp_path / "W" / "lm"
    assert "has no use without --with-lm" in refusal("ann", models=[str(lm / "first.lm")])
    foreign = CharacterVocabulary(" xyz")
    ngram.write(tmp_path / "foreign.lm", ngram.train([foreign.encode("xyz")], foreign, order=2, name="foreign"))
    message = refusal("ann", with_lm=True, models=[str(tmp_path / "foreign.lm")])
    assert message.startswith("task 'ann': foreign: a language model of the vocabulary")
    assert "none.lm is not a file" in refusal("ann", with_lm=True, models=[str(tmp_path / "none.lm")])
    (lm / "second.lm").unlink()
    message = refusal("ann", "bob", with_lm=True)
    assert f"task 'bob': {adapter} has no language model for it; it was tuned with 'second'" in message
    (lm / "first.lm").unlink()
    assert f"({FIRST.digest[:12]}); allowed: its file, as --lm FILE" in refusal("ann", with_lm=True)


def test_a_model_in_an_adapter_that_is_none_is_one_line(adapter, micro):
    exported = adapter_folder.read_adapter(adapter)
    records = task_records.joined(exported.records, {LM: {"ann": np.arange(9, dtype=np.uint8)}})
    library.write(adapter, dataclasses.replace(exported, records=records))
    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    with pytest.raises(UserError, match="the language model of task 'ann'") as caught:
        model.decoder({"lm": "adapter"}, ["ann"])
    assert "\n" not in str(caught.value)
