"""The Conformer encoder: one block, scanned over layers.

Letters: B batch, T frames, D width, L layers.

The parameters of the blocks are stacked on a leading `layers` axis. What an adapter adds comes in as an explicit tree
(`adapters.base.Bound`), not as Flax variables: a sub-module handed to a scanned layer is silently not shared.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.adapters.base import Adapter, Bound
from hra_jax.models import padding
from hra_jax.models.attention import Attention, context_mask
from hra_jax.models.attention_parts import Budget
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.layers import BatchNorm, DepthwiseConvolution, Hook, LayerNorm, Projection, wide
from hra_jax.models.setting_checks import one_of

# Rematerialisation policies: what the backward pass keeps of a block (None: everything); it recomputes the rest. A new
# policy is one line here.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep the outputs of the projections
    "full": jax.checkpoint_policies.nothing_saveable,  # keep the input of each block only
}

# The collection of what `Adapter.voice` says of every layer; Flax makes none of it where a model is initialised.
VOICE = "intermediates"


def voice_of(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean and standard deviation over the valid frames of x `[B, T, S]`: `[B, 2 S]`, float32."""
    mean, variance = padding.masked_mean_variance(x.astype(wide(x.dtype)), valid)
    return jnp.concatenate([mean, jnp.sqrt(variance)], axis=-1)[:, 0]


def _norm(config: EncoderConfig, name: str) -> LayerNorm:
    return LayerNorm(config.norm_eps, use_bias=config.norm_bias, name=name)


class FeedForward(nn.Module):
    """LayerNorm, projection to `d_ff`, SiLU, projection back."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, hook: Hook) -> jax.Array:
        """`[B, T, D]` -> `[B, T, D]`."""
        config = self.config
        x = hook(f"{self.name}.norm", x, _norm(config, "norm")(x))
        y = Projection(config.d_ff, axes=("embed", "mlp"), use_bias=config.ff_bias, name="up")(x)
        x = nn.silu(hook(f"{self.name}.up", x, y))
        project = Projection(
            config.d_model, axes=("mlp", "embed"), use_bias=config.ff_bias, gain=config.residual_gain, name="down"
        )
        return hook(f"{self.name}.down", x, project(x))


class ConvolutionModule(nn.Module):
    """LayerNorm, gated pointwise convolution, depthwise convolution, norm, SiLU, pointwise convolution."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, hook: Hook) -> jax.Array:
        """`[B, T, D]` and bool `[B, T]` -> `[B, T, D]`."""
        config = self.config
        x = hook("convolution.norm", x, _norm(config, "norm")(x))
        if config.conv_mask == "pre_pointwise":
            x = padding.zero_invalid(x, valid)
        project = Projection(2 * config.d_model, axes=("embed", "mlp"), use_bias=config.conv_bias, name="gated")
        value, gate = jnp.split(hook("convolution.gated", x, project(x)), 2, axis=-1)
        x = value * jax.nn.sigmoid(gate)
        if config.conv_mask == "post_glu":
            x = padding.zero_invalid(x, valid)
        causal = config.conv_padding == "causal"
        bias = config.has_depthwise_bias
        convolve = DepthwiseConvolution(config.kernel, causal=causal, use_bias=bias, name="depthwise")
        x = hook("convolution.depthwise", x, convolve(x))
        if config.conv_norm != "none":
            norm = BatchNorm(name="depthwise_norm") if config.conv_norm == "batch" else _norm(config, "depthwise_norm")
            x = hook("convolution.depthwise_norm", x, norm(x))
        x = nn.silu(x)
        project = Projection(
            config.d_model, axes=("mlp", "embed"), use_bias=config.conv_bias, gain=config.residual_gain, name="output"
        )
        return hook("convolution.output", x, project(x))


