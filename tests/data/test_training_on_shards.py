"""Training and scoring on shards: as on their manifest, through damage and trouble in a bucket."""

import json
import os

import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from reference import micro as world

from hra_jax.adapters import adapter_folder, task_records
from hra_jax.data import audio, cache, shards, sources
from hra_jax.data.report import DataReport
from hra_jax.data.shard_parts import ShardSettings
from hra_jax.errors import UserError
from hra_jax.storage import remote
from hra_jax.tasks import adding, few_shot

STEPS = 12


@pytest.fixture(scope="module")
def sharded(micro, tmp_path_factory):
    """A folder with shards of each split of the micro data, several shards each."""
    folder = tmp_path_factory.mktemp("sharded")
    for split in ("train", "validation", "test"):
        report = DataReport()
        items = cache.items_of(str(micro.data / f"{split}.jsonl"), data_dir="", modules=(), report=report)
        settings = ShardSettings(sample_rate=world.RATE, shard_seconds=1.0)
        assert cache.cache(items, folder / split, settings=settings, report=report).shards > 2
    return folder


def _config(micro, folder, **changes):
    return micro.config(data__sources=(("micro", "{dir}/train", 1.0),), data__dir=str(folder), **changes)


def _weights(workdir):
    return {
        str(path.relative_to(workdir)): safetensors.numpy.load_file(path)
        for path in sorted((workdir / "adapter").rglob("*.safetensors"))
    }


def _assert_same(one, other):
    assert one.keys() == other.keys() and one
    for file, tensors in one.items():
        for name, values in tensors.items():
            np.testing.assert_array_equal(values, other[file][name], err_msg=f"{file}: {name}")


@pytest.fixture(scope="module")
def on_shards(micro, sharded, tmp_path_factory):
    """A run on shards of this machine."""
    return world.train(_config(micro, sharded, steps=STEPS), tmp_path_factory.mktemp("on_shards") / "W")


