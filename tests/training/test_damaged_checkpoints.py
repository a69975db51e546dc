"""Damaged checkpoints: what is flipped, cut, emptied or gone is found and named, or changes nothing that comes back.

HRA_FLIPS=200 flips so many bits, spread over all files, and also empties and cuts each; without it each file is flipped
once and deleted once. HRA_SEED chooses the bits.
"""

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from etils import epath
from reference import endless
from reference import micro as world

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage import checksums as file_checksums
from hra_jax.storage import remote
from hra_jax.storage.row_log import RowLog
from hra_jax.training import checkpoints as checkpoints_module
from hra_jax.training import checksums, sharding
from hra_jax.training.checkpoints import Checkpoints
from hra_jax.training.stored_checkpoint import StoredCheckpoint
from hra_jax.verify import verify

FLIPS = int(os.environ.get("HRA_FLIPS", "0"))
SEED = int(os.environ.get("HRA_SEED", "0"))

# Files whose damage changes nothing that comes back, and why. What hra_jax.verify says of a checkpoint names them too.
HARMLESS = {
    "commit_success.txt": "only tells that a folder is complete; its name does that too",
    "_sharding": "a run says itself where its arrays lie",
    "_CHECKPOINT_METADATA": "a list of what is in the checkpoint, and times",
    "state/_METADATA": "names and shapes, which the checksums and the run hold too",
    "metrics/metrics": "the checksums hold the same",
    "array_metadatas": "the sizes of pieces, which the arrays' own headers hold too",
    "ocdbt.process_0": "what one process wrote before all of it was merged; where data still lies there, it is checked",
    "files.json": "of hra_jax.verify alone",
}


def state_of(step):
    kernel = jnp.asarray(np.random.default_rng(step).standard_normal((64, 48)), jnp.float32)
    return {"step": jnp.int32(step), "shared": {"kernel": kernel, "bias": jnp.full(48, step, jnp.bfloat16)}}


def rows_of(step):
    ids = np.arange(step, step + 4)
    return ids, {"tasks": {"head": np.random.default_rng(step).standard_normal((len(ids), 5)).astype(np.float32)}}


