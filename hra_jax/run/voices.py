"""How the tasks of a run sound: their centroids, for `decoding.unknown_task`, from a sample of the training data."""

import functools

import numpy as np

from hra_jax.data import batching
from hra_jax.data.batching import BatchSettings
from hra_jax.data.loader import eval_batches
from hra_jax.data.sources import DataSettings
from hra_jax.decoding import unknown_task
from hra_jax.run import programs
from hra_jax.run.place import Run
from hra_jax.training import sharding
from hra_jax.training.agreement import agreed


def find(run: Run, *, data: DataSettings, batch: BatchSettings, batch_seconds: float) -> unknown_task.Records:
    """The records of the tasks that had data; a collective.

    Args:
      run: the run after its last step, of an adapter.
      data, batch: groups of its configuration.
      batch_seconds: of an evaluation batch, seconds of audio.

    Raises:
      UserError: nothing of the sample could be read.
    """
    layout, table = run.layout, run.layout.table
    chosen = unknown_task.sample(table.task)
    rows = batching.bucket_rows(batch.edges, batch_seconds=batch_seconds, multiple=batch.multiple)
    buckets = batching.bucket_of(table.duration[chosen], batch.edges)
    plans = []
    for bucket, count in enumerate(rows):
        inside = chosen[buckets == bucket]
        plans += [(bucket, inside[start : start + count]) for start in range(0, len(inside), count)]
    batches = eval_batches(
        table,
        batch_seconds=batch_seconds,
        buckets=batch.edges,
        multiple=batch.multiple,
        threads=data.threads,
        report=run.report,
        local_rows=functools.partial(sharding.local_rows, layout.mesh),
        plans=plans,
    )
    model = programs.model_on(layout.mesh, run.material.base, layout.method, settings=run.settings)
    step = programs.voice_step(model, layout.mesh)
    # What a row holds does not matter, but how many axes it has does.
    weights = {"shared": run.state.weights["shared"], "tasks": run.bank.weights(run.state, (0,))}
    voices, tasks = [], []
    for _ in plans:
        # One process may fail to decode its part, and the others would wait for it in the step.
        arrays = sharding.shard_batch(agreed(lambda: next(batches)), layout.mesh)
        outputs = {name: np.asarray(value) for name, value in step(weights, run.frozen, arrays).items()}
        for at in np.flatnonzero((outputs["utterance"] >= 0) & (outputs["weight"] > 0)):
            voices.append(outputs["voices"][at])
            tasks.append(table.task_names[table.task[outputs["utterance"][at]]])
    return unknown_task.records_of(np.array(voices), tasks) if voices else {}


def has_any(run: Run) -> bool:
    """Whether there is an adapter whose tasks have recordings."""
    return run.settings.method == "adapter" and bool((run.layout.table.task >= 0).any())
