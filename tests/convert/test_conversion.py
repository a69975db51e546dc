"""Published folders of every family, written by hand and tiny, become backbones."""

import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from reference import published
from safetensors.numpy import load_file, save_file

from hra_jax.adapters.base import unbound
from hra_jax.convert.conversion import convert
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel
from hra_jax.text.vocabularies import vocabulary_from_json

# What the publishers' classes have and a backbone does not.
UNUSED = ("masked_spec_embed", "pos_conv_embed", "num_batches_tracked", "inner_layer_norm", "intermediate_ffn")
UNUSED += ("quantizer.", "project_", "inv_freq", "adapter.", "shared.", "text_encoder.", "vocoder.")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder of every family."""
    root = tmp_path_factory.mktemp("published")
    return {family: published.write(root / family.replace(" ", "_"), family) for family in published.FAMILIES}


@pytest.fixture(scope="module")
def converted(sources, tmp_path_factory):
    """Each of them converted, with the norms that it was published with: {family: (report, backbone)}."""
    root = tmp_path_factory.mktemp("converted")
    found = {}
    for family, source in sources.items():
        report = convert(source, root / source.name, keep_batch_norm=True)
        found[family] = report, backbone_folder.load(str(report.folder), verify=True)
    return found


def leaves(files):
    return backbone_folder.flatten(files.params, separator=".")


def used(source):
    tensors = load_file(source / "model.safetensors")
    return {name: value for name, value in tensors.items() if not any(word in name for word in UNUSED)}


def values(arrays):
    return np.sort(np.concatenate([np.asarray(array).reshape(-1) for array in arrays]))


@pytest.mark.parametrize("family", published.FAMILIES)
def test_every_published_value_is_in_the_backbone_once_and_no_other(family, sources, converted):
    report, files = converted[family]
    found = leaves(files)
    if "lm_head.weight" not in used(sources[family]) and "ctc_head.weight" not in used(sources[family]):
        assert not found.pop("output.kernel").any() and not found.pop("output.bias").any()
        assert files.encoder.vocab_size == 1
    np.testing.assert_array_equal(values(found.values()), values(used(sources[family]).values()))


@pytest.mark.parametrize("family", published.FAMILIES)
def test_rows_of_the_stacked_tensors_are_the_layers_in_order(family, sources, converted):
    found = leaves(converted[family][1])
    for layer in range(published.LAYERS):
        rows = [leaf[layer] for name, leaf in found.items() if name.startswith("encoder.layers.")]
        own = [
            value
            for name, value in used(sources[family]).items()
            # The front-ends have layers too.
            if f"layers.{layer}." in name and "conv_layers" not in name and "subsampling" not in name
        ]
        np.testing.assert_array_equal(values(rows), values(own))


@pytest.mark.parametrize("family", published.FAMILIES)
def test_unused_tensors_are_listed_with_a_reason(family, sources, converted):
    report, files = converted[family]
    tensors = load_file(sources[family] / "model.safetensors")
    assert sum(entry.tensors for entry in report.ignored) == len(tensors) - len(used(sources[family]))
    assert all(entry.reason for entry in report.ignored)
    assert files.info["ignored"] == [entry._asdict() for entry in report.ignored]


@pytest.mark.parametrize("family", published.BATCH_NORM)
def test_a_folded_batch_norm_is_the_same_map(family, sources, converted, tmp_path):
    kept = leaves(converted[family][1])
    files = backbone_folder.load(str(convert(sources[family], tmp_path / "folded").folder))
    folded = leaves(files)
    assert files.encoder.conv_norm == "none" and files.encoder.has_depthwise_bias
    assert converted[family][1].encoder.conv_norm == "batch"
    name = "encoder.layers.convolution.depthwise"
    assert not any(key.startswith(f"{name}_norm") for key in folded)
    signal = np.random.default_rng(1).standard_normal((20, published.D))
    for layer in range(published.LAYERS):
        taps, bias = (folded[f"{name}.{leaf}"][layer].astype(np.float64) for leaf in ("kernel", "bias"))
        own = {leaf: kept[f"{name}_norm.{leaf}"][layer].astype(np.float64) for leaf in ("scale", "bias")}
        own |= {leaf: kept[f"{name}_norm.{leaf}"][layer].astype(np.float64) for leaf in ("mean", "variance")}
        plain = kept[f"{name}.kernel"][layer].astype(np.float64)
        offset = kept[f"{name}.bias"][layer] if f"{name}.bias" in kept else 0.0
        for channel in range(published.D):
            x = np.convolve(signal[:, channel], plain[:, channel]) + (
                offset if np.isscalar(offset) else offset[channel]
            )
            spread = np.sqrt(own["variance"][channel] + 1e-5)
            expected = (x - own["mean"][channel]) / spread * own["scale"][channel] + own["bias"][channel]
            actual = np.convolve(signal[:, channel], taps[:, channel]) + bias[channel]
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_outputs_with_the_batch_norm_folded_and_kept_are_equal(sources, converted, tmp_path):
    report, kept = converted["parakeet"]
    folded = backbone_folder.load(str(convert(sources["parakeet"], tmp_path / "folded").folder))
    waveform = np.random.default_rng(3).standard_normal((2, 8000)).astype(np.float32)
    lengths = np.array([8000, 5300], np.int32)
    found = []
    for files in (kept, folded):
        model = AsrModel(files.features, files.encoder)
        out, frames = jax.jit(model.apply)({"params": files.params}, waveform, lengths, unbound())
        found.append([np.asarray(out[row, : frames[row]]) for row in range(2)])
    assert len(found[0][0]) > len(found[0][1]) > 2
    np.testing.assert_allclose(np.concatenate(found[0]), np.concatenate(found[1]), rtol=0, atol=1e-5)


def test_conversion_is_deterministic(sources, tmp_path):
    first, again = (convert(sources["lasr"], tmp_path / name, name="x") for name in ("a", "b"))
    assert first.fingerprint == again.fingerprint
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["backbone.json", "model.safetensors"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_shards_with_an_index_give_the_same_backbone(sources, converted, tmp_path):
    source = tmp_path / "sharded"
    published.write(source, "w2v-bert shaw")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, source / file)
        index |= dict.fromkeys(part, file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    report = convert(source, tmp_path / "out", keep_batch_norm=True)
    assert report.fingerprint == converted["w2v-bert shaw"][0].fingerprint


def test_bfloat16_weights_are_stored_as_they_are(tmp_path):
    source = published.write(tmp_path / "half", "w2v-bert shaw")

    def half(tensors):
        tensors.update({name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()})

    published.edit_tensors(source, half)
    found = leaves(backbone_folder.load(str(convert(source, tmp_path / "out", dtype="bfloat16").folder)))
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(
        values(leaf.astype(np.float32) for leaf in found.values()),
        values(value.astype(np.float32) for value in used(source).values()),
    )


def test_what_the_backbone_says_of_its_source(sources, converted):
    report, files = converted["parakeet"]
    assert files.info["name"] == files.info["source"]["folder"] == sources["parakeet"].name
    assert files.info["license"] == "cc-by-4.0"
    source = files.info["source"]
    assert (source["model_type"], source["architecture"]) == ("parakeet_ctc", "ParakeetForCTC")
    assert len(source["config_sha256"]) == 64
    text = (report.folder / "backbone.json").read_text()
    assert str(sources["parakeet"].parent) not in text


def test_without_a_license_the_publisher_is_named(tmp_path):
    source = published.write(tmp_path / "source", "w2v-bert bare")
    (source / "README.md").write_text("# license: not here\n")
    assert convert(source, tmp_path / "a").info["license"] == "see the publisher"
    (source / "README.md").unlink()
    report = convert(source, tmp_path / "b", name="mine")
    assert (report.info["license"], report.info["name"]) == ("see the publisher", "mine")


@pytest.mark.parametrize(
    ("family", "blank"), [("w2v-bert shaw", 0), ("conformer rope", 0), ("parakeet", 5), ("lasr", 0)]
)
def test_the_vocabulary_is_the_published_one(family, blank, converted):
    files = converted[family][1]
    vocabulary = vocabulary_from_json(files.vocabulary)
    assert (vocabulary.size, vocabulary.blank_id) == (published.V, blank) and files.encoder.vocab_size == published.V
    assert vocabulary.decode(vocabulary.encode("ab c")) == "ab c"


@pytest.mark.parametrize("family", ["w2v-bert bare", "conformer pre-training", "seamless", "seamless encoder"])
def test_an_encoder_without_a_head_has_the_blank_alone(family, converted):
    report, files = converted[family]
    assert vocabulary_from_json(files.vocabulary).size == 1
    assert "adapter.output=shared_characters" in report.vocabulary


def test_what_comes_behind_the_conformer_of_seamless_is_not_used(converted):
    patterns = [entry.pattern for entry in converted["seamless"][0].ignored]
    for part in ("intermediate_ffn", "adapter", "inner_layer_norm"):
        assert f"speech_encoder.{part}.*" in patterns


@pytest.mark.parametrize("family", ["w2v-bert bare", "seamless"])
def test_an_encoder_published_alone_has_the_tensors_of_the_one_in_a_whole_model(family, converted):
    other = {"w2v-bert bare": "w2v-bert shaw", "seamless": "seamless encoder"}[family]
    whole, part = converted[family][1], converted[other][1]
    assert whole.encoder.n_layers == part.encoder.n_layers
    names = {name for name in leaves(whole) if not name.startswith("output.")}
    assert names == {name for name in leaves(part) if not name.startswith("output.")}


def test_the_command_prints_a_table_and_writes_the_backbone(sources, command_env, tmp_path):
    command = [sys.executable, "-m", "hra_jax.convert", "--source", str(sources["conformer rope"])]
    command += ["--output", str(tmp_path / "out"), "--dtype", "bfloat16", "--name", "rope"]
    done = subprocess.run(command, env=command_env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for word in ("rope", "Wav2Vec2ConformerForCTC", "bfloat16", "pos_conv_embed", "cc-by-4.0"):
        assert word in done.stdout
    assert backbone_folder.load(str(tmp_path / "out"), verify=True).info["name"] == "rope"


def test_the_command_ends_with_one_line_where_something_is_wrong(sources, command_env, tmp_path):
    command = [sys.executable, "-m", "hra_jax.convert", "--source", str(tmp_path), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env=command_env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "config.json" in done.stderr
