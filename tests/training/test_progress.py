"""The progress line, by clocks that the test moves."""

import io

import pytest

from hra_jax.training.progress import Progress


def test_the_time_left_leaves_out_compilation_whatever_step_it_falls_into():
    now, compiled = [0.0], [0.0]
    progress = Progress(
        100, stream=io.StringIO(), clock=lambda: now[0], compiling=lambda: compiled[0], every_seconds=1e9
    )
    for step in range(1, 11):
        # One second for a step, and a minute of compilation for each new shape of a batch.
        new_shape = step in (1, 3, 4, 7)
        now[0] += 1.0 + 60.0 * new_shape
        compiled[0] += 60.0 * new_shape
        progress.update(step, audio_seconds=5.0, loss=1.0)
    assert progress.status() == "loss 1, 1 steps/s, 5 s audio/s, 01:30 left"


@pytest.mark.parametrize("jumps", [{3: 3600.0, 7: -3600.0}, {1: -3600.0, 4: 3600.0}, {4: -3600.0}, {7: 3600.0}])
def test_a_clock_that_is_set_while_a_program_is_compiled_costs_the_figures_no_more_than_that_step(jumps):
    now, compiled = [0.0], [0.0]
    progress = Progress(
        1000, stream=io.StringIO(), clock=lambda: now[0], compiling=lambda: compiled[0], every_seconds=1e9
    )
    for step in range(1, 41):
        new_shape = step in (1, 3, 4, 7)
        now[0] += 1.0 + 60.0 * new_shape
        # What JAX tells, which reads the clock of the day before and after.
        compiled[0] += 60.0 * new_shape + jumps.get(step, 0.0)
        progress.update(step, audio_seconds=5.0, loss=1.0)
        if step > 2:
            speed, heard = (float(part.split()[0]) for part in progress.status().split(", ")[1:3])
            assert 1.0 <= speed <= 2.0 and 5.0 <= heard <= 10.0, (step, progress.status())
