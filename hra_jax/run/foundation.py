"""The backbone of a run: opened from its folder, laid out new for pre-training, or its geometry alone."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.adapters.base import unbound
from hra_jax.convert import families
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel
from hra_jax.models.encoder_config import EncoderConfig, named_size
from hra_jax.models.features import FeatureConfig
from hra_jax.run.settings import PretrainSettings
from hra_jax.text.vocabularies import (
    BlankVocabulary,
    CharacterVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_of_outputs,
)

ABSTRACT = "abstract"  # a backbone of shapes alone: of the size `pretrain.size`, or `abstract:` and a published one


@dataclasses.dataclass(frozen=True)
class Foundation:
    """What an encoder is built on: geometry, features, vocabulary, and the files of the weights where there are any."""

    features: FeatureConfig
    encoder: EncoderConfig
    vocabulary: Vocabulary  # without a character for shapes alone
    name: str
    fingerprint: str  # '' before there are weights
    files: backbone_folder.BackboneFiles | None  # where the weights are; None for pre-training and for shapes alone

    def output_length(self, num_samples: Any) -> Any:
        """Encoder frames of `num_samples` samples: int or int array, of the same shape."""
        return self.encoder.output_length(self.features, num_samples)

    def shapes(self) -> dict[str, Any]:
        """Shapes and dtypes (float32) of all weights, as a tree of `jax.ShapeDtypeStruct`."""
        return nn.unbox(backbone_folder.abstract_params(self.features, self.encoder))


def is_abstract(backbone: str) -> bool:
    """Whether a backbone is shapes without weights."""
    return backbone.partition(":")[0] == ABSTRACT


def check_has_weights(backbone: str) -> None:
    """Refuses, with a UserError, an abstract backbone where weights are needed."""
    if is_abstract(backbone):
        raise UserError(
            f"backbone = {backbone!r} has no weights; it is for hra_jax.params and hra_jax.aot; allowed here: "
            "builtin:NAME or a folder"
        )


def load(backbone: str) -> Foundation:
    """Opens a backbone; its weights stay in their files.

    Raises:
      UserError: no such backbone, a damaged folder, or an abstract backbone.
    """
    check_has_weights(backbone)
    files = backbone_folder.load(backbone)
    vocabulary = vocabulary_of_outputs(files.vocabulary, files.encoder.vocab_size, where=str(files.folder))
    return Foundation(files.features, files.encoder, vocabulary, files.info["name"], files.fingerprint, files)


def new(pretrain: PretrainSettings, texts: Sequence[str]) -> Foundation:
    """Lays out a new backbone around the vocabulary of normalised training texts.

    Raises:
      UserError: no such size, or texts that give no vocabulary of so many pieces.
    """
    vocabulary = vocabulary_of_texts(pretrain, texts)
    features, encoder = named_size(pretrain.size, vocabulary.size)
    return Foundation(features, encoder, vocabulary, pretrain.size, "", None)


def vocabulary_of_texts(pretrain: PretrainSettings, texts: Iterable[str]) -> Vocabulary:
    """The vocabulary that `pretrain.vocabulary` asks for, learnt from normalised texts."""
    if pretrain.vocabulary == "sentencepiece":
        return SentencePieceVocabulary.train(texts, pretrain.sentencepiece_size)
    return CharacterVocabulary(sorted({character for text in texts for character in text} | {" "}))


def shapes_alone(backbone: str, pretrain: PretrainSettings) -> Foundation:
    """The geometry of a backbone whose weights and vocabulary are not read; errors as for `geometry`."""
    features, encoder = geometry(backbone, pretrain)
    return Foundation(features, encoder, BlankVocabulary(), backbone, "", None)


def geometry(backbone: str, pretrain: PretrainSettings) -> tuple[FeatureConfig, EncoderConfig]:
    """Feature settings and geometry of a backbone, without its weights.

    Raises:
      UserError: no such backbone, a damaged one, or an abstract one whose vocabulary has no size before it is learnt.
    """
    if is_abstract(backbone) and backbone != ABSTRACT:
        name, models = backbone.partition(":")[2], families.models()
        if name not in models:
            allowed = ", ".join(f"{ABSTRACT}:{known}" for known in models)
            raise UserError(f"backbone = {backbone!r}: of published models there are {allowed}")
        return models[name]
    if backbone == ABSTRACT:
        if pretrain.vocabulary != "sentencepiece":
            raise UserError(
                f"config.pretrain.vocabulary is {pretrain.vocabulary!r}, whose size is not known without texts; "
                f"a backbone {ABSTRACT!r} needs --config.pretrain.vocabulary=sentencepiece"
            )
        return named_size(pretrain.size, pretrain.sentencepiece_size)
    return backbone_folder.geometry(backbone)


def random_weights(base: Foundation, seed: int) -> dict[str, Any]:
    """New backbone weights, float32."""
    init = AsrModel(base.features, base.encoder).init
    samples = jnp.zeros((1, base.features.sample_rate))
    lengths = jnp.full((1,), samples.shape[1], jnp.int32)
    return nn.unbox(jax.jit(lambda key: init(key, samples, lengths, unbound()))(jax.random.key(seed)))["params"]