def _scores(workdir, suite):
    files = sorted((workdir / "eval" / suite).glob("predictions_*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {line["key"]: (line["task"], line["text"], line["pred_text"], line["duration"]) for line in lines}


@pytest.mark.slow(minutes=1)
def test_a_run_on_shards_is_the_run_on_their_manifest(micro, sharded, on_shards, tmp_path):
    on_manifest = world.train(micro.config(steps=STEPS), tmp_path / "W")
    # Of what has 16 bits at the rate that is trained at every sample is the same; what is resampled is rounded.
    np.testing.assert_allclose(world.losses(on_shards.workdir), world.losses(on_manifest.workdir), rtol=1e-4)
    tables = [run.run.layout.table for run in (on_shards, on_manifest)]
    assert tables[0].digest() == tables[1].digest()
    records = [adapter_folder.read_adapter(run.workdir / "adapter").records for run in (on_shards, on_manifest)]
    hashes = [task_records.all_hashes(found) for found in records]
    assert len(hashes[0]) == 12 and hashes[0].tolist() == hashes[1].tolist()


@pytest.mark.slow(minutes=1)
def test_suites_of_shards_score_as_suites_of_manifests_and_find_leaks_by_hash(micro, sharded, tmp_path):
    suites = {}
    for name, where in (("manifest", f"{micro.data}/test.jsonl"), ("shards", f"{sharded}/test")):
        suites[name] = world.write_suite(tmp_path / f"{name}.py", (("*", where, "speaker=*", "*"),))
        config = _config(micro, sharded, eval__suite=suites[name])
        assert world.train(config, tmp_path / name).status == 0
    scores = [_scores(tmp_path / name, name) for name in suites]
    assert scores[0] == scores[1] and len(scores[0]) == 6
    # The recordings of the training, under other names, in shards of their own.
    os.makedirs(tmp_path / "moved/audio")
    for row in world.read_manifest(micro.data / "train.jsonl")[:2]:
        (tmp_path / "moved" / row["audio_filepath"]).write_bytes((micro.data / row["audio_filepath"]).read_bytes())
    world.write_manifest(tmp_path / "moved/m.jsonl", world.read_manifest(micro.data / "train.jsonl")[:2])
    items = cache.items_of(str(tmp_path / "moved/m.jsonl"), data_dir="", modules=(), report=DataReport())
    settings = ShardSettings(sample_rate=16000, encoding="flac")
    cache.cache(items, tmp_path / "leak", settings=settings, report=DataReport())
    suite = world.write_suite(tmp_path / "leaking.py", (("*", f"{tmp_path}/leak", "speaker=*", "*"),))
    with pytest.raises(UserError, match="shares 2 utterances with training data"):
        world.train(_config(micro, sharded, eval__suite=suite), tmp_path / "W")


@pytest.mark.slow(minutes=1)
def test_a_shard_that_is_damaged_while_training_costs_its_utterances_and_no_more(micro, sharded, tmp_path):
    folder = tmp_path / "data"
    os.makedirs(folder)
    items = cache.items_of(str(sharded / "train"), data_dir="", modules=(), report=DataReport())
    settings = ShardSettings(sample_rate=world.RATE, shard_seconds=1.0)
    cache.cache(items, folder / "train", settings=settings, report=DataReport())
    names = sorted(path.name for path in (folder / "train").glob("shards-*"))

    def damage(step):
        if step == 2:
            os.truncate(folder / "train" / names[0], 1000)
            (folder / "train" / names[1]).unlink()
            content = bytearray((folder / "train" / names[2]).read_bytes())
            content[content.find(b"audio") + 600] ^= 1
            (folder / "train" / names[2]).write_bytes(content)

    config = _config(micro, folder, steps=12, data__threads=2)
    done = world.train(config, tmp_path / "W", on_step=damage)
    assert done.status == 0
    found = json.loads((tmp_path / "W/data_report.json").read_text())["utterances"]
    details = [row["detail"] for rows in found.values() for row in rows]
    assert details and all(any(name in detail for name in names[:3]) for detail in details)
    # Whoever wants to hear of it at once does.
    with pytest.raises(UserError, match=f"{names[0]}.*has 1,000 bytes in place of"):
        world.train(_config(micro, folder, data__strict=True), tmp_path / "strict")


@pytest.mark.slow(minutes=2)
def test_a_run_on_a_bucket_in_trouble_is_the_run_on_local_shards(micro, sharded, on_shards, gcs_storage, tmp_path):
    gcs_storage.upload_folder(sharded, "gs://bucket/data")
    gcs_storage.fail("GET.*array_record", every=20)
    gcs_storage.hang("GET.*array_record", every=50, seconds=1.0)
    config = _config(micro, "gs://bucket/data", data__threads=4, steps=STEPS)
    done = world.train(config, tmp_path / "W")
    asked = [line for line in gcs_storage.requests if "array_record" in line]
    gcs_storage.work()
    assert done.status == 0 and len(asked) >= 50  # so that every kind of trouble was met
    assert world.losses(tmp_path / "W") == world.losses(on_shards.workdir)
    _assert_same(_weights(tmp_path / "W"), _weights(on_shards.workdir))
    assert json.loads((tmp_path / "W/data_report.json").read_text())["counts"] == {}
    assert shards.is_shards("gs://bucket/data/train")


@pytest.mark.slow(minutes=1)
def test_a_shard_that_a_bucket_does_not_give_costs_its_utterances_and_no_more(
    micro, sharded, gcs_storage, monkeypatch, tmp_path
):
    gcs_storage.upload_folder(sharded, "gs://bucket/data")
    name = shards.shard_name(1)
    gcs_storage.fail(f"GET.*{name}")
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "1")
    done = world.train(_config(micro, "gs://bucket/data", data__threads=4), tmp_path / "W")
    gcs_storage.work()
    assert done.status == 0
    found = json.loads((tmp_path / "W/data_report.json").read_text())
    assert set(found["counts"]) == {"unreachable_audio"}
    rows = sources.read_source(sharded / "train", report=DataReport())[0]
    gone = {f"micro: {row.key}" for row in rows if row.sound_file.endswith(name)}
    assert gone and {row["name"] for row in found["utterances"]["unreachable_audio"]} == gone


@pytest.mark.slow(minutes=1)
def test_heads_are_trained_on_the_records_of_shards(micro, sharded, tmp_path):
    copy = epath.Path(tmp_path / "copy.jsonl")
    adding.copy_manifest(str(sharded / "train"), copy, "newcomer")
    rows = sources.read_source(sharded / "train", report=DataReport())[0]
    head = few_shot.Head("ann", 2, 1, tuple(rows[:2]))
    (tmp_path / "heads.jsonl").write_text(few_shot.manifest_of([head]))
    for name, count in (("copy.jsonl", 12), ("heads.jsonl", 2)):
        lines = sources.read_source(tmp_path / name, report=DataReport(strict=True))[0]
        assert len(lines) == count
        for line, row in zip(lines, rows, strict=False):
            assert (line.text, line.tag("speaker")) == (row.text, row.tag("speaker"))
            np.testing.assert_array_equal(audio.decode(line, world.RATE), audio.decode(row, world.RATE))
            assert audio.sample_hash(line) == row.sample_hash
