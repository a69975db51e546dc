"""Several ways to write a layer, where the choice matters on a CPU.

python benchmarks/layers.py --json benchmarks/results/layers.json

- depthwise convolution, forward and backward: a sum of shifted products (what the encoder does), or a grouped
  convolution;
- attention scores and their mix of the values: heads before frames (what the encoder does), or frames before heads;
- Transformer-XL's scores of all offsets brought to their keys: rows read back narrower (what the encoder does on CPUs),
  or slid by powers of two (what it does on TPUs);
- Shaw's scores of the clipped offsets brought to the keys: slid into a band and filled on both sides (what the encoder
  does), repeated at both ends and skewed, gathered, or multiplied by a one-hot tensor; or products with the table
  repeated for all offsets, and skewed.
"""

import sys

import harness
import jax
import jax.numpy as jnp
from absl import flags

from hra_jax import cli
from hra_jax.models.attention import unclip
from hra_jax.models.layers import DepthwiseConvolution
from hra_jax.models.skew import skew, slide

BATCH, FRAMES, WIDTH, HEADS, KERNEL = 16, 140, 128, 4, 9
SHAW_LEFT, SHAW_RIGHT = 64, 8


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


def skewed() -> dict:
    """Gradient of both ways to bring scores `[B, N, T, 2 T - 1]` of all offsets to their keys."""
    rng = jax.random.split(jax.random.key(3), 2)
    scores = jax.random.normal(rng[0], (BATCH, HEADS, FRAMES, 2 * FRAMES - 1))
    weights = jax.random.normal(rng[1], (BATCH, HEADS, FRAMES, FRAMES))

    def of(place):
        return lambda scores: jnp.square(place(scores) * weights).sum()

    return _same({"read narrower": of(skew), "slide": of(slide)}, scores)


def shaw(batch: int = BATCH, frames: int = FRAMES, heads: int = HEADS, width: int = WIDTH // HEADS) -> dict:
    """Gradient of all forms with respect to query `[B, N, T, H]` and the table `[S, H]`."""
    rng = jax.random.split(jax.random.key(2), 3)
    query = jax.random.normal(rng[0], (batch, heads, frames, width))
    table = jax.random.normal(rng[1], (SHAW_LEFT + SHAW_RIGHT + 1, width)) * width**-0.5
    weights = jax.random.normal(rng[2], (batch, heads, frames, frames))
    places = jnp.arange(frames)
    rows = jnp.clip(places[None, :] - places[:, None], -SHAW_LEFT, SHAW_RIGHT) + SHAW_LEFT
    ends = (frames - 1 - SHAW_LEFT, frames - 1 - SHAW_RIGHT)
    assert min(ends) >= 0, "fewer frames than the table has offsets on a side"

    def band(scores):
        return unclip(scores, frames, left=SHAW_LEFT)

    def repeated(scores):
        return skew(jnp.pad(scores, ((0, 0), (0, 0), (0, 0), ends), mode="edge"))

    def gathered(scores):
        return jnp.take_along_axis(scores, jnp.broadcast_to(rows, (batch, heads, frames, frames)), axis=3)

    def multiplied(scores):
        return jnp.einsum("bnis,ijs->bnij", scores, jax.nn.one_hot(rows, len(table)))

    def wholly(query, table):
        table = jnp.pad(table, (ends, (0, 0)), mode="edge")
        return jnp.square(skew(jnp.einsum("bnih,mh->bnim", query, table)) * weights).sum()

    def of(place):
        return lambda query, table: jnp.square(place(jnp.einsum("bnih,sh->bnis", query, table)) * weights).sum()

    forms = {"band and ends": band, "ends repeated, skew": repeated, "gather": gathered, "one-hot product": multiplied}
    return _same(
        {name: of(place) for name, place in forms.items()} | {"table of all offsets, skew": wholly}, query, table
    )


def _same(functions: dict, *args) -> dict:
    """The gradients of all functions, compiled; they must agree."""
    compiled = {name: jax.jit(jax.grad(f, argnums=tuple(range(len(args))))) for name, f in functions.items()}
    first, *others = (jax.tree.leaves(f(*args)) for f in compiled.values())
    for other in others:
        for a, b in zip(first, other, strict=True):
            if not jnp.allclose(a, b, rtol=1e-3, atol=1e-3):
                raise AssertionError("the sides do not compute the same")
    return {name: lambda f=f: f(*args) for name, f in compiled.items()}


def _long() -> dict:
    return shaw(batch=1, frames=1000, heads=4, width=64)


def main(argv) -> None:
    """Entry point."""
    del argv
    pairs = {"depthwise": depthwise, "attention": attention, "skew": skewed, "shaw": shaw, "shaw, 1000 frames": _long}
    groups = {name: harness.interleave(sides()) for name, sides in pairs.items()}
    harness.report("layers", groups, flags.FLAGS.json)


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=harness.define_flags))
