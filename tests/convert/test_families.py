"""The published sizes: settings from class defaults, and as many parameters as the publishers' classes have."""

import json
import math
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from etils import epath

from hra_jax.convert import families, features
from hra_jax.convert.families import lasr, parakeet, wav2vec2_bert, wav2vec2_conformer
from hra_jax.models import backbone_folder

BERT = {"model_type": "wav2vec2-bert", "architectures": ["Wav2Vec2BertForCTC"]}
# As in the published files; what is not named is the default of the class.
CONFORMER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CONFORMER |= {"hidden_act": "swish", "feat_extract_norm": "layer", "conv_bias": True}
CONFORMER |= {"model_type": "wav2vec2-conformer", "architectures": ["Wav2Vec2ConformerForCTC"]}
PARAKEET = {"model_type": "parakeet_ctc", "architectures": ["ParakeetForCTC"]}
LASR = {"model_type": "lasr_ctc", "architectures": ["LasrForCTC"]}
SEAMLESS = {"model_type": "seamless_m4t_v2", "architectures": ["SeamlessM4Tv2Model"]}
POSITION_CONVOLUTION = 128 + 1024 * 64 * 128 + 1024  # weight norm's two tensors and a bias, which nothing uses
# Parameters of the classes of transformers 5.23, what of them a backbone does not have, and layers x width of the norms
# whose statistics torch does not count.
CASES = {
    "w2v-bert 2.0": (BERT, wav2vec2_bert.FEATURES, 32, 580_525_920, 1024, 0),
    "rel-pos large": (CONFORMER, wav2vec2_conformer.FEATURES, 32, 618_591_904, 1024 + POSITION_CONVOLUTION, 24 * 1024),
    "rope large": (
        CONFORMER | {"position_embeddings_type": "rotary"},
        wav2vec2_conformer.FEATURES,
        32,
        593_376_928,
        1024 + POSITION_CONVOLUTION,
        24 * 1024,
    ),
    "parakeet 0.6b": (PARAKEET, parakeet.FEATURES, 1025, 608_799_745, 0, 24 * 1024),
    "parakeet 1.1b": (
        PARAKEET | {"encoder_config": {"num_hidden_layers": 42}},
        parakeet.FEATURES,
        1025,
        1_062_540_289,
        0,
        42 * 1024,
    ),
    "medasr": (LASR, lasr.FEATURES, 512, 105_265_408, 0, 17 * 512),
}


