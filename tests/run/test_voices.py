"""What a run says of how its tasks sound."""

import numpy as np
import pytest
from reference import micro as world

from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.task_records import CENTROID, SHARED, WHITENING, Records
from hra_jax.config.keys import group
from hra_jax.run import voices
from hra_jax.tasks import commands


def by_command(workdir, output, backbone) -> Records:
    """What `tasks centroids` finds in what a run was trained on."""
    commands.add_centroids(str(workdir / "adapter"), workdir=str(workdir), backbone=backbone, output=str(output))
    return read_adapter(output).records


def check_alike(one: Records, other: Records) -> None:
    assert set(one[CENTROID]) == set(other[CENTROID]) == set(world.SPEAKERS)
    for task in world.SPEAKERS:
        np.testing.assert_allclose(one[CENTROID][task], other[CENTROID][task], rtol=1e-3, atol=1e-4)
    # Of a whitening the product with itself is determined.
    products = [found[WHITENING][SHARED] @ found[WHITENING][SHARED].T for found in (one, other)]
    np.testing.assert_allclose(*products, rtol=0.05, atol=0.01 * np.abs(products[0]).max())


def test_a_run_finds_what_the_command_finds_in_what_it_was_trained_on(trained, micro, tmp_path):
    data, batch = group(trained.config, "data"), group(trained.config, "batch")
    found = voices.find(trained.run, data=data, batch=batch, batch_seconds=trained.config.eval.batch_seconds)
    check_alike(found, by_command(trained.workdir, tmp_path / "adapter", micro.backbone))


@pytest.mark.slow(minutes=1)
def test_a_run_exports_how_its_tasks_sound_beside_what_it_was_trained_on(micro, tmp_path):
    done = world.train(micro.config(export__voices=True, steps=1), tmp_path / "W")
    assert done.status == 0
    records = read_adapter(tmp_path / "W" / "adapter").records
    assert "hashes" in records
    check_alike(records, by_command(done.workdir, tmp_path / "again", micro.backbone))
