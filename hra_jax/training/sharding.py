"""The device mesh, and the one table that says where every array lives on it.

Mesh axes, outermost first:

    slices  TPU slices, connected over DCN; chips within one over ICI: data parallel
    data    data parallel: rows of the batch are split, weights are replicated
    fsdp    rows of the batch are split and weights are split too, gathered when they are used
    tensor  the inner widths of a layer are split

One device is a mesh of 1 x 1 x 1 x 1. Weights and activations name their dimensions (logical axes) where they are
created; RULES turns names into mesh axes. A name that RULES does not know is an error.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hra_jax.config.settings import check_settings, integer, setting
from hra_jax.errors import UserError

MESH_AXES = ("slices", "data", "fsdp", "tensor")
BATCH_AXES = ("slices", "data", "fsdp")

# Within one array a mesh axis goes to the first dimension that asks for it; later dimensions do without. So `embed` of
# a weight is split over fsdp, and `embed` of an activation, after `batch`, is not.
RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": BATCH_AXES,
    "time": (),
    # weights of the encoder
    "layers": (),  # the scan walks along it
    "embed": ("fsdp",),
    "embed_out": (),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "norm": (),
    "taps": (),
    "conv": (),
    "conv_in": (),
    "conv_out": (),
    "vocab": (),  # vocabularies seldom divide
    # weights of adapters
    "task": ("fsdp",),
    "controller": (),
}

# The number of tasks is the user's business and not the mesh's: a bank whose rows do not divide is replicated. Padding
# it instead would write the mesh into the checkpoint.
REPLICATED_WHEN_UNEVEN = frozenset({"task"})


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The keys `mesh.*`: sizes of the mesh axes."""

    data: int = setting(
        -1,
        integer(1, extra=-1),
        "devices along the batch; -1 for all that are left, which one of the sizes may be",
    )
    fsdp: int = setting(1, integer(1, extra=-1), "devices along the batch that also share the backbone's weights")
    tensor: int = setting(1, integer(1, extra=-1), "devices that share one layer's width")
    slices: int = setting(1, integer(1), "TPU slices")

    def __post_init__(self) -> None:
        check_settings(self, "mesh")


