"""One flipped byte in any file of a run, an adapter, a backbone or a data set is found, and its file is named."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from reference import endless

import hra_jax
from hra_jax.adapters.initial import read_start
from hra_jax.errors import UserError
from hra_jax.storage import checksums, remote
from hra_jax.transcribe import choose_task
from hra_jax.verify import print_parts, verify

SEED = int(os.environ.get("HRA_SEED", "0"))
MOST = int(os.environ.get("HRA_FLIPS", "30"))  # files of a run that are flipped


def flipped(path: Path, generator: random.Random) -> bytes:
    """Flips one bit of a file; its content before."""
    before = path.read_bytes()
    place, bit = generator.randrange(len(before)), generator.randrange(8)
    path.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
    return before


def faults(path):
    return [(part.name, *fault) for part in verify(path) for fault in part.faults]


def files(folder):
    """All files but locks and empty ones."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in found if not path.name.startswith(".")]


def check_each(folder, chosen, generator):
    assert faults(folder) == []
    for path in chosen:
        before = flipped(path, generator)
        found = faults(folder)
        assert found, f"{path.relative_to(folder)}: the flip was not found"
        assert any(path.name in fault[1] or path.name in fault[2] for fault in found), (path, found)
        path.write_bytes(before)


def test_a_flip_in_any_file_of_a_run_is_found(trained, tmp_path, capsys):
    workdir = tmp_path / "W"
    shutil.copytree(trained.workdir, workdir)
    generator, found = random.Random(SEED), files(workdir)
    # Segments of rows that no checkpoint holds any more, or that belong to several, are one file each.
    chosen = {path.suffix + str(path.parent.relative_to(workdir)): path for path in found}
    chosen = generator.sample(sorted(chosen.values()), min(MOST, len(chosen)))
    check_each(workdir, chosen, generator)
    print(f"{len(chosen)} of {len(found)} files flipped")
    parts = verify(workdir)
    assert {part.name for part in parts} == {
        "results and settings",
        "checkpoints/1",
        "checkpoints/2",
        "checkpoints/4",
        "adapter",
    }
    assert all(part.files > 2 and not part.note for part in parts)
    flipped(workdir / "checkpoints" / "2" / "position" / "metadata", generator)
    print_parts(verify(workdir))
    printed = capsys.readouterr().out
    assert "checkpoints/2" in printed and "position/metadata" in printed and "none" in printed


def test_a_flip_in_any_file_of_an_adapter_or_a_backbone_is_found(trained, micro, tmp_path):
    generator = random.Random(SEED)
    for name, source in (("adapter", trained.workdir / "adapter"), ("backbone", micro.folder / "backbone")):
        shutil.copytree(source, tmp_path / name)
        check_each(tmp_path / name, 4 * files(tmp_path / name), generator)


def test_an_adapter_without_hashes_is_checked_as_far_as_that_goes_and_says_so(trained, tmp_path):
    shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": {}}))
    (part,) = verify(tmp_path / "adapter")
    assert part.faults == [] and "no hashes" in part.note


