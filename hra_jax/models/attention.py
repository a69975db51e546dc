"""Self-attention with a pluggable position term and one mask builder.

Letters: B batch, T frames, N heads, H head width, D width, Q queries of a block, M = Q + T - 1 offsets, S the rows of a
Shaw table (one for each offset from -left to right).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hra_jax.models import attention_parts
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.layers import Hook, Projection, weight, wide
from hra_jax.models.skew import skew


def context_mask(size: int, config: EncoderConfig) -> jax.Array:
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


def sinusoids(queries: int, keys: int, width: int, *, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Sinusoidal table of the offsets i - j from queries - 1 down to -(keys - 1): `[M, width]` of `dtype`.

    Sine and cosine interleaved, wavelengths 2 pi 10000^(2k / width) (arXiv 1901.02860, Appendix B).
    """
    offsets = jnp.arange(queries - 1, -keys, -1, dtype=dtype)[:, None]
    rates = jnp.power(10000.0, -jnp.arange(0, width, 2, dtype=dtype) / width)[None, :]
    angles = offsets * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(-1, width)


def unclip(
    scores: jax.Array, keys: int, *, left: int, first: int | jax.Array = 0, padded: int | None = None
) -> jax.Array:
    """Scores by clipped offset -> scores by key, out[r, j] = in[r, clip(j - i, -left, right) + left] of query i.

    The S scores of a query lie side by side among those of its keys, one position further right for each query; left
    and right of them the first and the last are repeated. This is done with pads, slices and two `where`: gathers, and
    above all the scatters of their gradients, are slow on accelerators, and on a CPU too (benchmarks/layers.py).

    Args:
      scores: `[B, N, Q, S]` with S = left + right + 1.
      keys: T.
      left: the farthest offset to the left with a score of its own.
      first: the number i of the query r = 0; an integer or an int32 scalar.
      padded: the queries of all blocks together; None where these are all, and `first` is 0.

    Returns:
      `[B, N, Q, T]`.
    """
    batch, heads, queries, width = scores.shape
    # Rows padded by Q and read back one narrower slide by one position each: position r + c of row r holds its score c.
    flat = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (0, queries))).reshape(batch, heads, -1)
    span = queries + width - 1
    slid = flat[:, :, : queries * span].reshape(batch, heads, queries, span)
    if padded is not None:
        slid = jax.lax.dynamic_update_slice_in_dim(
            jnp.zeros((batch, heads, queries, padded + width - 1), slid.dtype), slid, first, axis=3
        )
    between = slid[..., left : left + keys]
    offsets = jnp.arange(keys)[None, :] - jnp.arange(queries)[:, None] - first
    beyond = jnp.where((offsets < 0)[None, None], scores[..., :1], scores[..., -1:])
    near = (offsets >= -left) & (offsets < width - left)
    return jnp.where(near[None, None], between, beyond)


