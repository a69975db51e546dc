"""What a family of published encoders is."""

import fnmatch
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from hra_jax.convert.tensor_rules import Rule
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig


class Architecture(NamedTuple):
    """Where a class of models has its encoder, and its head."""

    prefix: str  # of the encoder's keys, with a dot at its end; '' where the encoder is all there is
    head: str | None = None  # of the keys of the CTC head; None where there is none


class Family(NamedTuple):
    """One `model_type`.

    `encoder` takes (the object in config.json, the feature settings, the vocabulary size, whether BatchNorm is folded,
    the file for errors) and gives the geometry. `rules` takes (the geometry, the architecture) and gives the rules of
    all tensors. `ignored` maps patterns (`*` for anything, `{prefix}` for that of the encoder) to the reason.
    `computed` gives the values of those ignored tensors that the encoder computes itself: others are refused.
    """

    name: str
    architectures: dict[str, Architecture]
    extractor: str  # class of the feature extractor
    encoder: Callable[[dict, FeatureConfig, int, bool, str], EncoderConfig]
    rules: Callable[[EncoderConfig, Architecture], tuple[Rule, ...]]
    ignored: dict[str, str]
    head_defaults: dict  # of vocab_size and pad_token_id
    computed: dict[str, Callable[[EncoderConfig], np.ndarray]] = MappingProxyType({})

    def reason(self, key: str, architecture: Architecture) -> tuple[str, str] | None:
        """The pattern that ignores a source key, and its reason; None where the key is not ignored."""
        for pattern, reason in self.ignored.items():
            pattern = pattern.replace("{prefix}", architecture.prefix)
            if fnmatch.fnmatchcase(key, pattern):
                return pattern, reason
        return None