def make_mesh(
    data: int = -1, fsdp: int = 1, *, tensor: int = 1, slices: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the four axes MESH_AXES over all devices.

    Args:
      data, fsdp, tensor, slices: sizes, at least 1; one of them may be -1, "all that is left".
      devices: the devices, `jax.devices()` (of all processes) if None; absent ones of a topology serve as well.

    Raises:
      UserError: a size of 0, two sizes of -1, a product that is not the number of devices, or `slices` that is not the
        number of TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(len(devices), data, fsdp, tensor=tensor, slices=slices)
    if devices[0].platform != "tpu":
        grid = np.array(devices, dtype=object).reshape(shape)
    else:
        found = len({getattr(device, "slice_index", 0) for device in devices})
        if found != shape[0]:
            raise UserError(f"mesh.slices = {shape[0]}: the {len(devices)} devices form {found} slices")
        grid = _tpu_grid(shape, devices)
    # Auto: the compiler propagates shardings between the points where `constrain` pins them.
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_shape(
    count: int, data: int = -1, fsdp: int = 1, *, tensor: int = 1, slices: int = 1
) -> tuple[int, int, int, int]:
    """The sizes of MESH_AXES over `count` devices, -1 replaced; arguments and errors as for `make_mesh`."""
    sizes = _resolved({"slices": slices, "data": data, "fsdp": fsdp, "tensor": tensor}, count)
    return sizes["slices"], sizes["data"], sizes["fsdp"], sizes["tensor"]


def _resolved(sizes: dict[str, int], count: int) -> dict[str, int]:
    """The same sizes with -1 replaced."""
    text = ", ".join(f"mesh.{name} = {size}" for name, size in sizes.items())
    for name, size in sizes.items():
        if size == 0 or size < -1:
            raise UserError(f"mesh.{name} = {size}: must be at least 1, or -1 for all devices that are left")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"{text}: only one of them may be -1")
    product = math.prod(size for size in sizes.values() if size != -1)
    if free and count % product == 0:
        return sizes | {free[0]: count // product}
    if free:
        raise UserError(f"{text}: the fixed sizes multiply to {product}, which does not divide the {count} devices")
    if product != count:
        raise UserError(f"{text}: they multiply to {product}, but there are {count} devices")
    return sizes


def _tpu_grid(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices in an order in which neighbours on the mesh are neighbours over ICI."""
    if shape[0] == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    inside, between = (1, *shape[1:]), (shape[0], 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)


def sharding_for(
    mesh: Mesh,
    logical_axes: Sequence[str | None] | PartitionSpec | None,
    *,
    shape: Sequence[int] | None = None,
    leaf: str = "array",
) -> NamedSharding:
    """Where an array lives.

    Args:
      mesh: from `make_mesh`.
      logical_axes: a name of RULES or None (not split) for every dimension. None: split nowhere. A PartitionSpec of
        logical names (as flax gives it) may be shorter than the array; what it leaves out is not split.
      shape: the global shape, to check; None checks nothing.
      leaf: what to call the array in an error.

    Raises:
      UserError: a dimension is not a multiple of the number of devices that it is split over.
      ValueError: a name is not in RULES, or there are not as many names as dimensions.
    """
    if logical_axes is None:
        return replicated(mesh)
    names = tuple(logical_axes)
    if shape is not None:
        if isinstance(logical_axes, PartitionSpec):
            names += (None,) * (len(shape) - len(names))
        if len(names) != len(shape):
            raise ValueError(f"{leaf}: axes {names} do not fit the shape {tuple(shape)}")
    taken: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for dimension, name in enumerate(names):
        axes = tuple(axis for axis in _rule(name, leaf) if axis not in taken)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if shape is not None and shape[dimension] % parts:
            if name not in REPLICATED_WHEN_UNEVEN:
                over = " x ".join(f"mesh.{axis} = {mesh.shape[axis]}" for axis in axes)
                raise UserError(
                    f"{leaf}: dimension {dimension} ({name}) of size {shape[dimension]} is not a multiple of {parts} "
                    f"({over})"
                )
            axes = ()
        taken.update(axes)
        entries.append(axes if len(axes) > 1 else (axes[0] if axes else None))
    return NamedSharding(mesh, PartitionSpec(*entries))


def _rule(name: str | None, leaf: str) -> tuple[str, ...]:
    if name is None:
        return ()
    if name not in RULES:
        raise ValueError(f"{leaf}: unknown axis name {name!r}; known are {', '.join(sorted(RULES))}")
    return RULES[name]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def connect(mesh: Mesh) -> None:
    """Has the processes of a mesh of CPU devices open their connections; all of them must call it at one time.

    A connection is opened by the first collective of its devices, and gloo, which does that on CPUs, gives up where one
    side comes 30 s after the other: as it does when a program compiles that much longer in one of the processes. Once
    opened, they wait for each other as long as it takes.

    Args:
      mesh: from `make_mesh`.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    gather = jax.jit(lambda x: x, out_shardings=replicated(mesh))
    axes = [axis for axis in MESH_AXES if mesh.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            parts = np.zeros(math.prod(mesh.shape[axis] for axis in chosen), np.float32)
            jax.block_until_ready(gather(place(parts, NamedSharding(mesh, PartitionSpec(chosen)))))


def place(tree: Any, shardings: Any) -> Any:
    """Puts arrays of which every process has the same on the devices.

    `jax.device_put` would have the processes compare them over DCN, and wait for each other at every leaf.

    Args:
      tree: arrays that are whole in this process, or lie where they should already.
      shardings: one for all leaves, or a tree of the same structure.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda leaf: shardings, tree)

    def put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """The arrays as numpy, whole in every process; a collective where they are split over processes."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def by_itself(tree: Any) -> Any:
    """Weights that this process can compute with, without the others; a collective where they are split over processes.

    They lie on one device of this process; where there is no other process they stay as they are.
    """
    if jax.process_count() == 1:
        return tree

    def own(leaf: jax.Array) -> jax.Array:
        return leaf.addressable_data(0) if leaf.is_fully_replicated else jnp.asarray(to_host(leaf))

    return jax.tree.map(own, tree)


def leaf_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as `a/b/0`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(mesh: Mesh, axes_tree: Any, shapes_tree: Any) -> Any:
    """Shardings of a whole tree.

    Args:
      mesh: from `make_mesh`.
      axes_tree: the structure of `shapes_tree` with the logical axes of each leaf, as `sharding_for` takes them.
      shapes_tree: a tree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      A tree of NamedSharding with the structure of `shapes_tree`.

    Raises:
      UserError, ValueError: see `sharding_for`; the leaf is named. ValueError also where the structures differ.
    """
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes_tree)
    # Axes are tuples, which are trees themselves: they are read off where the leaves are.
    axes = structure.flatten_up_to(axes_tree)
    shardings = [
        sharding_for(mesh, names, shape=value.shape, leaf=leaf_name(path))
        for (path, value), names in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(structure, shardings)


def constrain(x: jax.Array, mesh: Mesh | None, logical_axes: Sequence[str | None]) -> jax.Array:
    """`x` itself, pinned inside jit to where RULES puts it; without a mesh, `x` unchanged.

    The sharding is explicit. A constraint by logical names under a mesh context can be dropped without a word, and then
    every device holds the whole batch.
    """
    if mesh is None:
        return x
    sharding = sharding_for(mesh, logical_axes, shape=x.shape, leaf="activation")
    pinned: jax.Array = jax.lax.with_sharding_constraint(x, sharding)
    return pinned


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_multiple(mesh: Mesh, multiple: int) -> None:
    """Checks that batches whose rows are a multiple of `multiple` can be split over the mesh.

    Raises:
      UserError: they cannot.
    """
    parts = batch_shards(mesh)
    if multiple % parts:
        over = " x ".join(f"mesh.{axis} = {mesh.shape[axis]}" for axis in BATCH_AXES if mesh.shape[axis] > 1)
        raise UserError(f"batch.multiple = {multiple}: must be a multiple of {parts} ({over})")


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a global batch of `rows` rows that this process must supply to `shard_batch`, ascending: int `[b]`.

    With one process these are all rows. Two processes that share rows (tensor parallel between them) supply the same.
    """
    sharding = sharding_for(mesh, ("batch",), shape=(rows,), leaf="batch")
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    starts = {index[0].indices(rows)[:2] for index in indices if index is not None}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(starts)])


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts a batch on the devices, split by rows.

    Args:
      batch: arrays with a leading axis of rows: of the global batch, those that `local_rows` names, in that order. The
        arrays must not be written to afterwards: the CPU backend may keep them instead of copying.
      mesh: from `make_mesh`.

    Returns:
      Global arrays. 64-bit numbers become 32-bit ones, as always in jax.

    Raises:
      UserError: the rows cannot be split evenly.
    """
    parts = batch_shards(mesh)
    here = len(local_rows(mesh, parts))  # of the parts, those that live in this process
    shards = {}
    for name, value in batch.items():
        value = np.asarray(value)
        if value.shape[0] % here:
            raise UserError(f"batch[{name!r}]: {value.shape[0]} rows cannot be split into {here} parts")
        shape = (value.shape[0] // here * parts, *value.shape[1:])
        axes = ("batch", *(None,) * (value.ndim - 1))
        sharding = sharding_for(mesh, axes, shape=shape, leaf=f"batch[{name!r}]")
        shards[name] = jax.make_array_from_process_local_data(sharding, value, shape)
    return shards
