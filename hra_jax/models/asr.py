"""From waveforms to log-probabilities: features, subsampling, encoder, CTC head.

Letters: B batch, S samples, T encoder frames, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hra_jax.adapters.base import Adapter, Bound
from hra_jax.models import augmentation, frontend, subsampling
from hra_jax.models.attention_parts import Budget
from hra_jax.models.conformer import VOICE, Conformer
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.models.layers import Projection, wide


class AsrModel(nn.Module):
    """A speech encoder with a CTC head; its Flax parameters are the backbone, and nothing else."""

    features: FeatureConfig
    encoder: EncoderConfig
    adapter: Adapter = Adapter()
    augment: augmentation.AugmentConfig = augmentation.NO_AUGMENTATION
    dropout: float = 0.0  # on the residual branches of the encoder; acts only with a 'dropout' key
    remat: str = "none"
    attention_block: int | Budget = 0  # what attention takes at a time, see `models.attention.Attention`; 0 for all
    dtype: jnp.dtype = jnp.float32  # of the activations
    constrain: Callable = lambda x: x

    def __post_init__(self) -> None:
        # Here, so that settings which do not fit fail before anything is traced or compiled.
        subsampling.check(self.features, self.encoder)
        augmentation.check(self.augment, self.features)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        waveform: jax.Array,
        num_samples: jax.Array,
        bound: Bound,
        symbols: jax.Array | None = None,
        sounds: augmentation.Sounds | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of a padded batch.

        Augmentation runs where an 'augment' key is given, dropout where a 'dropout' key is given.

        Args:
          waveform: float `[B, S]`, mono, at `features.sample_rate`; samples after `num_samples` may be anything.
          num_samples: int32 `[B]`.
          bound: the adapter's parameters for the rows of this batch.
          symbols: int32 `[B, O]` of tasks with vocabularies of their own, see `Adapter.after_output`; else None.
          sounds: the recordings that augmentation draws from, if any.

        Returns:
          float32 (float64 where `dtype` is) `[B, T, V]` (`[B, T, O]` with `symbols`) and int32 `[B]` lengths in encoder
          frames.

        Raises (where the model is made):
          UserError: the encoder or the augmentation is made for other features.
        """
        with jax.named_scope("frontend"):
            x, lengths = self._features(waveform, num_samples, sounds)
        # Samples keep their precision until the first convolution has made channels of them.
        x = x if self.features.kind == "waveform" else x.astype(self.dtype)
        x, lengths = subsampling.make(self.encoder, dtype=self.dtype, name="subsampling")(x, lengths)
        encoder = Conformer(
            self.encoder,
            self.adapter,
            dropout=self.dropout,
            remat=self.remat,
            attention_block=self.attention_block,
            constrain=self.constrain,
            name="encoder",
        )
        x = self.constrain(encoder(self.constrain(x), lengths, bound))
        logits = Projection(self.encoder.vocab_size, axes=("embed", "vocab"), name="output")(x)
        with jax.named_scope(f"adapter_{self.adapter.name}"):
            logits = self.adapter.after_output(bound.all_layers, x, logits, symbols)
        return jax.nn.log_softmax(logits.astype(wide(logits.dtype)), axis=-1), lengths

    def _features(
        self, waveform: jax.Array, num_samples: jax.Array, sounds: augmentation.Sounds | None = None
    ) -> tuple[jax.Array, jax.Array]:
        config = self.augment
        if not self.has_rng("augment"):
            return frontend.extract(waveform, num_samples, self.features)
        sound_rng, warp_rng, mask_rng = jax.random.split(self.make_rng("augment"), 3)
        waveform = augmentation.change_waveform(
            sound_rng, waveform, num_samples, config, sample_rate=self.features.sample_rate, sounds=sounds
        )
        # Bins and frames are masked and warped before frames are put side by side.
        x, lengths = frontend.unstacked(waveform, num_samples, self.features)
        x, lengths = augmentation.warp(warp_rng, x, lengths, config)
        centred = self.features.normalization != "none"
        x = augmentation.spec_augment(mask_rng, x, lengths, config, centred=centred)
        return frontend.stacked(x, lengths, self.features)


def apply_with_voice(
    model: AsrModel, params: Mapping[str, Any], waveform: jax.Array, num_samples: jax.Array, bound: Bound
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probabilities and lengths of a batch as the model gives them, and how its voices sound.

    Args:
      model: the encoder with its adapter method.
      params: the backbone's weights.
      waveform, num_samples, bound: as the model takes them.

    Returns:
      `[B, T, V]`, `[B]`, and float32 `[B, 2 S]`: `conformer.voice_of` as a mean over the lower half of the adapted
      layers. Those above know less of who speaks, and more of what is said.
    """
    outputs: Any = model.apply({"params": params}, waveform, num_samples, bound, mutable=[VOICE])
    (log_probs, lengths), found = outputs
    (voices,) = jax.tree.leaves(found[VOICE])
    layers = model.adapter.adapted(model.encoder)
    return log_probs, lengths, voices[np.array(layers[: (len(layers) + 1) // 2])].mean(axis=0)