class ConformerLayer(nn.Module):
    """One block, with the adapter's hooks: after each affine map, and after the block."""

    config: EncoderConfig
    adapter: Adapter
    dropout: float = 0.0
    attention_block: int | Budget = 0
    constrain: Callable = lambda x: x

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, Any], per_layer: Any, all_layers: Any, valid: jax.Array, mask: jax.Array
    ) -> tuple[tuple[jax.Array, Any], None]:
        """Applies the block.

        Args:
          carry: x `[B, T, D]` and the adapter's carry.
          per_layer: what the adapter has for this layer alone.
          all_layers: what the adapter has for every layer.
          valid: bool `[B, T]`.
          mask: bool `[B, 1, T, T]`.

        Returns:
          The new carry, and nothing per layer (the form that `nn.scan` asks for).
        """
        x, state = carry
        config, adapter, params = self.config, self.adapter, (all_layers, per_layer)
        taps = {"input": x} if "input" in adapter.taps else {}

        def rng() -> jax.Array | None:
            return self.make_rng("dropout") if self.has_rng("dropout") else None

        def hook(name: str, inputs: jax.Array, outputs: jax.Array) -> jax.Array:
            with jax.named_scope(f"adapter_{adapter.name}"):
                outputs = adapter.after_affine(params, name, inputs, outputs, rng=rng)
            if name in adapter.taps:
                taps[name] = outputs
            return outputs

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(y)

        (keep, add), (keep_conv, add_conv) = config.ff_residual, config.conv_residual
        x = self.constrain(x)
        x = keep * x + add * drop(FeedForward(config, name="ff1")(x, hook))
        y = hook("attention.norm", x, _norm(config, "attention_norm")(x))
        x = x + drop(Attention(config, self.attention_block, name="attention")(y, mask, hook))
        x = keep_conv * x + add_conv * drop(ConvolutionModule(config, name="convolution")(x, valid, hook))
        x = keep * x + add * drop(FeedForward(config, name="ff2")(x, hook))
        x = hook("final_norm", x, _norm(config, "final_norm")(x))
        with jax.named_scope(f"adapter_{adapter.name}"):
            x, state = adapter.after_layer(params, x, state, taps, rng=rng)
        # Only who asks for it pays for it.
        if self.is_mutable_collection(VOICE):
            self.sow(VOICE, "voice", voice_of(adapter.voice(x, state), valid))
        return (x, state), None


class Conformer(nn.Module):
    """L blocks under one scan.

    `constrain` places the sharding constraint on `[B, T, D]` activations at block boundaries.
    """

    config: EncoderConfig
    adapter: Adapter = Adapter()
    dropout: float = 0.0
    remat: str = "none"
    attention_block: int | Budget = 0  # what attention takes at a time, see `Attention`; 0 for all
    constrain: Callable = lambda x: x

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array, bound: Bound) -> jax.Array:
        """Encodes.

        Args:
          x: `[B, T, D]`, after subsampling.
          lengths: int32 `[B]`, frames.
          bound: the adapter's parameters, gathered for the rows of this batch.

        Returns:
          `[B, T, D]`.
        """
        config = self.config
        valid = padding.valid_mask(lengths, x.shape[1])
        mask = valid[:, None, None, :] & context_mask(x.shape[1], config)[None, None]
        x = padding.zero_invalid(x * config.input_scale, valid)
        one_of("remat", self.remat, REMAT_POLICIES)
        block = ConformerLayer
        policy = REMAT_POLICIES[self.remat]
        if policy is not None:
            # Inside a scan there is nothing to share with, so the barrier against it (prevent_cse) only costs.
            block = nn.remat(block, policy=policy, prevent_cse=False)
        scanned: Any = nn.scan(  # of a class it gives a class; Flax says that it gives an instance
            block,
            variable_axes={"params": 0, VOICE: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.n_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        state = self.adapter.initial_carry(x)
        layers = scanned(config, self.adapter, self.dropout, self.attention_block, self.constrain, name="layers")
        (x, _), _ = layers((x, state), bound.per_layer, bound.all_layers, valid, mask)
        return _norm(config, "final_norm")(x) if config.final_norm else x
