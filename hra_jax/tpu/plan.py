"""A configuration on a topology, before anything is compiled: mesh, batches, and whether they fit together."""

import dataclasses
import math

from ml_collections import ConfigDict

from hra_jax.config.keys import group
from hra_jax.data import batching
from hra_jax.errors import UserError
from hra_jax.run.layout import check_rows
from hra_jax.tpu import topologies
from hra_jax.training import sharding

STEPS = ("train", "evaluation", "transcription", "decode")  # the programs of a run
GREEDY_STEPS = STEPS[:3]  # those of one that searches for nothing
LABELS_PER_SECOND = 8.0  # room for labels: sentence pieces of fast speech come at about half of that


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration on a topology, before anything is compiled."""

    config: ConfigDict
    topology: topologies.Topology
    mesh_shape: dict[str, int]
    edges: tuple[float, ...]  # of the length buckets, seconds; () where they are still to be found
    train_rows: tuple[int, ...]  # utterances of a global batch, by bucket
    evaluation_rows: tuple[int, ...]

    @property
    def shards(self) -> int:
        """The number of shards that the rows of a batch are split into."""
        return math.prod(self.mesh_shape[axis] for axis in sharding.BATCH_AXES)

    @property
    def devices(self) -> int:
        """Devices of all slices."""
        return self.topology.chips * self.mesh_shape["slices"]


def make_plan(config: ConfigDict, topology: str) -> Plan:
    """Checks a configuration against a topology; needs no compiler and no devices.

    Where `batch.buckets` is a number, what depends on the ends of the buckets is not checked.

    Args:
      config: a validated configuration.
      topology: its name; `config.mesh.slices` slices of it.

    Raises:
      UserError: no such topology, or a mesh, a batch or a bucket that does not fit it.
    """
    found, sizes = topologies.parse(topology), config.mesh
    if found.generation == "cpu" and sizes.slices != 1:
        raise UserError(f"mesh.slices = {sizes.slices}: {topology} has no slices; allowed is 1")
    try:
        sizes_of_axes = sharding.mesh_shape(
            found.chips * sizes.slices, sizes.data, sizes.fsdp, tensor=sizes.tensor, slices=sizes.slices
        )
    except UserError as error:
        raise UserError(f"{topology}: {error}") from error
    shape = dict(zip(sharding.MESH_AXES, sizes_of_axes, strict=True))
    batch, evaluation = group(config, "batch"), group(config, "eval")
    shards = math.prod(shape[axis] for axis in sharding.BATCH_AXES)
    if batch.multiple % shards:
        raise UserError(
            f"{topology}: batch.multiple = {batch.multiple}: must be a multiple of {shards}, the number of "
            "shards that a batch is split into"
        )
    if isinstance(batch.buckets, int):
        return Plan(config, found, shape, (), (), ())
    check_rows(batch, shards, accumulate=config.accumulate, evaluation=evaluation)
    train_rows, evaluation_rows = (
        batching.bucket_rows(batch.edges, batch_seconds=seconds, multiple=batch.multiple)
        for seconds in (batch.seconds, evaluation.batch_seconds)
    )
    return Plan(config, found, shape, batch.edges, train_rows, evaluation_rows)
