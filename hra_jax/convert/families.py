"""What a family of published encoders is, and all of them by the `model_type` of their config.json."""

import fnmatch
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from hra_jax.convert.rules import Rule
from hra_jax.errors import UserError
from hra_jax.models.config import EncoderConfig, FeatureConfig


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


def find(config: dict, where: str) -> tuple[Family, str]:
    """The family and the architecture that a config.json names.

    Args:
      config: the object in config.json.
      where: the file, for errors.

    Raises:
      UserError: a model type or an architecture that cannot be converted; the line lists what can be.
    """
    from hra_jax.convert import lasr, parakeet, seamless_m4t_v2, wav2vec2_bert, wav2vec2_conformer

    known = {
        "wav2vec2-bert": wav2vec2_bert.FAMILY,
        "wav2vec2-conformer": wav2vec2_conformer.FAMILY,
        "parakeet_ctc": parakeet.FAMILY,
        "lasr_ctc": lasr.FAMILY,
        "seamless_m4t_v2": seamless_m4t_v2.FAMILY,
    }
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"{where}: model_type is {str(kind)[:60]!r}; allowed: {', '.join(known)}")
    family = known[kind]
    named = config.get("architectures")
    if not (isinstance(named, list) and len(named) == 1 and named[0] in family.architectures):
        allowed = " or ".join(family.architectures)
        raise UserError(f"{where}: architectures is {str(named)[:80]}; allowed for {kind}: one of {allowed}")
    return family, named[0]
