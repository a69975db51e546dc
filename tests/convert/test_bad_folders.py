"""Folders that are damaged or not supported: one clear line each, and no backbone."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from reference import endless, published
from safetensors.numpy import load_file, save_file

from hra_jax.convert import conversion
from hra_jax.convert.conversion import convert
from hra_jax.errors import UserError


def refusal(source, output):
    """The line that a folder is refused with; nothing that counts as a backbone is left behind."""
    with pytest.raises(UserError) as error:
        convert(source, output)
    assert not (output / "backbone.json").exists() and not list(output.glob("*.safetensors*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def make(tmp_path):
    """Writes a folder of a family; None stands for its name."""
    return lambda family="w2v-bert shaw": published.write(tmp_path / "source", family)


def set_value(name, index, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][index] = value

    return change


BERT_LAYER = "wav2vec2_bert.encoder.layers.1"
# family, what is done to its tensors, and what the line must say
TENSORS = {
    "a missing tensor": (
        "w2v-bert shaw",
        lambda tensors: tensors.pop(f"{BERT_LAYER}.ffn1.output_dense.bias"),
        ["lacks", f"'{BERT_LAYER}.ffn1.output_dense.bias'", "config.json"],
    ),
    "an unknown tensor": (
        "parakeet",
        lambda tensors: tensors.update({"encoder.extra.weight": np.ones(2, np.float32)}),
        ["'encoder.extra.weight'", "Parakeet"],
    ),
    "an unknown counter": (
        "parakeet",
        lambda tensors: tensors.update({"encoder.counter": np.ones(2, np.int64)}),
        ["'encoder.counter'"],
    ),
    "a wrong shape": (
        "w2v-bert shaw",
        lambda tensors: tensors.update({"lm_head.weight": np.ones((published.V, 5), np.float32)}),
        ["'lm_head.weight'", "(6, 5)", "(6, 8)"],
    ),
    "a transposed tensor": (
        "w2v-bert shaw",
        lambda tensors: tensors.update(
            {f"{BERT_LAYER}.ffn1.output_dense.weight": np.ones((published.FF, published.D), np.float32)}
        ),
        ["ffn1.output_dense.weight", "(12, 8)", "(8, 12)"],
    ),
    "NaN": ("lasr", set_value("encoder.layers.1.norm_conv.weight", 3, np.nan), ["layers.1.norm_conv.weight", "finite"]),
    "an infinite weight": ("w2v-bert shaw", set_value("lm_head.bias", 0, np.inf), ["'lm_head.bias'", "finite"]),
    "NaN in what is folded": (
        "parakeet",
        set_value("encoder.layers.0.conv.norm.running_mean", 1, np.nan),
        ["layers.0.conv.norm.running_mean", "finite"],
    ),
    "a negative variance": (
        "conformer rope",
        set_value("wav2vec2_conformer.encoder.layers.1.conv_module.batch_norm.running_var", 0, -1.0),
        ["layers.1.conv_module.batch_norm.running_var", "variance"],
    ),
    "an infinite variance": (
        "parakeet",
        set_value("encoder.layers.0.conv.norm.running_var", 0, np.inf),
        ["layers.0.conv.norm.running_var", "finite"],
    ),
    "another table of rotations": (
        "conformer rope",
        set_value("wav2vec2_conformer.encoder.embed_positions.inv_freq", 1, 0.0101),
        ["embed_positions.inv_freq", "config.json"],
    ),
    "weights that are integers": (
        "lasr",
        lambda tensors: tensors.update({"ctc_head.bias": np.ones(published.V, np.int8)}),
        ["'ctc_head.bias'", "I8"],
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tampered_tensors(case, make, tmp_path):
    family, change, words = TENSORS[case]
    source = make(family)
    convert(source, tmp_path / "before")  # it is the change that is refused
    published.edit_tensors(source, change)
    line = refusal(source, tmp_path / "out")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_table_of_rotations_that_was_rounded_with_all_other_weights_is_no_other_table(make, tmp_path, dtype):
    name = "wav2vec2_conformer.encoder.embed_positions.inv_freq"
    source = make("conformer rope")
    rounded = lambda tensors: tensors.update({name: tensors[name].astype(jnp.dtype(dtype))})  # noqa: E731
    published.edit_tensors(source, rounded)
    convert(source, tmp_path / "out")
    published.edit_tensors(source, lambda tensors: tensors.update({name: tensors[name] * jnp.dtype(dtype).type(1.02)}))
    assert "is not what the settings in config.json give" in refusal(source, tmp_path / "other")


def inner(**changes):
    """Changes under encoder_config."""

    def change(content):
        content["encoder_config"] |= changes

    return change


def outer(**changes):
    return lambda content: content.update(changes)


# family, what is done to its config.json, and what the line must say
CONFIGS = {
    "an unknown model type": ("lasr", outer(model_type="whisper"), ["'whisper'", "wav2vec2-bert", "lasr_ctc"]),
    "no model type": ("lasr", lambda content: content.pop("model_type"), ["model_type", "None"]),
    "a model type that is a list": ("lasr", outer(model_type=[1]), ["model_type"]),
    "another architecture": (
        "parakeet",
        outer(architectures=["ParakeetForTDT"]),
        ["ParakeetForTDT", "allowed", "ParakeetForCTC"],
    ),
    "no architecture": ("parakeet", lambda content: content.pop("architectures"), ["architectures", "ParakeetForCTC"]),
    "an adapter layer": ("w2v-bert shaw", outer(add_adapter=True), ["add_adapter is true", "supported: false"]),
    "an intermediate layer": (
        "w2v-bert shaw",
        outer(use_intermediate_ffn_before_adapter=True),
        ["use_intermediate_ffn_before_adapter is true"],
    ),
    "another activation": ("w2v-bert shaw", outer(hidden_act="gelu"), ['hidden_act is "gelu"', "swish"]),
    "the default activation": ("conformer rope", lambda content: content.pop("hidden_act"), ['hidden_act is "gelu"']),
    "another position": (
        "w2v-bert shaw",
        outer(position_embeddings_type="alibi"),
        ['position_embeddings_type is "alibi"', "relative_key", "rotary", "null"],
    ),
    "another position than the weights have": (
        "w2v-bert shaw",
        outer(position_embeddings_type="relative"),
        ["lacks", "self_attn.pos_bias_u"],
    ),
    "group norm": ("conformer rope", outer(feat_extract_norm="group"), ['feat_extract_norm is "group"', "layer"]),
    "waves without bias": ("conformer rope", outer(conv_bias=False), ["conv_bias is false"]),
    "waves of different widths": ("conformer rope", outer(conv_dim=[4, 4, 4, 4, 4, 4, 8]), ["conv_dim", "same width"]),
    "another stride": ("conformer rope", outer(conv_stride=[5, 2, 2, 2, 2, 2, 1]), ["conv_stride", "160", "320"]),
    "other lengths": ("conformer rope", outer(conv_kernel=[10, 3, 3]), ["conv_kernel", "lengths"]),
    "another epsilon": ("conformer rope", outer(layer_norm_eps=1e-6), ["layer_norm_eps is 1e-06"]),
    "an even kernel": ("parakeet", inner(conv_kernel_size=8), ["conv_kernel_size is 8", "odd"]),
    "another subsampling": ("parakeet", inner(subsampling_factor=4), ["subsampling_factor is 4", "8"]),
    "fewer key heads": ("parakeet", inner(num_key_value_heads=1), ["num_key_value_heads is 1"]),
    "other bins": ("parakeet", inner(num_mel_bins=80), ["num_mel_bins is 80", "16"]),
    "another rope": ("lasr", inner(rope_parameters={"rope_type": "yarn"}), ['rope_type is "yarn"']),
    "another rope in an older file": ("lasr", inner(rope_scaling={"rope_type": "linear"}), ['rope_type is "linear"']),
    "three residual weights": ("lasr", inner(conv_residual_weights=[1, 2, 3]), ["conv_residual_weights", "two"]),
    "an encoder that is a list": ("lasr", outer(encoder_config=[1]), ["encoder_config", "object"]),
    "a text for a number": ("w2v-bert shaw", outer(hidden_size="8"), ['hidden_size is "8"', "whole number"]),
    "true for a number": ("w2v-bert shaw", outer(hidden_size=True), ["hidden_size is true", "whole number"]),
    "an absurd kernel": ("lasr", inner(conv_kernel_size=10**6), ["conv_kernel_size is 1000000", "at most 2048"]),
    "no layers": ("w2v-bert shaw", outer(num_hidden_layers=0), ["num_hidden_layers is 0", "at least 1"]),
    "a number for a flag": ("parakeet", inner(attention_bias=1), ["attention_bias is 1", "true or false"]),
    "more layers than weights": ("w2v-bert shaw", outer(num_hidden_layers=3), ["lacks", "encoder.layers.2."]),
    "fewer layers than weights": ("w2v-bert shaw", outer(num_hidden_layers=1), ["encoder.layers.1."]),
    "heads that do not divide": ("w2v-bert shaw", outer(num_attention_heads=3), ["n_heads", "6"]),
    "another width of the input": (
        "w2v-bert shaw",
        outer(feature_projection_input_dim=80),
        ["feature_projection_input_dim is 80", "160"],
    ),
    "no vocabulary size": ("w2v-bert shaw", outer(vocab_size=None), ["vocab_size"]),
    "another vocabulary size": ("w2v-bert shaw", outer(vocab_size=9), ["9"]),
    "no blank": ("w2v-bert shaw", outer(pad_token_id=None), ["pad_token_id"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_settings_that_are_not_supported(case, make, tmp_path):
    family, change, words = CONFIGS[case]
    source = make(family)
    content = json.loads((source / "config.json").read_text())
    change(content)
    (source / "config.json").write_text(json.dumps(content))
    line = refusal(source, tmp_path / "out")
    assert all(word in line for word in words), line


EXTRACTORS = {
    "another rate": ("w2v-bert shaw", {"sampling_rate": 8000}, ["sampling_rate is 8000", "16000"]),
    "another side": ("w2v-bert shaw", {"padding_side": "left"}, ['padding_side is "left"']),
    "another extractor": (
        "w2v-bert shaw",
        {"feature_extractor_type": "WhisperFeatureExtractor"},
        ["'WhisperFeatureExtractor'", "SeamlessM4TFeatureExtractor"],
    ),
    "another stack": ("w2v-bert shaw", {"stride": 4}, ["320"]),
    "a window of no length": ("parakeet", {"win_length": 0}, ["win_length is 0"]),
    "a window longer than the transform": ("parakeet", {"win_length": 600}, ["fft"]),
    "a text": ("lasr", {"n_fft": "512"}, ['n_fft is "512"']),
}


@pytest.mark.parametrize("case", EXTRACTORS)
def test_feature_settings_that_are_not_supported(case, make, tmp_path):
    family, changes, words = EXTRACTORS[case]
    source = make(family)
    published.edit_json(source / "preprocessor_config.json", **changes)
    line = refusal(source, tmp_path / "out")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(file, make, tmp_path):
    source = make()
    (source / file).unlink()
    assert file in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "vocab.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", "version https://git-lfs.github.com/spec/v1\n", "[" * 20000])
def test_a_file_that_is_not_a_json_object_is_named(file, content, make, tmp_path):
    source = make()
    (source / file).write_text(content)
    assert file in refusal(source, tmp_path / "out")


def test_pickled_weights_alone_are_refused(make, tmp_path):
    source = make()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    line = refusal(source, tmp_path / "out")
    assert "pytorch_model.bin" in line and "safetensors" in line and "pickled" in line


def test_pickled_weights_beside_safetensors_are_not_looked_at(make, tmp_path):
    source = make()
    expected = convert(source, tmp_path / "without").fingerprint
    (source / "pytorch_model.bin").write_bytes(b"\x80")
    assert convert(source, tmp_path / "out").fingerprint == expected


def test_a_truncated_file_is_named(make, tmp_path):
    path = make() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    line = refusal(path.parent, tmp_path / "out")
    assert "model.safetensors" in line and "truncated" in line


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "model-00009-of-00001.safetensors"])
def test_an_index_that_leaves_the_folder_or_lies_is_refused(file, make, tmp_path):
    source = make()
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    save_file(tensors, source / "model-00001-of-00001.safetensors")
    named = dict.fromkeys(tensors, "model-00001-of-00001.safetensors") | {"lm_head.bias": file}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    line = refusal(source, tmp_path / "out")
    assert "index.json" in line and file in line


def test_a_ctc_head_without_a_tokenizer_is_refused(make, tmp_path):
    source = make()
    for name in ("vocab.json", "tokenizer_config.json"):
        (source / name).unlink()
    line = refusal(source, tmp_path / "out")
    assert "tokenizer" in line and "vocab.json" in line


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.parametrize("same", [True, False])
def test_the_output_must_be_new(same, make, tmp_path):
    source = make()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="new folder"):
        convert(source, source if same else tmp_path / "used")


def test_another_storage_dtype_is_refused(make, tmp_path):
    with pytest.raises(UserError, match="'float16'.*float32, bfloat16"):
        convert(make(), tmp_path / "out", dtype="float16")


def test_what_a_killed_conversion_left_is_no_reason_to_refuse_the_same_command(make, tmp_path):
    source = make()
    left = ".model.safetensors.0123456789abcdef.tmp"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / left).write_bytes(b"half")
    (tmp_path / ".out.new-0123456789abcdef").mkdir()
    (tmp_path / ".out.new-0123456789abcdef" / left).write_bytes(b"half")
    before = {path.name for path in tmp_path.iterdir()} - {"out", ".out.new-0123456789abcdef"}
    convert(source, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"backbone.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}


@pytest.mark.parametrize("name", ["model.safetensors", ".notes.txt.0123456789abcdef.tmp", "backbone.json"])
def test_what_may_be_somebody_s_is_not_taken_for_leftovers(make, tmp_path, name):
    source = make()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="new folder"):
        convert(source, tmp_path / "out")
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"mine"]


@pytest.mark.parametrize("kind", endless.KINDS)
def test_nobody_waits_for_a_model_card_without_an_end(tmp_path, kind):
    endless.put(tmp_path / "README.md", kind)
    with endless.bounded(), pytest.raises(UserError, match=r"README.md: cannot be read .not a regular file"):
        conversion._license(epath.Path(tmp_path))
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    os.truncate(tmp_path / "README.md", 2**40)
    with endless.bounded():
        assert conversion._license(epath.Path(tmp_path)) == "mit"
