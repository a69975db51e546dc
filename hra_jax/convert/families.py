"""All families that can be converted, by the `model_type` of their config.json."""

from hra_jax.convert import lasr, parakeet, seamless_m4t_v2, wav2vec2_bert, wav2vec2_conformer
from hra_jax.convert.family import Family
from hra_jax.errors import UserError

FAMILIES = {
    "wav2vec2-bert": wav2vec2_bert.FAMILY,
    "wav2vec2-conformer": wav2vec2_conformer.FAMILY,
    "parakeet_ctc": parakeet.FAMILY,
    "lasr_ctc": lasr.FAMILY,
    "seamless_m4t_v2": seamless_m4t_v2.FAMILY,
}


def find(config: dict, where: str) -> tuple[Family, str]:
    """The family and the architecture that a config.json names.

    Args:
      config: the object in config.json.
      where: the file, for errors.

    Raises:
      UserError: a model type or an architecture that cannot be converted; the line lists what can be.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"{where}: model_type is {str(kind)[:60]!r}; allowed: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    named = config.get("architectures")
    if not (isinstance(named, list) and len(named) == 1 and named[0] in family.architectures):
        allowed = " or ".join(family.architectures)
        raise UserError(f"{where}: architectures is {str(named)[:80]}; allowed for {kind}: one of {allowed}")
    return family, named[0]
