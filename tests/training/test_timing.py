"""Where the time of training goes, by a clock that the test moves."""

import pytest

from hra_jax.tpu import topologies
from hra_jax.training.timing import Compilations, StepTimes


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Array:
    """An array that a device may still be computing."""

    def __init__(self, ready: bool):
        self.is_ready = lambda: ready


@pytest.fixture
def clock():
    return Clock()


def test_the_parts_of_a_step(clock):
    times = StepTimes(clock=clock)
    for _ in range(4):
        with times.input_wait(Array(ready=True)):
            clock.now += 1.0
        clock.now += 5.0
        times.stepped()
    with times.part("checkpoint"):
        clock.now += 8.0
    with times.part("elsewhere"):
        clock.now += 1000.0
    assert times.take() == pytest.approx(
        {"step_seconds": 8.0, "input_wait_share": 4 / 32, "checkpoint_share": 8 / 32, "compute_share": 20 / 32}
    )
    clock.now += 3.0
    times.stepped()
    assert times.take() == pytest.approx(
        {"step_seconds": 3.0, "input_wait_share": 0.0, "checkpoint_share": 0.0, "compute_share": 1.0}
    )


def test_waiting_while_the_devices_are_busy_costs_nothing(clock):
    times = StepTimes(clock=clock)
    for last in (None, Array(ready=False), Array(ready=True)):
        with times.input_wait(last):
            clock.now += 2.0
        times.stepped()
    assert times.take()["input_wait_share"] == pytest.approx(4 / 6)


def test_utilisation_is_the_share_of_what_all_devices_could_have_done(clock):
    times = StepTimes(devices=4, peak=1e12, clock=clock)
    clock.now += 50.0
    times.restart()
    for _ in range(2):
        times.stepped(flops=3 * 10**12)
    clock.now += 10.0
    found = times.take()
    assert (found["mfu"], found["tflops_per_device"]) == pytest.approx((6 / 40, 0.15))
    assert "mfu" not in StepTimes(clock=clock).take()


def test_peaks_of_known_chips():
    assert topologies.peak_flops("TPU v5 lite") == topologies.CHIPS["v5e"].flops
    assert topologies.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert topologies.peak_flops("cpu") == 0.0


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ([2, 1, 2, 3, 1, 2], "the train step was compiled for 3 buckets in 2.0 + 1.0 + 4.0 = 7.0 s; padded"),
        ([2, 2], "the train step was compiled for 1 of 3 buckets in 1.0 s; padded"),
    ],
)
def test_compilations_are_told_once_by_bucket_when_all_are_known_or_at_the_end(samples, told):
    seconds, lines = iter([0, 1, 10, 12, 20, 20.5, 30, 34, 40, 40.5, 50, 50.5]), []
    compiled = Compilations(3, tell=lines.append, about="padded", clock=lambda: next(seconds))
    for number, size in enumerate(samples, start=1):
        with compiled.step(size, last=number == len(samples)):
            pass
        assert len(lines) == (len(set(samples[:number])) == 3 or number == len(samples))
    assert lines == [told]
