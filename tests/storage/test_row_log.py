"""The log of changed rows: what comes back, what it costs, and what a killed process or damage does to it."""

import concurrent.futures
import itertools
import math
import multiprocessing
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from hra_jax.errors import UserError
from hra_jax.storage import row_log
from hra_jax.storage.files import write_file
from hra_jax.storage.row_log import RowLog

WIDTH = 32
ROW_BYTES = 8 + WIDTH * 4 + 2 * 3 * 2 + 4  # of make_rows, with the id


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These tests write thousands of files; nothing in them depends on when the disk has one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make_rows(ids, stamp):
    """Rows that differ by id and by time, of three dtypes."""
    ids = np.asarray(ids)
    kernel = np.repeat((ids * 1000 + stamp)[:, None], WIDTH, axis=1).astype(np.float32)
    moment = np.full((len(ids), 2, 3), stamp % 100, ml_dtypes.bfloat16)
    return {"tasks": {"a": {"kernel": kernel}, "m": moment}, "count": np.full(len(ids), stamp, np.int32)}


def write(log, name, ids, *, after, stamp=0):
    return log.append(name, np.asarray(ids), make_rows(ids, stamp), after=after)


def as_dict(blocks):
    """{id: the bytes of its row}; fails when an id comes twice."""
    state = {}
    for ids, rows in blocks:
        assert ids.dtype == np.int64 and (np.diff(ids) > 0).all() and len(ids)
        leaves = (rows["tasks"]["a"]["kernel"], rows["tasks"]["m"], rows["count"])
        for place, number in enumerate(ids.tolist()):
            assert number not in state
            state[number] = b"".join(leaf[place].tobytes() for leaf in leaves)
    return state


def expected(stamps):
    """What `as_dict` gives for {id: the stamp of its last change}."""
    state = {}
    for number, stamp in stamps.items():
        state |= as_dict([(np.array([number]), make_rows([number], stamp))])
    return state


def files(directory):
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def stored_rows(directory, segments):
    return sum(len(safetensors.numpy.load_file(directory / f"{name}.safetensors")["ids"]) for name in segments)


def churn(log, *, seed, steps, tasks, most):
    """Appends random rows; yields (the list, {id: stamp}) after each. Some rows are far more popular than others."""
    rng = np.random.default_rng(seed)
    segments, stamps = [], {}
    for step in range(steps):
        ids = np.unique((tasks * rng.random(rng.integers(0, most + 1)) ** rng.integers(1, 5)).astype(int))
        rng.shuffle(ids)
        segments = write(log, f"step-{step}", ids, after=segments, stamp=step)
        stamps = stamps | dict.fromkeys(ids.tolist(), step)
        yield segments, stamps


