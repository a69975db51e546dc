"""Converted backbones give the log-probabilities of transformers on the same weights.

Tiny models with odd settings and short inputs, and the published geometries at full width with four layers. Every
parameter and statistic is drawn at random, nothing is zero or one. Batches are ragged. float32 within 1e-4, float64
within 1e-6 (transformers has its tables of sinusoids in float32).
"""

import dataclasses
import functools
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import published
from reference.precision import enable_x64

from hra_jax.adapters.base import unbound
from hra_jax.convert import families
from hra_jax.convert.conversion import convert
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel

pytestmark = pytest.mark.slow(minutes=0.04)

EXTRACTORS = {
    "w2v-bert": ("SeamlessM4TFeatureExtractor", {"padding_value": 1}),
    "seamless": ("SeamlessM4TFeatureExtractor", {}),
    "conformer": ("Wav2Vec2FeatureExtractor", {"return_attention_mask": True}),
    "parakeet": ("ParakeetFeatureExtractor", {}),
    "lasr": ("LasrFeatureExtractor", {}),
}


class Size(NamedTuple):
    """What the families are built with."""

    settings: dict  # by family: what is not the default of the class of the configuration
    outputs: dict  # by family: of the CTC head
    frames: dict  # by family: feature frames (or samples of the waveform) of the rows of a batch
    samples: tuple  # of the rows of a batch of waveforms
    frames64: dict  # what is instead of `frames` in float64, in which XLA convolves slowly on CPUs


def tiny() -> Size:
    """Three layers of 16 values, with settings that no published model has."""
    meta = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
    block = dict(left_max_position_embeddings=5, right_max_position_embeddings=3, conv_depthwise_kernel_size=5)
    waves = dict(hidden_act="swish", feat_extract_norm="layer", conv_bias=True, conv_dim=(8,) * 7)
    waves |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    seamless = dict(hidden_size=16, speech_encoder_layers=3, speech_encoder_attention_heads=2)
    seamless |= dict(speech_encoder_intermediate_size=24, speech_encoder_chunk_size=7, speech_encoder_left_chunk_num=2)
    inner = meta | dict(subsampling_conv_channels=6)
    short = {"w2v-bert": (37, 30, 5, 1), "seamless": (37, 30, 5, 1), "conformer": (16001, 12345, 7777, 450)}
    return Size(
        settings={
            "w2v-bert": meta | block,
            "conformer": meta | block | waves,
            "parakeet": inner,
            "lasr": inner | dict(num_mel_bins=128),
            "seamless": seamless | block,
        },
        outputs=dict.fromkeys(EXTRACTORS, published.V),
        frames=short | {"parakeet": (83, 64, 17, 3), "lasr": (83, 64, 31, 13)},
        samples=(16001, 12345, 7777, 2500),
        frames64={},
    )


def full_width() -> Size:
    """The first four layers of the published geometries, which are those of the class defaults but for one."""
    large = dict(hidden_size=1024, num_attention_heads=16, intermediate_size=4096)
    four = dict(num_hidden_layers=4)
    seconds = (3.0, 2.51, 2.0)
    rates = {"w2v-bert": 50, "seamless": 50, "conformer": 16000, "parakeet": 100, "lasr": 100}
    return Size(
        settings={
            "w2v-bert": four,
            "conformer": four | large | dict(hidden_act="swish", feat_extract_norm="layer", conv_bias=True),
            "parakeet": four,
            "lasr": four,
            "seamless": dict(speech_encoder_layers=4),
        },
        outputs={"w2v-bert": 32, "conformer": 32, "parakeet": 1025, "lasr": 512, "seamless": 1},
        frames={family: tuple(round(rate * length) for length in seconds) for family, rate in rates.items()},
        samples=(80000, 51237, 32000),
        frames64={"conformer": (3001, 2345, 1600)},
    )


TINY, FULL = tiny(), full_width()


class Case(NamedTuple):
    """A model of transformers: its class, the class of its configuration and the settings of that, its size."""

    model: str
    config: str
    settings: dict
    size: Size


def cases(size: Size) -> dict[str, Case]:
    """Every family with every kind of position that it has."""
    found = {}
    for kind in ("relative_key", "relative", "rotary", None):
        settings = size.settings["w2v-bert"] | {
            "position_embeddings_type": kind,
            "vocab_size": size.outputs["w2v-bert"],
        }
        found[f"w2v-bert {kind}".lower()] = Case("Wav2Vec2BertForCTC", "Wav2Vec2BertConfig", settings, size)
    for kind in ("relative", "rotary"):
        settings = size.settings["conformer"] | {"position_embeddings_type": kind}
        settings |= {"vocab_size": size.outputs["conformer"]}
        found[f"conformer {kind}"] = Case("Wav2Vec2ConformerForCTC", "Wav2Vec2ConformerConfig", settings, size)
    for family, blank in {"parakeet": size.outputs["parakeet"] - 1, "lasr": 0}.items():
        settings = {"encoder_config": size.settings[family], "vocab_size": size.outputs[family], "pad_token_id": blank}
        found[family] = Case(f"{family.title()}ForCTC", f"{family.title()}CTCConfig", settings, size)
    settings = size.settings["seamless"]
    return found | {"seamless": Case("SeamlessM4Tv2SpeechEncoder", "SeamlessM4Tv2Config", settings, size)}


