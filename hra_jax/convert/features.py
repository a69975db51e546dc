"""Feature settings from the preprocessor_config.json of a published folder."""

import dataclasses

from etils import epath

from hra_jax.convert.settings import Only, read_json, select
from hra_jax.errors import UserError
from hra_jax.models import published
from hra_jax.models.features import FeatureConfig

_COMMON = {"sampling_rate": Only(16000, (16000,)), "padding_side": Only("right", ("right",))}
# What the classes take where the file does not say. What they pad with is not read: invalid frames reach nothing.
_DEFAULTS = {
    "SeamlessM4TFeatureExtractor": {"num_mel_bins": 80, "stride": 2},
    "Wav2Vec2FeatureExtractor": {"feature_size": Only(1, (1,)), "do_normalize": True},
    "ParakeetFeatureExtractor": {
        "feature_size": 80,
        "hop_length": 160,
        "n_fft": 512,
        "win_length": 400,
        "preemphasis": 0.97,
    },
    "LasrFeatureExtractor": {"feature_size": 128, "hop_length": 160, "n_fft": 512, "win_length": 400},
}


def _find(folder: epath.Path) -> tuple[dict, str]:
    """The settings of the feature extractor, and the file that has them."""
    path, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not path.exists() and newer.exists():
        values = read_json(newer).get("feature_extractor")
        if not isinstance(values, dict):
            raise UserError(f"{newer}: lacks an object 'feature_extractor', and {path.name} is not there")
        return values, str(newer)
    return read_json(path), str(path)


def read(folder: epath.Path, extractor: str) -> FeatureConfig:
    """The feature settings of a folder.

    Args:
      folder: has preprocessor_config.json, or processor_config.json with an object `feature_extractor`.
      extractor: the class of the feature extractor that the model needs.

    Raises:
      UserError: no such file, another extractor, or a setting that is not supported.
    """
    values, where = _find(folder)
    named = values.get("feature_extractor_type", extractor)
    if named != extractor:
        raise UserError(f"{where}: feature_extractor_type is {str(named)[:60]!r}; this model needs {extractor!r}")
    found = select(values, _COMMON | _DEFAULTS[extractor], where=where)
    if extractor == "Wav2Vec2FeatureExtractor":
        normalization = published.WAV2VEC2.normalization if found.do_normalize else "none"
        return dataclasses.replace(published.WAV2VEC2, normalization=normalization)
    if extractor == "SeamlessM4TFeatureExtractor":
        return dataclasses.replace(published.W2V_BERT, bins=found.num_mel_bins, stack=found.stride)
    spectra = {
        "bins": found.feature_size,
        "hop": found.hop_length / found.sampling_rate,
        "window": found.win_length / found.sampling_rate,
        "fft": found.n_fft,
    }
    if extractor == "LasrFeatureExtractor":
        return dataclasses.replace(published.LASR, **spectra)
    return dataclasses.replace(published.PARAKEET, preemphasis=float(found.preemphasis), **spectra)