@pytest.mark.parametrize("rows_of_full", [3, 40, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_every_list_reads_as_the_rows_of_its_time_after_later_appends_and_collection(tmp_path, seed, rows_of_full):
    log = RowLog(tmp_path, segment_bytes=rows_of_full * ROW_BYTES)
    history = list(churn(log, seed=seed, steps=60, tasks=70, most=20))
    assert len(files(tmp_path)) > len(history[-1][0])  # some were rewritten
    again = RowLog(tmp_path, read_only=True)
    for reader, (segments, stamps) in itertools.product((log, again), history):
        assert as_dict(reader.read(segments)) == expected(stamps)
    kept = [history[i] for i in (7, 20, 21, 59)]
    log.collect(iter([segments for segments, _ in kept]))
    assert set(files(tmp_path)) == {f"{name}.safetensors" for segments, _ in kept for name in segments}
    for segments, stamps in kept:
        assert as_dict(again.read(segments)) == expected(stamps)
        assert again.size(segments) == sum(files(tmp_path)[f"{name}.safetensors"] for name in segments)
    segments = write(RowLog(tmp_path), "on", [1, 500], after=kept[1][0], stamp=99)
    assert as_dict(again.read(segments)) == expected(kept[1][1] | {1: 99, 500: 99})


def test_a_run_reopened_at_each_step_writes_the_same_files(tmp_path):
    segments = []
    for step, (expected_segments, _) in enumerate(churn(RowLog(tmp_path / "one"), seed=5, steps=30, tasks=50, most=9)):
        ids = safetensors_ids(tmp_path / "one", step)
        segments = write(RowLog(tmp_path / "two"), f"step-{step}", ids, after=segments, stamp=step)
        assert segments == expected_segments
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def safetensors_ids(directory, step):
    """The ids that were given at a step, of what it wrote."""
    file = directory / f"step-{step}.safetensors"
    if not file.exists():
        return np.zeros(0, int)
    tensors = safetensors.numpy.load_file(file)
    return tensors["ids"][tensors["count"] == step]


@pytest.mark.parametrize("held", [0, 1_000, 30_000])
def test_an_append_writes_bytes_for_the_rows_given_only(tmp_path, held):
    log = RowLog(tmp_path)
    segments = write(log, "base", range(held), after=[]) if held else []
    before = files(tmp_path) if held else {}
    after = write(log, "new", range(500, 520), after=segments, stamp=1)
    assert after == [*segments, "new"]
    new = {name: size for name, size in files(tmp_path).items() if before.get(name) != size}
    assert set(new) == {"new.safetensors"}
    assert new["new.safetensors"] == log.size(["new"]) < 20 * ROW_BYTES + 1000


def test_an_append_does_not_read_rows_that_it_does_not_move(tmp_path):
    segments = write(RowLog(tmp_path), "base", range(1000), after=[])
    file = tmp_path / "base.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    with file.open("r+b") as stream:  # the ids come first
        stream.seek(header + 8 * 1000)
        stream.write(bytes(1000 * (ROW_BYTES - 8)))
    log = RowLog(tmp_path)
    segments = write(log, "new", [3], after=segments)
    assert segments == ["base", "new"]
    with pytest.raises(UserError, match=r"base\.safetensors: the segment is damaged"):
        list(log.read(segments))


def batches(pattern, *, tasks, steps, rng):
    """The ids of each append of a run."""
    if pattern == "most of each append is soon superseded":
        yield np.arange(tasks)
    for step in range(steps):
        yield {
            "each row once": np.arange(step * 8, step * 8 + 8),
            "all rows alike": rng.choice(tasks, 8, replace=False),
            "few rows often": np.unique((tasks * rng.random(8) ** 6).astype(int)),
            "one row": np.array([5]),
            "most of each append is soon superseded": np.array([*range(7), 7 + step]),
        }[pattern]


@pytest.mark.parametrize(
    "pattern",
    ["each row once", "all rows alike", "few rows often", "one row", "most of each append is soon superseded"],
)
def test_a_long_run_writes_each_row_a_few_times_and_its_lists_stay_short_and_mostly_live(
    tmp_path, pattern, monkeypatch
):
    full, header, written = 256, 700, []

    def counted(file, content):
        written.append(len(content))
        write_file(file, content)

    monkeypatch.setattr(row_log, "write_file", counted)
    log = RowLog(tmp_path, segment_bytes=full * ROW_BYTES)
    segments, appended, live = [], 0, set()
    for step, ids in enumerate(batches(pattern, tasks=3000, steps=600, rng=np.random.default_rng(0))):
        segments = write(log, f"s{step}", ids, after=segments, stamp=step)
        log.collect([segments])
        appended, live = appended + len(ids), live | set(ids.tolist())
        assert len(segments) <= 7 * math.ceil(math.log(full / 2, 8)) + 4 * len(live) / full
        sizes = files(tmp_path)
        assert sum(sizes.values()) == log.size(segments)
        assert sum(sizes.values()) <= 2 * len(live) * ROW_BYTES + len(sizes) * header
    assert sum(written) <= (2 + math.log(full / 8, 8)) * appended * ROW_BYTES + len(written) * header
    assert max(written) <= full * ROW_BYTES + header


def memory_of_reading_and_merging(folder, rows, pieces, width):
    """The most memory that reading took, that any append took, and the most that an append moved, in full segments."""

    def append(log, name, ids, after):
        return log.append(name, ids, {"x": np.full((len(ids), width), 1, np.float32)}, after=after)

    def peak(work):
        tracemalloc.start()
        result = work()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result, most / (rows * width * 4)

    log = RowLog(folder, segment_bytes=rows * (width * 4 + 8))
    segments = []
    for piece in range(pieces):
        segments = append(log, f"p{piece}", np.arange(piece * rows, (piece + 1) * rows), segments)
    blocks, reading = peak(lambda: sum(1 for _ in RowLog(folder).read(segments)))
    assert blocks == len(segments) == pieces
    rng, moves, appending = np.random.default_rng(0), [], []
    for number in range(120):
        before, ids = sum(files(folder).values()), rng.choice(rows * pieces, (rows, 4)[number % 2], replace=False)
        segments, most = peak(lambda name=f"c{number}", ids=ids, after=segments: append(log, name, ids, after))
        appending.append(most)
        moves.append((sum(files(folder).values()) - before) / (rows * width * 4) - len(ids) / rows)
    return reading, max(appending), max(moves)


def test_reading_and_merging_hold_a_few_segments_in_memory(tmp_path):
    # In a process of its own: what other threads of this one allocate meanwhile would count too.
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        # Rows so wide that ids do not count.
        measured = alone.submit(memory_of_reading_and_merging, tmp_path, rows=50, pieces=40, width=5000)
        reading, appending, moved = measured.result()
    assert reading < 3 and appending < 7
    assert 0.1 < moved < 2


def test_rows_of_no_id_write_nothing_and_superseded_segments_leave_the_list(tmp_path):
    log = RowLog(tmp_path / "log")
    assert write(log, "none", [], after=[]) == []
    log.collect([])
    assert list(log.read([])) == [] and log.size([]) == 0
    assert not (tmp_path / "log").exists()
    one = write(log, "a", [1, 2], after=[])
    assert write(log, "b", [], after=one) == one == ["a"]
    assert write(log, "c", [2, 1], after=one) == ["c"]
    assert set(files(tmp_path / "log")) == {"a.safetensors", "c.safetensors"}


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "bfloat16", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "bool"]
)
def test_rows_of_every_dtype_come_back_bit_for_bit_moved_or_not(tmp_path, dtype):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype.kind == "b" else 256, (64, 3, 2 * dtype.itemsize), np.uint8)
    values = raw.view(dtype)  # NaNs with payloads, denormals and all
    rows = {"x": values, "empty": np.zeros((64, 0, 2), dtype), "scalar": np.asfortranarray(values)[:, 0, 0]}
    log, segments = RowLog(tmp_path), []
    for step in range(8):  # the last append moves all before it
        part = slice(step * 8, step * 8 + 8)
        ids = np.arange(64, dtype=np.uint16)[part][::-1]
        segments = log.append(
            f"s{step}", ids, {"a": {k: v[part][::-1] for k, v in rows.items()}, "c": ids.astype("i4")}, after=segments
        )
    assert segments == ["s7"]
    ((ids, back),) = RowLog(tmp_path).read(segments)
    assert ids.tolist() == back["c"].tolist() == list(range(64))
    for path, value in rows.items():
        assert (back["a"][path].dtype, back["a"][path].shape) == (value.dtype, value.shape)
        assert back["a"][path].tobytes() == value.tobytes()


