"""Lines of JSON as columns: what comes out is what a reader of single lines says, or nothing."""

import json
import random

import pyarrow as pa
import pytest

from hra_jax.errors import UserError
from hra_jax.storage.json_columns import plain_objects
from hra_jax.storage.json_files import parse_json

FIELDS = {"path": pa.string(), "seconds": pa.float64()}
GOOD = b'{"path": "a.wav", "seconds": 1, "tag": "x"}'


def _one_by_one(content: bytes) -> list[dict]:
    rows = [parse_json(line, where="it") for line in content.removesuffix(b"\n").split(b"\n")]
    return [{**row, **({"seconds": float(row["seconds"])} if "seconds" in row else {})} for row in rows]


def _rows(table: pa.Table) -> list[dict]:
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


PLAIN = {
    "one": [GOOD],
    "fields that some lack": [GOOD, b"{}", b'{"seconds":2.5}', b'{"other":"y"}'],
    "escapes and letters": ['{"path": "\\u00e9\\n\\"\\\\", "tag": "é\u2028 {[null] }"}'.encode()],
    "integers, floats, booleans": [b'{"a":7,"b":7.5,"c":true,"d":-0.0}', b'{"a":-9,"b":1e5,"c":false,"d":3.0}'],
    "what looks like a time": [b'{"path":"2024-01-01","tag":"2024-01-01"}', b'{"tag":"2024-01-01 10:00:00"}'],
    "an integer in a known field": [b'{"seconds":3}', b'{"seconds":-0.5}'],
    "brackets in texts": [b'{"path":"[[[[{{{{"}', b'{"path":"}"}'],
    "white space": [b'{ "path" : "a" ,\t"seconds" : 1 }'],
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_plain_lines_are_read_as_one_by_one(name, end):
    content = b"\n".join(PLAIN[name]) + end
    table = plain_objects(content, FIELDS)
    assert table is not None
    assert list(map(repr, map(sorted, map(dict.items, _rows(table))))) == [
        repr(sorted(row.items())) for row in _one_by_one(content)
    ]


OTHERS = {
    "no object": b"[1]",
    "a line in two": b'{"path":\n"a"}',
    "two in a line": b'{"a":1}{"a":2}',
    "two in a line and one in two": b'{"a":1}{"b":{\n}}',
    "an empty line": b"\n" + GOOD,
    "white space at an end": GOOD + b" ",
    "a key twice": b'{"path": "a", "path": "b"}',
    "null": b'{"tag":  null}',
    "a list": b'{"tag": [1]}',
    "an object": b'{"tag": {"a": 1}}',
    "deep": b'{"tag":' * 1000 + b"1" + b"}" * 1000,
    "deep lists": b'{"tag":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "half of a pair": b'{"tag": "\\ud800"}',
    "a pair": b'{"tag": "\\ud83d\\ude00"}',
    "NUL": b'{"path": "a\\u0000"}',
    "NUL as it is": b'{"path": "a\0"}',
    "not UTF-8": b'{"path": "\xff"}',
    "half of a pair as it is": b'{"path": "\xed\xa0\x80"}',
    "not a number": b'{"seconds": NaN}',
    "not a number in a tag": b'{"tag": NaN}',
    "infinite": b'{"tag": -Infinity}',
    "out of range": b'{"seconds": 1e999}',
    "a large integer": b'{"tag": 99999999999999999999}',
    "integers and floats": b'{"tag": 1.5}\n{"tag": 1}',
    "texts and numbers": b'{"tag": "x"}\n{"tag": 1}',
    "another kind": b'{"seconds": "1"}',
    "a mark": b"\xef\xbb\xbf" + GOOD,
    "a carriage return": GOOD + b"\r\n" + GOOD,
    "not JSON": b'{"path": "a",}',
    "a comment": GOOD + b"//",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_is_left_to_a_reader_of_single_lines(name):
    for content in (OTHERS[name], GOOD + b"\n" + OTHERS[name], OTHERS[name] + b"\n" + GOOD + b"\n"):
        assert plain_objects(content, FIELDS) is None


PIECES = (b"", b"", b'"', b"}", b"{", b"\n", b",", b"0", b"1", b"\\", b"\xc3", b" ", b"e", b".")


def test_no_damage_is_read_otherwise_than_by_single_lines():
    source = random.Random(1)
    plain = 0
    for _ in range(2000):
        row = {"path": source.choice(["a", "é", "2024-01-01"]), "seconds": source.choice([1, 2.5]), "n": 7}
        content = bytearray(b"\n".join(json.dumps(row, ensure_ascii=source.random() < 0.5).encode() for _ in "ab"))
        for _ in range(source.randint(0, 2)):
            at = source.randrange(len(content) + 1)
            piece = source.choice(
                [b"", b"", b'"', b"}", b"{", b"\n", b",", b"0", b"1", b"\\", b"\xc3", b" ", b"e", b"."]
            )
            content[at : at + source.choice((0, 1, 1, 3))] = piece
        table = plain_objects(bytes(content), FIELDS)
        if table is not None:
            plain += 1
            found = [dict(sorted(row.items())) for row in _rows(table)]
            assert list(map(repr, found)) == [repr(dict(sorted(row.items()))) for row in _one_by_one(bytes(content))]
    assert 500 < plain < 1950
    with pytest.raises(UserError):
        _one_by_one(b"{")
