"""Backbone folders: what comes back, what the fingerprint identifies, and what a damaged folder gives."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from reference import tiny

from hra_jax import api
from hra_jax.errors import DamagedError, UserError
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import named_size
from hra_jax.storage import safetensors, safetensors_reader
from hra_jax.storage.safetensors_reader import TensorFiles
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.text.vocabularies import CharacterVocabulary
from hra_jax.training import placement, sharding

VOCABULARY = {"kind": "characters", "characters": "abc'é"}
INFO = {"name": "test", "source": "random", "license": "none"}


def save(folder, params, *, features=tiny.FEATURES, encoder=tiny.ENCODER, vocabulary=VOCABULARY, **settings):
    settings = {"dtype": "float32", "info": INFO} | settings
    return backbone_folder.save(folder, params, features=features, encoder=encoder, vocabulary=vocabulary, **settings)


def write(folder, read, **settings):
    settings = {"dtype": "float32", "info": INFO} | settings
    return backbone_folder.write(
        folder, read, features=tiny.FEATURES, encoder=tiny.ENCODER, vocabulary=VOCABULARY, **settings
    )


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    tensors = dict(safetensors.from_bytes(path.read_bytes(), where="x"))
    change(tensors)
    path.write_bytes(safetensors.to_bytes(tensors))


def refusal(folder, **options):
    with pytest.raises(UserError) as error:
        backbone_folder.load(str(folder), **options)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


def assert_equal_bytes(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(*(np.asarray(z).view(np.uint8) for z in (x, y))), a, b)


def test_float32_folder_gives_every_byte_back(pristine, params):
    files = backbone_folder.load(str(pristine), verify=True)
    assert_equal_bytes(files.params, params)
    assert jax.tree.structure(files.params) == jax.tree.structure(params)
    assert (files.features, files.encoder) == (tiny.FEATURES, tiny.ENCODER)
    assert (files.vocabulary, files.info) == (VOCABULARY, INFO)
    assert files.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_bfloat16_folder_holds_rounded_weights_under_the_fingerprint_of_the_float32_ones(tmp_path, pristine, params):
    fingerprint = save(tmp_path / "half", params, dtype="bfloat16")
    files = backbone_folder.load(str(tmp_path / "half"), verify=True)
    assert files.fingerprint == fingerprint == backbone_folder.load(str(pristine)).fingerprint
    assert_equal_bytes(files.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "half", pristine)]
    assert sizes[0] < 0.7 * sizes[1]


def test_saving_what_was_loaded_gives_the_same_files(tmp_path, pristine):
    files = backbone_folder.load(str(pristine))
    assert save(tmp_path / "again", files.params) == files.fingerprint
    for name in ("backbone.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (pristine / name).read_bytes()


def test_the_fingerprint_changes_with_weights_features_geometry_and_vocabulary(tmp_path, pristine, params):
    changed = jax.tree.map(np.array, params)
    changed["output"]["bias"][0] = np.nextafter(changed["output"]["bias"][0], np.float32(9))
    seen = {
        backbone_folder.load(str(pristine)).fingerprint,
        save(tmp_path, changed),
        save(tmp_path, params, features=dataclasses.replace(tiny.FEATURES, floor=2e-4)),
        save(tmp_path, params, encoder=dataclasses.replace(tiny.ENCODER, norm_eps=1e-6)),
        save(tmp_path, params, vocabulary=VOCABULARY | {"characters": "abd'é"}),
    }
    assert len(seen) == 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_weights_file_is_the_one_that_the_safetensors_library_writes(tmp_path, params, dtype):
    save(tmp_path, params, dtype=dtype)
    flat = {name: leaf.astype(dtype) for name, leaf in flatten(params, separator=".").items()}
    assert (tmp_path / "model.safetensors").read_bytes() == safetensors.to_bytes(flat)


def test_the_built_in_backbone_is_one_file_and_is_written_again_as_it_is(tmp_path):
    files = backbone_folder.load("builtin:tiny", verify=True)
    assert files.fingerprint == "8a8699299638b1abfbd60ce9cea63c07b144821ce6cbbf9f0826116ae5cb0c10"
    geometry = {"features": files.features, "encoder": files.encoder, "vocabulary": files.vocabulary}
    save(tmp_path, files.params, dtype="bfloat16", info=files.info, **geometry)
    found = [json.loads((folder / "backbone.json").read_text()) for folder in (tmp_path, files.folder)]
    assert all(found[0][name] == found[1][name] for name in ("stored_sha256", "stored_xxh3"))
    assert (tmp_path / "model.safetensors").read_bytes() == (files.folder / "model.safetensors").read_bytes()


# --- Several files, layer by layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("max_bytes", [1, 3000, 10**9])
def test_files_are_as_large_as_allowed_and_hold_the_same_backbone(tmp_path, pristine, params, max_bytes, dtype):
    fingerprint = save(tmp_path, params, dtype=dtype, max_bytes=max_bytes)
    files = backbone_folder.load(str(tmp_path), verify=True)
    assert files.fingerprint == fingerprint == backbone_folder.load(str(pristine)).fingerprint
    assert_equal_bytes(files.params, jax.tree.map(lambda leaf: leaf.astype(dtype), params))
    sizes = {name: leaf.size * jnp.dtype(dtype).itemsize for name, leaf in flatten(params, separator=".").items()}
    count = len(files.tensors.paths)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if max_bytes == 10**9:
        assert sorted(contents(tmp_path)) == ["backbone.json", "model.safetensors"]
        return
    assert sorted(contents(tmp_path)) == sorted([*names, "backbone.json", "model.safetensors.index.json"])
    assert count == len(sizes) if max_bytes == 1 else 2 < count < len(sizes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    for file in names:
        held = safetensors.from_bytes((tmp_path / file).read_bytes(), where=file)
        assert held and {index["weight_map"][name] for name in held} == {file}
        assert len(held) == 1 or sum(sizes[name] for name in held) <= max_bytes


@pytest.mark.parametrize("max_bytes", [3000, 10**9])
@pytest.mark.parametrize("piece", [1, 200, 32 << 20])
def test_layer_by_layer_gives_the_files_that_whole_arrays_give(tmp_path, params, monkeypatch, max_bytes, piece):
    settings = {"dtype": "bfloat16", "max_bytes": max_bytes}
    save(tmp_path / "whole", params, **settings)
    asked, flat = [], flatten(params, separator=".")

    def read(name):
        asked.append(name)
        return iter(flat[name]) if name.startswith("encoder.layers.") else jnp.asarray(flat[name])

    monkeypatch.setattr(backbone_folder, "_PIECE", piece)
    write(tmp_path / "rows", read, **settings)
    assert contents(tmp_path / "rows") == contents(tmp_path / "whole")
    assert asked == sorted(flat)


def test_a_folder_that_is_written_again_keeps_nothing_of_the_old_one(tmp_path, params):
    save(tmp_path / "one", params)
    save(tmp_path / "several", params, max_bytes=3000)
    one, several = contents(tmp_path / "one"), contents(tmp_path / "several")
    assert len(one) == 2 and len(several) > 4
    for name, settings, expected in [("one", {"max_bytes": 3000}, several), ("several", {}, one)]:
        (tmp_path / name / "README.md").write_text("mine")
        save(tmp_path / name, params, **settings)
        assert contents(tmp_path / name) == expected | {"README.md": b"mine"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("rows", [False, True])
def test_weights_that_are_not_finite_are_named_and_leave_the_old_folder(folder, params, value, rows):
    before, name = contents(folder), "encoder.layers.ff1.up.kernel"
    flat = {path: np.array(leaf) for path, leaf in flatten(params, separator=".").items()}
    flat[name][1, 2, 3] = value
    words = "values beyond the range of bfloat16" if value == 3.4e38 else "NaN or infinity"
    with pytest.raises(UserError, match=f"^'{name}' holds {words}"):
        write(folder, lambda path: iter(flat[path]) if rows else flat[path], dtype="bfloat16")
    assert contents(folder) == before
    if value == 3.4e38:
        write(folder, flat.__getitem__)  # float32 holds it
        assert contents(folder) != before


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda leaf: leaf[:, 1:], r"has shape \(3, 15, 24\), the settings ask for \(3, 16, 24\)"),
        (lambda leaf: leaf[:2], r"has shape \(2, 16, 24\), the settings ask for \(3, 16, 24\)"),
        (lambda leaf: iter(leaf[:2]), r"has shape \(2, 16, 24\), the settings ask for \(3, 16, 24\)"),
        (lambda leaf: [*leaf, leaf[0]], r"has shape \(4, 16, 24\), the settings ask for \(3, 16, 24\)"),
        (lambda leaf: [leaf[0], leaf[1, 1:]], r"has shape \(3, 15, 24\), the settings ask for \(3, 16, 24\)"),
        (lambda leaf: [leaf[0], leaf[1].astype(np.float16)], "has rows of float32 and of float16"),
    ],
)
def test_weights_of_another_shape_are_not_written(tmp_path, params, change, words):
    name, flat = "encoder.layers.ff1.up.kernel", flatten(params, separator=".")
    with pytest.raises(UserError, match=f"^'{name}' {words}"):
        write(tmp_path, lambda path: change(flat[path]) if path == name else flat[path])
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_not_given_out(tmp_path, params, value, dtype):
    save(tmp_path, params, dtype=dtype)
    edit_tensors(tmp_path, lambda tensors: tensors["output.kernel"].__setitem__((-1, -1), value))
    files = backbone_folder.load(str(tmp_path))
    assert files.read("output.bias").size
    with pytest.raises(UserError, match=r"model.safetensors: 'output.kernel' holds NaN or infinity; allowed: finite"):
        files.read("output.kernel")
    with pytest.raises(UserError, match="holds NaN or infinity"):
        files.params  # noqa: B018


def test_weights_too_few_or_too_many_are_not_written(tmp_path, params):
    with pytest.raises(UserError, match="lacks the tensor 'output.bias'"):
        save(tmp_path / "x", params | {"output": {"kernel": params["output"]["kernel"]}})
    with pytest.raises(UserError, match="unknown tensor 'more'"):
        save(tmp_path / "x", params | {"more": np.zeros(2, np.float32)})
    assert not (tmp_path / "x").exists()


# --- Read where they live ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [3000, 10**9])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_each_part_of_the_weights_is_read_once_onto_a_mesh(tmp_path, params, sizes, max_bytes):
    save(tmp_path, params, max_bytes=max_bytes)
    files = backbone_folder.load(str(tmp_path))
    mesh = sharding.make_mesh(*sizes[:2], tensor=sizes[2])
    places = placement.backbone_shardings(mesh, tiny.FEATURES, tiny.ENCODER)
    found = backbone_folder.load_params(files, places)
    assert_equal_bytes(found, params)
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, place: leaf.sharding == place, found, places)))
    # All devices are this process's: together they need every byte, and none twice.
    assert files.tensors.bytes_read == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    half = backbone_folder.load_params(files, places, dtype=jnp.bfloat16)
    assert_equal_bytes(half, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))


def test_opening_a_backbone_reads_no_weights(pristine, params):
    files = backbone_folder.load(str(pristine))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert files.abstract == shapes and files.parameters > 0
    assert files.tensors.bytes_read == 0


class RemoteFile:
    """What remote files can do: reading at any place, and writing bytes from the start to the end."""

    def __init__(self, file, transfers: list):
        self._file, self._transfers = file, transfers

    def seek(self, offset: int) -> None:
        self._file.seek(offset)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._transfers.append(len(content))
        return content

    def write(self, content: bytes) -> None:
        assert type(content) is bytes
        self._file.write(content)


@pytest.mark.parametrize("max_bytes", [3000, 10**9])
def test_a_remote_folder_is_written_like_a_local_one_and_read_by_ranges(tmp_path, params, max_bytes, monkeypatch):
    transfers = []
    monkeypatch.setattr(safetensors_reader, "is_remote", lambda path: isinstance(path, Remote))

    class Remote(type(epath.Path(tmp_path))):
        """A path of an object store."""

        def __str__(self):
            return f"gs://bucket{super().__str__()}"

        def __fspath__(self):
            return super().__str__()

        @contextlib.contextmanager
        def open(self, mode):
            with super().open(mode) as file:
                yield RemoteFile(file, transfers)

    remote = Remote(tmp_path / "remote")
    for _ in range(2):  # the second in place of the first
        save(remote, params, max_bytes=max_bytes)
    save(tmp_path / "local", params, max_bytes=max_bytes)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    tensors, flat = TensorFiles(remote), flatten(params, separator=".")
    transfers.clear()
    for name, leaf in flat.items():
        assert tensors.read(name).tobytes() == leaf.tobytes()
    assert sum(transfers) == sum(leaf.nbytes for leaf in flat.values())
    transfers.clear()
    name = "encoder.layers.ff1.up.kernel"
    assert tensors.read_slice(name, np.s_[1:, :, :12]).tobytes() == flat[name][1:, :, :12].tobytes()
    assert len(transfers) == 1  # rather than once for each of 32 runs


# --- Damaged folders --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype, name", [(np.float16, "float16"), (np.int64, "I64")])
def test_a_tensor_of_another_dtype_is_named(folder, dtype, name):
    path, leaf = folder / "model.safetensors", "output.bias"
    tensors = dict(safetensors.from_bytes(path.read_bytes(), where="x"))
    path.write_bytes(safetensors.to_bytes(tensors | {leaf: tensors[leaf].astype(dtype)}))
    message = refusal(folder)
    assert f"'{leaf}'" in message and name in message and "float32" in message


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
        backbone_folder.load(str(folder))  # reading alone does not hash
        message = refusal(folder, verify=True)
        assert "hash differs" in message and name in message


@pytest.mark.parametrize("max_bytes", [3000, 10**9], ids=["many files", "one file"])
def test_weights_that_were_replaced_under_the_same_fingerprint_are_found_as_they_are_read(
    tmp_path, params, monkeypatch, max_bytes
):
    folder, other = tmp_path / "backbone", tmp_path / "other"
    vocabulary = CharacterVocabulary(" abcd").to_json()
    fingerprint = save(folder, params, vocabulary=vocabulary, max_bytes=max_bytes)
    name = "encoder.layers.ff1.up.kernel"
    replaced = flatten(params, separator=".") | {name: -flatten(params, separator=".")[name]}
    assert save(other, unflatten(replaced, separator="."), vocabulary=vocabulary, max_bytes=max_bytes) != fingerprint
    for path in other.glob("*.safetensors"):
        shutil.copy(path, folder / path.name)
    files = backbone_folder.load(str(folder))
    assert files.fingerprint == fingerprint
    told = rf"{re.escape(str(folder))}/.*: '{name}' is not what was stored; its hash differs$"
    with pytest.raises(DamagedError, match=told):
        api.load_backbone(folder)
    mesh = sharding.make_mesh(2, 2, tensor=2)
    places = placement.backbone_shardings(mesh, tiny.FEATURES, tiny.ENCODER)
    with pytest.raises(DamagedError, match=told):
        backbone_folder.load_params(files, places)
    with pytest.raises(DamagedError, match=told), files.reading() as read:
        for found in files.tensors.names():
            read(found)
    # Of several processes, which read parts, one finds it.
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    messages = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        try:
            with backbone_folder._checking_a_share(files):
                pass
        except DamagedError as error:
            messages.append(str(error))
    assert len(messages) == 1 and re.search(told, messages[0])


_REPLACING = """
import shutil, sys, time
from hra_jax.storage import folders, locks
rename = folders.rename_folder
def slowly(old, new):
    rename(old, new)
    time.sleep(0.05)
