"""What a training step and a checkpoint cost as the number of tasks grows.

python benchmarks/task_scaling.py --json benchmarks/results/task_scaling.json

The step at size tiny (random weights), a linear head, R = 32: a bank of 10 tasks on the device, one of 10,000 on the
device, one of 100,000 in host memory; the same batch, the three taking turns. Each side also
runs in a process of its own, for its peak of memory and for a checkpoint: bytes and seconds of the second save, of the
eight rows that the batch touches.
"""

import functools
import json
import subprocess
import sys
import tempfile
import time

import harness
import jax
import numpy as np
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.adapters import initial
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel
from hra_jax.run.jax_setup import setup_jax
from hra_jax.training import task_bank, train_state
from hra_jax.training.checkpoints import Checkpoints
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.step import make_host_rows_step, make_train_step

FLAGS = flags.FLAGS

SIDES = {
    "10 tasks, device": (10, "device"),
    "10,000 tasks, device": (10_000, "device"),
    "100,000 tasks, host": (100_000, "host"),
}
ROWS, SECONDS, LABELS, MAX_TASKS, PRESENT = 16, 2.0, 24, 32, 8


def batch_of(tasks: int, sample_rate: int, number: int = 0) -> dict:
    """A batch of noise; its eight tasks are spread over the bank."""
    rng = np.random.default_rng(number)
    samples = round(SECONDS * sample_rate)
    present = np.linspace(0, tasks - 1, PRESENT).astype(np.int32)
    return {
        "waveform": rng.standard_normal((ROWS, samples)).astype(np.float32),
        "num_samples": np.full(ROWS, samples, np.int32),
        "labels": rng.integers(1, 20, (ROWS, LABELS)).astype(np.int32),
        "label_lengths": np.full(ROWS, LABELS, np.int32),
        "task": np.resize(present, ROWS),
        "weight": np.ones(ROWS, np.float32),
    }


class Side:
    """A bank of one size, ready to step."""

    def __init__(self, tasks: int, kind: str):
        """`kind`: device or host."""
        files = backbone_folder.load("builtin:tiny")
        adapter = HierarchicalRecurrentAdapter(width=32)
        model = AsrModel(files.features, files.encoder, adapter=adapter, remat="dots")
        config = OptimizerConfig(steps=10_000)
        weights = initial.new_weights_on_host(adapter, jax.random.key(0), files.encoder, tasks)
        hyper = {"seed": np.uint32(0), "learning_rate": np.float32(1e-3)}
        step = make_train_step(model, config, blank_id=0, seed=0, max_tasks=MAX_TASKS)
        self.frozen = jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), files.params))
        on_device = weights if kind == "device" else {"shared": weights["shared"]}
        self.state = jax.device_put(train_state.create(on_device, config))
        if kind == "host":
            step = jax.jit(make_host_rows_step(step), donate_argnums=0)
            self.bank = task_bank.HostBank(
                step,
                weights["tasks"],
                hyper=hyper,
                max_tasks=MAX_TASKS,
                place=jax.device_put,
                draw=lambda: weights["tasks"],
            )
        else:
            step = jax.jit(step, donate_argnums=0)
            self.bank = task_bank.DeviceBank(step, hyper=hyper, draw=lambda: weights["tasks"])
        batch = batch_of(tasks, files.features.sample_rate)
        self.present, self.batch = sorted(set(batch["task"].tolist())), jax.device_put(batch)

    def step(self):
        """One training step; what is to be waited for."""
        self.state, metrics = self.bank.step(self.state, self.frozen, self.batch, self.present)
        return metrics["loss"]

    def save(self) -> dict:
        """Bytes and seconds of a checkpoint of the rows that are touched, and of the next, after one more step."""
        with (
            tempfile.TemporaryDirectory() as folder,
            Checkpoints(folder, keep_latest=9, keep_best=0, every_steps=1) as checkpoints,
        ):
            for number in (1, 2):
                self.step().block_until_ready()
                before, start = _bytes(folder), time.perf_counter()
                ids, rows = self.bank.changed(self.state)
                state = train_state.without_bank(self.state)
                checkpoints.save(number, state, position={}, best={}, rows={"bank": (ids, rows)})
                checkpoints.wait()
                self.bank.saved()
                found = {"save_s": time.perf_counter() - start, "save_bytes": _bytes(folder) - before}
        return found


def _bytes(folder: str) -> int:
    return sum(path.stat().length for path in _files(epath.Path(folder)))


def _files(folder):
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else (path,)


def alone(name: str) -> dict:
    """A side in this process alone: its peak of memory, and its checkpoint."""
    side = Side(*SIDES[name])
    for _ in range(20):
        loss = side.step()
    jax.block_until_ready(loss)
    saved = side.save()
    return saved | {"peak_mib": harness.peak_memory() / 2**20}


def define_flags() -> None:
    """The flags of this benchmark."""
    harness.define_flags()
    flags.DEFINE_string("alone", "", "Runs one side by itself and prints what it costs as JSON.")


def main(argv) -> None:
    """Entry point."""
    setup_jax()
    if FLAGS.alone:
        print(json.dumps(alone(FLAGS.alone)))
        return
    costs = {}
    for name in SIDES:
        command = [sys.executable, argv[0], "--alone", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        costs[name] = json.loads(done.stdout.splitlines()[-1])
    sides = {name: Side(*settings) for name, settings in SIDES.items()}
    timings = harness.interleave({name: functools.partial(Side.step, side) for name, side in sides.items()}, samples=25)
    harness.report("task_scaling", {"step": timings}, FLAGS.json, costs=costs)
    for name, cost in costs.items():
        print(
            f"{name}: peak memory {cost['peak_mib']:,.0f} MiB, a checkpoint {cost['save_bytes']:,} bytes in "
            f"{cost['save_s']:.2f} s"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags))
