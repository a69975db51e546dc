"""Converted backbones give the log-probabilities of transformers on the same weights.

Every parameter and statistic is drawn at random, nothing is zero or one. Batches are ragged, with odd lengths and short
inputs. float32 within 1e-4, float64 within 1e-6 (transformers has its tables of sinusoids in float32).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import published

from hra_jax.adapters.base import unbound
from hra_jax.convert.conversion import convert
from hra_jax.models import backbone
from hra_jax.models.asr import AsrModel

pytestmark = pytest.mark.slow

D, HEADS, FF, LAYERS, V = 16, 2, 24, 3, published.V
BERT = dict(hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FF, vocab_size=V)
BERT |= dict(left_max_position_embeddings=5, right_max_position_embeddings=3, conv_depthwise_kernel_size=5)
WAVES = BERT | dict(hidden_act="swish", feat_extract_norm="layer", conv_bias=True, conv_dim=(8,) * 7)
WAVES |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
INNER = dict(hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FF)
INNER |= dict(subsampling_conv_channels=6)
SEAMLESS = dict(hidden_size=D, speech_encoder_layers=LAYERS, speech_encoder_attention_heads=HEADS)
SEAMLESS |= dict(speech_encoder_intermediate_size=FF, conv_depthwise_kernel_size=5, left_max_position_embeddings=5)
SEAMLESS |= dict(right_max_position_embeddings=3, speech_encoder_chunk_size=7, speech_encoder_left_chunk_num=2)

# family: class of the model, class of its configuration, its settings, class of the feature extractor, its settings
MODELS = {
    "w2v-bert relative_key": (
        "Wav2Vec2BertForCTC",
        "Wav2Vec2BertConfig",
        BERT | {"position_embeddings_type": "relative_key"},
    ),
    "w2v-bert relative": ("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", BERT | {"position_embeddings_type": "relative"}),
    "w2v-bert rotary": ("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", BERT | {"position_embeddings_type": "rotary"}),
    "w2v-bert none": ("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", BERT | {"position_embeddings_type": None}),
    "w2v-bert bare": ("Wav2Vec2BertModel", "Wav2Vec2BertConfig", BERT | {"vocab_size": None}),
    "conformer relative": (
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        WAVES | {"position_embeddings_type": "relative"},
    ),
    "conformer rotary": (
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        WAVES | {"position_embeddings_type": "rotary"},
    ),
    "parakeet": ("ParakeetForCTC", "ParakeetCTCConfig", INNER),
    "parakeet without biases": (
        "ParakeetForCTC",
        "ParakeetCTCConfig",
        INNER | {"attention_bias": False, "convolution_bias": False, "scale_input": False},
    ),
    "lasr": ("LasrForCTC", "LasrCTCConfig", INNER | {"num_mel_bins": 128}),
    "seamless": ("SeamlessM4Tv2SpeechEncoder", "SeamlessM4Tv2Config", SEAMLESS),
}
EXTRACTORS = {
    "w2v-bert": ("SeamlessM4TFeatureExtractor", {"padding_value": 1}),
    "seamless": ("SeamlessM4TFeatureExtractor", {}),
    "conformer": ("Wav2Vec2FeatureExtractor", {"return_attention_mask": True}),
    "parakeet": ("ParakeetFeatureExtractor", {}),
    "lasr": ("LasrFeatureExtractor", {}),
}
# Feature frames (or samples of the waveform) of the rows of a batch.
FRAMES = {"w2v-bert": (37, 30, 5, 1), "seamless": (37, 30, 5, 1), "parakeet": (83, 64, 17, 3), "lasr": (83, 64, 31, 13)}
FRAMES |= {"conformer": (16001, 12345, 7777, 450)}
SAMPLES = (16001, 12345, 7777, 2500)


class FromFeatures(AsrModel):
    """The model behind its features."""

    def _features(self, waveform, num_samples):
        return waveform, num_samples


@dataclasses.dataclass
class Pair:
    """A model of transformers and the backbone that was made of its files."""

    family: str
    torch: object
    config: object
    extractor: object
    files: backbone.BackboneFiles
    params: dict
    kept: tuple  # (encoder settings, params) with the BatchNorm kept; the same where there is none


def randomise(model, torch):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point() or name.endswith("inv_freq"):
                continue
            drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                drawn = 0.5 + drawn.abs()
            elif value.ndim > 1 and "pos_bias" not in name and "bias_" not in name:
                drawn = drawn / value[0].numel() ** 0.5
            else:
                drawn = 0.3 * drawn + float("norm" in name and name.endswith("weight"))
            value.copy_(drawn.to(value.dtype))


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request, tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    family = request.param
    kind, config_kind, settings = MODELS[family]
    config_class = getattr(transformers, config_kind)
    if "encoder_config" in config_class().to_dict():
        outer = {"vocab_size": V, "pad_token_id": V - 1 if family.startswith("parakeet") else 0}
        config = config_class(encoder_config=settings, **outer)
    else:
        config = config_class(**settings)
    torch.manual_seed(0)
    if kind == "SeamlessM4Tv2SpeechEncoder":
        from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import (
            SeamlessM4Tv2SpeechEncoder as model_class,
        )
    else:
        model_class = getattr(transformers, kind)
    model = model_class(config).eval()
    randomise(model, torch)
    folder = tmp_path_factory.mktemp("published") / family.replace(" ", "_")
    model.save_pretrained(folder)
    extractor_kind, extractor_settings = EXTRACTORS[family.split()[0]]
    extractor = getattr(transformers, extractor_kind)(**extractor_settings)
    extractor.save_pretrained(folder)
    if kind.endswith("ForCTC"):
        published.write_tokenizer(folder, config.pad_token_id)
    converted = [convert(folder, folder / name, keep_batch_norm=name == "kept") for name in ("folded", "kept")]
    files, kept = (backbone.load(str(report.folder)) for report in converted)
    return Pair(family, model, config, extractor, files, files.params, (kept.encoder, kept.params))


def torch_log_probs(pair, inputs, mask, dtype):
    """Log-probabilities of transformers; hidden states before anything behind the Conformer where there is no head."""
    import torch

    model = pair.torch.to(dtype)
    inputs, mask = torch.as_tensor(inputs).to(dtype), torch.as_tensor(mask)
    with torch.no_grad():
        if pair.family == "seamless":
            hidden = model.encoder(model.feature_projection(inputs), attention_mask=mask)
            return (hidden[0] if isinstance(hidden, tuple) else hidden).double().numpy()
        found = model(inputs, attention_mask=mask)
        if pair.family == "w2v-bert bare":
            return found.last_hidden_state.double().numpy()
        return torch.log_softmax(found.logits.double(), dim=-1).numpy()


def jax_log_probs(pair, inputs, lengths, *, dtype=jnp.float32, features=False, kept=False, **changes):
    """The same of the converted backbone, and the lengths."""
    encoder, params = pair.kept if kept else (pair.files.encoder, pair.params)
    encoder = dataclasses.replace(encoder, **changes)
    model = (FromFeatures if features else AsrModel)(pair.files.features, encoder, dtype=dtype)
    headless = encoder.vocab_size == 1
    if headless:
        # What the head sees comes out of a head that is the identity; log-softmax is undone by a last output of zero.
        params = params | {
            "output": {"kernel": np.eye(D, D + 1, dtype=np.float32), "bias": np.zeros(D + 1, np.float32)}
        }
        model = model.clone(encoder=dataclasses.replace(encoder, vocab_size=D + 1))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    out, frames = jax.jit(model.apply)({"params": params}, jnp.asarray(inputs, dtype), jnp.asarray(lengths), unbound())
    out = np.asarray(out, np.float64)
    return (out[..., :-1] - out[..., -1:] if headless else out), np.asarray(frames)


def compare(expected, actual, frames):
    """The largest difference on valid frames, of which there must be some."""
    found = [np.abs(expected[row, :n] - actual[row, :n]).max() for row, n in enumerate(frames) if n > 0]
    assert len(found) >= 3 and max(frames) > 3
    assert np.isfinite(found).all()
    return max(found)


def given(pair):
    """Random features `[B, T, F]` (the waveform where the model takes that), the mask, and lengths."""
    rng = np.random.default_rng(1)
    family = pair.family.split()[0]
    lengths = np.array(FRAMES[family], np.int32)
    shape = (len(lengths), max(lengths)) + (() if family == "conformer" else (pair.files.features.width,))
    inputs = rng.standard_normal(shape)
    mask = np.arange(max(lengths))[None] < lengths[:, None]
    return np.where(mask.reshape(mask.shape + (1,) * (inputs.ndim - 2)), inputs, 0.0), mask.astype(np.int64), lengths


def behind_features(pair):
    """Inputs of `FromFeatures`: the waveform of a CNN has an axis of one channel."""
    inputs, mask, lengths = given(pair)
    return inputs, (inputs[..., None] if inputs.ndim == 2 else inputs), mask, lengths


def differences(pair, torch_dtype, dtype):
    """The largest difference from given features, with the BatchNorm folded and, where there is one, kept."""
    inputs, features, mask, lengths = behind_features(pair)
    expected = torch_log_probs(pair, inputs, mask, torch_dtype)
    found = {}
    for kept in (False, True) if pair.kept[0] != pair.files.encoder else (False,):
        actual, frames = jax_log_probs(pair, features, lengths, features=True, dtype=dtype, kept=kept)
        found["kept" if kept else "folded"] = compare(expected, actual, frames)
    print(f"{pair.family}: features {jnp.dtype(dtype)} " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    return max(found.values())


def test_from_features_in_float32(pair):
    import torch

    assert differences(pair, torch.float32, jnp.float32) < 1e-4


def test_from_features_in_float64(pair):
    import torch

    with jax.enable_x64(True):
        assert differences(pair, torch.float64, jnp.float64) < 1e-6


def test_from_the_waveform_in_float32(pair):
    import torch

    rng = np.random.default_rng(2)
    time = np.arange(max(SAMPLES)) / 16000
    rows = [
        (0.1 * np.sin(2000 * time * (row + 1) * time) + 0.03 * rng.standard_normal(time.size))[:length]
        for row, length in enumerate(SAMPLES)
    ]
    rows = [row.astype(np.float32) for row in rows]
    batch = pair.extractor(rows, sampling_rate=16000, return_tensors="np", padding=True, return_attention_mask=True)
    name = "input_features" if "input_features" in batch else "input_values"
    expected = torch_log_probs(pair, batch[name], np.asarray(batch["attention_mask"], np.int64), torch.float32)
    waveform = np.zeros((len(rows), max(SAMPLES)), np.float32)
    for row, samples in enumerate(rows):
        waveform[row, : len(samples)] = samples
    actual, frames = jax_log_probs(pair, waveform, np.array(SAMPLES, np.int32))
    differences = np.concatenate(
        [np.abs(expected[row, :n] - actual[row, :n]).reshape(-1) for row, n in enumerate(frames)]
    )
    print(f"{pair.family}: waveform float32 mean {differences.mean():.1e} max {differences.max():.1e}")
    assert len(frames) == 4 and min(frames) >= 1
    assert differences.mean() < 1e-4 and differences.max() < 2e-3


# One setting that is another than the publisher's; the same comparison must see it.
WRONG = {
    "lasr": {"conv_mask": "none"},
    "parakeet": {"conv_mask": "none"},
    "conformer relative": {"conv_mask": "post_glu"},
    "conformer rotary": {"position": "rope_qk"},
    "w2v-bert relative_key": {"conv_padding": "same"},
    "w2v-bert rotary": {"position": "rope_qk"},
    "seamless": {"context": "full", "left_context": -1, "chunk": 0},
}


@pytest.mark.parametrize("pair", WRONG, indirect=True)
def test_one_setting_that_is_wrong_is_seen(pair):
    import torch

    inputs, features, mask, lengths = behind_features(pair)
    expected = torch_log_probs(pair, inputs, mask, torch.float32)
    actual, frames = jax_log_probs(pair, features, lengths, features=True, **WRONG[pair.family])
    assert compare(expected, actual, frames) > 1e-3