def test_a_segment_is_a_safetensors_file_of_ids_and_leaves_by_path(tmp_path):
    write(RowLog(tmp_path), "a", [7, 3], after=[], stamp=2)
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert tensors.pop("ids").tolist() == [3, 7]
    rows = make_rows([3, 7], 2)
    for path, leaf in {"tasks/a/kernel": rows["tasks"]["a"]["kernel"], "count": rows["count"]}.items():
        assert np.array_equal(tensors[path], leaf)
    assert set(tensors) == {"tasks/a/kernel", "tasks/m", "count"}


def test_what_a_killed_process_leaves_does_no_harm_and_is_collected(tmp_path, monkeypatch):
    written = itertools.count()

    def killed(file, content):
        if next(written) == 2:
            for name in (f".{file.name}.0123456789abcdef.tmp", f".{file.name}.tmp"):  # now, and in 0.1.0
                (file.parent / name).write_bytes(content[:100])
            raise KeyboardInterrupt
        write_file(file, content)

    log = RowLog(tmp_path, segment_bytes=4 * ROW_BYTES)
    first = write(log, "one", range(4), after=[])
    monkeypatch.setattr(row_log, "write_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write(log, "two", range(2, 20), after=first, stamp=1)
    monkeypatch.undo()
    assert set(files(tmp_path)) > {"one.safetensors", "two.safetensors", "two.1.safetensors"}
    for again in (log, RowLog(tmp_path, segment_bytes=4 * ROW_BYTES)):
        assert as_dict(again.read(first)) == expected(dict.fromkeys(range(4), 0))
        second = write(again, "two", [3, 4], after=first, stamp=5)
        third = write(again, "three", [4, 9], after=second, stamp=6)
        assert as_dict(again.read(third)) == expected({0: 0, 1: 0, 2: 0, 3: 5, 4: 6, 9: 6})
    (tmp_path / "README.txt").write_text("not a segment")
    log.collect([third])
    assert set(files(tmp_path)) == {"README.txt"} | {f"{name}.safetensors" for name in third}


def test_no_damage_to_any_byte_goes_unnoticed(tmp_path):
    log = RowLog(tmp_path)
    segments = write(log, "a", [3, 5], after=[])
    file, whole = tmp_path / "a.safetensors", expected({3: 0, 5: 0})
    content, harmless = file.read_bytes(), 0
    for place, mask in itertools.product(range(len(content)), (1, 32, 255)):
        file.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
        try:
            assert as_dict(RowLog(tmp_path).read(segments)) == whole  # spaces of the header, for one
            harmless += 1
        except UserError as error:
            assert str(error).startswith(f"{file}: the segment is damaged") and "\n" not in str(error)
    assert harmless < 20
    for damaged in (*(content[:length] for length in range(len(content))), content + b" "):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.safetensors: the segment is damaged"):
            list(RowLog(tmp_path).read(segments))


@pytest.mark.parametrize("header", [b"[]", b"{}", b"7", b'{"ids": 3}', b'{"ids": {"data_offsets": [0, 0]}}', b"\xff"])
def test_another_file_under_the_name_of_a_segment_is_an_error_that_names_it(tmp_path, header):
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"a\.safetensors: the segment is damaged"):
        RowLog(tmp_path).read(["a"])


