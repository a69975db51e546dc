"""Times alternatives side by side, and writes down all of it: every sample, medians, spread, versions, hardware."""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import jax
from absl import flags
from etils import epath

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_TICKS = os.sysconf("SC_CLK_TCK")  # per second, of /proc/stat
_LEAST_SECONDS = 0.1  # of a sample: the meter of other processes counts in hundredths of a second
FOREIGN_SHARE = 0.1  # of one core; a sample during which others took more is dropped


@dataclasses.dataclass
class Timing:
    """Seconds per call of one side.

    Attributes:
      samples: those that were kept.
      dropped: how many were not, since other processes were busy.
      cpu: for each sample, the CPU seconds of this process and its children.
      thread: of them, those of the thread that calls: what other threads do besides is not in them.
      foreign: the share of one core that other processes took.
    """

    samples: list[float] = dataclasses.field(default_factory=list)
    dropped: int = 0
    cpu: list[float] = dataclasses.field(default_factory=list)
    thread: list[float] = dataclasses.field(default_factory=list)
    foreign: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds: a quarter of the samples lie below the first, a quarter above the second."""
        low, _, high = statistics.quantiles(self.samples, n=4)
        return low, high

    def to_json(self) -> dict:
        """All of it."""
        low, high = self.quartiles
        found = {"median_s": self.median, "quartiles_s": [low, high], "dropped": self.dropped}
        lists = {"cpu": self.cpu, "thread": self.thread, "foreign": self.foreign}
        found |= {f"{name}_median": statistics.median(values) for name, values in lists.items() if values}
        return found | {"samples_s": self.samples}


def interleave(sides: dict[str, Callable[[], object]], *, samples: int = 15, busy: bool = False) -> dict[str, Timing]:
    """Times every side in turn, so that what else the machine does falls on all of them.

    Args:
      sides: name -> a function of no arguments that returns JAX arrays; it is called twice before anything is timed.
      samples: how many to keep of each side; a sample is as many calls as take a tenth of a second.
      busy: keeps the samples during which other processes were busy too.

    Raises:
      RuntimeError: after three times as many attempts, other processes were still in the way.
    """
    calls, timings = {}, {name: Timing() for name in sides}
    for name, function in sides.items():
        jax.block_until_ready(function())
        start = time.perf_counter()
        jax.block_until_ready(function())
        calls[name] = max(1, round(_LEAST_SECONDS / max(time.perf_counter() - start, 1e-6)))
    for _ in range(3 * samples):
        for name, function in sides.items():
            if len(timings[name].samples) == samples:
                continue
            cpu, thread = own_seconds(), time.thread_time()
            seconds, foreign = sample(function, calls[name])
            if foreign > FOREIGN_SHARE and not busy:
                timings[name].dropped += 1
                continue
            timings[name].samples.append(seconds)
            timings[name].cpu.append((own_seconds() - cpu) / calls[name])
            timings[name].thread.append((time.thread_time() - thread) / calls[name])
            timings[name].foreign.append(foreign)
        if all(len(timing.samples) == samples for timing in timings.values()):
            return timings
    raise RuntimeError(f"other processes keep this machine busy: {samples} undisturbed samples were not to be had")


def sample(function, calls: int) -> tuple[float, float]:
    """Times one sample.

    Args:
      function: of no arguments; what it returns is waited for.
      calls: how often it is called.

    Returns:
      Seconds per call, and the share of one core that other processes took.
    """
    before, children, start = _foreign_seconds(), _children_seconds(), time.perf_counter()
    for _ in range(calls):
        result = function()
    jax.block_until_ready(result)
    elapsed = time.perf_counter() - start
    foreign = _foreign_seconds() - before - (_children_seconds() - children)
    return elapsed / calls, foreign / elapsed


def _children_seconds() -> float:
    """CPU seconds of the children of this process that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def own_seconds() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    return time.process_time() + _children_seconds()


def _foreign_seconds() -> float:
    """CPU seconds that processes other than this one have used since the machine started; 0 where /proc is absent."""
    stat = epath.Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, interrupts, soft = (
        int(x) for x in stat.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:8]
    )
    own = os.times()
    return (user + nice + system + interrupts + soft) / _TICKS - own.user - own.system


def peak_memory() -> int:
    """The most memory that this process has held, bytes.

    The kernel's `getrusage` gives a process at least what its parent held when it started it.
    """
    status = epath.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def environment(packages: tuple[str, ...] = ()) -> dict:
    """Date, versions (those of `packages` too), and hardware."""
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in (*PACKAGES, *packages)},
        "devices": [device.device_kind for device in jax.devices()],
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _cpu() -> str:
    info = epath.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def define_flags() -> None:
    """The flags of every benchmark."""
    flags.DEFINE_string("json", "", "Where the samples are written; '' for nowhere.")


def report(name: str, groups: dict[str, dict[str, Timing]], path: str, **more) -> None:
    """Prints a table, each side beside the first of its group, and writes JSON.

    Args:
      name: of the benchmark.
      groups: what is compared -> side -> timing.
      path: of the JSON file, or ''.
      more: what else the JSON file is to hold.
    """
    width = max(len(f"{group}: {side}") for group, sides in groups.items() for side in sides)
    print(f"{'':{width}}  {'median':>10}  {'quartiles':>23}  {'ratio':>6}  {'CPU':>6}  {'thread':>6}")
    for group, sides in groups.items():
        first = next(iter(sides.values()))
        for side, timing in sides.items():
            low, high = timing.quartiles
            spread = f"{1e3 * low:.2f} to {1e3 * high:.2f} ms"
            row = f"{group + ': ' + side:{width}}  {1e3 * timing.median:7.2f} ms  {spread:>23}"
            ratios = [timing.median / first.median]
            for mine, others in ((timing.cpu, first.cpu), (timing.thread, first.thread)):
                ratios += [statistics.median(mine) / statistics.median(others)] if mine and others else []
            print(row, "".join(f"  {ratio:6.2f}" for ratio in ratios))
    timings = {group: {side: t.to_json() for side, t in sides.items()} for group, sides in groups.items()}
    write(name, path, timings=timings, **more)


def write(name: str, path: str, *, packages: tuple[str, ...] = (), **found) -> None:
    """Writes JSON: what a benchmark found, and when and where.

    Args:
      name: of the benchmark.
      path: of the JSON file; '' for none.
      packages: of `environment`.
      found: what the file is to hold.
    """
    if path:
        content = {"benchmark": name, **environment(packages), **found}
        epath.Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written to {path}")
