"""Self-attention with a pluggable position term and one mask builder.

Letters: B batch, T frames, N heads, H head width, D width, M = 2T - 1 offsets.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hra_jax.models.config import EncoderConfig
from hra_jax.models.layers import Projection, weight


def context_mask(size: int, config: EncoderConfig):
    """Which key j a query i may see, by position alone: bool `[T, T]`.

    `full`: all. `window`: i - left <= j <= i + right (-1 = no limit on that side). `chunk`: the query's own chunk and
    `left_context` chunks before it (-1 = all before it).
    """
    i, j = jnp.arange(size)[:, None], jnp.arange(size)[None, :]
    if config.context == "chunk":
        i, j = i // config.chunk, j // config.chunk
    visible = jnp.ones((size, size), bool)
    if config.context != "full" and config.left_context >= 0:
        visible &= j >= i - config.left_context
    if config.context == "chunk":
        visible &= j <= i
    if config.context == "window" and config.right_context >= 0:
        visible &= j <= i + config.right_context
    return visible


def sinusoids(size: int, width: int):
    """Sinusoidal table of the offsets i - j from T - 1 down to -(T - 1): float32 `[M, width]`.

    Sine and cosine interleaved, wavelengths 2 pi 10000^(2k / width) (arXiv 1901.02860, Appendix B).
    """
    offsets = jnp.arange(size - 1, -size, -1, dtype=jnp.float32)[:, None]
    rates = jnp.power(10000.0, -jnp.arange(0, width, 2, dtype=jnp.float32) / width)[None, :]
    angles = offsets * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(2 * size - 1, width)


def skew(scores):
    """Scores by offset -> scores by key: `[B, N, T, M]` -> `[B, N, T, T]`, out[i, j] = in[i, T - 1 - i + j]."""
    batch, heads, size, offsets = scores.shape
    # Rows padded to 2T and read back 2T - 1 wide slide by one place each.
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(batch, heads, -1)
    flat = flat[:, :, size - 1 : size - 1 + size * offsets].reshape(batch, heads, size, offsets)
    return flat[..., :size]


def rotate(x, base: float):
    """Rotary position embedding, half-split (arXiv 2104.09864): `[B, T, N, H]` -> the same shape and dtype."""
    size, half = x.shape[1], x.shape[-1] // 2
    rates = jnp.power(base, -jnp.arange(half, dtype=jnp.float32) / half)
    angles = (jnp.arange(size, dtype=jnp.float32)[:, None] * rates[None, :])[None, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; `hook(name, x, y)` sees the input and output of each named projection."""

    config: EncoderConfig

    def _projected(self, x, hook, name):
        config = self.config
        y = hook(f"attention.{name}", x, Projection(config.d_model, axes=("embed", "heads"), name=name)(x))
        return y.reshape(*x.shape[:2], config.n_heads, config.d_head)

    @nn.compact
    def __call__(self, x, mask, hook):
        """Attends.

        Args:
          x: `[B, T, D]`.
          mask: bool `[B, 1, T, T]`, True where the query may see the key.
          hook: the adapter's projection hook.

        Returns:
          `[B, T, D]`, the dtype of x.
        """
        config = self.config
        query, key, value = (self._projected(x, hook, name) for name in ("query", "key", "value"))
        if config.position == "rope_qk":
            query, key = rotate(query, config.rope_base), rotate(key, config.rope_base)
        # Heads before frames: as plain batches of matrices the products are faster on a CPU (benchmarks/layers.py).
        query, key, value = (jnp.swapaxes(y, 1, 2) for y in (query, key, value))
        if config.position == "xl":
            logits = self._xl_logits(query, key)
        else:
            logits = jnp.einsum("bnih,bnjh->bnij", query, key, preferred_element_type=jnp.float32)
        logits = jnp.where(mask, logits * config.d_head**-0.5, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        y = jnp.swapaxes(jnp.einsum("bnij,bnjh->bnih", shares, value), 1, 2).reshape(x.shape)
        output = Projection(config.d_model, axes=("heads", "embed"), gain=config.residual_gain, name="output")
        return hook("attention.output", y, output(y))

    def _xl_logits(self, query, key):
        """(q_i + u) k_j + (q_i + v) W_pos p(i - j) (arXiv 1901.02860, section 3.3).

        query and key are `[B, N, T, H]`; the result is float32 `[B, N, T, T]`.
        """
        config = self.config
        shape, axes = (config.n_heads, config.d_head), ("norm", "norm")
        content = weight(self, "content_bias", nn.initializers.zeros, shape, axes).astype(query.dtype)
        position = weight(self, "position_bias", nn.initializers.zeros, shape, axes).astype(query.dtype)
        table = sinusoids(query.shape[2], config.d_model).astype(query.dtype)
        table = Projection(config.d_model, axes=("embed", "heads"), use_bias=False, name="position")(table)
        table = table.reshape(-1, config.n_heads, config.d_head)
        content, position = content[None, :, None, :], position[None, :, None, :]
        logits = jnp.einsum("bnih,bnjh->bnij", query + content, key, preferred_element_type=jnp.float32)
        offsets = jnp.einsum("bnih,mnh->bnim", query + position, table, preferred_element_type=jnp.float32)
        return logits + skew(offsets)
