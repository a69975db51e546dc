"""Compiles the programs of a run for a TPU topology, without a TPU: what fits, what it costs, what bounds it.

    python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16
    python -m hra_jax.aot --config fsdd --topology cpu-8

The real train, evaluation and transcription steps are compiled for every length bucket, from shapes alone. `--plan`
only checks topology, mesh and buckets; `--search batch` finds the largest batch that fits. Exit status 3 says that
something does not fit.
"""

import concurrent.futures
import dataclasses
import json
import os
import re
import sys
import tempfile
import time

import rich.console
import rich.table
from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.console import near_matches
from hra_jax.data import batching
from hra_jax.errors import UserError
from hra_jax.models import dtypes
from hra_jax.run.layout import check_rows, open_mesh
from hra_jax.tpu import topologies
from hra_jax.training import sharding

FLAGS = flags.FLAGS
DOES_NOT_FIT = 3  # exit status
_KINDS = ("train", "evaluation", "transcription")
_LARGEST = 3  # buffers that are named where a program does not fit
_COMPILER_BYTES = 13e9  # that the compiler takes for a step of the paper's size on 256 chips
_AMOUNT = r"([\d.]+)([BKMGT])"
# Chips with 95 GB, as many as those of smaller ones: a program that does not fit is looked at there.
_ROOMY = {4: "v5p:2x2x1", 8: "v5p:2x2x2", 16: "v5p:2x2x4", 32: "v5p:2x4x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8"}
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration on a topology, before anything is compiled."""

    config: object
    topology: topologies.Topology
    mesh_shape: dict[str, int]
    train_rows: tuple[int, ...]  # utterances of a global batch, by bucket
    evaluation_rows: tuple[int, ...]

    @property
    def shards(self) -> int:
        """Parts that the rows of a batch are split into."""
        size = 1
        for axis in sharding.BATCH_AXES:
            size *= self.mesh_shape[axis]
        return size

    @property
    def devices(self) -> int:
        """Devices of all slices."""
        return self.topology.chips * self.mesh_shape["slices"]


def plan(config, topology: str) -> Plan:
    """Checks a configuration against a topology; needs no compiler and no devices.

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
        shape = sharding.mesh_shape(
            found.chips * sizes.slices, sizes.data, sizes.fsdp, tensor=sizes.tensor, slices=sizes.slices
        )
    except UserError as error:
        raise UserError(f"{topology}: {error}") from error
    shape = dict(zip(sharding.MESH_AXES, shape, strict=True))
    batch, shards = config.batch, 1
    for axis in sharding.BATCH_AXES:
        shards *= shape[axis]
    if batch.multiple % shards:
        raise UserError(
            f"{topology}: batch.multiple = {batch.multiple}: must be a multiple of {shards}, the parts that a batch is "
            f"split into"
        )
    check_rows(batch, shards, accumulate=config.accumulate, evaluation=config.eval)
    rows = (
        batching.bucket_rows(batch.buckets, batch_seconds=seconds, multiple=batch.multiple)
        for seconds in (batch.seconds, config.eval.batch_seconds)
    )
    return Plan(config, found, shape, *rows)


# ======================================================================================================================
# Compiling
# ======================================================================================================================


def compile_job(job, planned: Plan) -> dict:
    """Compiles one program, and says what it takes.

    Args:
      job: from `abstract.Shapes`.
      planned: where it is to run.

    Returns:
      What --json writes of it; 'fits' False, with 'needed' and 'available' bytes, where the compiler found that it does
      not fit.
    """
    import jax

    start = time.monotonic()
    entry = {
        "step": job.kind,
        "bucket_seconds": job.seconds,
        "rows": job.rows,
        "rows_per_device": job.rows / planned.shards,
        "audio_seconds": job.rows * job.seconds,
    }
    traced = job.trace()
    try:
        compiled, text = compiled_with_text(traced.lower())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return entry | {"fits": False, **too_large(str(error)), "compile_seconds": time.monotonic() - start}
    return entry | measured(compiled, text, traced.jaxpr, planned) | {"compile_seconds": time.monotonic() - start}


