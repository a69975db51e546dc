"""Utterances as columns: what comes out is what went in, row by row and column by column."""

import json

import numpy as np
import pyarrow as pa
import pytest

from hra_jax.data import columns
from hra_jax.data.utterance import Utterance

TAGS = [
    {"speaker": "anna", "age": 7, "snr": 1.5, "any": "x"},
    {"speaker": "ben", "age": 70, "any": 7},
    {"speaker": " ", "snr": -2.0, "any": "7"},
    {},
    {"speaker": "anna", "any": None},
    {"speaker": "7", "any": ["a"]},
]
LISTED = [
    Utterance(f"/data/{i}.wav", 1.0 + i, f"text {i}", tags=tags, key=f"{i}.wav", source="m", line=i + 1)
    for i, tags in enumerate(TAGS)
]


def _arrow() -> columns.UtteranceColumns:
    """The listed utterances as parquet files have them, in two pieces."""
    tags = {name: [row.get(name) for row in TAGS] for name in ("speaker", "age", "snr")}
    tags["any"] = [json.dumps(row["any"]) if "any" in row else None for row in TAGS]
    schema = pa.schema(
        [("speaker", pa.string()), ("age", pa.int64()), ("snr", pa.float64())]
        + [pa.field("any", pa.string(), metadata=columns.JSON_FIELD)]
    )
    whole = pa.table(tags, schema=schema)
    rows = pa.table({name: [getattr(row, name) for row in LISTED] for name in ("duration", "text", "line")})

    def make(values, tags):
        at = values["line"] - 1
        return Utterance(f"/data/{at}.wav", values["duration"], values["text"], 0.0, tags, f"{at}.wav", "m", at + 1)

    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])
    return columns.UtteranceColumns(rows, pieces, make)


@pytest.fixture(params=["arrow", "list"])
def found(request) -> columns.UtteranceColumns:
    return _arrow() if request.param == "arrow" else columns.as_columns(LISTED)


def test_the_utterances_of_columns_are_those_that_went_in(found):
    assert list(found) == [found[i] for i in range(len(found))] == LISTED
    assert found[-1] == LISTED[-1] and len(found) == len(LISTED)
    with pytest.raises(IndexError):
        found[len(LISTED)]
    np.testing.assert_array_equal(found.durations, [row.duration for row in LISTED])
    assert found.texts(np.array([3, 1])) == ["text 3", "text 1"]


@pytest.mark.parametrize("name", ["speaker", "age", "snr", "any", "none"])
def test_a_tag_as_a_column_says_what_each_utterance_says(found, name):
    codes, values = found.tag(name)
    assert codes.dtype == np.int32 and len(set(values)) == len(values)
    assert [None if code < 0 else values[code] for code in codes] == [row.tag(name) for row in LISTED]


def test_rows_are_taken_by_mask_number_and_slice(found):
    mask = found.durations > 2.5
    expected = [row for row in LISTED if row.duration > 2.5]
    assert list(found.take(mask)) == list(found[2:]) == list(found.take(np.arange(2, 6))) == expected
    assert list(found.take(np.array([4, 0]))[::-1]) == [LISTED[0], LISTED[4]]
    empty = found.take(np.zeros(6, bool))
    assert list(empty) == [] and empty.tag("speaker")[0].shape == (0,)


def test_columns_of_columns_are_themselves(found):
    assert columns.as_columns(found) is found
