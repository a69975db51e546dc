"""The backbone of a run, its model and its method, from a configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import micro as world

from hra_jax.adapters import methods
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.config.keys import group
from hra_jax.convert import families
from hra_jax.data.synthetic import grammar
from hra_jax.errors import UserError
from hra_jax.models.augmentation import AugmentConfig
from hra_jax.models.dtypes import compute_dtype
from hra_jax.models.encoder_config import SIZES
from hra_jax.run import foundation, programs
from hra_jax.run.layout import adapter_method, open_mesh
from hra_jax.run.settings import PretrainSettings
from hra_jax.training.optimizer import OptimizerConfig


def method_of(config):
    own = methods.own_settings(config, config.adapter.name)
    return adapter_method(group(config, ""), group(config, "adapter"), own=own)


def test_a_foundation_is_the_folder_of_the_backbone(micro):
    base = foundation.load(micro.backbone)
    assert (base.features, base.fingerprint, base.name) == (world.FEATURES, micro.fingerprint, "micro")
    assert base.vocabulary.characters == tuple(world.LETTERS)
    # 10 ms hops, two of them a frame.
    assert base.output_length(np.array([0, 79, 80, 160, 161, 240, 8000])).tolist() == [0, 0, 1, 1, 1, 2, 50]


@pytest.mark.parametrize("name", families.models())
def test_a_published_model_has_a_geometry_without_its_weights(name):
    assert foundation.geometry(f"abstract:{name}", PretrainSettings()) == families.models()[name]
    with pytest.raises(UserError, match=f"^backbone = 'abstract:{name}' has no weights; .*$") as caught:
        foundation.load(f"abstract:{name}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "parakeet", "small", "medasr "])
def test_a_published_model_that_there_is_not_is_one_line_with_those_that_there_are(micro, name):
    with pytest.raises(UserError) as caught:
        foundation.geometry(f"abstract:{name}", PretrainSettings())
    told = str(caught.value)
    assert "\n" not in told and f"'abstract:{name}'" in told
    assert all(f"abstract:{known}" in told for known in families.models())


def test_pretraining_lays_out_a_new_backbone_around_the_training_texts(micro, monkeypatch):
    monkeypatch.setitem(SIZES, "micro", (world.FEATURES, world.GEOMETRY))
    base = foundation.new(PretrainSettings(size="micro"), ["cab", "a'd"])
    assert base.vocabulary.characters == (" ", "'", "a", "b", "c", "d")
    assert base.encoder.vocab_size == 7 and base.files is None and base.fingerprint == ""


def test_a_vocabulary_of_pieces_is_learnt_from_the_texts(micro):
    texts = grammar.sample("train", np.random.default_rng(0), count=200)
    pretrain = PretrainSettings(vocabulary="sentencepiece", sentencepiece_size=64)
    vocabulary = foundation.vocabulary_of_texts(pretrain, texts)
    assert vocabulary.size == 64
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert sum(len(vocabulary.encode(text)) for text in texts) < 0.8 * sum(map(len, texts))


def test_new_weights_depend_on_the_seed_alone(micro):
    base = foundation.load(micro.backbone)
    first, again, other = (jax.tree.leaves(foundation.random_weights(base, seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    shapes = [leaf.shape for leaf in jax.tree.leaves(base.files.abstract)]
    assert [leaf.shape for leaf in first] == shapes and {leaf.dtype.name for leaf in first} == {"float32"}


@pytest.mark.parametrize("method", ["full", "pretrain"])
def test_there_is_no_adapter_where_the_backbone_is_trained(micro, method):
    assert type(method_of(micro.config(method=method))) is Adapter


def test_the_adapter_has_the_settings_of_the_configuration(micro):
    config = micro.config(hra__width=5, hra__head="ffn", hra__head_width=3, adapter__dropout=0.25)
    expected = HierarchicalRecurrentAdapter(width=5, head="ffn", head_width=3, dropout=0.25)
    assert method_of(config) == expected
    with pytest.raises(UserError, match="adapter.name = 'other'"):
        method_of(micro.config(adapter__name="other"))


def test_every_setting_of_the_model_and_the_optimizer_reaches_it(micro):
    """No key of `augment` and `optimizer` is taken and left out, none is missing: the defaults differ."""
    config = micro.config(remat="dots", dropout=0.5, backbone_dtype="bfloat16", augment__warp=0.125)
    config = config.unlock()
    for number, key in enumerate(sorted(config.optimizer), start=1):
        if key != "schedule":
            config.optimizer[key] = number if isinstance(config.optimizer[key], int) else number / 16
    settings, optimizer = group(config, ""), group(config, "optimizer", steps=config.steps)
    base, mesh = foundation.load(micro.backbone), open_mesh(config.mesh, multiple=8)
    model = programs.model_on(mesh, base, method_of(config), settings=settings, augment=group(config, "augment"))
    assert (model.remat, model.dropout, model.dtype) == ("dots", 0.5, jnp.bfloat16)
    assert model.augment == AugmentConfig(**config.augment) and model.augment.warp == 0.125
    assert set(config.augment) == {field.name for field in dataclasses.fields(AugmentConfig)}
    found = dataclasses.asdict(optimizer)
    assert found == {**config.optimizer.to_dict(), "steps": config.steps}
    assert set(found) == {field.name for field in dataclasses.fields(OptimizerConfig)}


def test_auto_computes_in_float32_on_a_cpu():
    assert compute_dtype("auto") == jnp.float32
    assert compute_dtype("bfloat16") == jnp.bfloat16
