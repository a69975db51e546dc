"""Compiles the train step of a configuration for four v5e chips, as its own process; prints the shapes of its arrays.

    python tpu_buffers.py METHOD ROWS

METHOD is a method of hra_jax.adapters, or full; ROWS the utterances of the global batch.
"""

import json
import sys

from hra_jax.config.files import load_config
from hra_jax.run.layout import open_mesh
from hra_jax.tpu import topologies
from hra_jax.tpu.hlo import Program
from hra_jax.tpu.shapes import Shapes


def main(method: str, rows: str) -> None:
    config = load_config("usm_2b_hra").unlock()
    config.pretrain.size, config.backbone_dtype = "tiny", "bfloat16"
    config.batch.buckets, config.batch.seconds, config.batch.multiple = (2.0,), 2.0 * int(rows), 4
    config.mesh.fsdp = 2
    if method == "full":
        config.method = "full"
    else:
        config.adapter.name = method
    devices = topologies.devices(topologies.parse("v5e:2x2"))
    mesh = open_mesh(config.mesh, multiple=config.batch.multiple, devices=devices)
    (job,) = Shapes(config, mesh, tasks=40).jobs(["train"])
    program = Program(job.trace().lower().compile().as_text())
    print(json.dumps(sorted({array.shape for _, array in program.arrays()})))


if __name__ == "__main__":
    main(*sys.argv[1:])
