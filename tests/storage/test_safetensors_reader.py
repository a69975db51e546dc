"""Tensors read by slices: the bytes that come back, the bytes that are read, and what a damaged folder gives."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from hra_jax.errors import UserError
from hra_jax.storage import safetensors_reader
from hra_jax.storage.safetensors_reader import TensorFiles

INDEX = "model.safetensors.index.json"


def some_tensors() -> dict:
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((3, 4, 5)) for name in "abcd"}
    dtypes = zip(values, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64), strict=True)
    tensors = {name: values[name].astype(dtype) for name, dtype in dtypes}
    return tensors | {"scalar": np.float32(7), "empty": np.zeros((0, 2), np.float32)}


def write_shards(folder, tensors: dict, *, count: int = 2) -> dict:
    """Files as published encoders have them; returns the index."""
    names, placed = sorted(tensors), {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        (folder / file).write_bytes(safetensors.numpy.save({name: np.asarray(leaf) for name, leaf in part.items()}))
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / INDEX).write_text(json.dumps(index))
    return index


@pytest.fixture(params=["one", "several"])
def folder(request, tmp_path):
    counter = {"counter": np.array(3, np.int64)}
    if request.param == "one":
        whole = {name: np.asarray(leaf) for name, leaf in (some_tensors() | counter).items()}
        (tmp_path / "model.safetensors").write_bytes(safetensors.numpy.save(whole))
    else:
        write_shards(tmp_path, some_tensors() | counter)
    return tmp_path


def raw_file(path, entries, data: bytes = b""):
    """A safetensors file with exactly this header."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def refusal(folder) -> str:
    with pytest.raises(UserError) as error:
        TensorFiles(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_every_tensor_comes_back_and_counters_are_passed_over(folder):
    files, tensors = TensorFiles(folder), some_tensors()
    assert files.names() == tuple(sorted(tensors)) and files.ignored == {"counter": "I64"}
    for name, leaf in tensors.items():
        found = files.read(name)
        assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype) == (files.shape(name), files.dtype(name))
        assert found.tobytes() == leaf.tobytes()
        assert found.flags.writeable
    for name in ("counter", "nothing"):
        with pytest.raises(UserError, match=f"lacks a floating-point tensor '{name}'"):
            files.read(name)


@pytest.mark.parametrize("chunk", [16 << 20, 48])
@pytest.mark.parametrize(
    "index",
    [2, -1, np.s_[:], np.s_[1:2], np.s_[:, 1:3], np.s_[1:, :, 2:4], np.s_[0, 1], np.s_[0, 1, 2], np.s_[2:, -2:, 4:]]
    + [np.s_[3:], np.s_[:, 2:2], np.s_[-2:9, 0]],
    ids=str,
)
def test_a_slice_is_what_numpy_gives_and_reads_only_its_bytes(folder, index, chunk, monkeypatch):
    monkeypatch.setattr(safetensors_reader, "_CHUNK", chunk)
    for name, leaf in some_tensors().items():
        if leaf.ndim != 3:
            continue
        files = TensorFiles(folder)
        found, expected = files.read_slice(name, index), leaf[index]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.tobytes() == expected.tobytes()
        assert files.bytes_read == expected.nbytes


@pytest.mark.parametrize("gap, chunk", [(1 << 20, 1 << 20), (1 << 20, 50), (12, 1 << 20)])
def test_reading_on_over_gaps_as_on_remote_paths_gives_the_same(folder, monkeypatch, gap, chunk):
    groups = safetensors_reader._groups
    monkeypatch.setattr(safetensors_reader, "_CHUNK", chunk)
    monkeypatch.setattr(safetensors_reader, "_groups", lambda offsets, length, _: groups(offsets, length, gap))
    index, leaf, files = np.s_[:, 1:3, 2:4], some_tensors()["a"], TensorFiles(folder)
    assert files.read_slice("a", index).tobytes() == leaf[index].tobytes()
    assert files.bytes_read > leaf[index].nbytes


@pytest.mark.parametrize("gap", [0, 10**6])
def test_who_reads_is_told_of_every_piece_once_it_is_there(folder, monkeypatch, gap):
    monkeypatch.setattr(safetensors_reader, "is_remote", lambda path: bool(gap))
    monkeypatch.setattr(safetensors_reader, "_REMOTE_GAP", gap)
    monkeypatch.setattr(safetensors_reader, "_CHUNK", 64)
    files = TensorFiles(folder)
    for index in ((), slice(1, 3), (slice(None), slice(1, 2))):
        pieces: list[bytes] = []
        found = files.read_slice("d", index, told=lambda piece, pieces=pieces: pieces.append(bytes(piece)))
        assert len(pieces) > 1 and b"".join(pieces) == found.tobytes()


def test_an_index_that_does_not_fit_is_an_error(folder):
    files = TensorFiles(folder)
    with pytest.raises(IndexError):
        files.read_slice("a", 3)
    with pytest.raises(IndexError):
        files.read_slice("a", (0, 0, 0, 0))
    with pytest.raises(ValueError, match="a slice with the step 2"):
        files.read_slice("a", np.s_[::2])


