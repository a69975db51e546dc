"""Checksums of arrays on devices. They are the same on every mesh: what one mesh has saved, another can check.

Each element is hashed with its place in the whole array, and the hashes are added modulo 2^32. So every device hashes
what it holds, in any order, and one number per array crosses the mesh. A change of one element always changes the sum;
any other damage goes unseen once in 2^32.

Arrays that this process can read without a copy are hashed by numpy, which compiles nothing and is faster on CPUs.
"""

import concurrent.futures
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from hra_jax.training import sharding


class Checksum(NamedTuple):
    """What is told of an array.

    Attributes:
      value: its checksum, 0 to 2^32 - 1.
      finite: whether all its numbers are.
    """

    value: int
    finite: bool


def of_tree(tree: Any) -> dict[str, Checksum]:
    """The checksum of every array of a tree, by the name of its leaf; a collective where they are split.

    Waits for the arrays to be computed. Shapes and dtypes are not hashed: who compares checksums compares them too.
    """
    leaves = {sharding.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    on_host = {name: np.asarray(leaf) for name, leaf in leaves.items() if _readable_on_host(leaf)}
    on_devices = {name: _on_devices(leaf) for name, leaf in leaves.items() if name not in on_host}
    sums = jax.device_get(on_devices) | dict(zip(on_host, _on_host(list(on_host.values())), strict=True))
    return {name: Checksum(int(value), not int(odd)) for name, (value, odd) in sorted(sums.items())}


def _readable_on_host(leaf: Any) -> bool:
    """Whether this process can read a whole array in its own memory, without copying it from a device."""
    if not isinstance(leaf, jax.Array):
        return True
    devices: set[Any] = leaf.sharding.device_set
    whole = leaf.is_fully_addressable or leaf.is_fully_replicated
    return whole and all(device.platform == "cpu" for device in devices)


def _on_devices(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    mesh = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
    found: tuple[jax.Array, jax.Array] = _compiled(mesh if isinstance(mesh, Mesh) else None)(leaf)
    return found


# One-to-one in the element: odd factors, and the finalizer of MurmurHash3 (public domain).
_ELEMENT, _PLACE, _START = 0x9E3779B1, 0x85EBCA77, 0x27D4EB2F
_ROUNDS = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
_LAST = 16
_BLOCK = 1 << 16  # elements that numpy hashes at a time, few enough to stay in the cache
_RANGE = 1 << 22  # elements that a thread takes
_SMALL = 1 << 23  # bytes that are not worth threads
_THREADS = 4  # numpy lets others run meanwhile


def _on_host(arrays: list[np.ndarray]) -> list[tuple[int, int]]:
    """The checksum of each array, and how many of its numbers are not finite."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    # The parts of all arrays; 64-bit numbers are two words each.
    parts = [
        (number, start, min(start + _RANGE, len(array)))
        for number, array in enumerate(flat)
        for start in range(0, len(array), _RANGE)
    ]

    def hashed(part: tuple[int, int, int]) -> tuple[int, int]:
        number, start, stop = part
        array = flat[number][start:stop]
        odd = int((~np.isfinite(array)).sum()) if jnp.issubdtype(array.dtype, jnp.inexact) else 0
        words = array.view(_unsigned(array.dtype))
        return _sum_of_words(words, start * max(1, array.dtype.itemsize // 4)), odd

    if sum(array.nbytes for array in flat) < _SMALL:
        sums = list(map(hashed, parts))
    else:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            sums = list(pool.map(hashed, parts))
    totals = [[0, 0] for _ in flat]
    for (number, _, _), (value, odd) in zip(parts, sums, strict=True):
        totals[number][0] += value
        totals[number][1] += odd
    return [(value % 2**32, odd) for value, odd in totals]


def _sum_of_words(words: np.ndarray, first: int) -> int:
    """The sum of the hashes of words, the first of which has the place `first`."""
    places = np.arange(min(_BLOCK, len(words)), dtype=np.uint32) * np.uint32(_PLACE)
    mixed, room, total = np.empty_like(places), np.empty_like(places), 0
    for start in range(0, len(words), _BLOCK):
        part = words[start : start + _BLOCK]
        hashes, moved = mixed[: len(part)], room[: len(part)]
        np.multiply(part, np.uint32(_ELEMENT), out=hashes, dtype=np.uint32)
        hashes += places[: len(part)]
        hashes += np.uint32(((first + start) * _PLACE + _START) % 2**32)
        for shift, factor in _ROUNDS:
            hashes ^= np.right_shift(hashes, np.uint32(shift), out=moved)
            hashes *= np.uint32(factor)
        hashes ^= np.right_shift(hashes, np.uint32(_LAST), out=moved)
        total += int(np.add.reduce(hashes, dtype=np.uint32))
    return total


def _unsigned(dtype: Any) -> Any:
    """The unsigned integers that the bits of a dtype are hashed as: uint32 for 64-bit numbers, two each."""
    return {1: np.uint8, 2: np.uint16}.get(np.dtype(dtype).itemsize, np.uint32)


@functools.lru_cache(maxsize=16)
def _compiled(mesh: Mesh | None) -> Any:
    """The program for arrays that lie on a mesh; None for those that lie elsewhere."""
    return jax.jit(_sums) if mesh is None else jax.jit(_sums, out_shardings=sharding.replicated(mesh))


def _sums(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_on_host`, of one array on the devices: uint32 scalars."""
    kind = _unsigned(leaf.dtype)
    bits = leaf.astype(kind) if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, kind)
    words = bits.astype(jnp.uint32)
    # The place of an element. Not by a reshape, which would bring an array that is split to one device.
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = words * jnp.uint32(_ELEMENT) + place * jnp.uint32(_PLACE) + jnp.uint32(_START)
    for shift, factor in _ROUNDS:
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    mixed ^= mixed >> _LAST
    odd = jnp.zeros((), jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        odd = (~jnp.isfinite(leaf)).astype(jnp.uint32).sum(dtype=jnp.uint32)
    return mixed.sum(dtype=jnp.uint32), odd


def not_finite(tree: Any) -> str | None:
    """The name of the first leaf of a tree of numpy arrays that holds NaN or infinity; None where all are finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if math.prod(leaf.shape) and jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            return sharding.leaf_name(path)
    return None