def rotate(x: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding, half-split (arXiv 2104.09864): `[B, T, N, H]` -> the same shape and dtype."""
    size, half, dtype = x.shape[1], x.shape[-1] // 2, wide(x.dtype)
    rates = jnp.power(base, -jnp.arange(half, dtype=dtype) / half)
    angles = (jnp.arange(size, dtype=dtype)[:, None] * rates[None, :])[None, :, None, :]
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; `hook(name, x, y)` sees the input and output of each named projection.

    `block` says how many heads and queries are taken at a time (`attention_parts.part`); the backward pass
    recomputes the scores of a part. What is in memory at a time is then `[B, heads, queries, T]`. 0 takes all at once.
    """

    config: EncoderConfig
    block: int | attention_parts.Budget = 0

    def _projected(self, x: jax.Array, hook: Hook, name: str) -> jax.Array:
        project = Projection(
            self.config.d_model, axes=("embed", "heads"), use_bias=self.config.attention_bias, name=name
        )
        return self._heads(hook(f"attention.{name}", x, project(x)))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.config.n_heads, self.config.d_head)

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, hook: Hook) -> jax.Array:
        """Attends.

        Args:
          x: `[B, T, D]`.
          mask: bool `[B, 1, T, T]`, True where the query may see the key.
          hook: the adapter's projection hook.

        Returns:
          `[B, T, D]`, the dtype of x.
        """
        config, size = self.config, x.shape[1]
        turned = x
        if config.position == "rope_in":
            turned = rotate(self._heads(x), config.rope_base).reshape(x.shape)
        inputs = {"query": turned, "key": turned, "value": x}
        query, key, value = (self._projected(y, hook, name) for name, y in inputs.items())
        if config.position == "rope_qk":
            query, key = rotate(query, config.rope_base), rotate(key, config.rope_base)
        # Heads before frames: as plain batches of matrices the products are faster on a CPU (benchmarks/layers.py).
        query, key, value = (jnp.swapaxes(y, 1, 2) for y in (query, key, value))
        heads, queries = attention_parts.part(self.block, x.shape[0], config.n_heads, size)
        padded = -(-size // queries) * queries
        terms = {"xl": self._xl_terms, "shaw": self._shaw_term}.get(config.position)
        position: Any = None if terms is None else terms(padded, size, x.dtype)

        def attend(
            query: jax.Array, key: jax.Array, value: jax.Array, position: Any, mask: jax.Array, start: Any
        ) -> jax.Array:
            logits = self._logits(query, key, position, start, padded)
            logits = jnp.where(mask, logits * config.d_head**-0.5, jnp.finfo(jnp.float32).min)
            shares = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
            return jnp.einsum("bnij,bnjh->bnih", shares, value)

        if (heads, queries) != (config.n_heads, size):
            # Inside a scan there is nothing to share with, so the barrier against it (prevent_cse) only costs.
            attend = jax.checkpoint(attend, prevent_cse=False)
        masks = None if queries == size else attention_parts.split_queries(mask, queries)

        def attend_heads(query: jax.Array, key: jax.Array, value: jax.Array, *own: jax.Array) -> jax.Array:
            terms = own or position
            if masks is None:
                return attend(query, key, value, terms, mask, 0)
            return attention_parts.by_queries(
                lambda query, mask, start: attend(query, key, value, terms, mask, start), query, masks
            )

        # All that the term of the distance has is of one head or another, but for Shaw's table.
        arrays = (query, key, value, *(position if config.position == "xl" else ()))
        together = heads == config.n_heads
        y = attend_heads(*arrays) if together else attention_parts.by_heads(attend_heads, heads, arrays)
        y = jnp.swapaxes(y, 1, 2).reshape(x.shape)
        output = Projection(
            config.d_model,
            axes=("heads", "embed"),
            use_bias=config.attention_bias,
            gain=config.residual_gain,
            name="output",
        )
        return hook("attention.output", y, output(y))

    def _xl_terms(self, queries: int, keys: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array, jax.Array]:
        """u and v `[1, N, 1, H]`, and W_pos p(i - j) of all offsets `[M, N, H]` (arXiv 1901.02860, section 3.3)."""
        config = self.config
        shape, axes = (config.n_heads, config.d_head), ("norm", "norm")
        content = weight(self, "content_bias", nn.initializers.zeros, shape, axes).astype(dtype)
        position = weight(self, "position_bias", nn.initializers.zeros, shape, axes).astype(dtype)
        table = sinusoids(queries, keys, config.d_model, dtype=wide(dtype)).astype(dtype)
        table = Projection(config.d_model, axes=("embed", "heads"), use_bias=False, name="position")(table)
        table = table.reshape(-1, config.n_heads, config.d_head)
        return content[None, :, None, :], position[None, :, None, :], table

    def _shaw_term(self, queries: int, keys: int, dtype: DTypeLike) -> jax.Array:
        """The table of the clipped offsets j - i `[S, H]`, the same for all heads (arXiv 1803.02155, section 3.2)."""
        del queries, keys
        shape = (self.config.shaw_left + self.config.shaw_right + 1, self.config.d_head)
        initial = nn.initializers.variance_scaling(1.0, "fan_out", "truncated_normal")
        return weight(self, "distance", initial, shape, ("norm", "norm")).astype(dtype)

    def _logits(self, query: jax.Array, key: jax.Array, position: Any, start: Any, padded: int) -> jax.Array:
        """Logits before scaling of Q queries: `[B, N, Q, T]`, float32 or wider. xl: (q_i + u) k_j + (q_i + v) W_pos
        p(i - j); shaw: q_i (k_j + a(j - i)).

        query is `[B, N, Q, H]`, of the queries from number `start` on, key `[B, N, T, H]`; all blocks have `padded`
        queries.
        """

        def product(form: str, *factors: jax.Array) -> jax.Array:
            return jnp.einsum(form, *factors, preferred_element_type=wide(query.dtype))

        queries, keys = query.shape[2], key.shape[2]
        if self.config.position == "xl":
            u, v, table = position
            logits = product("bnih,bnjh->bnij", query + u, key)
            # The table begins with the largest offset, that of the last query.
            table = jax.lax.dynamic_slice_in_dim(table, padded - queries - start, queries + keys - 1)
            return logits + skew(product("bnih,mnh->bnim", query + v, table))
        logits = product("bnih,bnjh->bnij", query, key)
        if self.config.position == "shaw":
            # The products with the S rows of the table, and not with the rows of T x T pairs.
            scores = product("bnih,sh->bnis", query, position)
            one = {} if padded == queries else {"first": start, "padded": padded}
            logits = logits + unclip(scores, keys, left=self.config.shaw_left, **one)
        return logits
