"""Where the time of training goes, and how much of what the chips can do is used."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

PARTS = ("input_wait", "checkpoint")  # of the time of a step; the rest is computing


class Compilations:
    """How long the train step took to be compiled for each length bucket: until the first step with it was under way.

    Args:
      buckets: how many there are.
      tell: takes the one line that tells of it: when all are compiled, or with those that are after the last step.
      about: what the line says besides.
      clock: seconds, for tests.
    """

    def __init__(
        self, buckets: int, *, tell: Callable[[str], None], about: str, clock: Callable[[], float] = time.perf_counter
    ):
        self._buckets, self._clock = buckets, clock
        self._tell: Callable[[str], None] | None = tell
        self._about = about
        self._seconds: dict[int, float] = {}  # by the samples of the bucket

    @contextlib.contextmanager
    def step(self, samples: int, *, last: bool) -> Iterator[None]:
        """Begins a step inside, with a batch of so many samples a row; `last`: whether it is that of the run."""
        started = self._clock()
        yield
        self._seconds.setdefault(samples, self._clock() - started)
        if self._tell is not None and (last or len(self._seconds) == self._buckets):
            self._tell(f"{self._line()}; {self._about}")
            self._tell = None

    def _line(self) -> str:
        each = [self._seconds[samples] for samples in sorted(self._seconds)]
        sum_of = " + ".join(f"{seconds:.1f}" for seconds in each) + f" = {sum(each):.1f} s" if len(each) > 1 else ""
        buckets = "1 bucket" if self._buckets == 1 else f"{self._buckets} buckets"
        if len(each) < self._buckets:
            buckets = f"{len(each)} of {buckets}"
        return f"the train step was compiled for {buckets} in {sum_of or f'{each[0]:.1f} s'}"


class StepTimes:
    """Wall time of training, from one line of metrics to the next.

        times = StepTimes(devices=8, peak=197e12)
        for step in ...:
            with times.input_wait(last):
                batch = next(loader)
            ... the step ...
            times.stepped(flops)
            with times.part("checkpoint"):
                ...
        metrics |= times.take()

    Args:
      devices: how many compute one step.
      peak: FLOP/s of one of them at best; 0: not known.
      clock: seconds, for tests.
    """

    def __init__(self, *, devices: int = 1, peak: float = 0.0, clock: Callable[[], float] = time.perf_counter):
        self._devices, self._peak, self._clock = devices, peak, clock
        self.restart()

    def restart(self) -> None:
        """Forgets what has been measured, and starts again."""
        self._since, self._steps, self._flops = self._clock(), 0, 0
        self._seconds = dict.fromkeys((*PARTS, "elsewhere"), 0.0)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the time inside towards `name`: of PARTS, or 'elsewhere' for what is no part of training."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] += self._clock() - started

    @contextlib.contextmanager
    def input_wait(self, last: Any = None) -> Iterator[None]:
        """Counts the time inside as waiting for input, unless the devices still have work when it ends.

        The host runs ahead of the devices: while they are busy, its waiting costs nothing.

        Args:
          last: an array that the step before gives; None before the first step.
        """
        started = self._clock()
        yield
        if last is None or last.is_ready():
            self._seconds["input_wait"] += self._clock() - started

    def stepped(self, flops: int = 0) -> None:
        """Counts one step, of so many FLOPs on all devices together."""
        self._steps += 1
        self._flops += flops

    def take(self) -> dict[str, float]:
        """Gives the figures since the last call and starts again; the devices must be done with the steps counted.

        Returns:
          'step_seconds', the mean wall time of a step; 'input_wait_share', 'checkpoint_share' and 'compute_share' of
          it, which add up to 1; and where the peak is known 'tflops_per_device' (TFLOP/s) and 'mfu', model FLOPs
          utilisation: their share of the peak (Chowdhery et al., arXiv 2204.02311, appendix B).
        """
        total = max(self._clock() - self._since - self._seconds["elsewhere"], 1e-9)
        shares = {name: min(self._seconds[name] / total, 1.0) for name in PARTS}
        found = {"step_seconds": total / max(self._steps, 1)}
        found |= {f"{name}_share": share for name, share in shares.items()}
        found["compute_share"] = max(1.0 - sum(shares.values()), 0.0)
        if self._peak:
            rate = self._flops / total / self._devices
            found |= {"tflops_per_device": rate / 1e12, "mfu": rate / self._peak}
        self.restart()
        return found
