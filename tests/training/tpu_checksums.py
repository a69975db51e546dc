"""Compiles the checksum of an array that is split over four v5e chips, as its own process; prints what it takes."""

import json

import jax
import jax.numpy as jnp

from hra_jax.tpu import topologies
from hra_jax.tpu.hlo import Program
from hra_jax.training import checksums, sharding


def main() -> None:
    mesh = sharding.make_mesh(data=2, fsdp=2, devices=topologies.devices(topologies.parse("v5e:2x2")))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data", "fsdp"))
    leaf = jax.ShapeDtypeStruct((24, 512, 1024), jnp.float32, sharding=where)
    with checksums._wide_integers():
        done = checksums._compiled(mesh, True).lower(leaf).compile()
    sizes = done.memory_analysis()
    found = {
        "bytes": 4 * leaf.size,
        "argument": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "shapes": sorted({array.shape for _, array in Program(done.as_text()).arrays()}),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