def test_a_missing_segment_is_an_error_that_names_it(tmp_path):
    segments = write(RowLog(tmp_path), "a", [1], after=[])
    segments = write(RowLog(tmp_path), "b", [2], after=segments)
    (tmp_path / "b.safetensors").unlink()
    log = RowLog(tmp_path)
    for use in (log.read, log.size, lambda after: write(log, "c", [3], after=after)):
        with pytest.raises(UserError, match=r"b\.safetensors: the segment is missing: No such file or directory$"):
            use(segments)
    assert set(files(tmp_path)) == {"a.safetensors"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r | {"count": r["count"].astype(np.int64)}, "count is int32[] there, but int64[] in"),
        (lambda r: r | {"count": r["count"][:, None]}, "count is int32[] there, but int32[1] in"),
        (lambda r: r | {"more": r["count"]}, "more is absent there, but int32[] in"),
        (lambda r: {"tasks": r["tasks"]}, "count is int32[] there, but absent in"),
    ],
    ids=["dtype", "shape", "more", "fewer"],
)
def test_rows_of_another_tree_are_an_error_that_names_the_leaf_and_the_file(tmp_path, change, words):
    log = RowLog(tmp_path)
    segments = write(log, "a", [1], after=[])
    with pytest.raises(UserError) as error:
        log.append("b", np.array([2]), change(make_rows([2], 1)), after=segments)
    assert str(error.value).startswith(f"{tmp_path}/a.safetensors: ") and f"{words} the new rows" in str(error.value)
    assert set(files(tmp_path)) == {"a.safetensors"}
    log.append("b", np.array([2]), change(make_rows([2], 1)), after=[])
    with pytest.raises(UserError) as error:
        log.read(["b", "a"])
    assert str(error.value).startswith(f"{tmp_path}/a.safetensors: ") and f"{words} b.safetensors" in str(error.value)


