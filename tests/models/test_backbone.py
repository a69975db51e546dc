"""Backbone folders: what comes back, what the fingerprint identifies, and what a damaged folder gives."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from hra_jax.errors import UserError
from hra_jax.models import backbone, config

VOCABULARY = {"kind": "characters", "characters": "abc'é"}
INFO = {"name": "test", "source": "random", "license": "none"}


def save(folder, params, *, dtype="float32", features=tiny.FEATURES, encoder=tiny.ENCODER, vocabulary=VOCABULARY):
    return backbone.save(
        folder, params, features=features, encoder=encoder, vocabulary=vocabulary, dtype=dtype, info=INFO
    )


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.FEATURES, tiny.ENCODER)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("backbone")
    save(folder, params)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copy")


def edit_settings(folder, change):
    path = folder / "backbone.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = dict(backbone.tensors_from_bytes(path.read_bytes(), name="x"))
    change(tensors)
    path.write_bytes(backbone.tensors_to_bytes(tensors))


def refusal(folder, **options):
    with pytest.raises(UserError) as error:
        backbone.load(str(folder), **options)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


def assert_equal_bytes(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(*(np.asarray(z).view(np.uint8) for z in (x, y))), a, b)


def test_float32_folder_gives_every_byte_back(pristine, params):
    files = backbone.load(str(pristine), verify=True)
    assert_equal_bytes(files.params, params)
    assert jax.tree.structure(files.params) == jax.tree.structure(params)
    assert (files.features, files.encoder) == (tiny.FEATURES, tiny.ENCODER)
    assert (files.vocabulary, files.info) == (VOCABULARY, INFO)
    assert files.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_bfloat16_folder_holds_rounded_weights_under_the_fingerprint_of_the_float32_ones(tmp_path, pristine, params):
    fingerprint = save(tmp_path / "half", params, dtype="bfloat16")
    files = backbone.load(str(tmp_path / "half"), verify=True)
    assert files.fingerprint == fingerprint == backbone.load(str(pristine)).fingerprint
    assert_equal_bytes(files.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", pristine)]
    assert sizes[0] < 0.7 * sizes[1]


def test_saving_what_was_loaded_gives_the_same_files(tmp_path, pristine):
    files = backbone.load(str(pristine))
    assert save(tmp_path / "again", files.params) == files.fingerprint
    for name in ("backbone.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (pristine / name).read_bytes()


def test_the_fingerprint_changes_with_weights_features_geometry_and_vocabulary(tmp_path, pristine, params):
    changed = jax.tree.map(np.array, params)
    changed["output"]["bias"][0] = np.nextafter(changed["output"]["bias"][0], np.float32(9))
    seen = {
        backbone.load(str(pristine)).fingerprint,
        save(tmp_path, changed),
        save(tmp_path, params, features=dataclasses.replace(tiny.FEATURES, floor=2e-4)),
        save(tmp_path, params, encoder=dataclasses.replace(tiny.ENCODER, norm_eps=1e-6)),
        save(tmp_path, params, vocabulary=VOCABULARY | {"characters": "abd'é"}),
    }
    assert len(seen) == 5


def test_a_missing_tensor_is_named(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("encoder.layers.ff1.up.kernel"))
    assert "lacks the tensor 'encoder.layers.ff1.up.kernel'" in refusal(folder)


def test_an_unknown_tensor_is_named(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"encoder.extra": np.zeros(3, np.float32)}))
    assert "unknown tensor 'encoder.extra'" in refusal(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"output.bias": np.zeros(7, np.float32)}))
    message = refusal(folder)
    assert "'output.bias'" in message and "(7,)" in message and "(6,)" in message


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.99])
def test_a_truncated_weights_file_is_refused(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert "model.safetensors" in refusal(folder)


def test_a_missing_weights_file_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda settings: settings.update(fingerprint="0" * 64),
        lambda settings: settings["vocabulary"].update(characters="abx'é"),
        lambda settings: settings["features"].update(floor=1e-3),
        lambda settings: settings["encoder"].update(norm_eps=1e-3),
        lambda settings: settings["source_sha256"]["output.bias"].__setitem__(1, "0" * 64),
    ],
    ids=["fingerprint", "vocabulary", "features", "encoder", "hash"],
)
def test_settings_that_contradict_the_fingerprint_are_refused(folder, change):
    edit_settings(folder, change)
    assert "fingerprint" in refusal(folder)


def test_verify_finds_any_flipped_byte_and_names_the_tensor(folder, params):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = content.index(params["output"]["bias"].tobytes())
    for place, name in [(start, "output.bias"), (len(content) - 1, "")]:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(bytes(damaged))
        backbone.load(str(folder))  # reading alone does not hash
        message = refusal(folder, verify=True)
        assert "hash differs" in message and name in message


@pytest.mark.parametrize(
    "content, words",
    [("{", "not JSON"), ("{}", "lacks 'format'"), ('{"format": 1}', "lacks 'features'"), ("[]", "lacks 'format'")],
)
def test_settings_that_cannot_be_read_are_refused(folder, content, words):
    (folder / "backbone.json").write_text(content)
    assert words in refusal(folder)


def test_a_later_format_and_an_unknown_setting_are_refused(folder):
    edit_settings(folder, lambda settings: settings.update(format=2))
    assert "format 2" in refusal(folder)
    edit_settings(folder, lambda settings: settings.update(format=1) or settings["encoder"].update(depth=3))
    with pytest.raises(UserError, match="unknown field 'depth' of EncoderConfig"):
        backbone.load(str(folder))


def test_a_place_without_a_backbone_is_an_error_that_says_what_is_allowed(tmp_path):
    assert "must be builtin:NAME or a folder that holds backbone.json" in refusal(tmp_path)
    with pytest.raises(UserError, match="backbone = 'builtin:enormous': the built-in ones are"):
        backbone.load("builtin:enormous")
    with pytest.raises(UserError, match="storage dtype 'float16': allowed are bfloat16, float32"):
        save(tmp_path, {}, dtype="float16")


def test_abstract_parameters_have_the_shapes_of_the_real_ones_and_compute_nothing():
    shapes = backbone.abstract_params(*config.named_size("usm_2b", 1024))  # 8 GB, if it were computed
    leaves = jax.tree.leaves(shapes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert all(leaf.shape[0] == 32 for leaf in jax.tree.leaves(shapes["encoder"]["layers"]))
