"""Compiles the programs of a run for a topology and measures them: memory, FLOPs, traffic, collectives, roofline."""

import concurrent.futures
import dataclasses
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.extend
from etils import epath

from hra_jax.console import size, tell
from hra_jax.run.layout import open_mesh
from hra_jax.storage.writing import temporary_folder
from hra_jax.tpu import topologies
from hra_jax.tpu.hlo import Program
from hra_jax.tpu.plan import Plan
from hra_jax.tpu.shapes import Job, Shapes
from hra_jax.training.flops import matmul_flops

_LARGEST = 3  # buffers that are named where a program does not fit
_COMPILER_BYTES = 13e9  # that the compiler takes for a step of the paper's size on 256 chips
_AMOUNT = r"([\d.]+)([BKMGT])"
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Chips with 95 GB, as many as those of smaller ones: a program that does not fit is looked at there.
_ROOMY = {4: "v5p:2x2x1", 8: "v5p:2x2x2", 16: "v5p:2x2x4", 32: "v5p:2x4x4", 64: "v5p:4x4x4", 256: "v5p:4x8x8"}


def compile_job(job: Job, planned: Plan) -> dict[str, Any]:
    """Compiles one program, and measures it.

    Args:
      job: from `shapes.Shapes`.
      planned: where it is to run.

    Returns:
      What --json writes of it; 'fits' False, with 'needed' and 'available' bytes, where the compiler found that it does
      not fit.
    """
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


def compiled_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """Compiles a lowered program; returns it with its text as the compiler wrote it.

    `compiled.as_text()` reads the program back first, which fails where the compiler for TPUs is newer than JAX.
    """
    with temporary_folder() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = sorted(epath.Path(folder).glob("*after_optimizations.txt"))
        # A program from the compile cache is not written down again.
        text = written[0].read_text(encoding="utf-8") if written else compiled.as_text()
    assert text is not None, "the compiler gives no text of its programs"
    return compiled, text


def measured(
    compiled: jax.stages.Compiled, text: str, jaxpr: jax.extend.core.ClosedJaxpr, planned: Plan
) -> dict[str, Any]:
    """What a compiled program takes on one device, and the least time that the chip needs for it.

    Args:
      compiled: from `compiled_with_text`.
      text: from there.
      jaxpr: of the same function.
      planned: where it is to run.

    Returns:
      What --json writes of it.
    """
    sizes: Any = compiled.memory_analysis()
    chip = planned.topology.chip
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
        "memory": chip.hbm_bytes if chip else None,
        "flops": matmul_flops(jaxpr),  # of all devices together
    }
    program = Program(text, slice_of=slice_of)
    found |= {
        "traffic": program.traffic(),
        "unknown_loops": program.unknown_trips(),
        "collectives": [dataclasses.asdict(collective) for collective in program.collectives()],
    }
    return found | (roofline(found, chip, planned.devices) if chip else {})


def roofline(found: Mapping[str, Any], chip: topologies.Chip, devices: int) -> dict[str, Any]:
    """The least time that a step can take, and what sets it.

    Args:
      found: 'flops' of all devices, 'traffic' and 'collectives' of one.
      chip: what a chip can do.
      devices: how many there are.

    Returns:
      'seconds' by resource ('compute', 'memory' for the traffic to HBM, 'ici', 'dcn'), 'bound' (the resource that takes
      longest) and 'step_seconds' (how long).
    """
    over_ici, over_dcn = (
        sum(entry["moved"] for entry in found["collectives"] if entry["between_slices"] is between)
        for between in (False, True)
    )
    times = {
        "compute": found["flops"] / devices / chip.flops,
        "memory": found["traffic"] / chip.hbm_bandwidth,
        "ici": over_ici / chip.ici_bandwidth,
        "dcn": over_dcn / chip.dcn_bandwidth,
    }
    bound = max(times, key=lambda resource: times[resource])
    return {"seconds": times, "bound": bound, "step_seconds": times[bound]}


