"""The progress line, by clocks that the test moves."""

import io

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
