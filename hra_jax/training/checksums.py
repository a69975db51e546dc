"""Checksums of arrays on devices. They are the same on every mesh: what one mesh has saved, another can check.

The bytes of an array in C order are 32-bit words, and its checksum is the sum of all words, each times an odd number of
64 bits that its place gives, modulo 2^64 (multilinear hashing, arXiv 1202.4961). So every device sums up what it holds,
in any order, and one number per array crosses the mesh. A change of one word always changes the sum; any other damage
goes unseen about once in 2^32, or less.

Arrays that this process can read without a copy are hashed by numpy, which compiles nothing and is faster on CPUs.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from hra_jax.training import sharding


class Checksum(NamedTuple):
    """What is told of an array.

    Attributes:
      value: its checksum, 0 to 2^64 - 1.
      finite: whether all its numbers are, as far as anybody asked.
    """

    value: int
    finite: bool


def of_tree(tree: Any, *, finite: bool = True) -> dict[str, Checksum]:
    """The checksum of every array of a tree, by the name of its leaf; a collective where they are split.

    Waits for the arrays to be computed. Shapes and dtypes are not hashed: who compares checksums compares them too.

    Args:
      tree: the arrays.
      finite: whether to look for numbers that are not finite; False takes all for finite, which costs less.
    """
    leaves = {sharding.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    on_host = {name: np.asarray(leaf) for name, leaf in leaves.items() if _readable_on_host(leaf)}
    on_devices = {name: _on_devices(leaf, finite=finite) for name, leaf in leaves.items() if name not in on_host}
    sums = jax.device_get(on_devices)
    sums |= dict(zip(on_host, _on_host(list(on_host.values()), finite=finite), strict=True))
    return {name: Checksum(int(value), not int(odd)) for name, (value, odd) in sorted(sums.items())}


def _readable_on_host(leaf: Any) -> bool:
    """Whether this process can read a whole array in its own memory, without copying it from a device."""
    if not isinstance(leaf, jax.Array):
        return True
    devices: set[Any] = leaf.sharding.device_set
    whole = leaf.is_fully_addressable or leaf.is_fully_replicated
    return whole and all(device.platform == "cpu" for device in devices)


_MASK = 2**64 - 1
# The finalizer of SplitMix64 (public domain).
_STEP, _ROUNDS, _LAST = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)), 31
# Words go in pairs. A pair has the factor of its place in a block times that of its block: one table serves all blocks.
_BLOCK = 1 << 16  # pairs: so many that threads seldom wait for each other, so few that they stay in the cache
_RANGE = 1 << 5  # blocks that a thread takes
_SMALL = 1 << 23  # bytes that are not worth threads
_THREADS = min(8, os.cpu_count() or 1)  # numpy lets others run meanwhile


def _factor(number: Any, *, of_block: bool, unsigned: Any = int) -> Any:
    """An odd number of 64 bits for a place in a block, or for a block: an int of an int, or arrays of uint64."""
    wide = unsigned(_MASK)
    mixed = (number * unsigned(2) + unsigned(of_block) + unsigned(1)) * unsigned(_STEP) & wide
    for shift, multiplier in _ROUNDS:
        mixed = (mixed ^ (mixed >> unsigned(shift))) * unsigned(multiplier) & wide
    return mixed ^ (mixed >> unsigned(_LAST)) | unsigned(1)


@functools.cache
def _table() -> np.ndarray:
    """The factors of the places in a block, uint64 `[_BLOCK]`."""
    return np.asarray(_factor(np.arange(_BLOCK, dtype=np.uint64), of_block=False, unsigned=np.uint64))


def _on_host(arrays: list[np.ndarray], *, finite: bool) -> list[tuple[int, bool]]:
    """The checksum of each array, and whether it holds a number that is not finite."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    size = 8 * _BLOCK * _RANGE  # bytes
    parts = [(number, start) for number, array in enumerate(flat) for start in range(0, array.nbytes, size)]

    def hashed(part: tuple[int, int]) -> tuple[int, bool]:
        number, start = part
        array = flat[number][start // flat[number].itemsize : (start + size) // flat[number].itemsize]
        return _sum_of_blocks(array, start // (8 * _BLOCK), finite=finite and jnp.issubdtype(array.dtype, jnp.inexact))

    if sum(array.nbytes for array in flat) < _SMALL:
        sums = list(map(hashed, parts))
    else:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            sums = list(pool.map(hashed, parts))
    totals, odd = [0] * len(flat), [False] * len(flat)
    for (number, _), (value, found) in zip(parts, sums, strict=True):
        totals[number] += value
        odd[number] |= found
    return [(value & _MASK, found) for value, found in zip(totals, odd, strict=True)]


def _sum_of_blocks(array: np.ndarray, first: int, *, finite: bool) -> tuple[int, bool]:
    """The sum of some blocks, the first of which has the number `first`; whether a number in them is not finite."""
    items, table, room, total = 8 * _BLOCK // array.itemsize, _table(), np.empty(_BLOCK, np.uint64), 0
    odd = False
    for number, start in enumerate(range(0, len(array), items), first):
        block = array[start : start + items]
        odd |= finite and not np.isfinite(block).all()
        if block.nbytes % 8:
            block = np.frombuffer(block.tobytes().ljust(-(-block.nbytes // 8) * 8, b"\0"), np.uint8)
        pairs = block.view(np.uint64)
        mixed = np.right_shift(pairs, np.uint64(32), out=room[: len(pairs)])
        mixed += pairs  # the upper word counts twice, so that no factor makes its top bit the top bit of the sum
        total += int(np.einsum("i,i->", mixed, table[: len(pairs)])) * _factor(number, of_block=True)
    return total, odd


def _on_devices(leaf: jax.Array, *, finite: bool) -> tuple[jax.Array, jax.Array]:
    mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
    with _wide_integers():
        found: tuple[jax.Array, jax.Array] = _compiled(mesh if isinstance(mesh, Mesh) else None, finite)(leaf)
    return found


def _wide_integers() -> contextlib.AbstractContextManager[None]:
    """Integers of 64 bits in JAX, for a block."""
    where: Any = jax if hasattr(jax, "enable_x64") else jax.experimental  # before jax 0.8
    context: contextlib.AbstractContextManager[None] = where.enable_x64(True)
    return context


@functools.lru_cache(maxsize=16)
def _compiled(mesh: Mesh | None, finite: bool) -> Any:
    """The program for arrays that lie on a mesh; None for those that lie elsewhere."""
    sums = functools.partial(_sums, finite=finite)
    return jax.jit(sums) if mesh is None else jax.jit(sums, out_shardings=sharding.replicated(mesh))


def _sums(leaf: jax.Array, *, finite: bool) -> tuple[jax.Array, jax.Array]:
    """As `_on_host`, of one array on the devices: scalars, uint64 and bool."""
    size = leaf.dtype.itemsize
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[size]
    bits = leaf.astype(kind) if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, kind)
    # The place of an element, in bytes. Not by a reshape, which would bring an array that is split to one device.
    place, stride = jnp.zeros(bits.shape, jnp.uint64), size
    for axis in reversed(range(bits.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint64, bits.shape, axis) * jnp.uint64(stride)
        stride *= bits.shape[axis]
    pair = place // 8
    factor = _factor(pair % _BLOCK, of_block=False, unsigned=jnp.uint64)
    factor *= _factor(pair // _BLOCK, of_block=True, unsigned=jnp.uint64)
    # What the element is of its pair of words, whose upper word counts twice.
    part = bits.astype(jnp.uint64) << (place % 8 * 8)
    value = ((part + (part >> 32)) * factor).sum(dtype=jnp.uint64)
    if not finite or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return value, jnp.zeros((), jnp.bool_)
    return value, ~jnp.isfinite(leaf).all()


def not_finite(tree: Any) -> str | None:
    """The name of the first leaf of a tree of numpy arrays that holds NaN or infinity; None where all are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if math.prod(leaf.shape) and jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            return sharding.leaf_name(path)
    return None