def too_large(message: str) -> dict[str, float | None]:
    """What a compiler that ran out of memory says: bytes 'needed' and 'available', None where it does not say."""
    found = re.search(rf"\({_AMOUNT}\) exceeds available \w+ \({_AMOUNT}\)|Used {_AMOUNT} of {_AMOUNT}", message)
    sizes = [part for part in found.groups() if part] if found else []
    numbers = [float(size) * _UNITS[unit] for size, unit in zip(sizes[::2], sizes[1::2], strict=True)]
    needed, available = numbers or (None, None)
    return {"needed": needed, "available": available}


def largest_buffers(
    planned: Plan, entry: Mapping[str, Any], *, tasks: int, labels_per_second: float
) -> list[dict[str, Any]]:
    """The largest buffers of a program that does not fit, as it is on chips that have the memory.

    Args:
      planned: where it does not fit.
      entry: what `compile_job` returned of it.
      tasks: as for `shapes.Shapes`.
      labels_per_second: as for `shapes.Shapes`.

    Returns:
      For each 'bytes', 'type', 'operator' and 'on', the topology that it was compiled for; nothing where there is none
      with as many chips, or where it does not fit there either.
    """
    name = _ROOMY.get(planned.topology.chips) if planned.topology.generation in ("v5e", "v6e") else None
    if name is None:
        return []
    config = planned.config
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
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="utf-8")) if meminfo.exists() else None
    return max(1, min(cores, int(1024 * int(found[1]) / _COMPILER_BYTES))) if found else cores


def compile_all(jobs: Sequence[Job], planned: Plan, *, parallel: int = 0) -> list[dict[str, Any]]:
    """`compile_job` of each, `parallel` at a time (0: `at_a_time`); in the order given."""
    with concurrent.futures.ThreadPoolExecutor(parallel or at_a_time()) as pool:
        running = [pool.submit(compile_job, job, planned) for job in jobs]
        done = []
        for job, future in zip(jobs, running, strict=True):
            done.append(future.result())
            tell(f"{job.kind}, {job.seconds:g} s x {job.rows}: {done[-1]['compile_seconds']:.0f} s", to=sys.stderr)
    return done


def largest_batch(shapes: Shapes, planned: Plan, *, start: int) -> tuple[int, list[dict[str, Any]]]:
    """The most utterances of the longest bucket on one device with which the train step still fits.

    Args:
      shapes: the programs of the run.
      planned: where it is to run.
      start: utterances on a device to begin with.

    Returns:
      That number (0 where not even one fits), and an entry for every program that was compiled on the way.
    """
    seconds = planned.edges[-1]
    tried: dict[int, dict[str, Any]] = {}

    def fits(rows: int) -> bool:
        if rows not in tried:
            tried[rows] = compile_job(shapes.job("train", seconds, rows * planned.shards), planned)
            entry = tried[rows]
            said = size(entry["peak"]) if entry["fits"] else f"does not fit, {size(entry['needed'])}"
            tell(f"{rows} utterances of {seconds:g} s on a device: {said}", to=sys.stderr)
        return bool(tried[rows]["fits"])

    low, guess = 0, max(start, 1)
    high: int | None = None
    while high is None or high - low > max(1, low // 16):
        if fits(guess):
            low = guess
        else:
            high = guess
        guess = _next_guess(low, high, tried)
    return low, [tried[rows] for rows in sorted(tried)]


def _next_guess(low: int, high: int | None, tried: dict[int, dict[str, Any]]) -> int:
    """Where to look next: temporaries grow linearly with the rows, so that two programs predict the rest."""
    fitting = sorted(rows for rows, entry in tried.items() if entry["fits"])
    predicted = None
    if len(fitting) >= 2:
        first, second = fitting[-2:]
        slope = (tried[second]["peak"] - tried[first]["peak"]) / (second - first)
        memory = tried[second]["memory"] or float("inf")
        if slope > 0 and memory < float("inf"):
            predicted = second + int((0.97 * memory - tried[second]["peak"]) / slope)
    if high is None:
        # Where no more than `low` are predicted, the next size that is far enough to tell ends the search.
        return max(2 * low, 1) if predicted is None else max(predicted, low + max(1, low // 16))
    return predicted if predicted is not None and low < predicted < high else (low + high) // 2