# Of the models that the families name: what their folders say, written out, and the parameters of the
# backbones. BatchNorm's four values a channel become the bias of the convolution before it, where that has none yet.
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}
META = {"num_attention_heads": 16, "hidden_act": "swish", "conv_depthwise_kernel_size": 31, "layer_norm_eps": 1e-5}
CLIPPED = {"left_max_position_embeddings": 64, "right_max_position_embeddings": 8, "feature_projection_input_dim": 160}
CNN = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
NEMO = LARGE | {"num_attention_heads": 8, "hidden_act": "silu", "conv_kernel_size": 9, "scale_input": True}
NEMO |= {"num_mel_bins": 80, "subsampling_conv_channels": 256, "subsampling_factor": 8, "attention_bias": True}
NEMO |= {"convolution_bias": True}
GOOGLE = {"hidden_size": 512, "num_hidden_layers": 17, "intermediate_size": 2048, "num_attention_heads": 8}
GOOGLE |= {"conv_kernel_size": 32, "num_mel_bins": 128, "layer_norm_eps": 1e-6, "attention_bias": False}
GOOGLE |= {"feed_forward_residual_weights": [1.5, 0.5], "conv_residual_weights": [2.0, 1.0], "convolution_bias": False}
GOOGLE |= {"subsampling_conv_channels": 256, "subsampling_conv_kernel_size": 5, "subsampling_conv_stride": 2}
SPEECH = {"hidden_size": 1024, "speech_encoder_layers": 24, "speech_encoder_attention_heads": 16}
SPEECH |= {"speech_encoder_intermediate_size": 4096, "speech_encoder_hidden_act": "swish", "vocab_size": 256102}
SPEECH |= {"speech_encoder_chunk_size": 20000, "speech_encoder_left_chunk_num": 128, "conv_depthwise_kernel_size": 31}
WAVES = LARGE | META | CNN | CONFORMER | {"vocab_size": 32, "pad_token_id": 0}
HEADLESS = BERT | {"architectures": ["Wav2Vec2BertModel"], "vocab_size": None}
FBANK = {"num_mel_bins": 80, "stride": 2, "sampling_rate": 16000}
NORMALISED = {"do_normalize": True, "sampling_rate": 16000}
LOG_MEL = {"hop_length": 160, "n_fft": 512, "win_length": 400, "sampling_rate": 16000}
FOLDERS = {
    "w2v_bert_2.0": (
        HEADLESS | LARGE | META | CLIPPED | {"position_embeddings_type": "relative_key", "add_adapter": False},
        FBANK | {"padding_value": 1},
        580_493_120 - 1024 + 1024 + 1,
    ),
    "wav2vec2_conformer_rel_pos": (
        WAVES | {"position_embeddings_type": "relative"},
        NORMALISED,
        618_591_904 - 1024 - POSITION_CONVOLUTION - 24 * 1024,
    ),
    "wav2vec2_conformer_rope": (
        WAVES | {"position_embeddings_type": "rotary", "rotary_embedding_base": 10000},
        NORMALISED,
        593_376_928 - 1024 - POSITION_CONVOLUTION - 24 * 1024,
    ),
    "parakeet_ctc_0.6b": (
        PARAKEET | {"encoder_config": NEMO, "vocab_size": 1025, "pad_token_id": 1024},
        LOG_MEL | {"feature_size": 80, "preemphasis": 0.97},
        608_799_745 - 2 * 24 * 1024,
    ),
    "parakeet_ctc_1.1b": (
        PARAKEET | {"encoder_config": NEMO | {"num_hidden_layers": 42}, "vocab_size": 1025, "pad_token_id": 1024},
        LOG_MEL | {"feature_size": 80, "preemphasis": 0.97},
        1_062_540_289 - 2 * 42 * 1024,
    ),
    "medasr": (
        LASR | {"encoder_config": GOOGLE, "vocab_size": 512, "pad_token_id": 0},
        LOG_MEL | {"feature_size": 128},
        105_265_408 - 17 * 512,
    ),
    "seamless_m4t_v2": (SEAMLESS | SPEECH | CLIPPED, FBANK, 580_493_120 - 1024 + 1024 + 1 + 2 * 1024),
}
# Folders whose other settings are those of the classes.
SPARSE = {
    "w2v_bert_2.0": HEADLESS,
    "wav2vec2_conformer_rel_pos": CONFORMER | {"vocab_size": 32},
    "parakeet_ctc_0.6b": PARAKEET | {"vocab_size": 1025},
    "medasr": LASR | {"vocab_size": 512},
    "seamless_m4t_v2": SEAMLESS,
}


