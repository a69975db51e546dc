"""What a family of published encoders is: everything that differs from family to family."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from hra_jax.convert.tensor_rules import Rule
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.text.tokenizer_files import vocabulary_from_folder

_MISSING = object()


class Architecture(NamedTuple):
    """Where a class of models has its encoder, and its head."""

    prefix: str  # of the encoder's keys, with a dot at its end; '' where the encoder is all there is
    head: str | None = None  # of the keys of the CTC head; None where there is none


class Extractor(NamedTuple):
    """The feature extractor of preprocessor_config.json."""

    name: str  # its class
    defaults: dict[str, Any]  # of its settings, as `settings.select` takes them
    features: Callable[[SimpleNamespace], FeatureConfig]  # from those settings


class TorchEncoder(NamedTuple):
    """The encoder in transformers, for `hra_jax.torch`."""

    block: str  # class of its blocks, which lie in one ModuleList
    frames: str | None = None  # method of the model that turns lengths into frames; None: as many as it was given
    # Whether padded frames are zero where the depthwise convolution reads them; where not, hra_jax.torch zeroes them.
    masks_convolutions: bool = True


def _needed(meaning: str) -> Any:
    """A field that every family gives; `meaning` says what it is where one does not."""
    return dataclasses.field(default=_MISSING, metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`.

    Attributes:
      name: for people.
      model_type: in config.json.
      architectures: class of models (`architectures` in config.json) -> where it has its encoder and head.
      extractor: its feature extractor.
      encoder: takes the object in config.json, the feature settings, the vocabulary size, whether BatchNorm is folded
        and the file for errors; gives the geometry.
      rules: takes the geometry and the architecture; gives one rule for each tensor of the backbone.
      torch: its encoder in transformers; None where `hra_jax.torch` cannot adapt it.
      ignored: patterns of source tensors that are not used (`*` for anything, `{prefix}` for that of the encoder) ->
        the reason.
      head_defaults: defaults of vocab_size and pad_token_id in config.json, where an architecture has a head.
      computed: patterns of ignored tensors that the encoder computes itself -> their values. Others are refused.
      models: published models by name, for `backbone=abstract:NAME` -> feature settings and geometry as converted.
      tokenizer: takes the folder, the number of outputs and the id of the blank; gives the vocabulary, or None where
        there is no file of a tokenizer.

    Raises:
      UserError: an attribute without a default is missing.
    """

    name: str = _needed("what people call it")
    model_type: str = _needed("the model_type in config.json")
    architectures: Mapping[str, Architecture] = _needed("classes of models, with where their encoder and head are")
    extractor: Extractor = _needed("the feature extractor in preprocessor_config.json")
    encoder: Callable[[dict, FeatureConfig, int, bool, str], EncoderConfig] = _needed("config.json to a geometry")
    rules: Callable[[EncoderConfig, Architecture], tuple[Rule, ...]] = _needed("source tensors to tensors")
    torch: TorchEncoder | None = _needed("its encoder in transformers, or None if hra_jax.torch cannot adapt it")
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head_defaults: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
    computed: Mapping[str, Callable[[EncoderConfig], np.ndarray]] = dataclasses.field(default_factory=dict)
    models: Mapping[str, tuple[FeatureConfig, EncoderConfig]] = dataclasses.field(default_factory=dict)
    tokenizer: Callable[..., Any] = vocabulary_from_folder

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is _MISSING:
                name = "a family" if self.name is _MISSING else f"family {self.name!r}"
                raise UserError(f"{name} lacks {field.name}: {field.metadata['meaning']}")

    def reason(self, key: str, architecture: Architecture) -> tuple[str, str] | None:
        """The pattern that ignores a source key, and its reason; None where the key is not ignored."""
        for pattern, reason in self.ignored.items():
            pattern = pattern.replace("{prefix}", architecture.prefix)
            if fnmatch.fnmatchcase(key, pattern):
                return pattern, reason
        return None
