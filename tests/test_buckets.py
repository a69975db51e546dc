"""Runs whose everything lies in a bucket, through the clients that users have, with trouble now and then."""

import pytest
from reference import micro as world

SUFFIX = "adapter_model.safetensors"


@pytest.mark.slow(minutes=1.5)
def test_a_run_in_a_bucket_that_fails_now_and_then_exports_what_a_local_one_does(micro, tmp_path, gcs_storage):
    changes = dict(checkpoint__every_steps=2, optimizer__learning_rate=3e-3)
    local = world.train(micro.config(**changes), tmp_path / "W")
    gcs_storage.upload_folder(micro.folder, "gs://bucket/world")
    changes |= dict(backbone="gs://bucket/world/backbone", data__dir="gs://bucket/world/data")
    gcs_storage.fail(every=200)
    # Two steps, and then the rest: what is saved in a bucket is what a run goes on from.
    for steps in (2, 4):
        done = world.train(micro.config(**changes, steps=steps), "gs://bucket/W")
        assert done.status == 0
    assert "resuming at step 2" in done.printed
    gcs_storage.work()
    names = gcs_storage.names("gs://bucket/W/adapter/")
    assert sorted(names) == sorted(file.name for file in (local.workdir / "adapter").iterdir())
    assert gcs_storage.read(f"gs://bucket/W/adapter/{SUFFIX}") == (local.workdir / "adapter" / SUFFIX).read_bytes()
    assert [name for name in gcs_storage.names("gs://bucket/") if name.endswith((".tmp", ".lock"))] == []
