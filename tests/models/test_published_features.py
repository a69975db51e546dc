"""Features and subsamplers against the publishers' own code (transformers and torch, on a CPU).

The feature extractors round to float32 in places. Where a bin hardly varies (8 kHz speech at 16 kHz has empty ones),
normalisation enlarges that: Parakeet's features then differ from themselves in float64 by 3e-4 in the mean and by 0.2
at most. So they are compared in float64 there, and as they are on audio that fills the band.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr
from reference.precision import enable_x64

from hra_jax.convert.families import lasr, parakeet, wav2vec2_bert, wav2vec2_conformer
from hra_jax.data import audio
from hra_jax.models import frontend, subsampling
from hra_jax.models.encoder_config import EncoderConfig

pytestmark = pytest.mark.slow
RATE = 16000
SETTINGS = {
    "w2v_bert": wav2vec2_bert.FEATURES,
    "parakeet": parakeet.FEATURES,
    "lasr": lasr.FEATURES,
    "wav2vec2": wav2vec2_conformer.FEATURES,
}


def extractor(name):
    """The publisher's feature extractor: waveforms -> features `[B, T, F]` and a mask `[B, T]`, numpy."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    if name == "w2v_bert":
        made, settings = transformers.SeamlessM4TFeatureExtractor(padding_value=1), {}
    elif name == "parakeet":
        made, settings = transformers.ParakeetFeatureExtractor(), {}
    elif name == "lasr":
        made, settings = transformers.LasrFeatureExtractor(), {"return_attention_mask": True}
    else:
        made, settings = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True), {"padding": True}

    def extract(waves):
        found = made(waves, sampling_rate=RATE, return_tensors="pt", **settings)
        values = found["input_values"][..., None] if name == "wav2vec2" else found["input_features"]
        return values.numpy(), found["attention_mask"].numpy().astype(bool)

    return extract


def parakeet_in_float64():
    """Parakeet's extractor with its window, transform, filters and normalisation in float64."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    made = transformers.ParakeetFeatureExtractor()
    made.mel_filters = made.mel_filters.double()
    pad = made.pad

    def padded_in_float64(*args, **kwargs):
        found = pad(*args, **kwargs)
        found["input_features"] = found["input_features"].double()
        return found

    made.pad = padded_in_float64

    def extract(waves):
        torch.set_default_dtype(torch.float64)
        try:
            found = made(waves, sampling_rate=RATE)
        finally:
            torch.set_default_dtype(torch.float32)
        values = found["input_features"].numpy()
        assert values.dtype == np.float64
        return values, found["attention_mask"].numpy()

    return extract


def full_band():
    """White and pink noise with chirps, made at 16 kHz and at 44.1 kHz; lengths in and between frames."""
    rng, waves = np.random.default_rng(0), []
    for index, (rate, seconds) in enumerate([(16000, 1.0), (16000, 2.0831), (44100, 1.5), (44100, 0.2701), (16000, 7)]):
        time = np.arange(int(seconds * rate)) / rate
        white = rng.standard_normal(len(time))
        tilt = np.maximum(np.arange(len(time) // 2 + 1), 1.0) ** -0.5
        pink = np.fft.irfft(np.fft.rfft(rng.standard_normal(len(time))) * tilt, len(time))
        noise = white if index % 2 else pink / pink.std()
        chirp = np.sin(2 * np.pi * (100 + 3000 / seconds * time / 2) * time)
        wave = ((0.2 * chirp + 0.1 * noise) * (1.0, 0.1, 0.5)[index % 3]).astype(np.float32)
        waves.append(wave if rate == RATE else soxr.resample(wave, rate, RATE, quality="HQ"))
    return waves


def digits(folder):
    """64 recordings of 8 kHz at 16 kHz."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [audio.decode_file(str(folder / row["audio_filepath"]), RATE) for row in rows[:: len(rows) // 64][:64]]


def differences(expected, waves, config, *, dtype=np.float32):
    """Absolute differences on valid frames; the masks must be ours."""
    values, mask = expected
    lengths = np.array([len(wave) for wave in waves], np.int32)
    batch = np.full((len(waves), lengths.max() + 77), np.nan, dtype)
    for row, wave in enumerate(waves):
        batch[row, : len(wave)] = wave
    with enable_x64(dtype == np.float64):
        out, frames = jax.jit(lambda x, n: frontend.extract(x, n, config))(batch, lengths)
    assert out.dtype == dtype
    np.testing.assert_array_equal(mask.sum(axis=1), frames)
    np.testing.assert_array_equal(mask, np.arange(mask.shape[1])[None] < np.asarray(frames)[:, None])
    pairs = zip(values, np.asarray(out), frames.tolist(), strict=True)
    return np.concatenate([np.abs(a[:count] - b[:count]).ravel() for a, b, count in pairs])


