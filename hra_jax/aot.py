"""Compiles the programs of a run for a TPU topology, without a TPU: what fits, what it costs, what bounds it.

    python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16
    python -m hra_jax.aot --config fsdd --topology cpu-8

The real train, evaluation and transcription steps are compiled for every length bucket, from shapes alone; with
`--steps decode` the beam search, with a language model and phrases for each row. `--plan` only checks topology, mesh
and buckets; `--search batch` finds the largest batch that fits. Exit status 3 says that something does not fit.

Where `batch.buckets` is a number, a run finds its buckets in its data. Here they are those of a run that has begun
(`--config W/config.json`), or of the lengths that `hra_jax.data.durations` counted (`--durations FILE`).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from hra_jax import cli
from hra_jax.config.files import config_to_json
from hra_jax.console import duration, near_matches, size, stdout, table, tell
from hra_jax.errors import UserError
from hra_jax.models import dtypes
from hra_jax.run import buckets
from hra_jax.run.layout import open_mesh
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import json_text
from hra_jax.tpu import topologies
from hra_jax.tpu.plan import GREEDY_STEPS, LABELS_PER_SECOND, STEPS, Plan, make_plan

FLAGS = flags.FLAGS
DOES_NOT_FIT = 3  # exit status

_HEADER = (
    *("step", "bucket", "rows", "arguments", "temporaries", "peak", "of memory", "TFLOPs"),
    *("traffic", "moved", "at best", "bound", "compiled in"),
)
_RESOURCES = {"compute": "compute", "memory": "HBM", "ici": "ICI", "dcn": "DCN"}  # what can bound a step, for people

# --- For people -------------------------------------------------------------------------------------------------------


def show_plan(planned: Plan) -> None:
    """Prints topology, mesh and batches."""
    topology = planned.topology
    slices = planned.mesh_shape["slices"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in planned.mesh_shape.items())
    what = topology.accelerator_type or topology.name
    tell(f"{topology.name}: {slices} x {topology.chips} chips ({what}), {slices * topology.hosts} hosts; mesh {mesh}")
    if not planned.edges:
        tell(f"  {planned.config.batch.buckets} buckets, which a run finds in its training data when it begins")
    for seconds, rows, evaluated in zip(planned.edges, planned.train_rows, planned.evaluation_rows, strict=True):
        tell(
            f"  bucket of {seconds:g} s: {rows} utterances in a training batch, {rows / planned.shards:g} on a device; "
            f"{evaluated} and {evaluated / planned.shards:g} in evaluation"
        )


def show(entries: Sequence[Mapping[str, Any]], counts: Mapping[str, int], planned: Plan) -> None:
    """Prints the table of compiled programs.

    Args:
      entries: what `cost.compile_job` returned of each.
      counts: `shapes.Shapes.counts`.
      planned: where they are to run.
    """
    tell(
        f"{counts['backbone_parameters']:,} backbone parameters; {counts['trainable_parameters']:,} trained "
        f"(shared {counts['shared_parameters']:,} + {counts['tasks']:,} tasks x {counts['parameters_per_task']:,})"
    )
    rows = [_cells(entry, planned) for entry in entries]
    found = table(_HEADER, rows, title=f"{planned.topology.name}, one device", left=("bound",))
    stdout(width=160).print(found)
    for entry in entries:
        for place, buffer in enumerate(entry.get("largest", ()), start=1):
            said = f"{size(buffer['bytes'])} {buffer['type']}, {buffer['operator']} (as compiled for {buffer['on']})"
            tell(f"  {entry['step']}, {entry['bucket_seconds']:g} s: large buffer {place}: {said}")
    unknown = sum(entry.get("unknown_loops", 0) for entry in entries)
    if unknown:
        tell(f"{unknown} loops whose length is not known count as one round: traffic and moved are too small")


def _cells(entry: Mapping[str, Any], planned: Plan) -> tuple[str, ...]:
    first = (entry["step"], f"{entry['bucket_seconds']:g} s", f"{entry['rows_per_device']:g}")
    last = duration(entry["compile_seconds"])
    if not entry["fits"]:
        note = f"does not fit: {size(entry['needed'])} of {size(entry['available'])}"
        return (*first, "", "", size(entry["needed"]), note, *[""] * 5, last)
    return (
        *first,
        *(size(entry[name]) for name in ("arguments", "temporaries", "peak")),
        f"{entry['peak'] / entry['memory']:.0%}" if entry["memory"] else "-",
        f"{entry['flops'] / planned.devices / 1e12:.3g}",
        size(entry["traffic"]),
        size(sum(collective["moved"] for collective in entry["collectives"])),
        duration(entry.get("step_seconds")),
        _RESOURCES.get(entry.get("bound", ""), "-"),
        last,
    )


# --- The command ------------------------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("topology", None, "What to compile for: v5e:16x16, v5p:4x4x4, cpu-8, ...", required=True)
    flags.DEFINE_bool("plan", False, "Only check topology, mesh and buckets; compile nothing.")
    flags.DEFINE_enum("search", "", ["", "batch"], "batch: find the largest batch of the longest bucket that fits.")
    flags.DEFINE_list("steps", list(GREEDY_STEPS), f"Which programs: {', '.join(STEPS)}.")
    flags.DEFINE_integer("tasks", 1024, "Tasks of the bank.", lower_bound=1)
    flags.DEFINE_float("labels_per_second", LABELS_PER_SECOND, "Room for labels in a bucket.", lower_bound=0.1)
    flags.DEFINE_integer("parallel", 0, "Programs compiled at a time; 0: as cores and memory allow.", lower_bound=0)
    flags.DEFINE_string("durations", None, "File of hra_jax.data.durations, where batch.buckets is a number.")
    flags.DEFINE_string("json", None, "File to write all numbers to.")


def main(argv: Sequence[str]) -> int:
    """Plans, compiles and shows; returns 3 where something does not fit."""
    del argv
    config = FLAGS.config
    cli.check_output("json", FLAGS.json)
    for name in FLAGS.steps:
        if name not in STEPS:
            raise UserError(f"steps: {name!r}; {near_matches(name, STEPS)}")
    if FLAGS.durations is not None:
        buckets.take_buckets(config, FLAGS.durations)
    planned = make_plan(config, FLAGS.topology)
    if not planned.edges and not FLAGS.plan:
        raise UserError(
            f"batch.buckets = {config.batch.buckets}: a run finds them in its training data; needed here: --durations "
            "FILE (of python -m hra_jax.data.durations), --config W/config.json of a run that has begun, or a tuple"
        )
    show_plan(planned)
    if FLAGS.plan:
        return 0
    if config.backbone_dtype == dtypes.AUTO:
        # 'auto' asks the devices that are here.
        with config.unlocked():
            platform = "cpu" if planned.topology.generation == "cpu" else "tpu"
            config.backbone_dtype = dtypes.compute_dtype(dtypes.AUTO, platform=platform).name
    devices = topologies.devices(planned.topology, config.mesh.slices)
    # Late: `--plan` needs no compiler, and JAX must have been told which devices there are.
    from hra_jax.tpu import cost
    from hra_jax.tpu.shapes import Shapes

    mesh = open_mesh(config.mesh, multiple=config.batch.multiple, devices=devices)
    shapes = Shapes(config, mesh, tasks=FLAGS.tasks, labels_per_second=FLAGS.labels_per_second)
    document: dict[str, Any] = {"config": json.loads(config_to_json(config)), "backbone": config.backbone}
    document |= {"topology": FLAGS.topology, "mesh": planned.mesh_shape}
    document |= {"method": config.method, "adapter": config.adapter.name, "parameters": shapes.counts}
    if FLAGS.search:
        most, entries = cost.largest_batch(shapes, planned, start=max(planned.train_rows[-1] // planned.shards, 1))
        document |= {"most_rows_per_device": most}
        tell(f"at most {most} utterances of {planned.edges[-1]:g} s fit on a device")
        fits = most > 0
    else:
        entries = cost.compile_all(shapes.jobs(FLAGS.steps), planned, parallel=FLAGS.parallel)
        fits = all(entry["fits"] for entry in entries)
        for entry in entries:
            if not entry["fits"]:
                entry["largest"] = cost.largest_buffers(
                    planned, entry, tasks=FLAGS.tasks, labels_per_second=FLAGS.labels_per_second
                )
    show(entries, shapes.counts, planned)
    if FLAGS.json is not None:
        write_file(FLAGS.json, json_text(document | {"programs": entries}))
    return 0 if fits else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, config_flag=True))
