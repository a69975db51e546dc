"""Compiles the step with a bank in host memory for four v5e chips, as its own process; prints what it takes as JSON."""

import json
import sys

import jax
import numpy as np
from reference import tiny

from hra_jax.adapters import initial
from hra_jax.models.asr import AsrModel
from hra_jax.tpu import topologies
from hra_jax.training import sharding, train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import make_host_rows_step, make_train_step

MAX_TASKS = 4


def abstract(tree, where):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)


def compiled(tasks: int) -> dict:
    """Bytes and text of the step of a bank of so many tasks."""
    adapter, settings = tiny.ADAPTERS["linear"], OptimizerConfig(steps=10)
    mesh = sharding.make_mesh(devices=topologies.devices(topologies.parse("v5e:2x2")))
    replicated, split = sharding.replicated(mesh), sharding.sharding_for(mesh, ("batch",))
    model = AsrModel(
        tiny.FEATURES,
        tiny.ENCODER,
        adapter=adapter,
        constrain=lambda x: sharding.constrain(x, mesh, ("batch", "time", "embed")),
    )
    step = make_train_step(model, settings, blank_id=0, seed=0, max_tasks=MAX_TASKS)
    weights = jax.eval_shape(lambda: initial.new_weights(adapter, jax.random.key(0), tiny.ENCODER, tasks))
    state = jax.eval_shape(
        lambda: train_state.create(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), weights), settings)
    )
    rows = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((MAX_TASKS, *leaf.shape[1:]), leaf.dtype), train_state.bank_of(state)
    )
    rows = {"ids": jax.ShapeDtypeStruct((MAX_TASKS,), np.int32), "rows": rows}
    hyper = {"seed": np.uint32(0), "learning_rate": np.float32(0)}
    batch = tiny.random_batch([240] * 8, size=240, tasks=[0] * 8)
    batch.pop("utterance")
    frozen = tiny.random_params(tiny.FEATURES, tiny.ENCODER)
    state, frozen, hyper, rows = (
        abstract(tree, replicated) for tree in (train_state.without_bank(state), frozen, hyper, rows)
    )
    program = jax.jit(make_host_rows_step(step), donate_argnums=0, out_shardings=replicated)
    done = program.lower(state, frozen, abstract(batch, split), hyper, rows, rows).compile()
    sizes = done.memory_analysis()
    return {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "bank": sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights["tasks"])),
        "all_reduce": "all-reduce" in done.as_text(),
    }


if __name__ == "__main__":
    print(json.dumps({name: compiled(int(name)) for name in sys.argv[1:]}))