def test_an_adapter_that_was_edited_is_refused_in_a_line_that_says_how_to_use_it(trained, tmp_path):
    from hra_jax.adapters.adapter_folder import read_adapter

    shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    tasks = tmp_path / "adapter" / "tasks.json"
    tasks.write_text(tasks.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(UserError, match=r"tasks.json: is not what was exported.*remove 'sha256' from adapter_config"):
        read_adapter(tmp_path / "adapter")


def test_a_data_set_is_checked_by_its_listing_or_else_by_its_recordings(micro, tmp_path):
    shutil.copytree(micro.folder, tmp_path / "data", ignore=shutil.ignore_patterns("backbone"))
    manifest = next((tmp_path / "data").rglob("*.jsonl"))
    (part,) = verify(manifest)
    assert part.files > 0 and part.faults == [] and "no checksums" in part.note
    (tmp_path / "data" / "synthesis.json").write_text("{}")
    checksums.write_listing(tmp_path / "data")
    check_each(tmp_path / "data", files(tmp_path / "data")[:6], random.Random(SEED))


def test_what_is_nothing_of_these_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run, adapter, backbone, export, data set or manifest"):
        verify(tmp_path)


@pytest.mark.slow(minutes=0.5)
def test_what_lies_in_a_bucket_is_checked_there(trained, micro, gcs_storage, monkeypatch):
    generator, bucket = random.Random(SEED), "gs://bucket/W"
    gcs_storage.upload_folder(micro.folder / "backbone", "gs://bucket/backbone")
    for path in files(trained.workdir):
        if path.name not in ("files.json", "commit_success.txt"):  # the first no run writes in a bucket
            gcs_storage.write(f"{bucket}/{path.relative_to(trained.workdir)}", path.read_bytes())
    for step in (1, 2):  # of 4 the process was killed before it was complete
        gcs_storage.write(f"{bucket}/checkpoints/{step}/commit_success.txt", b"complete")
    parts = {part.name: part for place in (bucket, "gs://bucket/backbone") for part in verify(place)}
    assert [name for name, part in parts.items() if part.faults] == []
    assert "not complete" in parts["checkpoints/4"].note and parts["checkpoints/2"].files > 5
    assert parts["adapter"].files == 5 and parts["backbone backbone"].files == 2
    names = gcs_storage.names("gs://bucket/")
    arrays = [name for name in names if name.startswith("W/checkpoints/2/state/d/")]  # nothing else of them is read
    chosen = generator.sample(arrays, min(2, len(arrays)))
    chosen += ["W/checkpoints/2/position/metadata", "W/adapter/adapter_model.safetensors", "backbone/model.safetensors"]
    chosen += [next(name for name in names if name.startswith("W/checkpoints/rows/"))]
    for name in chosen:
        before = gcs_storage.read(f"gs://bucket/{name}")
        place = generator.randrange(len(before))
        damaged = before[:place] + bytes([before[place] ^ 1 << generator.randrange(8)]) + before[place + 1 :]
        gcs_storage.write(f"gs://bucket/{name}", damaged)
        assert faults(f"gs://bucket/{name.partition('/')[0]}"), f"{name}: a flip at {place} was not found"
        gcs_storage.write(f"gs://bucket/{name}", before)
    # Storage that is away is no damage.
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    for name in ("adapter/adapter_model", "checkpoints/2/position", "checkpoints/2/.*/d/", "checkpoints/rows"):
        gcs_storage.fail(name)
        with pytest.raises(remote.StorageUnavailable):
            verify(bucket)


# --- What strangers send ----------------------------------------------------------------------------------------------


def sign(folder, listed):
    (folder / "files.json").write_text(json.dumps({"files": listed, "crc32": checksums.of_json(listed)}) + "\n")


@pytest.mark.parametrize("name", ["/dev/zero", "../a", "a/../../b", "", ".", "a//b", "a/", "/a", "a\0b"])
def test_no_name_of_a_listing_leads_out_of_its_folder(tmp_path, name):
    (tmp_path / "synthesis.json").write_text("{}")
    sign(tmp_path, {name: [1, 2]})
    with endless.bounded():
        (part,) = verify(tmp_path)
    assert [file for file, _ in part.faults] == ["files.json"] and "is no file of the folder" in part.faults[0][1]


@pytest.mark.parametrize("entry", [3, None, [], [1], [1, 2, 3], ["a", 1], [1, -1], [True, 1], {"a": 1}])
def test_a_listing_of_other_than_bytes_and_checksums_is_a_fault(tmp_path, entry):
    (tmp_path / "synthesis.json").write_text("{}")
    sign(tmp_path, {"a": entry})
    (part,) = verify(tmp_path)
    assert [file for file, _ in part.faults] == ["files.json"] and "allowed: [bytes, XXH3]" in part.faults[0][1]


@pytest.mark.parametrize("kind", endless.KINDS)
def test_nobody_waits_for_a_file_without_an_end(trained, tmp_path, kind):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "synthesis.json").write_text("{}")
    (tmp_path / "data" / "a").write_text("abc")
    checksums.write_listing(tmp_path / "data")
    endless.put(tmp_path / "data" / "a", kind)
    with endless.bounded():
        assert faults(tmp_path / "data") == [("rendered speech", "a", "cannot be read (not a regular file)")]
        checksums.write_listing(tmp_path / "data")  # which leaves it out
        assert faults(tmp_path / "data") == []
    for name in ("README.md", "tasks.json", "adapter_config.json", "adapter_model.safetensors"):
        shutil.copytree(trained.workdir / "adapter", tmp_path / name)
        endless.put(tmp_path / name / name, kind)
        with endless.bounded():
            (fault,) = faults(tmp_path / name)
        assert fault[1] == name and "not a regular file" in fault[2]


def test_a_file_of_any_size_is_not_read(trained, tmp_path):
    shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "synthesis.json").write_text("{}")
    checksums.write_listing(tmp_path / "data")
    os.truncate(tmp_path / "data" / "synthesis.json", 2**40)
    os.truncate(tmp_path / "adapter" / "README.md", 2**40)
    with endless.bounded():
        assert "1,099,511,627,776 bytes" in faults(tmp_path / "data")[0][2]
        assert "1,099,511,627,776 bytes" in faults(tmp_path / "adapter")[0][2]


def test_an_adapter_s_hashes_name_its_own_files_only(trained, tmp_path):
    shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    for name in ("/dev/zero", "../x", "notes.txt"):
        path.write_text(json.dumps(config | {"sha256": config["sha256"] | {name: "x"}}))
        with endless.bounded():
            found = faults(tmp_path / "adapter")
        assert any(fault[1] == name and "is no file of an adapter" in fault[2] for fault in found), found
    path.write_text(json.dumps(config | {"sha256": ["x"]}))
    (fault,) = faults(tmp_path / "adapter")
    assert fault[1] == "adapter_config.json" and "needs 'sha256' (an object)" in fault[2]


def test_folders_that_only_look_like_steps_are_none(tmp_path):
    for name in ("\u00b2", "\u0663", "007", "x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [part.name for part in verify(tmp_path)] == ["results and settings"]


READERS = {
    "load_adapter": lambda folder, backbone: hra_jax.load_adapter(folder, backbone),
    "transcribe": lambda folder, backbone: choose_task(str(folder), "ann"),
    "adapter.start": lambda folder, backbone: read_start(
        str(folder), fingerprint=backbone.fingerprint, encoder=backbone.files.encoder
    ),
    "verify": lambda folder, backbone: verify(folder),
    "verify the run": lambda folder, backbone: verify(folder.parent),
}


@pytest.fixture(scope="module")
def backbone(micro):
    return hra_jax.load_backbone(micro.backbone)


@pytest.mark.parametrize("reader", READERS)
def test_an_adapter_that_a_kill_left_between_two_renames_is_found(trained, backbone, tmp_path, reader):
    (tmp_path / "config.json").write_text("{}")
    for kind in ("old", "new"):
        shutil.copytree(trained.workdir / "adapter", tmp_path / f".adapter.{kind}-{'0' * 16}")
    found = READERS[reader](tmp_path / "adapter", backbone)
    if reader.startswith("verify"):
        assert found[-1].name.startswith("adapter") and found[-1].files == 5 and not found[-1].faults
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "config.json"]
