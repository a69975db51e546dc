"""Self-attention with a pluggable position term and one mask builder.

Letters: B batch, T frames, N heads, H head width, D width, Q queries of a block, M = Q + T - 1 offsets.
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


def sinusoids(queries: int, keys: int, width: int):
    """Sinusoidal table of the offsets i - j from queries - 1 down to -(keys - 1): float32 `[M, width]`.

    Sine and cosine interleaved, wavelengths 2 pi 10000^(2k / width) (arXiv 1901.02860, Appendix B).
    """
    offsets = jnp.arange(queries - 1, -keys, -1, dtype=jnp.float32)[:, None]
    rates = jnp.power(10000.0, -jnp.arange(0, width, 2, dtype=jnp.float32) / width)[None, :]
    angles = offsets * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(-1, width)


def skew(scores):
    """Scores by offset -> scores by key: `[B, N, Q, M]` -> `[B, N, Q, T]`, out[i, j] = in[i, Q - 1 - i + j]."""
    batch, heads, queries, offsets = scores.shape
    # Rows padded to M + 1 and read back M wide slide by one place each.
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(batch, heads, -1)
    flat = flat[:, :, queries - 1 : queries - 1 + queries * offsets].reshape(batch, heads, queries, offsets)
    return flat[..., : offsets - queries + 1]


def rotate(x, base: float):
    """Rotary position embedding, half-split (arXiv 2104.09864): `[B, T, N, H]` -> the same shape and dtype."""
    size, half = x.shape[1], x.shape[-1] // 2
    rates = jnp.power(base, -jnp.arange(half, dtype=jnp.float32) / half)
    angles = (jnp.arange(size, dtype=jnp.float32)[:, None] * rates[None, :])[None, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; `hook(name, x, y)` sees the input and output of each named projection.

    With `block` queries are taken so many at a time, and the backward pass computes the scores of a block anew. What
    is in memory at a time is then `[B, N, Q, T]`, small enough for a chip to keep by itself. 0 takes all at once.
    """

    config: EncoderConfig
    block: int = 0

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
        config, size = self.config, x.shape[1]
        query, key, value = (self._projected(x, hook, name) for name in ("query", "key", "value"))
        if config.position == "rope_qk":
            query, key = rotate(query, config.rope_base), rotate(key, config.rope_base)
        # Heads before frames: as plain batches of matrices the products are faster on a CPU (benchmarks/layers.py).
        query, key, value = (jnp.swapaxes(y, 1, 2) for y in (query, key, value))
        queries = min(self.block or size, size)
        blocks = -(-size // queries)
        position = self._xl_terms(blocks * queries, size, x.dtype) if config.position == "xl" else None

        def attend(query, mask, start):
            logits = self._logits(query, key, position, blocks * queries - queries - start)
            logits = jnp.where(mask, logits * config.d_head**-0.5, jnp.finfo(jnp.float32).min)
            shares = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
            return jnp.einsum("bnij,bnjh->bnih", shares, value)

        y = attend(query, mask, 0) if blocks == 1 else _by_blocks(attend, query, mask, blocks, queries)
        y = jnp.swapaxes(y, 1, 2).reshape(x.shape)
        output = Projection(config.d_model, axes=("heads", "embed"), gain=config.residual_gain, name="output")
        return hook("attention.output", y, output(y))

    def _xl_terms(self, queries: int, keys: int, dtype):
        """u and v `[1, N, 1, H]`, and W_pos p(i - j) of all offsets `[M, N, H]` (arXiv 1901.02860, section 3.3)."""
        config = self.config
        shape, axes = (config.n_heads, config.d_head), ("norm", "norm")
        content = weight(self, "content_bias", nn.initializers.zeros, shape, axes).astype(dtype)
        position = weight(self, "position_bias", nn.initializers.zeros, shape, axes).astype(dtype)
        table = sinusoids(queries, keys, config.d_model).astype(dtype)
        table = Projection(config.d_model, axes=("embed", "heads"), use_bias=False, name="position")(table)
        table = table.reshape(-1, config.n_heads, config.d_head)
        return content[None, :, None, :], position[None, :, None, :], table

    def _logits(self, query, key, position, first):
        """Logits before scaling of Q queries: float32 `[B, N, Q, T]`; with the XL term
        (q_i + u) k_j + (q_i + v) W_pos p(i - j).

        query is `[B, N, Q, H]`, key `[B, N, T, H]`; `first` is the place in the table of the largest offset.
        """
        if position is None:
            return jnp.einsum("bnih,bnjh->bnij", query, key, preferred_element_type=jnp.float32)
        u, v, table = position
        logits = jnp.einsum("bnih,bnjh->bnij", query + u, key, preferred_element_type=jnp.float32)
        table = jax.lax.dynamic_slice_in_dim(table, first, query.shape[2] + key.shape[2] - 1)
        return logits + skew(jnp.einsum("bnih,mnh->bnim", query + v, table, preferred_element_type=jnp.float32))


def _by_blocks(attend, query, mask, blocks: int, queries: int):
    """`attend(query, mask, start)` of one block of queries after the other, put together: `[B, N, T, H]`."""
    size = query.shape[2]
    pad = ((0, 0), (0, 0), (0, blocks * queries - size), (0, 0))

    def split(x):
        x = jnp.pad(x, pad)
        return jnp.moveaxis(x.reshape(*x.shape[:2], blocks, queries, x.shape[3]), 2, 0)

    def body(start, part):
        return start + queries, attend(*part, start)

    # Inside a scan there is nothing to share with, so the barrier against it (prevent_cse) only costs.
    body = jax.checkpoint(body, prevent_cse=False)
    _, y = jax.lax.scan(body, jnp.int32(0), (split(query), split(mask)))
    y = jnp.moveaxis(y, 0, 2)
    return y.reshape(*y.shape[:2], -1, y.shape[4])[:, :, :size]
