"""From a configuration to the objects of a run: backbone, model, optimizer settings."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.adapters import methods
from hra_jax.adapters.base import Adapter, unbound
from hra_jax.config.keys import OWN_VOCABULARIES
from hra_jax.errors import UserError
from hra_jax.models import augmentation, backbone_folder, published
from hra_jax.models.asr import AsrModel
from hra_jax.models.attention_parts import Budget
from hra_jax.models.config import EncoderConfig, FeatureConfig, named_size
from hra_jax.text.vocabularies import (
    BlankVocabulary,
    CharacterVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    vocabulary_from_json,
)
from hra_jax.training.optimizer import OptimizerConfig

ABSTRACT = "abstract"  # a backbone of shapes alone: of the size `pretrain.size`, or `abstract:` and a published one


@dataclasses.dataclass(frozen=True)
class Foundation:
    """What an encoder is built on: geometry, features, vocabulary, and the files of the weights where there are any."""

    features: FeatureConfig
    encoder: EncoderConfig
    vocabulary: Vocabulary | None  # None for shapes alone
    name: str
    fingerprint: str  # '' before there are weights
    files: backbone_folder.BackboneFiles | None  # where the weights are; None for pre-training and for shapes alone

    def output_length(self, num_samples):
        """Encoder frames of `num_samples` samples."""
        return self.encoder.output_length(self.features, num_samples)


def vocabulary_of_texts(config, texts) -> Vocabulary:
    """The vocabulary that `config.pretrain` asks for, learnt from normalised training texts."""
    if config.pretrain.vocabulary == "sentencepiece":
        return SentencePieceVocabulary.train(texts, config.pretrain.sentencepiece_size)
    return CharacterVocabulary(sorted({character for text in texts for character in text} | {" "}))


def is_abstract(backbone: str) -> bool:
    """Whether a backbone is shapes without weights."""
    return backbone.partition(":")[0] == ABSTRACT


def check_has_weights(config) -> None:
    """Refuses, with a UserError, an abstract backbone where weights are needed."""
    if config.method != "pretrain" and is_abstract(config.backbone):
        raise UserError(
            f"backbone = {config.backbone!r} has no weights; it is for hra_jax.params and hra_jax.aot; allowed here: "
            "builtin:NAME or a folder"
        )


def check_has_outputs(config, base: Foundation) -> None:
    """Refuses, with a UserError, to train in the vocabulary of a backbone that has none but the blank."""
    if isinstance(base.vocabulary, BlankVocabulary):
        output = config.adapter.output if config.method == "adapter" else "backbone"
        if output not in OWN_VOCABULARIES:
            what = f"adapter.output = {output!r}" if config.method == "adapter" else f"method = {config.method!r}"
            raise UserError(
                f"{what}: the backbone {base.name!r} has no output layer of its own; allowed: method 'adapter' with "
                f"adapter.output {', '.join(OWN_VOCABULARIES)}"
            )


def check_augmentation(config, base: Foundation) -> None:
    """Refuses, with a UserError, augmentation of spectra where the backbone takes samples."""
    augmentation.check(_augmentation(config), base.features)


def _augmentation(config) -> augmentation.AugmentConfig:
    return augmentation.AugmentConfig(**config.augment)


def geometry(config) -> tuple[FeatureConfig, EncoderConfig]:
    """Feature settings and geometry of the configuration's backbone, without its weights.

    Raises:
      UserError: no such backbone, a damaged one, or an abstract one whose vocabulary has no size before it is learnt.
    """
    if is_abstract(config.backbone) and config.backbone != ABSTRACT:
        name = config.backbone.partition(":")[2]
        if name not in published.MODELS:
            allowed = ", ".join(f"{ABSTRACT}:{known}" for known in published.MODELS)
            raise UserError(f"backbone = {config.backbone!r}: of published models there are {allowed}")
        return published.MODELS[name]
    if config.backbone == ABSTRACT:
        if config.pretrain.vocabulary != "sentencepiece":
            raise UserError(
                f"config.pretrain.vocabulary is {config.pretrain.vocabulary!r}, whose size is not known without texts; "
                f"a backbone {ABSTRACT!r} needs --config.pretrain.vocabulary=sentencepiece"
            )
        return named_size(config.pretrain.size, config.pretrain.sentencepiece_size)
    return backbone_folder.geometry(config.backbone)


def foundation(config, training_texts=()) -> Foundation:
    """Opens the backbone of a configuration, or lays out a new one for `method='pretrain'`.

    Args:
      config: the run's configuration.
      training_texts: normalised texts that a new vocabulary is learnt from; used for pre-training only.

    Raises:
      UserError: no such backbone or size, a damaged folder, or an abstract backbone.
    """
    if config.method == "pretrain":
        vocabulary = vocabulary_of_texts(config, training_texts)
        features, encoder = named_size(config.pretrain.size, vocabulary.size)
        return Foundation(features, encoder, vocabulary, config.pretrain.size, "", None)
    check_has_weights(config)
    files = backbone_folder.load(config.backbone)
    vocabulary = vocabulary_from_json(files.vocabulary)
    name = files.info["name"]
    return Foundation(files.features, files.encoder, vocabulary, name, files.fingerprint, files)


def compute_dtype(config):
    """The dtype of frozen weights and activations: `config.backbone_dtype`, 'auto' by the kind of device."""
    if config.backbone_dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.backbone_dtype)


def adapter_method(config, *, output_size: int = 0) -> Adapter:
    """The adaptation method of a configuration; the identity unless `method='adapter'`.

    `output_size`: outputs that hold every vocabulary, where tasks have their own.
    """
    if config.method != "adapter":
        return Adapter()
    groups = config.to_dict()
    return methods.from_groups(groups["adapter"], groups.get(config.adapter.name, {}), output_size=output_size)


def model(
    config, base: Foundation, adapter: Adapter, *, attention_block: int | Budget, constrain=lambda x: x
) -> AsrModel:
    """The model that a run trains, with augmentation and dropout (they act only where keys are given).

    Args:
      config: a validated configuration.
      base: what the encoder is built on.
      adapter: the method.
      attention_block: what attention takes at a time. Where `config` leaves that to the devices, `programs.model_on`
        finds it.
      constrain: where activations of `[B, ...]` are put.
    """
    return AsrModel(
        features=base.features,
        encoder=base.encoder,
        adapter=adapter,
        augment=_augmentation(config),
        dropout=config.dropout,
        remat=config.remat,
        attention_block=attention_block,
        dtype=compute_dtype(config),
        constrain=constrain,
    )


def optimizer_settings(config) -> OptimizerConfig:
    """The optimizer settings of a configuration."""
    return OptimizerConfig(steps=config.steps, **config.optimizer)


def random_backbone(base: Foundation, seed: int):
    """New backbone weights, float32."""
    init = AsrModel(base.features, base.encoder).init
    samples = jnp.zeros((1, base.features.sample_rate))
    lengths = jnp.full((1,), samples.shape[1], jnp.int32)
    return nn.unbox(jax.jit(lambda key: init(key, samples, lengths, unbound()))(jax.random.key(seed)))["params"]
