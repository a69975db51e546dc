"""Feature settings from the preprocessor_config.json of a published folder."""

from typing import Any

from etils import epath

from hra_jax.convert.family import Extractor
from hra_jax.convert.settings import Only, select
from hra_jax.errors import UserError
from hra_jax.models.features import FeatureConfig
from hra_jax.storage.json_files import read_object

# The value of padding is not read: invalid frames reach nothing.
_COMMON: dict[str, Any] = {"sampling_rate": Only(16000, (16000,)), "padding_side": Only("right", ("right",))}


def _find(folder: epath.Path) -> tuple[dict, str]:
    """The settings of the feature extractor, and the file that has them."""
    path, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not path.exists() and newer.exists():
        values = read_object(newer).get("feature_extractor")
        if not isinstance(values, dict):
            raise UserError(f"{newer}: lacks an object 'feature_extractor', and {path.name} is not there")
        return values, str(newer)
    return read_object(path), str(path)


def read(folder: epath.Path, extractor: Extractor) -> FeatureConfig:
    """The feature settings of a folder.

    Args:
      folder: has preprocessor_config.json, or processor_config.json with an object `feature_extractor`.
      extractor: the feature extractor that the model needs.

    Raises:
      UserError: no such file, another extractor, or a setting that is not supported.
    """
    values, where = _find(folder)
    named = values.get("feature_extractor_type", extractor.name)
    if named != extractor.name:
        raise UserError(f"{where}: feature_extractor_type is {str(named)[:60]!r}; this model needs {extractor.name!r}")
    return extractor.features(select(values, _COMMON | extractor.defaults, where=where))
