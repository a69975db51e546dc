"""The blank may be any output of the backbone: the order of its outputs changes no loss and no text."""

import json

import numpy as np
import pytest
from reference import micro as world
from reference import tiny

import hra_jax
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.text.published_vocabularies import CtcTokenVocabulary

TOKENS = ("<pad>", "|", *"ABCDEF")
ORDERS = {"first": [0, 1, 2, 3, 4, 5, 6, 7], "last": [3, 1, 7, 2, 6, 5, 4, 0]}
WAVEFORMS = [world.tones(text, seed=seed) for seed, text in enumerate(("abc", "fade", "b", "dead"))]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two backbones of the same weights whose outputs have another order: {'first', 'last'} to a folder."""
    folder, encoder = tmp_path_factory.mktemp("blank"), EncoderConfig(vocab_size=len(TOKENS), **world.GEOMETRY)
    params = tiny.random_params(world.FEATURES, encoder, seed=6)
    kernel, bias = params["output"]["kernel"], params["output"]["bias"]
    bias = bias + 1.5 * (np.arange(len(TOKENS)) == 0)  # so that the blank is heard too
    for name, order in ORDERS.items():
        vocabulary = CtcTokenVocabulary([TOKENS[i] for i in order], blank_id=order.index(0))
        backbone_folder.save(
            folder / name,
            params | {"output": {"kernel": kernel[:, order], "bias": bias[order]}},
            features=world.FEATURES,
            encoder=encoder,
            vocabulary=vocabulary.to_json(),
            dtype="float32",
            info={"name": name, "source": "random weights", "license": "Apache-2.0"},
        )
    rows = (
        ("ann base", "{dir}/test.jsonl", "speaker=ann", "__base__"),
        ("bob", "{dir}/test.jsonl", "speaker=bob", "bob"),
    )
    world.write_suite(folder / "suite.py", rows)
    return folder


def transcribed(places, name, adapter=None, tasks=None):
    backbone = hra_jax.load_backbone(str(places / name))
    model = backbone if adapter is None else hra_jax.load_adapter(adapter, backbone)
    more = {} if adapter is None else {"tasks": tasks}
    found, lengths = model.log_probs(WAVEFORMS, sample_rate=world.RATE, **more)
    return model.transcribe(WAVEFORMS, sample_rate=world.RATE, **more), found, lengths


def test_the_place_of_the_blank_changes_no_text(places):
    (first, found, lengths), (last, moved, _) = (transcribed(places, name) for name in ORDERS)
    assert first == last and len(set(first)) > 1 and all(set(text) <= set("ABCDEF ") for text in first)
    best = found.argmax(axis=-1)
    assert (best == 0).any() and (best != 0).any()  # blanks and letters
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(found[row, :length][:, ORDERS["last"]], moved[row, :length], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["backbone", "characters"])
def test_the_place_of_the_blank_changes_no_training_and_no_score(micro, places, tmp_path, output):
    """With vocabularies of the tasks' own, `__base__` rows and rows of tasks share a batch and its blank."""
    losses, scores, texts = {}, {}, {}
    for name in ORDERS:
        config = micro.config(
            backbone=str(places / name), adapter__output=output, steps=3, eval__suite=str(places / "suite.py")
        )
        assert world.train(config, tmp_path / name).status == 0
        losses[name] = world.losses(tmp_path / name)
        scored = json.loads((tmp_path / name / "eval" / "suite" / "results.json").read_text())
        scores[name] = {task: entry["wer"] for task, entry in scored["tasks"].items()}
        texts[name], found, lengths = transcribed(
            places, name, tmp_path / name / "adapter", ["ann", "__base__", "cy", "__base__"]
        )
        # Column i is id i of the task's vocabulary, with tasks of several vocabularies too.
        plain = transcribed(places, name)[1]
        np.testing.assert_allclose(found[1, : lengths[1], : len(TOKENS)], plain[1, : lengths[1]], atol=1e-5)
    np.testing.assert_allclose(losses["first"], losses["last"], rtol=1e-4)
    assert losses["first"][0] != losses["first"][-1]
    assert texts["first"] == texts["last"] and any(texts["first"]) and scores["first"] == scores["last"]
    assert texts["first"][1] == transcribed(places, "first")[0][1]