def opened(folder, **changes):
    usual = {"keep_latest": 2, "keep_best": 1, "every_steps": 1, "finite": True, "fingerprint": {"backbone": "abc"}}
    return Checkpoints(folder, **(usual | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    with opened(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(
                step,
                state_of(step),
                position={"consumed": step, "waiting": [[0, 5], [1, 7]]},
                best={"macro": {"wer": 0.5, "step": step}},
                rows={"bank": rows_of(step)},
                metrics={"wer_macro": 0.5 / step},
                force=True,
            )
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def content(folder, step=2):
    """All that a run takes from a checkpoint, as bytes and JSON; the errors of damage go on."""
    with opened(folder, read_only=True) as checkpoints:
        state, position, best = checkpoints.restore(step, state_of(0))
        arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
        rows = [(ids.tolist(), tree["tasks"]["head"].tobytes()) for ids, tree in checkpoints.rows(step, "bank")]
        return arrays, position, best, rows, checkpoints.metrics(step), checkpoints.resolve("best")


def damages(path, generator, flips):
    """(what is done, damaged content or None for no file) of one file."""
    found = path.read_bytes()
    yield "gone", None
    yield "emptied", b""
    yield "cut", found[: len(found) // 2]
    for _ in range(flips):
        place, bit = generator.randrange(len(found)), generator.randrange(8)
        yield f"bit {bit} of byte {place}", found[:place] + bytes([found[place] ^ 1 << bit]) + found[place + 1 :]


@pytest.mark.slow
def test_every_damage_of_every_file_is_named_or_changes_nothing(copy):
    generator, expected = random.Random(SEED), content(copy)
    step = [f"2/{name}" for name in file_checksums.files_of(copy / "2")] + ["2/files.json"]
    files = step + [f"rows/bank/{name}" for name in file_checksums.files_of(copy / "rows" / "bank")]
    found, without_effect = 0, dict.fromkeys(files, 0)
    for name in files:
        before = (copy / name).read_bytes()
        for what, after in damages(copy / name, generator, -(-FLIPS // len(files)) or 1):
            if not FLIPS and what in ("emptied", "cut"):
                continue
            (copy / name).unlink() if after is None else (copy / name).write_bytes(after)
            try:
                same = content(copy) == expected
                assert same, f"{name}, {what}: something else came back, without a word"
                without_effect[name] += 1
                harmless = any(part in name for part in HARMLESS)
                assert harmless or what not in ("gone", "emptied", "cut"), f"{name}, {what}: was not noticed"
            except UserError as error:
                assert isinstance(error, DamagedError), f"{name}, {what}: {error}"
                assert "\n" not in str(error) and str(copy) in str(error), f"{name}, {what}: {error}"
                assert "checkpoint 2" in str(error) or "rows/bank/" in str(error), f"{name}, {what}: {error}"
                found += 1
            # One damaged checkpoint does not stop a start, and the other one is whole.
            with opened(copy, read_only=True) as checkpoints:
                assert int(checkpoints.restore(1, state_of(0))[0]["step"]) == 1
            (copy / name).write_bytes(before)
    print(f"{len(files)} files; damages that were found: {found}; without effect, all others:")
    print("".join(f"  {count} of {name}\n" for name, count in without_effect.items() if count))
    assert found > len(files) // 2


def test_every_flip_of_every_file_of_a_checkpoint_is_in_its_listing(copy):
    folder, generator = copy / "2", random.Random(SEED)
    assert set(file_checksums.check_listing(folder).values()) == {""}
    for name in [*file_checksums.files_of(folder), "files.json"]:
        before = (folder / name).read_bytes()
        for what, after in damages(folder / name, generator, 5):
            (folder / name).unlink() if after is None else (folder / name).write_bytes(after)
            found = file_checksums.check_listing(folder)
            if name == "files.json" and what == "gone":
                assert found is None
            else:
                assert [file for file, fault in found.items() if fault] == [name], f"{name}, {what}"
            (folder / name).write_bytes(before)


def test_a_checkpoint_that_is_passed_over_is_renamed_by_the_next_save_and_may_be_saved_again(copy):
    (copy / "2" / "position" / "metadata").write_text('{"consumed": 3, "waiting": [[0, 5], [1, 7]]}')
    with opened(copy) as checkpoints:
        with pytest.raises(DamagedError, match=r"checkpoint 2 cannot be read: position/metadata is not what was writ"):
            checkpoints.restore("last", state_of(0))
        checkpoints.pass_over(2)
        assert (checkpoints.all_steps(), checkpoints.resolve("last"), checkpoints.best_step()) == ([1], 1, 1)
        assert (copy / "2").exists()
        checkpoints.save(2, state_of(7), position={}, best={}, rows={"bank": rows_of(3)}, force=True)
        state, position, _ = checkpoints.restore("last", state_of(0))
        assert (int(state["step"]), position) == (7, {})
        assert [ids.tolist() for ids, _ in checkpoints.rows(2, "bank")][-1] == list(range(3, 7))
    assert sorted(path.name for path in copy.iterdir() if path.name != "rows") == ["1", "2", "2.damaged"]
    assert (copy / "2.damaged" / "state").is_dir()
    with opened(copy) as checkpoints:
        assert checkpoints.all_steps() == [1, 2]


def test_a_damaged_checkpoint_that_cannot_be_renamed_is_one_line(copy, monkeypatch):
    def refuse(folder, new):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(folder))

    monkeypatch.setattr(checkpoints_module, "rename_folder", refuse)
    with opened(copy) as checkpoints:
        checkpoints.pass_over(2)
        with pytest.raises(UserError, match=r"2: cannot be renamed to 2.damaged: Read-only file system"):
            checkpoints.save(3, state_of(3), position={}, best={}, force=True)
        assert (copy / "2").is_dir() and checkpoints.all_steps() == [1]


TROUBLE = [
    remote.StorageUnavailable(errno.EAGAIN, "the storage does not answer: 503"),
    *(OSError(number, os.strerror(number)) for number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES)),
    MemoryError(),
    TimeoutError(),
    ValueError("ABORTED: All 32 retry attempts failed: x [http_response_code='503']"),
    ValueError("UNAVAILABLE: no connection"),
    ValueError("RESOURCE_EXHAUSTED: Error opening local file [os_error_code='24']"),
    ValueError("FAILED_PRECONDITION: Error reading local file [os_error_code='5']"),
    RuntimeError("can't start new thread"),
]
DAMAGE = [
    FileNotFoundError(errno.ENOENT, "No such file"),
    ValueError("NOT_FOUND: Error opening local file [os_error_code='2']"),
    ValueError('NOT_FOUND: Error opening "zarr" driver: gs://b/x'),
    ValueError("DATA_LOSS: CRC-32C checksum verification failed: gs://b/x"),
    ValueError("FAILED_PRECONDITION: Expected header to start with hex bytes"),
    KeyError("tree_metadata"),
]


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: str(error)[:40] or type(error).__name__)
def test_storage_that_does_not_give_a_checkpoint_now_has_not_damaged_it(error):
    stored = StoredCheckpoint(epath.Path("W/checkpoints/400"))
    wrapped = ValueError("Orbax could not restore")
    wrapped.__cause__ = error
    for found in (error, wrapped):
        assert not isinstance(stored.damage("state", error=found), DamagedError)
    assert "try again" in str(stored.damage("state", error=error))


@pytest.mark.parametrize("error", DAMAGE, ids=lambda error: str(error)[:40])
def test_what_is_missing_or_says_that_it_is_wrong_is_damage(error):
    assert isinstance(StoredCheckpoint(epath.Path("W/checkpoints/400")).damage("state", error=error), DamagedError)


@pytest.mark.parametrize("name", ["checksums/metadata", "position/metadata", "run/metadata", "state"])
def test_a_file_that_cannot_be_read_now_is_no_damage_and_its_checkpoint_is_not_passed_over(copy, name):
    with opened(copy) as checkpoints:
        # A link to itself cannot be opened, by no user; nothing is missing.
        for file in [copy / "2" / name] if name != "state" else list((copy / "2" / "state").rglob("*")):
            if file.is_file():
                file.unlink()
                file.symlink_to(file)
        with pytest.raises(UserError, match=r"checkpoint 2 cannot be read: .*oo many .*try again") as caught:
            checkpoints.restore("last", state_of(0))
    assert not isinstance(caught.value, DamagedError)


def test_metrics_that_cannot_be_read_now_are_not_taken_for_none(copy):
    file = copy / "2" / "checksums" / "metadata"
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(UserError, match="checkpoint 2 cannot be read: checksums/metadata: Too many levels"):
        StoredCheckpoint(epath.Path(copy / "2")).metrics()
    with pytest.raises(UserError, match="checkpoint 2 cannot be read"), opened(copy):
        pass


def test_the_listing_of_a_checkpoint_is_written_while_training_goes_on(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), position={}, best={}, force=True)
        end = time.monotonic() + 60
        while not (tmp_path / "1" / "files.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert set(file_checksums.check_listing(tmp_path / "1").values()) == {""}


def test_a_checkpoint_without_a_listing_is_compared_with_its_own_checksums(copy):
    for step in ("1", "2"):
        (copy / step / "files.json").unlink()
    parts = {part.name: part for part in verify(copy.parent)}
    assert [parts[f"checkpoints/{step}"].faults for step in (1, 2)] == [[], []]
    assert "it has no files.json: arrays and values were compared" in parts["checkpoints/2"].note
    data = max((path for path in (copy / "2" / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    before = data.read_bytes()
    data.write_bytes(before[:-900] + bytes([before[-900] ^ 1]) + before[-899:])
    (part,) = [part for part in verify(copy.parent) if part.name == "checkpoints/2"]
    assert [name for name, _ in part.faults] == ["2"] and "cannot be read" in part.faults[0][1]
    data.write_bytes(before)
    (copy / "2" / "best" / "metadata").write_text("{}")
    (part,) = [part for part in verify(copy.parent) if part.name == "checkpoints/2"]
    assert "best/metadata is not what was written" in part.faults[0][1]


def test_a_checkpoint_that_is_deleted_while_it_is_checked_is_no_fault(copy, monkeypatch):
    def check(folder, *, told):
        shutil.rmtree(copy / "1", ignore_errors=True)
        return {"state/a": "is missing"} if folder.name == "1" else {}

    monkeypatch.setattr(file_checksums, "check_listing", check)
    assert [part.name for part in verify(copy.parent) if "checkpoints" in part.name] == ["checkpoints/2"]


# Each process has its own folder, of which that of process 1 is damaged.
TWO = """
import sys
import jax, jax.numpy as jnp, numpy as np
number, port, folder, damage = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from hra_jax.errors import DamagedError
from hra_jax.run import saving
from hra_jax.training.checkpoints import Checkpoints
state = {"step": jnp.int32(0), "shared": {"kernel": jnp.zeros((64, 48)), "bias": jnp.zeros(48, jnp.bfloat16)}}
usual = {"keep_latest": 2, "keep_best": 1, "every_steps": 1, "fingerprint": {"backbone": "abc"}}
like = {"tasks": {"head": jax.ShapeDtypeStruct((100, 5), jnp.float32)}}
with Checkpoints(folder, read_only=True, **usual) as checkpoints:
    taken = None
    while taken is None:
        step = checkpoints.resolve("last")
        try:
            restored = checkpoints.restore(step, state)[0]
            rows = list(saving._finite_rows(checkpoints, step, "bank", below=100, like=like))
            taken = step
        except DamagedError as error:
            checkpoints.pass_over(step)
            print("said", error, flush=True)
    print("said", taken, int(restored["step"]), len(rows), flush=True)
"""


@pytest.mark.slow(minutes=1.0)
@pytest.mark.parametrize("damage", ["run/metadata", "checksums/metadata", "state", "rows"])
def test_where_one_process_finds_damage_all_go_on_from_the_checkpoint_before(whole, tmp_path, damage):
    for number in (0, 1):
        shutil.copytree(whole, tmp_path / str(number))
    folder = tmp_path / "1"
    paths = [folder / "rows" / "bank" / "2.safetensors"] if damage == "rows" else [folder / "2" / damage]
    for path in paths if damage != "state" else [path for path in paths[0].rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[:-5])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(number), port, str(tmp_path / str(number)), damage],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=120)[0].splitlines() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0]
    said = [[line.removeprefix("said ") for line in lines if line.startswith("said ")] for lines in printed]
    assert said[0] == said[1]
    assert len(said[0]) == 2 and said[0][0].startswith("process 1: ") and said[0][1].startswith("1 1 ")


def test_what_is_not_finite_is_neither_saved_nor_restored(tmp_path):
    good, bad = state_of(1), state_of(2)
    bad["shared"]["kernel"] = bad["shared"]["kernel"].at[3, 4].set(jnp.nan)
    ids, tree = rows_of(1)
    tree["tasks"]["head"][1, 1] = np.inf
    empty = {"position": {}, "best": {}, "force": True}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, good, **empty)
        with pytest.raises(
            UserError, match=r"checkpoint 2 was not written: shared/kernel holds NaN.*complete one is 1"
        ):
            checkpoints.save(2, bad, **empty)
        with pytest.raises(UserError, match=r"checkpoint 2 was not written: bank/tasks/head holds NaN or infinite"):
            checkpoints.save(2, good, rows={"bank": (ids, tree)}, **empty)
        assert checkpoints.all_steps() == [1]
    with opened(tmp_path, finite=False) as checkpoints:
        checkpoints.save(3, bad, **empty)
    with opened(tmp_path) as checkpoints, pytest.raises(DamagedError, match="shared/kernel holds NaN or infinite"):
        checkpoints.restore(3, state_of(0))


def test_checkpoints_without_checksums_are_restored_and_known_to_have_none(copy):
    shutil.rmtree(copy / "2" / "checksums")
    with opened(copy, read_only=True) as checkpoints, pytest.raises(DamagedError, match="checksums/metadata"):
        checkpoints.checksum(2)
    listed = copy / "2" / "_CHECKPOINT_METADATA"
    listed.write_bytes(listed.read_bytes().replace(b'"checksums"', b'"something"'))
    with opened(copy, read_only=True) as checkpoints:
        assert checkpoints.checksum(2) is None and checkpoints.checksum(1) is not None
        assert int(checkpoints.restore(2, state_of(0))[0]["step"]) == 2
        assert checkpoints.metrics(2) == {"wer_macro": 0.25}  # of Orbax's own file


def test_an_array_has_the_same_checksum_on_every_mesh_and_any_other_array_another(monkeypatch):
    generator = np.random.default_rng(SEED)
    array = generator.standard_normal((16, 8, 6)).astype(np.float32)
    expected = checksums.of_tree({"x": array})["x"]
    assert expected.finite
    monkeypatch.setattr(checksums, "_readable_on_host", lambda leaf: False)  # as on TPUs
    mesh = sharding.make_mesh(data=2, fsdp=4)
    for axes in (("embed", None, None), (None, "embed", None), (None, None, None)):
        placed = jax.device_put(array, sharding.sharding_for(mesh, axes))
        assert checksums.of_tree({"x": placed})["x"] == expected
    monkeypatch.undo()
    seen = {expected.value}
    for _ in range(200):
        other = array.copy()
        word = other.view(np.uint32).reshape(-1)
        word[generator.integers(word.size)] ^= np.uint32(1 << generator.integers(31))
        seen.add(checksums.of_tree({"x": other})["x"].value)
    swapped = array[::-1].copy()
    signs = array.copy()
    signs[0, 0, (1, 3)] *= -1  # two top bits, which cancel in a plain sum, also in one of pairs of words
    seen |= {checksums.of_tree({"x": other})["x"].value for other in (swapped, signs)}
    assert len(seen) >= 200  # two flips may be the same one


def test_large_arrays_are_hashed_in_parts_as_they_are_whole(monkeypatch):
    array = np.random.default_rng(SEED).standard_normal(5000).astype(np.float32)
    for dtype in (np.float32, np.float64, np.float16, np.int8, np.bool_):
        converted = array.astype(dtype)
        expected = checksums.of_tree([converted])
        with monkeypatch.context() as patch:
            patch.setattr(checksums, "_RANGE", 1)
            patch.setattr(checksums, "_SMALL", 0)
            assert checksums.of_tree([converted]) == expected


def test_the_metrics_of_a_checkpoint_outlive_damage_of_their_file(copy):
    (copy / "2" / "metrics" / "metrics").write_bytes(b"\x00")
    assert StoredCheckpoint(copy / "2").metrics() == {"wer_macro": 0.25}
    (copy / "2" / "checksums" / "metadata").write_bytes(b"{")
    assert StoredCheckpoint(copy / "2").metrics() is None
    with opened(copy) as checkpoints:
        assert checkpoints.best_step() == 1


@pytest.fixture(scope="module")
def finished(micro, tmp_path_factory):
    """A run like `trained`, compiled as the tests here are: another test may have been the first to use that one."""
    return world.train(micro.validated_config(), tmp_path_factory.mktemp("finished") / "W")


@pytest.mark.slow(minutes=1.0)
@pytest.mark.parametrize("damage", ["state", "position/metadata", "checksums/metadata", "rows"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_the_same(
    finished, tmp_path, damage
):
    workdir = tmp_path / "W"
    shutil.copytree(finished.workdir, workdir)
    shutil.rmtree(workdir / "adapter")
    newest, generator = workdir / "checkpoints" / "4", random.Random(SEED)
    if damage == "rows":
        paths = [workdir / "checkpoints" / "rows" / "bank" / "4.safetensors"]
    elif damage == "state":
        paths = [path for path in (newest / "state" / "d").iterdir()]
    else:
        paths = [newest / damage]
    for path in paths:
        found = bytearray(path.read_bytes())
        for _ in range(8):
            found[generator.randrange(len(found))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(found))
    again = world.train(finished.config, workdir)
    assert again.status == 0
    assert "; taking checkpoint 2" in again.printed and "resuming at step 2" in again.printed
    for name in ("adapter_model.safetensors", "tasks.json"):
        assert (workdir / "adapter" / name).read_bytes() == (finished.workdir / "adapter" / name).read_bytes()
    assert world.losses(workdir) == world.losses(finished.workdir)
    sums = [StoredCheckpoint(at / "checkpoints" / "4").checksums() for at in (workdir, finished.workdir)]
    assert sums[0]["state"] == sums[1]["state"] and sums[0]["items"]["position"] == sums[1]["items"]["position"]


@pytest.mark.parametrize(
    "sums",
    [{}, {"items": 3, "state": {}}, {"items": {}, "state": 3}, {"items": {}, "state": {"a": 3}}, {"items": {}}]
    + [{"items": {}, "state": {"a": entry}} for entry in ([], ["x"], ["x", True], ["x", 1, 2], [3, 1], {})],
)
def test_checksums_that_a_stranger_signed_are_refused_where_they_say_no_checksums(copy, sums):
    found = {"step": 2, "metrics": [1]} | sums
    text = json.dumps(found | {"self": file_checksums.of_json(found)})
    (copy / "2" / "checksums" / "metadata").write_text(text)
    stored = StoredCheckpoint(epath.Path(copy / "2"))
    assert stored.metrics() in (None, {"wer_macro": 0.25})
    with pytest.raises(DamagedError, match="checkpoint 2 cannot be read: .*checksums/metadata"):
        stored.item("rows")


@pytest.mark.parametrize("rows", [{"bank": 3}, {"bank": [3]}, {"../x": ["1"]}, {"": []}, {"bank": {"a": 1}}])
def test_lists_of_segments_that_are_none_are_refused(copy, rows):
    (copy / "2" / "rows" / "metadata").write_text(json.dumps(rows))
    sums = json.loads((copy / "2" / "checksums" / "metadata").read_text())
    sums["items"]["rows"] = file_checksums.of_json(rows)
    del sums["self"]
    (copy / "2" / "checksums" / "metadata").write_text(json.dumps(sums | {"self": file_checksums.of_json(sums)}))
    with pytest.raises(DamagedError, match=r"checkpoint 2 cannot be read: rows/metadata: .* are no segments of a log"):
        StoredCheckpoint(epath.Path(copy / "2")).segments()


@pytest.mark.parametrize(
    "like, told",
    [
        ({"tasks": {"head": np.zeros((9, 6), np.float32)}}, r"tasks/head is float32\[5\] there, but float32\[6\] here"),
        ({"tasks": {"head": np.zeros((9, 5), np.int32)}}, r"tasks/head is float32\[5\] there, but int32\[5\] here"),
        ({"tasks": {"tail": np.zeros((9, 5), np.float32)}}, r"tasks/head is float32\[5\] there, but absent here"),
        ({"tasks": {"head": jax.ShapeDtypeStruct((9, 5), np.float32)}, "count": np.zeros(9)}, "count is absent there"),
    ],
)
def test_rows_of_other_names_shapes_or_dtypes_than_the_run_s_are_refused_in_one_line(copy, like, told):
    with opened(copy, read_only=True) as checkpoints:
        whole = {"tasks": {"head": jax.ShapeDtypeStruct((9, 5), np.float32)}}
        assert list(checkpoints.rows(2, "bank", below=9, like=whole))
        with pytest.raises(UserError, match=rf"checkpoint 2 is of another run: rows/bank: {told}") as error:
            list(checkpoints.rows(2, "bank", below=9, like=like))
        assert not isinstance(error.value, DamagedError)  # the one before is of the same run


@pytest.mark.parametrize("signed", [True, False])
def test_no_room_is_made_for_arrays_that_the_files_cannot_hold(copy, signed):
    # A header without values: each of them would be zero.
    store = {"driver": "ocdbt", "base": f"file://{copy}/2/state/"}
    spec = {"driver": "zarr", "kvstore": store, "path": "shared.kernel", "metadata": {"compressor": None}}
    options = dict(create=True, delete_existing=True, shape=[2**21, 2**21], dtype=tensorstore.float32)
    tensorstore.open(spec, **options, chunk_layout=tensorstore.ChunkLayout(chunk_shape=[64, 48])).result()
    file = copy / "2" / "checksums" / "metadata"
    found = json.loads(file.read_text())
    del found["self"]
    found["state"]["shared/kernel"][0] = "float32[2097152, 2097152]"
    if signed:
        file.write_text(json.dumps(found | {"self": file_checksums.of_json(found)}))
    (copy / "2" / "files.json").unlink()
    told = "state: arrays of 17,592,186,.* bytes in files of" if signed else "names other arrays than were saved"
    with opened(copy, read_only=True) as checkpoints, endless.bounded(), pytest.raises(DamagedError, match=told):
        checkpoints.check(2)
    with opened(copy, read_only=True) as checkpoints, endless.bounded(), pytest.raises(UserError):
        checkpoints.restore(2, state_of(0))


@pytest.mark.parametrize("kind", endless.KINDS)
def test_nobody_waits_for_a_file_of_a_checkpoint_that_has_no_end(copy, kind):
    for name in ("position/metadata", "checksums/metadata", "metrics/metrics", "_CHECKPOINT_METADATA"):
        endless.put(copy / "2" / name, kind)
        with endless.bounded():
            stored = StoredCheckpoint(epath.Path(copy / "2"))
            stored.metrics()
            with pytest.raises(DamagedError, match="checkpoint 2 cannot be read: .*not a regular file"):
                stored.item("position")
    (file,) = [path for path in (copy / "rows" / "bank").iterdir() if path.stem == "2"]
    endless.put(file, kind)
    with endless.bounded(), pytest.raises(UserError, match="2.safetensors: .*not a regular file"):
        list(RowLog(copy / "rows" / "bank").read(["2"]))