def figures(label, found):
    """(largest, mean, 99th percentile), printed."""
    values = found.max(), found.mean(), np.quantile(found, 0.99)
    print("{}: max {:.1e}, mean {:.1e}, p99 {:.1e}".format(label, *values))
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_full_band_features_are_those_of_the_publisher_padded_or_not(name, dtype):
    waves, extract = full_band(), extractor(name)
    found = differences(extract(waves), waves, SETTINGS[name], dtype=dtype)
    assert figures(f"{name}, batch", found)[0] <= 1e-4
    for wave in waves[:3]:
        found = differences(extract([wave]), [wave], SETTINGS[name], dtype=dtype)
        assert figures(f"{name}, alone", found)[0] <= 1e-4


@pytest.mark.parametrize("name", list(SETTINGS))
def test_features_of_upsampled_speech_are_those_of_the_publisher(name, fsdd_dir):
    waves, config = digits(fsdd_dir), SETTINGS[name]
    expected = parakeet_in_float64()(waves) if name == "parakeet" else extractor(name)(waves)
    _, mean, most = figures(f"{name}, float32", differences(expected, waves, config))
    assert mean <= 1e-4 and most <= 2e-3
    largest, _, _ = figures(f"{name}, float64", differences(expected, waves, config, dtype=np.float64))
    assert largest <= 1e-4


def test_upsampled_speech_is_as_near_to_parakeets_features_as_they_are_to_their_own_formula(fsdd_dir):
    waves, config = digits(fsdd_dir), parakeet.FEATURES
    as_shipped, in_float64 = extractor("parakeet")(waves), parakeet_in_float64()(waves)
    mask = as_shipped[1]
    rounding = figures("parakeet, from itself in float64", np.abs(as_shipped[0] - in_float64[0])[mask])
    ours = figures("parakeet as shipped, float32", differences(as_shipped, waves, config))
    assert all(a <= 1.1 * b for a, b in zip(ours, rounding, strict=True)) and rounding[1] <= 1e-3


# --- subsamplers ---


def drawn(module, torch):
    """A module of float64 in which every weight is drawn at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator) / max(1.0, weight[0].numel() ** 0.5))
    return module.double().eval()


def compare(encoder: EncoderConfig, params, features, lengths, expected):
    """Whether valid frames are within 1e-5 of the expected ones; `features` [B, T, F], `expected` [B, T', D]."""
    module = subsampling.make(encoder, dtype=jnp.float32, name=None)
    shapes = jax.eval_shape(module.init, jax.random.key(0), features, lengths)["params"]
    params = jax.tree.map(lambda leaf: leaf.detach().numpy().astype(np.float32), params)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, nn.unbox(shapes))
    out, counts = jax.jit(module.apply)({"params": params}, features, lengths)
    assert out.shape == expected.shape and counts.max() == out.shape[1] and counts.min() < out.shape[1]
    valid = np.arange(out.shape[1])[None] < np.asarray(counts)[:, None]
    largest = np.abs(out - expected)[valid].max()
    print(f"{encoder.subsampler}: max {largest:.1e}")
    assert largest <= 1e-5 * max(1.0, np.abs(expected).max())
    return counts


def linear(module):
    return {"kernel": module.weight.T, "bias": module.bias}


def norm(module):
    return {"scale": module.weight, "bias": module.bias}


def geometry(**changes):
    settings = dict(d_model=16, n_layers=1, n_heads=2, d_ff=8, kernel=3, vocab_size=4, subsampling_channels=6)
    return EncoderConfig(**settings | changes)


def random_features(lengths, width):
    x = np.random.default_rng(1).standard_normal((len(lengths), max(lengths), width)).astype(np.float32)
    return np.where(np.arange(max(lengths))[None, :, None] < np.array(lengths)[:, None, None], x, np.float32(0))