def test_an_onlooker_writes_nothing_and_sees_a_name_that_is_used_again(tmp_path):
    reader = RowLog(tmp_path / "log", read_only=True)
    for use in (lambda: write(reader, "a", [1], after=[]), lambda: reader.collect([])):
        with pytest.raises(ValueError, match="opened to be read only"):
            use()
    assert not (tmp_path / "log").exists()
    for stamp, ids in enumerate(([1, 2], [2, 3, 4])):
        segments = write(RowLog(tmp_path / "log"), "a", ids, after=[], stamp=stamp)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "log").iterdir()}
        assert as_dict(reader.read(segments)) == expected(dict.fromkeys(ids, stamp))
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "log").iterdir()} == before


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.1", "a b", "\u00e9", "a\n"])
def test_no_name_leads_out_of_the_directory(tmp_path, name):
    log = RowLog(tmp_path / "log")
    with pytest.raises(ValueError, match="the name of a segment"):
        write(log, name, [1], after=[])
    if name != "a.1":
        for use in (log.read, log.size, lambda segments: log.collect([segments])):
            with pytest.raises(UserError, match="is not the name of a segment"):
                use([name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "change", "words"),
    [
        ([1, 1], {}, "no two alike"),
        ([-1, 1], {}, "at least 0"),
        ([0.5, 1.0], {}, "must be integers"),
        ([[1, 2]], {}, "must be integers"),
        ([1, 2], {"x": np.zeros(3)}, "x must have 2 rows"),
        ([1, 2], {"x": np.zeros(())}, "x must have 2 rows"),
        ([1, 2], {"x": np.zeros(2, complex)}, "x is complex128; allowed"),
        ([1, 2], {"x": np.zeros(2, ">f4")}, "x is >f4; allowed"),
        ([1, 2], {"ids": np.zeros(2)}, "none named ids"),
    ],
)
def test_rows_that_cannot_be_stored_are_refused(tmp_path, ids, change, words):
    log = RowLog(tmp_path)
    with pytest.raises(ValueError, match=words):
        log.append("a", np.array(ids), {"y": np.zeros(2)} | change, after=[])
    with pytest.raises(ValueError, match="at least one leaf"):
        log.append("a", np.array([1, 2]), {}, after=[])
    segments = write(log, "a", [1], after=[])
    with pytest.raises(ValueError, match="a name is used once"):
        write(log, "a", [1], after=segments)


def test_storage_that_refuses_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: rows cannot be kept here, it is a file$"):
        RowLog(tmp_path / "file")
    log = RowLog(tmp_path / "log")
    (tmp_path / "log").write_text("")
    with pytest.raises(
        UserError, match=r"log/a\.safetensors: changed rows cannot be written: (File exists|Not a dir.*)$"
    ):
        write(log, "a", [1], after=[])
