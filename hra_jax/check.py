"""Checks before a run is compiled: devices, storage, data, decoding, a sum over all devices, a small step.

python -m hra_jax.check --config quickstart --workdir runs/quickstart

It takes the flags of `hra_jax.train`, runs on the same hosts, and refuses what training would refuse before its first
step. The work directory is left as it was; data that training would make first, such as a synthetic set, is made. It
prints one table. Exit status: 0; 2 where something is wrong; 75 where storage does not answer.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from hra_jax import cli
from hra_jax.config.files import validate_config
from hra_jax.config.keys import group
from hra_jax.console import duration, size, stdout, table
from hra_jax.data import batching
from hra_jax.data.loader import TrainLoader
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run import processes, workdirs
from hra_jax.run.jax_setup import setup_jax
from hra_jax.run.layout import Layout
from hra_jax.run.stages import survey
from hra_jax.storage import files, remote, writing
from hra_jax.tpu import topologies
from hra_jax.tpu.shapes import Shapes
from hra_jax.training import agreement, flops, sharding

FLAGS = flags.FLAGS
WRONG = cli.USER_ERROR
_SUMMED = 1 << 18  # numbers of each device in the sum over all of them
_WIDTH = 128  # of the small step
_DECODED_BATCHES = 3
_DECODING_SECONDS = 20.0  # after which no further batch is decoded
_USED_SHARE = 0.4  # of the peak rate of the chips, which a good run reaches


class Finding(NamedTuple):
    """A row of the table, from one process."""

    what: str
    found: str
    state: str = "ok"  # or "slow", "wrong", "away"


class Probe(NamedTuple):
    """A file with which the processes try a work directory: the first one writes it, and the others find it.

    Attributes:
      path: the file.
      content: what is in it.
      absent: folders that were not there before it, the innermost first; a bucket needs none.
    """

    path: epath.Path
    content: bytes
    absent: tuple[epath.Path, ...]


def new_probe(workdir: epath.PathLike) -> Probe:
    """A file for a work directory; nothing is written yet. Raises OSError."""
    remotely = files.is_remote(workdir)
    folder = epath.Path(workdir if remotely else os.path.abspath(workdir))
    folders = () if remotely else (folder, *folder.parents)
    absent = tuple(path for path in folders if not os.path.lexists(path))
    return Probe(folder / f".check-{secrets.token_hex(8)}", secrets.token_bytes(1 << 16), absent)


def remove_probe(probe: Probe) -> None:
    """Removes it, and the folders that were made for it in which nothing else lies by now. Raises OSError."""
    files.remove_file(probe.path)
    for folder in probe.absent:
        files.remove_empty_folder(folder)


def find_probe(path: epath.PathLike, digest: str, *, writes: bool) -> list[str]:
    """Reads and lists a file that another process has written.

    Args:
      path: the file.
      digest: the SHA-256 of its content.
      writes: whether to write a file beside it, too, and to remove that again.

    Returns:
      How long each act took, as text.

    Raises:
      UserError: it is not there, or has another content: this process has other storage.
      OSError: storage fails.
    """
    file = epath.Path(path)
    beside = file.parent / f"{file.name}-{secrets.token_hex(8)}"
    acts: list[tuple[str, Callable[[], object]]] = [
        ("read", lambda: hashlib.sha256(file.read_bytes()).hexdigest() == digest),
        ("listed", lambda: any(entry.name == file.name for entry in file.parent.iterdir())),
    ]
    if writes:
        acts += [
            ("written", lambda: files.write_file(beside, b"", mark=False)),
            ("removed", lambda: files.remove_file(beside)),
        ]
    times = []
    for act, done in acts:
        try:
            times.append(_timed(act, done))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{file.parent}: what process 0 wrote there cannot be {act}; {workdirs.SHARED}") from error
    return times


def _timed(act: str, done: Callable[[], object]) -> str:
    started = time.perf_counter()
    if done() is False:
        raise FileNotFoundError
    return f"{act} {duration(time.perf_counter() - started)}"


def check_workdir(config: ConfigDict, workdir: epath.PathLike) -> tuple[list[Finding], bool]:
    """Tries a work directory with a file that process 0 writes and all others find; a collective.

    What lies there stays. Folders that are absent are absent afterwards.

    Args:
      config: the configuration of the run.
      workdir: the work directory that it is to have.

    Returns:
      What this process found; and whether the run would go on from a checkpoint, the same in all processes.
    """
    first = jax.process_index() == 0
    times: list[str] = []
    trouble: list[Finding] = []

    def attempt(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (UserError, OSError) as error:
            trouble.append(_wrong("work directory", error))

    with contextlib.ExitStack() as at_the_end:

        def begin() -> tuple[str, str, bool]:
            resumed = workdirs.check_claim(config, workdir)
            probe = new_probe(workdir)
            # Also where a signal ends this process.
            begun = writing.begin(functools.partial(remove_probe, probe), patience=writing.Patience.NONE)
            at_the_end.callback(writing.end, begun)
            try:
                times.append(_timed("written", lambda: files.write_file(probe.path, probe.content, mark=False)))
            finally:
                if times or probe.absent:  # else nothing was made
                    at_the_end.callback(attempt, lambda: times.append(_timed("removed", lambda: remove_probe(probe))))
            return str(probe.path), hashlib.sha256(probe.content).hexdigest(), resumed

        told = agreement.gather(attempt(begin) if first else None)[0]
        if told is not None:
            times += attempt(lambda: find_probe(*told[:2], writes=not first)) or []
            agreement.gather(None)  # nobody is at it any more
    found = [Finding("work directory", ", ".join(times))] if times else []
    return trouble or found, bool(told and told[2])


def _wrong(what: str, error: BaseException) -> Finding:
    state = "away" if remote.unavailable(error) else "wrong"
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return Finding(what, " ".join(reason.split()), state)


def check_devices(mesh: jax.sharding.Mesh) -> list[Finding]:
    """Says what the devices are and how they are laid out; adds up numbers that lie on all of them; a collective."""
    devices = mesh.devices.flat
    kinds = sorted({device.device_kind for device in devices})
    axes = " x ".join(f"{axis} {count}" for axis, count in mesh.shape.items() if count > 1) or "not split"
    found = [Finding("devices", f"{mesh.size} x {', '.join(kinds)}; processes: {jax.process_count()}; {axes}")]
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    shape = (mesh.size, _SUMMED)
    ones = np.ones(shape, np.float32)
    numbers = jax.make_array_from_callback(shape, everywhere, lambda index: ones[index])
    add = jax.jit(lambda values: values.sum(axis=0), out_shardings=sharding.replicated(mesh))
    np.asarray(add(numbers))  # the first one compiles
    started = time.perf_counter()
    total = np.asarray(add(numbers))
    seconds = duration(time.perf_counter() - started)
    if not (total == mesh.size).all():
        wrong = total[total != mesh.size][0]
        found.append(Finding("sum over all devices", f"{wrong} in place of {mesh.size}", "wrong"))
    else:
        found.append(Finding("sum over all devices", f"{size(4 * _SUMMED)} of each in {seconds}"))
    return [*found, _small_step(mesh)]


def _small_step(mesh: jax.sharding.Mesh) -> Finding:
    """One step of gradient descent on a small problem, its batch split as training splits it; a collective."""
    rows = 8 * sharding.batch_shards(mesh)
    inputs = np.random.default_rng(0).standard_normal((rows, _WIDTH)).astype(np.float32)
    local = sharding.local_rows(mesh, rows)
    batch = sharding.shard_batch({"inputs": inputs[local]}, mesh)

    def loss(weights: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(jnp.matmul(values, weights, precision="highest")))

    step = jax.jit(jax.value_and_grad(loss), out_shardings=sharding.replicated(mesh))
    before, gradient = step(jnp.eye(_WIDTH), batch["inputs"])
    expected = np.mean(np.square(inputs, dtype=np.float64))
    if not np.isclose(float(before), expected, rtol=1e-3) or not np.isfinite(np.asarray(gradient)).all():
        return Finding("a small step", f"a loss of {float(before):.6g} in place of {expected:.6g}", "wrong")
    return Finding("a small step", f"loss {float(before):.4f}, as on the host")


def check_data(config: ConfigDict, layout: Layout, report: DataReport) -> list[Finding]:
    """Decodes a few batches as training does, and compares the rate with what the steps of the chips need."""
    rows, batch, mesh = layout.table, group(config, "batch"), layout.mesh
    loader = TrainLoader(
        rows,
        seed=config.seed,
        batch_seconds=batch.seconds,
        buckets=batch.edges,
        multiple=batch.multiple,
        max_tasks=batch.max_tasks,
        prefetch=0,
        local_rows=functools.partial(sharding.local_rows, mesh),
        threads=group(config, "data").threads,
        draw=config.data.draw,
        parts=layout.parts,
        report=report,
    )
    started, samples, everyones = time.perf_counter(), 0, 0.0
    with loader:
        for _ in range(_DECODED_BATCHES):
            samples += int(next(loader)["num_samples"].sum())
            everyones += loader.audio_seconds
            if time.perf_counter() - started > _DECODING_SECONDS:
                break
    seconds = max(time.perf_counter() - started, 1e-6)
    tasks = f" of {len(layout.tasks):,} tasks" if layout.tasks else ""
    found = [Finding("data", f"{len(rows):,} utterances{tasks}; {report.summary()}")]
    mine = samples / rows.sample_rate
    rate, needed = mine / seconds, _needed(config, layout) * mine / max(everyones, 1e-6)
    text = f"{rate:,.0f} s of audio a second, with {group(config, 'data').threads} threads"
    if not needed:
        return [*found, Finding("decoding", f"{text}; what the steps need is not known for these devices")]
    text += f"; steps at {_USED_SHARE:.0%} of the chips' peak need {needed:,.0f}"
    return [*found, Finding("decoding", text, "ok" if rate >= needed else "slow")]


def _needed(config: ConfigDict, layout: Layout) -> float:
    """Seconds of audio that all processes must decode in a second for the chips not to wait; 0 where it is not known.

    The step of the longest bucket is counted, and not compiled.
    """
    mesh, batch = layout.mesh, group(config, "batch")
    peak = topologies.peak_flops(mesh.devices.flat[0].device_kind)
    if not peak:
        return 0.0
    rows = batching.bucket_rows(batch.edges, batch_seconds=batch.seconds, multiple=batch.multiple)[-1]
    job = Shapes(config, mesh, tasks=max(1, len(layout.tasks))).job("train", batch.edges[-1], rows)
    least = flops.matmul_flops(job.trace().jaxpr) / (_USED_SHARE * peak * mesh.size)
    return rows * batch.edges[-1] / max(least, 1e-9)


# --- The table --------------------------------------------------------------------------------------------------------


def print_table(found: Sequence[Sequence[Finding]]) -> int:
    """Prints what all processes found, the same findings once.

    Args:
      found: by process.

    Returns:
      The exit status: 0; 2 where something is wrong; 75 where nothing is wrong but storage that does not answer.
    """
    rows = []
    for number, findings in enumerate(found):
        for what, text, state in findings:
            # One process speaks for all where all is well.
            if number == 0 or state != "ok":
                where = f"{what} (process {number})" if len(found) > 1 and state != "ok" else what
                rows.append((where, state, text))
    stdout().print(table(("checked", "", "found"), rows, left=("", "found")))
    states = {state for findings in found for _, _, state in findings}
    return WRONG if "wrong" in states else remote.UNAVAILABLE if "away" in states else 0


@contextlib.contextmanager
def _shown_if_refused(found: list[Finding]) -> Iterator[None]:
    """Prints the table so far where what follows is refused; the error line then says by what."""
    try:
        yield
    except (UserError, OSError):
        print_table([found])
        raise


def check(config: ConfigDict, workdir: epath.PathLike) -> int:
    """Checks a configuration on the devices of all processes; a collective.

    Args:
      config: a configuration as `hra_jax.config.files.load_config` gives it.
      workdir: the work directory that the run is to have.

    Returns:
      The exit status, as `print_table` gives it.

    Raises:
      UserError: what training would refuse before its first step.
    """
    validate_config(config)
    own, resumed = check_workdir(config, workdir)
    everyones = agreement.gather(own)
    if any(state != "ok" for findings in everyones for _, _, state in findings):
        return _ended(everyones)
    if resumed:
        workdirs.as_begun(config, workdirs.named(workdir))
    report = DataReport(strict=config.data.strict)
    with _shown_if_refused(own):
        _, layout = survey(config, workdir, report, begins=not resumed)
    acts: list[Callable[[], list[Finding]]] = [lambda: check_devices(layout.mesh)]
    acts.append(functools.partial(_local, "decoding", lambda: check_data(config, layout, report)))
    for act in acts:
        own += act()
    return _ended(agreement.gather(own))


def _local(what: str, act: Callable[[], list[Finding]]) -> list[Finding]:
    """What one process does by itself: its trouble is a finding, so that nobody waits for it."""
    try:
        return act()
    except (UserError, OSError) as error:
        return [_wrong(what, error)]


def _ended(everyones: Sequence[Sequence[Any]]) -> int:
    """The exit status, in every process; process 0 prints the table."""
    found = [[Finding(*finding) for finding in findings] for findings in everyones]
    if jax.process_index() == 0:
        return print_table(found)
    states = {finding.state for findings in found for finding in findings}
    return WRONG if "wrong" in states else remote.UNAVAILABLE if "away" in states else 0


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("workdir", None, "Work directory that the run is to have.", required=True)
    processes.define_flags()


def main(argv: Sequence[str]) -> int:
    """Checks what the flags say."""
    del argv
    processes.initialize(heartbeat_seconds=FLAGS.config.distributed.heartbeat_seconds, resumable=False)
    setup_jax()
    return check(FLAGS.config, FLAGS.workdir)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags, config_flag=True)
