"""New vocabularies and output layers: for backbones that ship none, one for each task or one for all of them."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from reference import micro as world
from reference import tiny

import hra_jax
from hra_jax import params
from hra_jax.adapters import methods
from hra_jax.adapters.adapter_folder import ExportedAdapter, read_adapter
from hra_jax.config.files import load_config
from hra_jax.config.keys import group
from hra_jax.data.learnt_vocabularies import own_vocabularies
from hra_jax.data.manifest import Utterance
from hra_jax.data.sources import TableSource
from hra_jax.errors import UserError
from hra_jax.evaluation.runner import check_adapter_acts
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.run import read
from hra_jax.run.scoring import suite_weights
from hra_jax.tasks import commands
from hra_jax.text import ngram
from hra_jax.text.vocabularies import (
    BlankVocabulary,
    CharacterVocabulary,
    SentencePieceVocabulary,
    vocabulary_from_json,
)

WAVEFORMS = [world.tones(text, seed=seed) for seed, text in enumerate(("abc", "fade", "b"))]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder of a backbone that knows the blank alone."""
    folder, encoder = tmp_path_factory.mktemp("bare"), EncoderConfig(vocab_size=1, **world.GEOMETRY)
    backbone_folder.save(
        folder,
        tiny.random_params(world.FEATURES, encoder, seed=6),
        features=world.FEATURES,
        encoder=encoder,
        vocabulary=BlankVocabulary().to_json(),
        dtype="float32",
        info={"name": "bare", "source": "random weights", "license": "Apache-2.0"},
    )
    return str(folder)


def source(**texts):
    rows = [
        Utterance(key=f"{task} {n}", audio_filepath="x", text=text, duration=1.0, tags={"speaker": task})
        for task, lines in texts.items()
        for n, text in enumerate(lines)
    ]
    return TableSource("s", rows)


def learnt(kind, *, given=None, pieces=12, size=0, **texts):
    return own_vocabularies(
        [source(**texts)], base=BlankVocabulary(), task_tag="speaker", normalizer="basic", size=size,
        given=given or {}, kind=kind, pieces=pieces,
    )  # fmt: skip


def test_the_blank_alone_writes_nothing():
    vocabulary = vocabulary_from_json(json.loads(json.dumps(BlankVocabulary().to_json())))
    assert (vocabulary.size, vocabulary.blank_id, vocabulary.encode("ab"), vocabulary.decode([0, 0])) == (1, 0, [], "")
    assert vocabulary.unknown_characters("aba") == {"a", "b"}
    with pytest.raises(ValueError, match="1 is outside"):
        vocabulary.decode([1])


def test_vocabularies_are_learnt_for_each_task_or_for_all():
    texts = {"x": ["ab ab", "abba abab"] * 5, "y": ["cd dc", "cdcd dccd"] * 5}
    each = learnt("characters", **texts)
    assert each.of("x").characters == (" ", "a", "b") and each.of("y").characters == (" ", "c", "d")
    one = learnt("shared_characters", **texts)
    assert one.of("x") is one.of("y") and one.of("x").characters == tuple(" abcd") and one.size == 6
    pieces = learnt("sentencepiece", **texts)
    assert isinstance(pieces.of("x"), SentencePieceVocabulary) and 5 <= pieces.of("x").size <= pieces.size <= 12
    assert pieces.of("x").unknown_characters("abcd") == {"c", "d"}
    together = learnt("shared_sentencepiece", pieces=14, **texts)
    assert together.of("x").unknown_characters("abcd") == set() and together.of("__base__").size == 1
    # What is there already stays.
    assert learnt("characters", given={"x": CharacterVocabulary("z")}, **texts).of("x").characters == ("z",)
    with pytest.raises(UserError, match="adapter.output_pieces = 3, task 'x': a SentencePiece .* of size 3 cannot"):
        learnt("sentencepiece", pieces=3, **texts)
    with pytest.raises(UserError, match="adapter.output_size = 5: the largest vocabulary needs 6"):
        learnt("shared_characters", size=5, **texts)


@pytest.mark.parametrize("names", [(), ("x",)])
def test_a_task_beside_those_of_a_start_gets_pieces_that_fit_its_output_layer(names):
    texts = [f"{first}{second} {second}{first}" for first in "abcdef" for second in "ghijkl"]
    given = SentencePieceVocabulary.train(texts, 20, fewer=True)
    settings = {"name": "hra", "output": "sentencepiece", "output_size": 24}
    entries = [{"name": name, "row": row, "vocabulary": given.to_json()} for row, name in enumerate(names)]
    start = ExportedAdapter({"format_version": 1, "method": settings}, {}, {name: {} for name in names}, entries)
    config = load_config("base")
    config.adapter.output = "sentencepiece"
    base = SimpleNamespace(vocabulary=BlankVocabulary())
    found = read._own_vocabularies(group(config, "adapter"), base, [source(y=texts)], start, data=group(config, "data"))
    assert found.size == 24 and 16 < found.of("y").size <= (20 if names else 24)


