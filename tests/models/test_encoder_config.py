"""Geometry and feature settings: what is refused, what is written, and the named sizes."""

import dataclasses
import json

import jax
import pytest
from reference import tiny

from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import SIZES, EncoderConfig, named_size
from hra_jax.models.features import FeatureConfig
from hra_jax.models.stored_settings import from_json, to_json


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(position="rotary"),
            "encoder.position = 'rotary': allowed are 'none', 'xl', 'shaw', 'rope_in', 'rope_qk'",
        ),
        (dict(context="local"), "encoder.context = 'local': allowed are 'full', 'window', 'chunk'"),
        (dict(conv_padding="left"), "encoder.conv_padding = 'left'"),
        (dict(conv_norm="group"), "encoder.conv_norm = 'group': allowed are 'layer', 'batch', 'none'"),
        (dict(shaw_right=-1), "encoder.shaw_right = -1: must be at least 0"),
        (dict(conv_mask="always"), "encoder.conv_mask = 'always'"),
        (dict(subsampling=3), "encoder.subsampling = 3: allowed are 2, 4"),
        (dict(n_layers=0), "encoder.n_layers = 0: must be at least 1"),
        (dict(kernel=-1), "encoder.kernel = -1: must be at least 1"),
        (dict(d_model=18), "encoder.d_model = 18: must be a multiple of 2 n_heads = 4"),
        (dict(context="chunk"), "encoder.chunk = 0: must be at least 1"),
        (
            dict(left_context=2),
            "encoder.left_context = 2: is for context window and chunk, and encoder.context is 'full'",
        ),
        (dict(context="chunk", chunk=2, right_context=0), "encoder.right_context = 0: is for context window"),
        (dict(conv_mask="pre_pointwise"), "encoder.conv_mask = 'pre_pointwise': needs conv_bias False"),
    ],
)
def test_a_wrong_geometry_is_an_error_that_names_the_value(changes, message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(tiny.ENCODER, **changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(normalization="global"), "features.normalization = 'global'"),
        (dict(fft=16), "features.fft = 16: must be at least 25"),
        (dict(hop=0.03), "features.window = 0.025: must be at least 0.03"),
        (dict(high_hz=501.0), "features.low_hz = 20.0, high_hz = 501.0"),
        (dict(low_hz=500.0), "features.low_hz = 500.0"),
        (dict(low_hz=-1.0), "features.low_hz = -1.0"),
    ],
)
def test_wrong_feature_settings_are_an_error_that_names_the_value(changes, message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(tiny.FEATURES, **changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [tiny.FEATURES, tiny.ENCODER], ids=["features", "encoder"])
def test_settings_survive_json_and_a_changed_field_name_does_not(settings):
    cls, values = type(settings), json.loads(json.dumps(to_json(settings)))
    assert from_json(cls, values) == settings
    hash(from_json(cls, values))  # lists became tuples
    with pytest.raises(UserError, match="unknown field 'widht'"):
        from_json(cls, values | {"widht": 1})


def test_a_missing_field_without_a_default_is_named():
    with pytest.raises(UserError, match="EncoderConfig lacks the field 'd_ff'"):
        values = to_json(tiny.ENCODER)
        del values["d_ff"]
        from_json(EncoderConfig, values)


def test_an_unknown_size_is_an_error_that_lists_the_sizes():
    with pytest.raises(UserError, match="size = 'huge': allowed are 'tiny', 'small', 'base', 'usm_2b'"):
        named_size("huge", 32)


@pytest.mark.parametrize("size, millions", [("tiny", (2.5, 3.5)), ("base", (105, 135)), ("usm_2b", (1750, 2050))])
def test_sizes_have_about_the_parameters_that_their_names_promise(size, millions):
    shapes = backbone_folder.abstract_params(*named_size(size, 32))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert millions[0] <= count / 1e6 <= millions[1]


def test_a_block_has_the_parameters_of_the_formula():
    """The xl block of width D, FFN F, kernel K: four projections, a position projection, two biases, and the rest."""
    for encoder in (named_size("usm_2b", 32)[1], named_size("small", 32)[1]):
        features = SIZES["small"][0]
        d, f, k = encoder.d_model, encoder.d_ff, encoder.kernel
        shapes = backbone_folder.abstract_params(features, encoder)["encoder"]["layers"]
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        feed_forward = 2 * d * f + f + d + 2 * d
        attention = 4 * (d * d + d) + d * d + 2 * d + 2 * d
        convolution = (2 * d * d + 2 * d) + (k * d + d) + 2 * d + (d * d + d) + 2 * d
        assert count == encoder.n_layers * (2 * feed_forward + attention + convolution + 2 * d)


def test_tiny_frames_are_20_ms_and_keep_the_shortest_recordings():
    features, encoder = named_size("tiny", 32)
    assert features.sample_rate == 8000
    assert encoder.output_length(features, 8000) == 50
    assert encoder.output_length(features, int(0.14 * 8000)) == 7


def test_sizes_are_complete_and_valid():
    for name in SIZES:
        features, encoder = named_size(name, 40)
        assert isinstance(features, FeatureConfig) and encoder.vocab_size == 40