CASES = cases(TINY)
CASES["w2v-bert bare"] = Case("Wav2Vec2BertModel", "Wav2Vec2BertConfig", TINY.settings["w2v-bert"], TINY)
BARE = dict(attention_bias=False, convolution_bias=False, scale_input=False)
CASES["parakeet without biases"] = CASES["parakeet"]._replace(
    settings=CASES["parakeet"].settings | {"encoder_config": TINY.settings["parakeet"] | BARE}
)
CASES |= {f"{name}, full width": case for name, case in cases(FULL).items()}
# The published model whose first layers a case of full width has.
PUBLISHED = {
    "w2v-bert": "w2v_bert_2.0",
    "conformer": "wav2vec2_conformer_rel_pos",
    "parakeet": "parakeet_ctc_0.6b",
    "lasr": "medasr",
    "seamless": "seamless_m4t_v2",
}


class FromFeatures(AsrModel):
    """The model behind its features."""

    def _features(self, waveform, num_samples, sounds=None):
        return waveform, num_samples


@dataclasses.dataclass
class Pair:
    """A model of transformers and the backbone that was made of its files; weights are read when they are asked for."""

    name: str
    family: str
    case: Case
    torch: object
    extractor: object
    folded: backbone_folder.BackboneFiles
    kept: backbone_folder.BackboneFiles | None  # with the BatchNorm kept; None where there is none

    @property
    def in_batches(self) -> dict:
        """What is as transformers has it where it pads: of one family padding leaks into its convolutions there."""
        return {"conv_mask": "none"} if self.family == "conformer" else {}


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


def build(case, torch, transformers):
    """The model of transformers, with random weights."""
    torch.manual_seed(0)
    if case.model == "SeamlessM4Tv2SpeechEncoder":
        from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder as kind
    else:
        kind = getattr(transformers, case.model)
    model = kind(getattr(transformers, case.config)(**case.settings)).eval()
    randomise(model, torch)
    return model


def check_published(family, case, files):
    """A case of full width has the geometry of a published model but for what it is to have of its own."""
    features, encoder = families.models()[PUBLISHED[family]]
    own = dict(n_layers=4, position=files.encoder.position, vocab_size=case.size.outputs[family])
    assert (files.features, files.encoder) == (features, dataclasses.replace(encoder, **own))