def test_a_shared_layer_counts_once_and_its_formula_says_so(bare, micro):
    counts = {}
    for output in ("backbone", "shared_characters", "characters"):
        size = 7 if output != "backbone" else 0
        config = micro.config(backbone=bare, adapter__output=output, adapter__output_size=size)
        (entry,) = params.account(config, [3])["methods"].values()
        counts[output] = (entry["shared_parameters"], entry["parameters_per_task"])
    layer, (shared, own) = 7 * (world.GEOMETRY["d_model"] + 1), counts["backbone"]
    assert counts["shared_characters"] == (shared + layer, own) and counts["characters"] == (shared, own + layer)


def test_a_shared_layer_acts_on_tasks_and_not_on_the_base():
    adapter = methods.from_settings({"name": "hra", "width": 6, "output": "shared_characters", "output_size": 9})
    trainable = tiny.random_trainable(adapter)
    assert "output" in trainable["shared"]["all_layers"] and "output" not in trainable["tasks"]["all_layers"]
    batch = tiny.random_batch([240, 200, 133], size=240, tasks=[0, -1, 3])
    size = tiny.ENCODER.vocab_size
    batch["symbols"] = np.array([[0] + [size] * 6 + [size + 1] * 2, [*range(size)] + [size + 1] * 3, [0] + [size] * 8])
    batch["symbols"] = batch["symbols"].astype(np.int32)
    weights, run = tiny.random_params(tiny.FEATURES, tiny.ENCODER), tiny.compiled_forward(adapter=adapter)
    found, lengths = jax.device_get(run(weights, trainable, batch))
    plain, _ = jax.device_get(tiny.compiled_base()(weights, batch))
    np.testing.assert_allclose(found[1, : lengths[1], :size], plain[1, : lengths[1]], atol=1e-5)
    np.testing.assert_allclose(np.exp(found[0, : lengths[0], :7]).sum(axis=-1), 1.0, rtol=1e-5)
    changed = jax.tree.map(np.copy, trainable)
    changed["shared"]["all_layers"]["output"]["bias"][3] += 2.0
    moved, _ = jax.device_get(run(weights, changed, batch))
    assert (moved[1] == found[1]).all() and (moved[[0, 2], 0] != found[[0, 2], 0]).any()


def check_that_a_row_of_zeros_is_found(run):
    """Also after an output layer of all tasks, which `__base__` does not have."""
    weights = jax.tree.map(np.array, suite_weights(run, run.layout.test))
    _, _, differences = run.layout.test.run(run.layout.programs.evaluation, weights, run.frozen)
    assert min(differences.values()) > 0
    check_adapter_acts(run.layout.test.suite, differences)
    jax.tree.map(lambda leaf: leaf[1].fill(0), weights["tasks"])
    _, _, fewer = run.layout.test.run(run.layout.programs.evaluation, weights, run.frozen)
    assert fewer == differences | {"bob": 0.0}
    with pytest.raises(UserError, match="task 'bob': .* the adapter does nothing"):
        check_adapter_acts(run.layout.test.suite, fewer)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("output", ["sentencepiece", "shared_characters"])
