"""Stored settings mean what they meant when they were written, whatever defaults the classes have by now."""

import contextlib
import dataclasses
import json
import math
import time
import typing

import pytest
from reference import tiny

from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.models.stored_settings import UNSAID, fingerprinted, from_json, to_json

CLASSES = {"features": FeatureConfig, "encoder": EncoderConfig}


@pytest.fixture
def stored():
    """backbone.json of a folder that is older than most settings."""
    return json.loads((backbone_folder.resolve("builtin:tiny") / "backbone.json").read_text())


def turn_defaults_over(monkeypatch):
    """Gives every setting of both classes a default that no value can equal."""
    for cls in CLASSES.values():
        monkeypatch.setattr(cls.__init__, "__defaults__", (object(),) * len(cls.__init__.__defaults__))
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                monkeypatch.setattr(field, "default", object())


def test_an_old_backbone_means_the_same_after_every_default_has_changed(stored, monkeypatch):
    before = backbone_folder.load("builtin:tiny")
    turn_defaults_over(monkeypatch)
    with pytest.raises(UserError):
        FeatureConfig()  # the defaults have changed indeed
    after = backbone_folder.load("builtin:tiny")
    assert (after.features, after.encoder) == (before.features, before.encoder)
    assert after.fingerprint == before.fingerprint == stored["fingerprint"]


def test_an_old_backbone_of_samples_loads_after_every_default_has_changed(stored, monkeypatch):
    values = stored["features"] | {"kind": "waveform"}
    before = from_json(FeatureConfig, values)
    turn_defaults_over(monkeypatch)
    assert from_json(FeatureConfig, values) == before


WRONG = {
    int: [-2, 10**9, 10**60, 2.5, True, "4", None, [4], {}],
    float: [-1e30, 1e30, 10**400, math.nan, math.inf, True, "0.1", None, [0.1]],
    str: ["", "unknown", 3, None, ["xl"], {}],
    bool: [0, 1, "true", [], {}],
}


@pytest.mark.parametrize("group", CLASSES)
def test_every_stored_setting_has_a_type_and_a_range(group):
    cls, good = CLASSES[group], to_json({"features": tiny.FEATURES, "encoder": tiny.ENCODER}[group])
    for field in dataclasses.fields(cls):
        if typing.get_origin(field.type) is tuple:
            size = len(good[field.name])
            wrong = [3, None, "xl", [], [math.nan] * size, [1e30] * size, ["1"] * size, [2] * 1000, [[2]] * size]
        else:
            wrong = WRONG[field.type if field.type in WRONG else bool]
        for value in wrong:
            with pytest.raises(UserError) as error:
                from_json(cls, good | {field.name: value})
            assert field.name in str(error.value) and len(str(error.value)) < 500


@pytest.mark.slow(minutes=0.2)
def test_the_largest_settings_that_are_allowed_are_laid_out_within_seconds():
    """What a stranger's backbone.json may ask for before it is compared with its weights."""
    wave = {"subsampler": "wave_cnn", "subsampling": 320, "wave_kernels": (2**12,) * 32, "wave_strides": (1,) * 32}
    largest = [
        (dict(fft=2**13, window=2.0, bins=2**10, preemphasis=1.0), {}),
        (dict(sample_rate=768_000, hop=2e-6, window=2e-6), dict(position="xl", n_layers=2**11, d_model=2**16)),
        (dict(kind="waveform", sample_rate=768_000, fft=2**14, window=0.02, hop=0.02), wave | {"d_ff": 2**18}),
        ({}, dict(kernel=2**9, vocab_size=2**20)),
        ({}, dict(subsampler="conv1d", subsampling=4, subsampling_kernel=2**10)),
    ]
    for features, encoder in largest:
        started = time.process_time()
        with contextlib.suppress(UserError):
            backbone_folder.abstract_params(
                dataclasses.replace(tiny.FEATURES, **features), dataclasses.replace(tiny.ENCODER, **encoder)
            )
        assert time.process_time() - started < 20


@pytest.mark.parametrize("group", CLASSES)
def test_what_an_old_backbone_leaves_unsaid_has_a_meaning_and_nothing_else_has(group, stored):
    cls = CLASSES[group]
    assert set(stored[group]) | set(UNSAID[cls.__name__]) == {field.name for field in dataclasses.fields(cls)}
    assert not set(stored[group]) & set(UNSAID[cls.__name__])


@pytest.mark.parametrize("settings", [tiny.FEATURES, tiny.ENCODER], ids=["features", "encoder"])
def test_every_setting_is_written_and_none_that_was_always_written_may_be_missing(settings):
    cls, values = type(settings), json.loads(json.dumps(to_json(settings)))
    assert set(values) == {field.name for field in dataclasses.fields(cls)}
    for name in values:
        left = {key: value for key, value in values.items() if key != name}
        if name in UNSAID[cls.__name__]:
            assert getattr(from_json(cls, left), name) == UNSAID[cls.__name__][name]
        else:
            with pytest.raises(UserError, match=f"{cls.__name__} lacks the field '{name}'"):
                from_json(cls, left)


def test_a_setting_enters_the_fingerprint_once_it_differs_from_what_old_folders_mean():
    old = {name: value for name, value in to_json(tiny.FEATURES).items() if name not in UNSAID["FeatureConfig"]}
    assert fingerprinted(tiny.FEATURES) == old
    louder = dataclasses.replace(tiny.FEATURES, scale=2.0)
    assert fingerprinted(louder) == old | {"scale": 2.0}
