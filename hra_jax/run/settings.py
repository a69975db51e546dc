"""Settings of a run that belong to no part of it alone: the keys without a group, and those of pre-training."""

import dataclasses

from hra_jax.config.settings import check_settings, integer, number, one_of, setting, text
from hra_jax.models.conformer import REMAT_POLICIES
from hra_jax.models.dtypes import COMPUTE_DTYPES
from hra_jax.models.encoder_config import SIZES
from hra_jax.text.vocabularies import LEARNT_VOCABULARIES

METHODS = ("adapter", "full", "pretrain")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The keys without a group."""

    seed: int = setting(
        0, integer(0, 2**32 - 1), "of initial weights, the order of the data, augmentation, dropout and synthesis"
    )
    steps: int = setting(1000, integer(1), "optimizer steps")
    method: str = setting(
        "adapter", one_of(lambda: METHODS), "adapter, full (fine-tune the backbone) or pretrain (from random weights)"
    )
    backbone: str = setting(
        "builtin:tiny",
        text(empty=False),
        "folder, builtin:NAME, or shapes alone: abstract, abstract:MODEL; unused by pretrain",
    )
    backbone_dtype: str = setting(
        "auto",
        one_of(lambda: COMPUTE_DTYPES),
        "of frozen weights and activations; auto: bfloat16 on TPU and GPU, float32 on CPU",
    )
    dropout: float = setting(
        0.0, number(0, 1), "on the residual branches of the encoder, frozen or not; in training only"
    )
    remat: str = setting(
        "none",
        one_of(REMAT_POLICIES.keys),
        "rematerialisation policy, what the backward pass recomputes: none, full (every layer), dots (all but the "
        "projections)",
    )
    attention_block: int = setting(
        -1,
        integer(-1),
        "queries that attention takes at a time, their scores recomputed in the backward pass; 0: all; -1: on TPUs as "
        "many heads and queries as keep their scores on the chip, elsewhere all",
    )
    accumulate: int = setting(1, integer(1), "gradient accumulation: micro-batches per optimizer step")

    def __post_init__(self) -> None:
        check_settings(self, "")


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """The keys `pretrain.*`: the new backbone of method pretrain, and what the backbone `abstract` stands for."""

    size: str = setting("tiny", one_of(SIZES.keys), "of the new backbone")
    vocabulary: str = setting("characters", one_of(lambda: LEARNT_VOCABULARIES), "made from the training texts")
    sentencepiece_size: int = setting(512, integer(8), "pieces of a sentencepiece vocabulary")

    def __post_init__(self) -> None:
        check_settings(self, "pretrain")