@pytest.fixture(scope="module", params=list(CASES))
def pair(request, tmp_path_factory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name, case = request.param, CASES[request.param]
    family = name.split()[0].rstrip(",")
    model = build(case, torch, transformers)
    folder = tmp_path_factory.mktemp("published") / family
    model.save_pretrained(folder)
    extractor_kind, extractor_settings = EXTRACTORS[family]
    extractor = getattr(transformers, extractor_kind)(**extractor_settings)
    extractor.save_pretrained(folder)
    if case.model.endswith("ForCTC"):
        published.write_tokenizer(folder, model.config.pad_token_id, case.size.outputs[family])
    folded = backbone_folder.load(str(convert(folder, folder / "folded").folder))
    if case.size is FULL:
        check_published(family, case, folded)
    kept = None
    if folded.encoder.conv_norm == "none":
        kept = backbone_folder.load(str(convert(folder, folder / "kept", keep_batch_norm=True).folder))
    yield Pair(name, family, case, model, extractor, folded, kept)
    # A case of full width has half a gigabyte in memory, and thrice that in files.
    shutil.rmtree(folder)
    jax.clear_caches()


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
        if not pair.case.model.endswith("ForCTC"):
            return found.last_hidden_state.double().numpy()
        return torch.log_softmax(found.logits.double(), dim=-1).numpy()


@functools.lru_cache(maxsize=4)
def compiled(model):
    return jax.jit(model.apply)


def jax_log_probs(pair, inputs, lengths, *, dtype=jnp.float32, features=False, kept=False, **changes):
    """The same of the converted backbone, and the lengths."""
    files = pair.kept if kept else pair.folded
    encoder, params = dataclasses.replace(files.encoder, **changes), files.params
    model = (FromFeatures if features else AsrModel)(files.features, encoder, dtype=dtype)
    headless, width = encoder.vocab_size == 1, encoder.d_model
    if headless:
        # What the head sees comes out of a head that is the identity; log-softmax is undone by a last output of zero.
        params |= {"output": {"kernel": np.eye(width, width + 1), "bias": np.zeros(width + 1)}}
        model = model.clone(encoder=dataclasses.replace(encoder, vocab_size=width + 1))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    out, frames = compiled(model)({"params": params}, jnp.asarray(inputs, dtype), jnp.asarray(lengths), unbound())
    out = np.asarray(out, np.float64)
    return (out[..., :-1] - out[..., -1:] if headless else out), np.asarray(frames)


def apart(expected, actual, frames):
    """All differences on valid frames, of which there must be some in three rows."""
    rows = [np.abs(expected[row, :n] - actual[row, :n]).reshape(-1) for row, n in enumerate(frames)]
    assert sum(row.size > 0 for row in rows) >= 3 and max(frames) > 3
    found = np.concatenate(rows)
    assert np.isfinite(found).all()
    return found


def given(pair, dtype):
    """Random features `[B, T, F]` (the waveform where the model takes that), the mask, and lengths."""
    rng, size = np.random.default_rng(1), pair.case.size
    frames = size.frames | (size.frames64 if dtype == jnp.float64 else {})
    lengths = np.array(frames[pair.family], np.int32)
    shape = (len(lengths), max(lengths)) + (() if pair.family == "conformer" else (pair.folded.features.width,))
    inputs = rng.standard_normal(shape)
    mask = np.arange(max(lengths))[None] < lengths[:, None]
    return np.where(mask.reshape(mask.shape + (1,) * (inputs.ndim - 2)), inputs, 0.0), mask.astype(np.int64), lengths


def behind_features(pair, dtype=jnp.float32):
    """Inputs of `FromFeatures`: the waveform of a CNN has an axis of one channel."""
    inputs, mask, lengths = given(pair, dtype)
    return inputs, (inputs[..., None] if inputs.ndim == 2 else inputs), mask, lengths


def differences(pair, torch_dtype, dtype):
    """The largest difference from given features, with the BatchNorm folded and, where there is one, kept."""
    inputs, features, mask, lengths = behind_features(pair, dtype)
    expected = torch_log_probs(pair, inputs, mask, torch_dtype)
    found = {}
    for kept in (False, True) if pair.kept else (False,):
        options = pair.in_batches | {"features": True, "dtype": dtype, "kept": kept}
        actual, frames = jax_log_probs(pair, features, lengths, **options)
        found["kept" if kept else "folded"] = apart(expected, actual, frames).max()
    print(f"{pair.name}: features {jnp.dtype(dtype)} " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    return max(found.values())


def test_from_features_in_float32(pair):
    import torch

    assert differences(pair, torch.float32, jnp.float32) < 1e-4


def test_from_features_in_float64(pair):
    import torch

    with enable_x64(True):
        assert differences(pair, torch.float64, jnp.float64) < 1e-6


def test_from_the_waveform_in_float32(pair):
    import torch

    lengths = pair.case.size.samples
    rng = np.random.default_rng(2)
    time = np.arange(max(lengths)) / 16000
    rows = [
        (0.1 * np.sin(2000 * time * (row + 1) * time) + 0.03 * rng.standard_normal(time.size))[:length]
        for row, length in enumerate(lengths)
    ]
    rows = [row.astype(np.float32) for row in rows]
    batch = pair.extractor(rows, sampling_rate=16000, return_tensors="np", padding=True, return_attention_mask=True)
    name = "input_features" if "input_features" in batch else "input_values"
    expected = torch_log_probs(pair, batch[name], np.asarray(batch["attention_mask"], np.int64), torch.float32)
    waveform = np.zeros((len(rows), max(lengths)), np.float32)
    for row, samples in enumerate(rows):
        waveform[row, : len(samples)] = samples
    actual, frames = jax_log_probs(pair, waveform, np.array(lengths, np.int32), **pair.in_batches)
    found = apart(expected, actual, frames)
    print(f"{pair.name}: waveform float32 mean {found.mean():.1e} max {found.max():.1e}")
    assert min(frames) >= 1
    assert found.mean() < 1e-4 and found.max() < 2e-3


def test_an_utterance_in_a_batch_is_what_the_published_model_gives_for_it_alone(pair):
    import torch

    inputs, features, mask, lengths = behind_features(pair)
    actual, frames = jax_log_probs(pair, features, lengths, features=True)
    expected = np.zeros_like(actual)
    for row, length in enumerate(lengths):
        if frames[row]:
            alone = torch_log_probs(pair, inputs[row : row + 1, :length], mask[row : row + 1, :length], torch.float32)
            expected[row, : alone.shape[1], : alone.shape[2]] = alone[0]
    found = apart(expected, actual, frames).max()
    print(f"{pair.name}: alone float32 {found:.1e}")
    assert found < 1e-4


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
    actual, frames = jax_log_probs(pair, features, lengths, features=True, **pair.in_batches | WRONG[pair.name])
    assert apart(expected, actual, frames).max() > 1e-3