def compiled_with_text(lowered) -> tuple:
    """Compiles what `jax.jit(...).lower(...)` gave; the compiled program, and its text as the compiler wrote it.

    `compiled.as_text()` reads the program back first, which fails where the compiler for TPUs is newer than JAX.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = sorted(epath.Path(folder).glob("*after_optimizations.txt"))
        # A program from the compile cache is not written down again.
        return compiled, written[0].read_text() if written else compiled.as_text()


def measured(compiled, text: str, jaxpr, planned: Plan) -> dict:
    """What a compiled program takes on one device, and how fast the chip can be at best.

    Args:
      compiled: from `compiled_with_text`.
      text: from there.
      jaxpr: of the same function.
      planned: where it is to run.

    Returns:
      What --json writes of it.
    """

    from hra_jax.tpu.hlo import Program
    from hra_jax.training.flops import matmul_flops

    sizes, chip = compiled.memory_analysis(), planned.topology.chip
    per_slice = planned.topology.chips
    slice_of = [device // per_slice for device in range(planned.devices)] if planned.mesh_shape["slices"] > 1 else None
    # What is donated is given back in the same place.
    resident = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    found = {
        "fits": True,
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "peak": resident + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes,
        "memory": chip.memory if chip else None,
        "flops": matmul_flops(jaxpr),  # of all devices together
    }
    program = Program(text, slice_of=slice_of)
    found |= {
        "traffic": program.traffic(),
        "unknown_loops": program.unknown_trips(),
        "collectives": [dataclasses.asdict(collective) for collective in program.collectives()],
    }
    return found | (roofline(found, chip, planned.devices) if chip else {})


def roofline(found: dict, chip: topologies.Chip, devices: int) -> dict:
    """The least time that a step can take, in seconds, and what sets it.

    Args:
      found: 'flops' of all devices, 'traffic' and 'collectives' of one.
      chip: what a chip can do.
      devices: how many there are.
    """
    inside, outside = (
        sum(entry["moved"] for entry in found["collectives"] if entry["between_slices"] is between)
        for between in (False, True)
    )
    times = {
        "compute": found["flops"] / devices / chip.flops,
        "memory": found["traffic"] / chip.bandwidth,
        "links": inside / chip.links,
        "network": outside / chip.network,
    }
    return {"seconds": times, "bound": max(times, key=times.get), "step_seconds": max(times.values())}


def too_large(message: str) -> dict:
    """What a compiler that ran out of memory says: bytes 'needed' and 'available', None where it does not say."""
    found = re.search(rf"\({_AMOUNT}\) exceeds available \w+ \({_AMOUNT}\)|Used {_AMOUNT} of {_AMOUNT}", message)
    sizes = [part for part in found.groups() if part] if found else []
    numbers = [float(size) * _UNITS[unit] for size, unit in zip(sizes[::2], sizes[1::2], strict=True)]
    return dict(zip(("needed", "available"), numbers or (None, None), strict=True))


def largest_buffers(config, planned: Plan, entry: dict, *, tasks: int, labels_per_second: float) -> list[dict]:
    """The largest buffers of a program that does not fit, as it is on chips that have the memory.

    Returns:
      For each 'bytes', 'type', 'operator' and 'on', the topology that it was compiled for; nothing where there is none
      with as many chips, or where it does not fit there either.
    """
    name = _ROOMY.get(planned.topology.chips) if planned.topology.generation in ("v5e", "v6e") else None
    if name is None:
        return []
    import jax

    from hra_jax.tpu.hlo import Program
    from hra_jax.tpu.shapes import Shapes

    devices = topologies.devices(topologies.parse(name), config.mesh.slices)
    mesh = open_mesh(config.mesh, multiple=config.batch.multiple, devices=devices)
    shapes = Shapes(config, mesh, tasks=tasks, labels_per_second=labels_per_second)
    job = shapes.job(entry["step"], entry["bucket_seconds"], entry["rows"])
    try:
        _, text = compiled_with_text(job.trace().lower())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return []
    return [buffer | {"on": name} for buffer in Program(text).largest(_LARGEST)]


def at_a_time() -> int:
    """Programs that may be compiled at a time: one for each processor core, as far as the memory reaches."""
    cores, meminfo = os.cpu_count() or 1, epath.Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return max(1, min(cores, int(1024 * int(found[1]) / _COMPILER_BYTES))) if found else cores


def compile_all(jobs: list, planned: Plan, *, parallel: int = 0) -> list[dict]:
    """`compile_job` of each, `parallel` at a time (0: `at_a_time`); in the order given."""
    with concurrent.futures.ThreadPoolExecutor(parallel or at_a_time()) as pool:
        running = [pool.submit(compile_job, job, planned) for job in jobs]
        done = []
        for job, future in zip(jobs, running, strict=True):
            done.append(future.result())
            print(f"{job.kind}, {job.seconds:g} s x {job.rows}: {done[-1]['compile_seconds']:.0f} s", file=sys.stderr)
    return done


def search(shapes, planned: Plan, *, start: int) -> tuple[int, list[dict]]:
    """The most utterances of the longest bucket on one device with which the train step still fits.

    Args:
      shapes: an `abstract.Shapes`.
      planned: where it is to run.
      start: utterances on a device to begin with.

    Returns:
      That number (0 where not even one fits), and an entry for every program that was compiled on the way.
    """
    seconds, tried = planned.config.batch.buckets[-1], {}

    def fits(rows: int) -> bool:
        if rows not in tried:
            tried[rows] = compile_job(shapes.job("train", seconds, rows * planned.shards), planned)
            entry = tried[rows]
            said = _size(entry["peak"]) if entry["fits"] else f"does not fit, {_size(entry['needed'])}"
            print(f"{rows} utterances of {seconds:g} s on a device: {said}", file=sys.stderr, flush=True)
        return tried[rows]["fits"]

    low, high = 0, None
    guess = max(start, 1)
    while high is None or high - low > max(1, low // 16):
        if fits(guess):
            low = guess
        else:
            high = guess
        guess = _next_guess(low, high, tried)
    return low, [tried[rows] for rows in sorted(tried)]


def _next_guess(low: int, high: int | None, tried: dict[int, dict]) -> int:
    """Where to look next: temporaries grow linearly with the rows, so that two programs foretell the rest."""
    fitting = sorted(rows for rows, entry in tried.items() if entry["fits"])
    foretold = None
    if len(fitting) >= 2:
        first, second = fitting[-2:]
        slope = (tried[second]["peak"] - tried[first]["peak"]) / (second - first)
        memory = tried[second]["memory"] or float("inf")
        if slope > 0 and memory < float("inf"):
            foretold = second + int((0.97 * memory - tried[second]["peak"]) / slope)
    if high is None:
        # Where no more than `low` are foretold, the next that is far enough to tell ends the search if it does not fit.
        return max(2 * low, 1) if foretold is None else max(foretold, low + max(1, low // 16))
    return foretold if foretold is not None and low < foretold < high else (low + high) // 2


# ======================================================================================================================
# For people
# ======================================================================================================================


def _size(number: float | None) -> str:
    if number is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def show_plan(planned: Plan) -> None:
    """Prints topology, mesh and batches."""
    topology = planned.topology
    slices = planned.mesh_shape["slices"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned.mesh_shape.items())
    what = topology.accelerator_type or topology.name
    print(f"{topology.name}: {slices} x {topology.chips} chips ({what}), {slices * topology.hosts} hosts; mesh {mesh}")
    config = planned.config
    for seconds, rows, evaluated in zip(config.batch.buckets, planned.train_rows, planned.evaluation_rows, strict=True):
        print(
            f"  bucket of {seconds:g} s: {rows} utterances in a training batch, {rows / planned.shards:g} on a device; "
            f"{evaluated} and {evaluated / planned.shards:g} in evaluation",
            flush=True,
        )


def show(entries: list[dict], counts: dict, planned: Plan) -> None:
    """Prints the table of compiled programs."""
    print(
        f"{counts['backbone_parameters']:,} backbone parameters; {counts['trainable_parameters']:,} trained "
        f"(shared {counts['shared_parameters']:,} + {counts['tasks']:,} tasks x {counts['parameters_per_task']:,})"
    )
    table = rich.table.Table(title=f"{planned.topology.name}, one device", title_justify="left")
    for name in (
        *("step", "bucket", "rows", "arguments", "temporaries", "peak", "of memory", "TFLOP"),
        *("traffic", "moved", "at best", "bound", "compiled in"),
    ):
        table.add_column(name, justify="left" if name in ("step", "bound") else "right")
    for entry in entries:
        first = (entry["step"], f"{entry['bucket_seconds']:g} s", f"{entry['rows_per_device']:g}")
        last = _time(entry["compile_seconds"])
        if not entry["fits"]:
            note = f"does not fit: {_size(entry['needed'])} of {_size(entry['available'])}"
            table.add_row(*first, "", "", _size(entry["needed"]), note, *[""] * 5, last)
            continue
        share = f"{entry['peak'] / entry['memory']:.0%}" if entry["memory"] else "-"
        table.add_row(
            *first,
            *(_size(entry[name]) for name in ("arguments", "temporaries", "peak")),
            share,
            f"{entry['flops'] / planned.devices / 1e12:.3g}",
            _size(entry["traffic"]),
            _size(sum(collective["moved"] for collective in entry["collectives"])),
            _time(entry.get("step_seconds")),
            entry.get("bound", "-"),
            last,
        )
    rich.console.Console(width=150).print(table)
    for entry in entries:
        for place, buffer in enumerate(entry.get("largest", ()), start=1):
            said = f"{_size(buffer['bytes'])} {buffer['type']}, {buffer['operator']} (as compiled for {buffer['on']})"
            print(f"  {entry['step']}, {entry['bucket_seconds']:g} s: large buffer {place}: {said}")
    unknown = sum(entry.get("unknown_loops", 0) for entry in entries)
    if unknown:
        print(f"{unknown} loops whose length is not known count as one round: traffic and moved are too small")


# ======================================================================================================================
# The command
# ======================================================================================================================


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("topology", None, "What to compile for: v5e:16x16, v5p:4x4x4, cpu-8, ...", required=True)
    flags.DEFINE_bool("plan", False, "Only check topology, mesh and buckets; compile nothing.")
    flags.DEFINE_enum("search", "", ["", "batch"], "batch: find the largest batch of the longest bucket that fits.")
    flags.DEFINE_list("steps", list(_KINDS), f"Which programs: {', '.join(_KINDS)}.")
    flags.DEFINE_integer("tasks", 1024, "Tasks of the bank.", lower_bound=1)
    flags.DEFINE_float("labels_per_second", 8.0, "Room for labels in a bucket.", lower_bound=0.1)
    flags.DEFINE_integer("parallel", 0, "Programs compiled at a time; 0: as cores and memory allow.", lower_bound=0)
    flags.DEFINE_string("json", "", "Where the numbers are written as JSON; '' for nowhere.")


def main(argv) -> int:
    """Entry point."""
    del argv
    config = FLAGS.config
    for name in FLAGS.steps:
        if name not in _KINDS:
            raise UserError(f"steps: {name!r}; {near_matches(name, _KINDS)}")
    planned = plan(config, FLAGS.topology)
    show_plan(planned)
    if FLAGS.plan:
        return 0
    if config.backbone_dtype == dtypes.AUTO:
        # 'auto' asks the devices that are here.
        with config.unlocked():
            platform = "cpu" if planned.topology.generation == "cpu" else "tpu"
            config.backbone_dtype = dtypes.compute_dtype(dtypes.AUTO, platform=platform).name
    devices = topologies.devices(planned.topology, config.mesh.slices)
    from hra_jax.tpu.shapes import Shapes  # after JAX has been told which devices there are

    mesh = open_mesh(config.mesh, multiple=config.batch.multiple, devices=devices)
    shapes = Shapes(config, mesh, tasks=FLAGS.tasks, labels_per_second=FLAGS.labels_per_second)
    document = {"config": FLAGS["config"].value.backbone, "topology": FLAGS.topology, "mesh": planned.mesh_shape}
    document |= {"method": config.method, "adapter": config.adapter.name, "parameters": shapes.counts}
    if FLAGS.search:
        most, entries = search(shapes, planned, start=max(planned.train_rows[-1] // planned.shards, 1))
        document |= {"most_rows_per_device": most}
        print(f"at most {most} utterances of {config.batch.buckets[-1]:g} s fit on a device")
        fits = most > 0
    else:
        entries = compile_all(shapes.jobs(FLAGS.steps), planned, parallel=FLAGS.parallel)
        fits = all(entry["fits"] for entry in entries)
        for entry in entries:
            if not entry["fits"]:
                entry["largest"] = largest_buffers(
                    config, planned, entry, tasks=FLAGS.tasks, labels_per_second=FLAGS.labels_per_second
                )
    show(entries, shapes.counts, planned)
    if FLAGS.json:
        epath.Path(FLAGS.json).write_text(json.dumps(document | {"programs": entries}, indent=1) + "\n")
    return 0 if fits else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, config_flag=True))