def test_a_bare_backbone_learns_to_write_and_a_task_more_moves_no_other(bare, micro, tmp_path, output):
    changes = {"adapter__output": output, "optimizer__learning_rate": 0.1}
    changes |= {"adapter__output_pieces": 12} if output == "sentencepiece" else {}
    config = micro.config(backbone=bare, steps=30, eval__suite=micro.suite("test"), **changes)
    done = world.train(config, tmp_path / "W")
    losses = world.losses(tmp_path / "W")
    assert done.status == 0 and np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    found = read_adapter(tmp_path / "W" / "adapter")
    shared = output.startswith("shared")
    owner = found.shared if shared else found.tasks["ann"]
    assert np.abs(owner["all_layers"]["output"]["kernel"]).max() > 0
    scored = json.loads((tmp_path / "W" / "eval" / "test" / "results.json").read_text())
    assert set(scored["tasks"]) == set(world.SPEAKERS)
    check_that_a_row_of_zeros_is_found(done.run)
    backbone = hra_jax.load_backbone(bare)
    model = hra_jax.load_adapter(tmp_path / "W" / "adapter", backbone)
    names = ["ann", "bob", "cy"]
    texts = model.transcribe(WAVEFORMS, sample_rate=world.RATE, tasks=names)
    assert all(set(text) <= set(world.LETTERS) for text in texts)
    assert (model.vocabulary("ann") is model.vocabulary("bob")) == shared
    with pytest.raises(UserError, match="'__base__': the backbone 'bare' has no output layer of its own; allowed: ann"):
        model.transcribe(WAVEFORMS[:1], sample_rate=world.RATE, tasks=["__base__"])
    written = model.vocabulary("ann")
    lm = ngram.train([written.encode("abba")], written, order=2)
    # A backbone that writes nothing is no candidate, and needs no model.
    given = {"lm": dict.fromkeys(names, lm) if shared else {"ann": lm, "bob": "", "cy": ""}}
    assert set(model.decoder(given, ["__auto__"]).facts_of("ann")["lm"]) == {"name", "digest"}
    with pytest.raises(UserError, match="'bare' has no output layer of its own"):
        backbone.transcribe(WAVEFORMS[:1], sample_rate=world.RATE)
    before, _ = model.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=names)
    for row, name in enumerate(names):
        size = model.vocabulary(name).size
        assert np.isfinite(before[row, 0, :size]).all() and (before[row, 0, size:] == -np.inf).all()
        assert np.ptp(before[row, 0, 1:size]) > 1e-3  # letters that were as likely at the start no longer are
    commands.add(str(tmp_path / "W" / "adapter"), "dee", init="ann", backbone=None, output=str(tmp_path / "more"))
    more = hra_jax.load_adapter(tmp_path / "more", backbone)
    assert more.tasks == (*names, "dee")
    after, _ = more.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=names)
    np.testing.assert_array_equal(before, after)
    same = more.transcribe(WAVEFORMS, sample_rate=world.RATE, tasks=["dee"] * 3)
    assert same == more.transcribe(WAVEFORMS, sample_rate=world.RATE, tasks=["ann"] * 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "adapter.output = 'backbone': the backbone 'bare' has no output layer of its own; allowed: method"),
        ({"method": "full"}, "method = 'full': the backbone 'bare' has no output layer of its own"),
        ({"adapter__name": "output", "adapter__output": "shared_characters"}, "output.output = 'shared_characters'"),
        (
            {"adapter__output": "sentencepiece", "adapter__output_pieces": 3},
            "adapter.output_pieces = 3, task 'ann'",
        ),
        ({"adapter__output": "characters", "eval__suite": "base"}, "has a task '__base__', but the backbone"),
    ],
)
def test_what_a_bare_backbone_cannot_do_is_one_line(bare, micro, tmp_path, changes, told):
    if "eval__suite" in changes:
        rows = (("ann", "{dir}/test.jsonl", "speaker=ann", "__base__"),)
        changes = changes | {"eval__suite": world.write_suite(tmp_path / "base.py", rows)}
    with pytest.raises(UserError, match=told) as caught:
        world.train(micro.config(backbone=bare, **changes), tmp_path / "W", on_step=lambda step: pytest.fail("a step"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.optimised
def test_a_task_trained_later_writes_in_the_shared_vocabulary_and_moves_no_other(bare, micro, tmp_path):
    config = micro.config(backbone=bare, steps=2, adapter__output="shared_sentencepiece", adapter__output_pieces=12)
    world.train(config, tmp_path / "W")
    folder, manifest = str(tmp_path / "W" / "adapter"), str(micro.data / "train.jsonl")
    status = commands.add(
        folder, "dee", init="mean", backbone=bare, manifest=manifest, steps=2, output=str(tmp_path / "more")
    )
    before, after = read_adapter(folder), read_adapter(tmp_path / "more")
    assert status == 0 and list(after.tasks) == [*before.tasks, "dee"] and "vocabulary" not in after.tasks_json[-1]
    for old, new in ((before.shared, after.shared), (before.tasks, {n: after.tasks[n] for n in before.tasks})):
        jax.tree.map(np.testing.assert_array_equal, old, new)
    model = hra_jax.load_adapter(tmp_path / "more", hra_jax.load_backbone(bare))
    assert model.vocabulary("dee") is model.vocabulary("ann")
    assert model.vocabulary("dee").to_json() == before.config["vocabulary"]


@pytest.mark.slow(minutes=1)
def test_one_step_of_a_new_shared_output_layer_is_no_adapter_that_does_nothing(bare, micro, tmp_path, capsys):
    config = micro.config(backbone=bare, adapter__output="shared_characters", steps=1, eval__suite=micro.suite("test"))
    assert world.train(config, tmp_path / "W").status == 0, capsys.readouterr().err