def test_wave_convolutions_are_those_of_wav2vec2_conformer():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer")
    config = theirs.Wav2Vec2ConformerConfig(
        hidden_size=16, conv_dim=(6,) * 7, conv_bias=True, feat_extract_norm="layer", feat_proj_dropout=0.0
    )
    extract = drawn(theirs.Wav2Vec2ConformerFeatureEncoder(config), torch)
    project = drawn(theirs.Wav2Vec2ConformerFeatureProjection(config), torch)
    lengths = [4000, 3333, 1200, 400]
    x = random_features(lengths, 1)
    expected = project(extract(torch.tensor(x[..., 0]).double()).transpose(1, 2))[0].detach().numpy()
    params = {"norm": norm(project.layer_norm), "projection": linear(project.projection)}
    for index, layer in enumerate(extract.conv_layers):
        params[f"conv_{index}_kernel"] = layer.conv.weight.permute(2, 1, 0)
        params |= {f"conv_{index}_bias": layer.conv.bias, f"norm_{index}": norm(layer.layer_norm)}
    counts = compare(geometry(subsampler="wave_cnn", subsampling=320), params, x, np.array(lengths), expected)
    assert counts.tolist() == [12, 10, 3, 1]


def test_norm_and_projection_are_those_of_w2v_bert():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert")
    config = theirs.Wav2Vec2BertConfig(hidden_size=16, feature_projection_input_dim=20, feat_proj_dropout=0.0)
    project = drawn(theirs.Wav2Vec2BertFeatureProjection(config), torch)
    x = random_features([9, 5], 20)
    expected = project(torch.tensor(x).double())[0].detach().numpy()
    params = {"norm": norm(project.layer_norm), "projection": linear(project.projection)}
    compare(geometry(subsampler="projection", subsampling=1), params, x, np.array([9, 5]), expected)


def test_separable_convolutions_are_those_of_parakeet():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.parakeet.modeling_parakeet")
    config = theirs.ParakeetEncoderConfig(hidden_size=16, subsampling_conv_channels=6, num_mel_bins=16)
    module = drawn(theirs.ParakeetEncoderSubsamplingConv2D(config), torch)
    lengths = np.array([57, 56, 41, 9, 8, 1])
    x = random_features(lengths, 16)
    mask = torch.tensor(np.arange(57)[None] < lengths[:, None])
    expected = module(torch.tensor(x).double(), mask).detach().numpy()
    convolutions = [layer for layer in module.layers if hasattr(layer, "weight")]
    # Theirs flattens channel by channel, ours bin by bin.
    kernel = module.linear.weight.reshape(16, 6, 2).permute(2, 1, 0).reshape(12, 16)
    params = {"projection": {"kernel": kernel, "bias": module.linear.bias}}
    params |= {"conv_0_kernel": convolutions[0].weight.permute(2, 3, 1, 0), "conv_0_bias": convolutions[0].bias}
    for index in (1, 2):
        depthwise, pointwise = convolutions[2 * index - 1 : 2 * index + 1]
        params[f"depthwise_{index}_kernel"] = depthwise.weight.permute(2, 3, 1, 0)
        params[f"depthwise_{index}_bias"] = depthwise.bias
        params[f"pointwise_{index}"] = {"kernel": pointwise.weight[:, :, 0, 0].T, "bias": pointwise.bias}
    counts = compare(geometry(subsampler="conv2d_separable", subsampling=8), params, x, lengths, expected)
    assert counts.tolist() == [8, 7, 6, 2, 1, 1]


def test_convolutions_over_time_are_those_of_lasr():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.lasr.modeling_lasr")
    config = theirs.LasrEncoderConfig(hidden_size=16, subsampling_conv_channels=6, num_mel_bins=10)
    module = drawn(theirs.LasrEncoderSubsampling(config), torch)
    lengths = np.array([57, 56, 13, 12])
    x = random_features(lengths, 10)
    expected = module(torch.tensor(x).double()).detach().numpy()
    params = {"input": linear(module.dense_0), "projection": linear(module.dense_1)}
    for index, layer in enumerate((module.conv_0, module.conv_1)):
        params |= {f"conv_{index}_kernel": layer.weight.permute(2, 1, 0), f"conv_{index}_bias": layer.bias}
    counts = compare(geometry(subsampler="conv1d", subsampling=4), params, x, lengths, expected)
    assert counts.tolist() == [12, 11, 1, 0]
