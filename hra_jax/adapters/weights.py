"""Weights of a controller or a head, declared by name, and how they are drawn.

Letters: R controller width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epy

# Imported at the first use, so that hra_jax.torch needs no JAX.
with epy.lazy_imports():
    import flax.core
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

if TYPE_CHECKING:
    from flax.core import Scope

Initializer = Callable[..., Any]  # (key, shape, dtype) -> array
Tree = dict[str, Any]  # nested dicts of arrays


class Weight(NamedTuple):
    """One array of weights: how it is drawn, and its shape."""

    initializer: Initializer
    shape: tuple[int, ...]


def draw(weights: Mapping[str, Weight], rng: jax.Array) -> Tree:
    """New weights, float32, each from its own key; the keys depend on the order in which they are declared."""

    def declare(scope: Scope) -> None:
        for name, weight in weights.items():
            scope.param(name, weight.initializer, weight.shape)

    # Flax derives the key of each parameter, as it would for a module: what a seed gives stays the same.
    _, variables = flax.core.init(declare)(rng)
    return dict(variables["params"])


def zeros(*shape: int) -> Weight:
    """A weight that starts at zero."""
    return Weight(nn.initializers.zeros, shape)


def lecun_normal(*shape: int) -> Weight:
    """A weight of the variance 1 / inputs, `[inputs, outputs]`."""
    return Weight(nn.initializers.lecun_normal(), shape)


def uniform(*shape: int) -> Weight:
    """A weight between 0 and 1."""
    return Weight(nn.initializers.uniform(scale=1.0), shape)


def orthogonal_blocks(width: int, count: int) -> Weight:
    """A weight `[R, count R]` whose square blocks are orthogonal."""

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        orthogonal, square = nn.initializers.orthogonal(), (shape[0], shape[0])
        dtype = jnp.float32 if dtype is None else dtype
        blocks = [orthogonal(jax.random.fold_in(key, n), square, dtype) for n in range(count)]
        return jnp.concatenate(blocks, axis=-1)

    return Weight(initialize, (width, count * width))
