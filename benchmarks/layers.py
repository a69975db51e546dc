"""Two ways to write a layer, where the choice matters on a CPU.

python benchmarks/layers.py --json benchmarks/layers.json

- depthwise convolution, forward and backward: a sum of shifted products (what the encoder does), or a grouped
  convolution;
- attention scores and their mix of the values: heads before frames (what the encoder does), or frames before heads.
"""

import sys

import harness
import jax
import jax.numpy as jnp
from absl import flags

from hra_jax import cli
from hra_jax.models.layers import DepthwiseConvolution

BATCH, FRAMES, WIDTH, HEADS, KERNEL = 16, 140, 128, 4, 9


def depthwise() -> dict:
    """Gradient of both forms with respect to input and weights."""
    rng = jax.random.split(jax.random.key(0), 3)
    x, weights = jax.random.normal(rng[0], (2, BATCH, FRAMES, WIDTH))
    module = DepthwiseConvolution(KERNEL, use_bias=False)
    params = {"params": {"kernel": jax.random.normal(rng[1], (KERNEL, WIDTH))}}

    def shifted(params, x):
        return (module.apply(params, x) * weights).sum()

    def grouped(params, x):
        kernel = params["params"]["kernel"][:, None, :]
        y = jax.lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=WIDTH
        )
        return (y * weights).sum()

    return _same({"shifted products": shifted, "grouped convolution": grouped}, params, x)


def attention() -> dict:
    """Gradient of both layouts with respect to query, key and value `[B, T, N, H]`."""
    rng = jax.random.key(1)
    qkv = jax.random.normal(rng, (3, BATCH, FRAMES, HEADS, WIDTH // HEADS))

    def heads_first(qkv):
        query, key, value = jnp.swapaxes(qkv, 2, 3)
        shares = jax.nn.softmax(jnp.einsum("bnih,bnjh->bnij", query, key), axis=-1)
        return jnp.square(jnp.einsum("bnij,bnjh->bnih", shares, value)).sum()

    def frames_first(qkv):
        query, key, value = qkv
        shares = jax.nn.softmax(jnp.einsum("binh,bjnh->bnij", query, key), axis=-1)
        return jnp.square(jnp.einsum("bnij,bjnh->binh", shares, value)).sum()

    return _same({"heads before frames": heads_first, "frames before heads": frames_first}, qkv)


def _same(functions: dict, *args) -> dict:
    """The gradients of all functions, compiled; they must agree."""
    compiled = {name: jax.jit(jax.grad(f, argnums=tuple(range(len(args))))) for name, f in functions.items()}
    first, *others = (jax.tree.leaves(f(*args)) for f in compiled.values())
    for other in others:
        for a, b in zip(first, other, strict=True):
            if not jnp.allclose(a, b, rtol=1e-3, atol=1e-3):
                raise AssertionError("the two sides do not compute the same")
    return {name: lambda f=f: f(*args) for name, f in compiled.items()}


def main(argv) -> None:
    """Entry point."""
    del argv
    groups = {name: harness.interleave(sides()) for name, sides in (("depthwise", depthwise), ("attention", attention))}
    harness.report("layers", groups, flags.FLAGS.json)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=harness.define_flags))