def test_one_file_goes_before_an_index(tmp_path):
    write_shards(tmp_path, {"a": np.zeros(2, np.float32)}, count=1)
    (tmp_path / "model.safetensors").write_bytes(safetensors.numpy.save({"b": np.zeros(2, np.float32)}))
    assert TensorFiles(tmp_path).names() == ("b",)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert TensorFiles(tmp_path).names() == ("a",)
    assert TensorFiles(tmp_path, "other.safetensors").names() == ("b",)


def test_an_empty_folder_is_refused(tmp_path):
    assert "holds neither model.safetensors nor model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize("part", ["length", "header", "tensors", "last byte", "nothing"])
def test_a_truncated_file_is_refused(folder, part):
    path = max(folder.glob("*.safetensors"))
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    keep = {"length": 5, "header": 8 + header // 2, "tensors": 8 + header + 9, "last byte": len(content) - 1}
    path.write_bytes(content[: keep.get(part, 0)])
    message = refusal(folder)
    assert path.name in message
    assert ("truncated: " if part in ("tensors", "last byte") else "not a whole safetensors file") in message


def test_a_file_cut_after_it_was_opened_is_refused(folder):
    files = TensorFiles(folder)
    for path in files.paths:
        path.write_bytes(path.read_bytes()[:-16])
    with pytest.raises(UserError, match="ends within a tensor"):
        [files.read(name) for name in files.names()]
    for path in files.paths:
        path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        files.read("a")


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "entries, data, words",
    [
        ({"a": F32, "b": F32}, 8, "'b' overlaps the tensor before it"),
        ({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, 12, "'b' overlaps the tensor before it"),
        ({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, 20, "'b' comes after a gap"),
        ({"a": F32, "b": F32 | {"data_offsets": [8, 16]}}, 12, "truncated: 'b' ends at byte"),
        ({"a": F32}, 12, "4 bytes come after the last tensor"),
        ({"a": F32 | {"shape": [3]}}, 8, "'a' of shape (3,) and dtype F32 cannot take 8 bytes"),
        ({"a": F32 | {"dtype": "F99"}}, 8, "'a' has the unknown dtype 'F99'"),
        ({"a": F32 | {"dtype": ["F32"]}}, 8, "'a' has the unknown dtype ['F32']"),
        ({"a": F32 | {"data_offsets": [8, 0]}}, 8, "the header's entry of 'a' needs"),
        ({"a": F32 | {"shape": [-2]}}, 8, "the header's entry of 'a' needs"),
        ({"a": F32 | {"shape": [True, 2]}}, 8, "the header's entry of 'a' needs"),
        ({"a": {"dtype": "F32"}}, 8, "the header's entry of 'a' needs"),
        ({"a": [1]}, 8, "the header's entry of 'a' needs"),
        ([1], 0, "its header is not a JSON object"),
        (b"{", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b'{"\xff": 1}', 0, "not JSON"),
        (b'{"a": {}, "a": {}}', 0, "the key 'a' is given twice"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, entries, data, words):
    raw_file(tmp_path / "model.safetensors", entries, bytes(data))
    message = refusal(tmp_path)
    assert words in message and "model.safetensors" in message


def test_the_undamaged_header_of_those_tests_is_read(tmp_path):
    entries = {"__metadata__": {"format": "pt"}, "a": F32, "b": F32 | {"data_offsets": [8, 16]}}
    raw_file(tmp_path / "model.safetensors", entries, bytes(16))
    assert TensorFiles(tmp_path).names() == ("a", "b")


def test_a_git_lfs_pointer_is_named_as_one(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "a Git LFS pointer" in refusal(tmp_path)


SHARDS = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda named: named.update(x=SHARDS[0]), f"says that 'x' is in '{SHARDS[0]}', which does not hold it"),
        (lambda named: named.update(a=SHARDS[1]), f"says that 'a' is in '{SHARDS[1]}', which '{SHARDS[0]}' holds"),
        (lambda named: named.pop("a"), f"does not name 'a', which '{SHARDS[0]}' holds"),
        (lambda named: named.update(a="gone.safetensors"), "names the file 'gone.safetensors', which is not there"),
        (lambda named: named.update(a="../x.safetensors"), "names the file '../x.safetensors'; allowed"),
        (lambda named: named.update(a="/x.safetensors"), "names the file '/x.safetensors'; allowed"),
        (lambda named: named.update(a=".."), "names the file '..'; allowed"),
        (lambda named: named.update(a=""), "names the file ''; allowed"),
        (lambda named: named.update(a=1), "an object 'weight_map' of file names"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, words):
    index = write_shards(tmp_path, some_tensors())
    assert len(TensorFiles(tmp_path).paths) == 2
    change(index["weight_map"])
    (tmp_path / INDEX).write_text(json.dumps(index))
    message = refusal(tmp_path)
    assert words in message and INDEX in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    write_shards(tmp_path, some_tensors())
    (tmp_path / INDEX).write_text(content)
    assert INDEX in refusal(tmp_path)
