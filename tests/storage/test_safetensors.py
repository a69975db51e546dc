"""The safetensors format: the bytes that are written are those of the safetensors library."""

import io
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy

from hra_jax.errors import UserError
from hra_jax.storage import safetensors as ours


def arrays() -> dict[str, np.ndarray]:
    """One array of every dtype, and some of the same dtype with shapes and names that are hard."""
    random = np.random.default_rng(0)
    of_every_dtype = {
        f"of {dtype.name}": random.integers(0, 2, (3, 2)).astype(dtype) for dtype in reversed(ours.DTYPES.values())
    }
    return of_every_dtype | {
        "b": random.standard_normal((2, 3)).astype(np.float32),
        "a": np.asfortranarray(random.standard_normal((3, 5)).astype(np.float32)),
        'é\n\x7f"\\': np.zeros((), np.float32),
        "\U0001f600": np.zeros((0, 4), np.float32),
        "\uffff": random.standard_normal(7)[::2],
    }


def contiguous(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the library needs: it writes the memory of an array whatever its strides."""
    return {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}


@pytest.mark.parametrize("metadata", [{"format": "hra_jax"}, {"crc32": '{"é": 1}\n'}])
def test_the_bytes_are_those_of_the_library_in_any_order(metadata):
    tensors = arrays()
    expected = safetensors.numpy.save(contiguous(tensors), metadata=metadata)
    assert ours.to_bytes(tensors, metadata) == expected
    assert ours.to_bytes(dict(reversed(tensors.items())), metadata) == expected


@pytest.mark.parametrize("count", range(4))
def test_a_file_of_few_tensors_is_the_same_too(count):
    tensors = dict(itertools.islice(arrays().items(), count))
    expected = safetensors.numpy.save(contiguous(tensors), metadata=ours.WEIGHT_METADATA)
    assert ours.to_bytes(tensors) == expected


def test_everything_comes_back_in_arrays_of_its_own():
    tensors = arrays()
    content = ours.to_bytes(tensors)
    found = ours.from_bytes(content, where="file")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable and found[name].flags.owndata
    header = ours.read_header(io.BytesIO(content), len(content))
    assert header.metadata == ours.WEIGHT_METADATA
    assert max(entry.stop for entry in header.tensors.values()) == len(content)


@pytest.mark.parametrize("keep", [0, 7, 8, 60, -1])
def test_a_file_that_is_cut_is_one_line_that_names_it(keep):
    with pytest.raises(UserError, match=r"^x/file: (truncated: 'a'|not a whole safetensors file)") as error:
        ours.from_bytes(ours.to_bytes({"a": np.zeros(4, np.float32)})[:keep], where="x/file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"[]", "its header is not a JSON object"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', "'a' is given twice"),
        (b'{"__metadata__": 3}', "metadata in the header must be an object"),
    ],
)
def test_a_header_that_is_not_one_is_refused(header, told):
    with pytest.raises(UserError, match=f"^file: .*{told}"):
        ours.from_bytes(len(header).to_bytes(8, "little") + header + bytes(4), where="file")


@pytest.mark.parametrize("dtype", [">f4", np.complex128, object, "U3"])
def test_a_dtype_that_the_format_lacks_is_refused(dtype):
    with pytest.raises(ValueError, match="allowed: .*float32.*byte order"):
        ours.to_bytes({"a": np.zeros(2, dtype)})


def test_the_header_is_json_that_fills_up_to_eight_bytes():
    for length in range(1, 9):
        content = ours.to_bytes({"n" * length: np.zeros(1, np.uint8)})
        size = int.from_bytes(content[:8], "little")
        assert size % 8 == 0 and len(content) == 8 + size + 1
        assert set(json.loads(content[8 : 8 + size])) == {"__metadata__", "n" * length}