def converted(config, preprocessor, folder):
    """Feature settings and geometry of a folder that has these settings."""
    family, named = families.find(config, "config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    settings = features.read(epath.Path(folder), family.extractor)
    vocabulary = config["vocab_size"] if family.architectures[named].head else 1
    return settings, family.encoder(config, settings, vocabulary, True, "config.json")


def parameters(settings, encoder):
    leaves = jax.tree.leaves(nn.unbox(backbone_folder.abstract_params(settings, encoder)))
    return sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize("name", CASES)
def test_a_published_size_has_the_published_parameters(name):
    config, settings, vocabulary, counted, unused, statistics = CASES[name]
    family, _ = families.find(config, "config.json")
    encoder = family.encoder(config, settings, vocabulary, False, "config.json")
    assert parameters(settings, encoder) == counted - unused + 2 * statistics


def test_every_named_model_has_its_folder_here():
    assert set(FOLDERS) == set(families.models())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_named_model_is_what_its_folder_is_converted_to(name, tmp_path):
    config, preprocessor, counted = FOLDERS[name]
    assert converted(config, preprocessor, tmp_path) == families.models()[name]
    assert parameters(*families.models()[name]) == counted


@pytest.mark.parametrize("name", SPARSE)
def test_a_named_model_is_what_the_defaults_of_the_classes_give(name, tmp_path):
    assert converted(SPARSE[name], {}, tmp_path) == families.models()[name]


def test_the_encoder_of_seamless_has_the_blocks_of_w2v_bert_and_a_norm():
    family, _ = families.find(SEAMLESS, "config.json")
    encoder = family.encoder(SEAMLESS, wav2vec2_bert.FEATURES, 1, True, "config.json")
    assert (encoder.context, encoder.chunk, encoder.left_context) == ("chunk", 20000, 128)
    bare = 580_493_120 - 1024 + 1024 + 1  # without the mask's vector, with an output of the blank alone
    assert parameters(wav2vec2_bert.FEATURES, encoder) == bare + 2 * 1024


@pytest.mark.parametrize(
    ("chunk", "left", "expected"),
    [(None, 4, ("full", 0, -1)), (10, -3, ("chunk", 10, -1)), (10, 0, ("chunk", 10, 0))],
)
def test_chunks_of_seamless(chunk, left, expected):
    config = SEAMLESS | {"speech_encoder_chunk_size": chunk, "speech_encoder_left_chunk_num": left}
    family, _ = families.find(config, "config.json")
    encoder = family.encoder(config, wav2vec2_bert.FEATURES, 1, True, "config.json")
    assert (encoder.context, encoder.chunk, encoder.left_context) == expected


@pytest.mark.parametrize(
    ("family", "values", "expected"),
    [
        (wav2vec2_bert, "{}", wav2vec2_bert.FEATURES),
        (wav2vec2_conformer, "{}", wav2vec2_conformer.FEATURES),
        (parakeet, '{"padding_value": 0.0}', parakeet.FEATURES),
        (lasr, "{}", lasr.FEATURES),
    ],
)
def test_features_without_settings_are_those_of_the_class(family, values, expected, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(values)
    assert features.read(epath.Path(tmp_path), family.FAMILY.extractor) == expected


def test_features_take_what_the_file_says(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"feature_size": 64, "hop_length": 320, "preemphasis": 0.5}')
    found = features.read(epath.Path(tmp_path), parakeet.FAMILY.extractor)
    assert (found.bins, found.hop_samples, found.preemphasis) == (64, 320, 0.5)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert features.read(epath.Path(tmp_path), wav2vec2_conformer.FAMILY.extractor).normalization == "none"


def test_features_are_found_in_newer_folders_too(tmp_path):
    (tmp_path / "processor_config.json").write_text('{"feature_extractor": {"feature_size": 64}}')
    assert features.read(epath.Path(tmp_path), parakeet.FAMILY.extractor).bins == 64


@pytest.mark.parametrize("inner", [{"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 500}}])
def test_the_base_of_the_rotation_is_found_in_older_and_newer_files(inner):
    config = LASR | {"encoder_config": inner}
    family, _ = families.find(config, "config.json")
    assert family.encoder(config, lasr.FEATURES, 512, True, "config.json").rope_base == 500.0


def test_parakeet_scales_its_input_by_the_root_of_its_width():
    family, _ = families.find(PARAKEET, "config.json")
    encoder = family.encoder(PARAKEET, parakeet.FEATURES, 1025, True, "config.json")
    assert np.isclose(encoder.input_scale, 32.0)


def test_the_list_of_families_needs_neither_jax_nor_pytorch():
    """`hra_jax.torch` reads it where no JAX may start."""
    code = "import sys; from hra_jax.convert import families; print(len(families.known()), {'jax', 'flax', 'torch'} & "
    code += "set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(len(families.known())), "set()\n"]


def test_every_file_of_the_folder_is_a_family_of_its_own():
    files = {path.stem for path in Path(families.__file__).parent.glob("*.py")} - {"__init__"}
    assert len(files) == len(families.known()) == 5
    assert {family.model_type for family in families.known().values()} == set(families.known())