folders.rename_folder, folders.exchange_names = slowly, lambda first, second: False
print("begun", flush=True)
for number in range(1000):
    source = sys.argv[2 + number % 2]
    folders.replace_folder(sys.argv[1], lambda fresh: shutil.copytree(source, fresh, dirs_exist_ok=True))
    time.sleep(0.4)
"""


def test_a_backbone_that_a_run_replaces_by_two_renames_is_read_whole(tmp_path, params):
    folders = [tmp_path / name for name in ("backbone", "first", "second")]
    vocabulary = CharacterVocabulary(" abcd").to_json()
    weights = {
        save(folder, jax.tree.map(lambda x, i=i: x + i, params), vocabulary=vocabulary): i
        for i, folder in enumerate(folders[1:])
    }
    shutil.copytree(folders[1], folders[0])
    replacing = subprocess.Popen([sys.executable, "-c", _REPLACING, *map(str, folders)], stdout=subprocess.PIPE)
    try:
        replacing.stdout.readline()
        seen = set()
        end = time.monotonic() + 60
        for count, verify in enumerate(itertools.cycle([None, False])):
            if count >= 30 and (seen == set(weights) or time.monotonic() > end):
                break
            found = api.load_backbone(folders[0], verify=verify)
            seen.add(found.fingerprint)
            expected = params["output"]["bias"] + weights[found.fingerprint]
            np.testing.assert_array_equal(found.params["output"]["bias"], expected)
        assert seen == set(weights) and replacing.poll() is None
    finally:
        replacing.kill()
        replacing.communicate()


@pytest.mark.parametrize("verify", [None, False])
def test_a_file_that_is_cut_while_it_is_read_ends_the_reading(folder, verify):
    files = backbone_folder.load(str(folder), verify=verify)
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match="ends within a tensor"), files.reading() as read:
        for name in files.tensors.names():
            read(name)


@pytest.mark.parametrize(
    "content, words",
    [("{", "not JSON"), ("{}", "'features'"), ("3", "'features'"), ("[]", "'features'")]
    + [
        ('{"features": 3, "encoder": {}}', "'features'"),
        ('{"features": {}, "encoder": {}}', "needs 'format' (an integer); got nothing"),
        ('{"features": {}, "encoder": {}, "format": 2}', "format 2; this version of hra_jax reads 1"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(folder, content, words):
    (folder / "backbone.json").write_text(content)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("encoder", "d_model", "8"),
        ("encoder", "n_layers", True),
        ("encoder", "ff_residual", [1.0]),
        ("encoder", "depthwise_bias", 1),
        ("features", "hop", None),
        ("features", "unit_variance", 0),
    ],
)
def test_settings_of_another_type_are_refused(folder, part, name, value):
    settings = json.loads((folder / "backbone.json").read_text())
    settings[part][name] = value
    (folder / "backbone.json").write_text(json.dumps(settings))
    message = refusal(folder)
    assert name in message and "must be" in message


@pytest.mark.parametrize("name", ["vocabulary", "source_sha256", "info", "fingerprint"])
def test_parts_of_another_type_are_refused(folder, name):
    settings = json.loads((folder / "backbone.json").read_text()) | {name: 3}
    (folder / "backbone.json").write_text(json.dumps(settings))
    assert re.search(rf"needs {name!r} \(an? (object|string)\); got 3$", refusal(folder))


def test_a_later_format_and_an_unknown_setting_are_refused(folder):
    edit_settings(folder, lambda settings: settings.update(format=2))
    assert "format 2" in refusal(folder)
    edit_settings(folder, lambda settings: settings.update(format=1) or settings["encoder"].update(depth=3))
    with pytest.raises(UserError, match="unknown field 'depth' of EncoderConfig"):
        backbone_folder.load(str(folder))


def test_a_place_without_a_backbone_is_an_error_that_says_what_is_allowed(tmp_path):
    assert "must be builtin:NAME or a folder that holds backbone.json" in refusal(tmp_path)
    with pytest.raises(UserError, match="backbone = 'builtin:enormous': the built-in ones are"):
        backbone_folder.load("builtin:enormous")
    with pytest.raises(UserError, match="storage dtype 'float16': allowed are float32, bfloat16"):
        save(tmp_path, {}, dtype="float16")


def test_abstract_parameters_have_the_shapes_of_the_real_ones_and_compute_nothing():
    shapes = backbone_folder.abstract_params(*named_size("usm_2b", 1024))  # 8 GB, if it were computed
    leaves = jax.tree.leaves(shapes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert all(leaf.shape[0] == 32 for leaf in jax.tree.leaves(shapes["encoder"]["layers"]))


def test_a_backbone_is_found_by_a_path_as_by_its_text():
    folder = backbone_folder.resolve("builtin:tiny")
    assert backbone_folder.resolve(Path(folder)) == backbone_folder.resolve(str(folder)) == folder
