"""JSON files: what is read, and what is refused in one line."""

import json
import os
import time

import pytest

from hra_jax.errors import UserError
from hra_jax.storage import json_files
from hra_jax.storage.json_files import (
    COUNT,
    AtLeast,
    check_fields,
    json_text,
    parse_json,
    read_json,
    read_lines,
    read_object,
)


def test_what_is_written_is_read_back(tmp_path):
    value = {"é": [1, 2.5, None, True, "x\u2028"], "a": {"b": {}}, "large": 10**30}
    (tmp_path / "file").write_text(json_text(value))
    assert read_json(tmp_path / "file") == read_object(tmp_path / "file", {"é": list, "a": dict}) == value
    assert parse_json(json_text(value), where="x") == value
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text({"a": float("nan")})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not JSON"),
        (b'{"a": ', "not JSON"),
        (b"{} {}", "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' is given twice"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"[1e999]", "1e999 is out of range"),
        (b"9" * 5000, "not JSON"),
        (b"9" * 65, "an integer of 65 digits; allowed: at most 64"),
        (b'["' + b"1" * 70 + b'", -' + b"1" * 400 + b"]", "an integer of 401 digits"),
        (b'{"a": ["\\ud83d\\ude00", {"b": "\\uD83d"}]}', "holds half of a surrogate pair"),
        (b'{"\\udc00": 1}', "holds half of a surrogate pair"),
        (b'["\xed\xa0\x80"]', "not JSON"),
        (b"[" * 65 + b"]" * 65, "more than 64 objects and lists inside each other"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "more than 64 objects and lists inside each other"),
        (b"[" * 100_000, "not JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "more than 64 objects and lists inside each other"),
    ],
)
def test_what_is_not_json_is_one_line_that_names_the_file(tmp_path, content, told):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path / 'file'}: not JSON (") and told in str(error.value)
    assert "\n" not in str(error.value)


def test_the_deepest_that_is_allowed_is_read():
    assert parse_json("[" * 64 + "]" * 64, where="x")


def test_more_values_than_memory_should_hold_are_not_parsed():
    with pytest.raises(UserError, match="more than 8,388,608 values"):
        parse_json(b"[" + b"[]," * 4_200_000 + b"1]", where="x")
    with pytest.raises(UserError, match="more than 3 values"):
        parse_json("[1, [], 2]", where="x", most_values=3)
    assert parse_json("[1, [], 2]", where="x", most_values=4) == [1, [], 2]


def test_numbers_and_pairs_up_to_the_limits_are_read():
    assert parse_json(b"[-" + b"9" * 64 + b', "' + b"9" * 70 + b'"]', where="x") == [-(10**64 - 1), "9" * 70]
    assert parse_json(b'"\\ud83d\\ude00"', where="x") == "\U0001f600"


def test_a_key_that_is_given_twice_among_very_many_is_found_at_once():
    names = [f"{number:06}" for number in range(50_000)]
    text = "{" + ", ".join(f'"{name}": 1' for name in [*names, names[-1]]) + "}"
    started = time.process_time()
    with pytest.raises(UserError, match="the key '049999' is given twice"):
        parse_json(text, where="x")
    assert time.process_time() - started < 5


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: cannot be read .not a regular file"):
        read_json(tmp_path / "pipe")


def test_a_reader_may_allow_other_sizes(tmp_path):
    (tmp_path / "file").write_text("[1, 2]")
    assert read_json(tmp_path / "file", most_bytes=6) == [1, 2]
    with pytest.raises(UserError, match="allowed: at most 5"):
        read_json(tmp_path / "file", most_bytes=5)


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("[1, 2]")
    monkeypatch.setattr(json_files, "MOST_BYTES", 5)
    with pytest.raises(UserError, match=r"file: 6 bytes; allowed: at most 5"):
        read_json(tmp_path / "file")
    with pytest.raises(UserError, match=r"^x: 6 bytes of JSON; allowed: at most 5"):
        parse_json("[1, 2]", where="x")


def test_what_is_not_a_file_is_named_with_what_is_needed(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="is not a file; needed is a folder that has one$"):
            read_json(path, what="a folder that has one")
        with pytest.raises(UserError, match="is not a file$"):
            read_json(path)


GOOD = {"name": "x", "row": 3, "rate": 0.5, "own": True, "more": {}, "list": [], "positive": 1}
KINDS = {"name": str, "row": COUNT, "rate": float, "own": bool, "more": dict, "list": list, "positive": AtLeast(1)}


def test_fields_of_the_kinds_that_are_asked_for_pass():
    assert check_fields(GOOD, KINDS, where="x") is GOOD
    check_fields(GOOD | {"rate": 1, "unknown": None}, KINDS, where="x")
    check_fields({"a": -1}, {"a": int}, where="x")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("name", 3, "needs 'name' (a string); got 3"),
        ("row", True, "needs 'row' (an integer of at least 0); got True"),
        ("row", -1, "needs 'row' (an integer of at least 0); got -1"),
        ("row", 1.0, "needs 'row' (an integer of at least 0); got 1.0"),
        ("positive", 0, "needs 'positive' (an integer of at least 1); got 0"),
        ("rate", "0.5", "needs 'rate' (a number); got '0.5'"),
        ("rate", True, "needs 'rate' (a number); got True"),
        ("own", 1, "needs 'own' (true or false); got 1"),
        ("more", [], "needs 'more' (an object); got []"),
        ("list", {}, "needs 'list' (a list); got {}"),
    ],
)
def test_a_field_of_another_kind_is_named_with_what_was_found(field, value, told):
    with pytest.raises(UserError) as error:
        check_fields(GOOD | {field: value}, KINDS, where="file")
    assert str(error.value) == f"file: {told}"


def test_a_field_that_is_missing_and_a_value_that_is_no_object_are_named(tmp_path):
    for field in GOOD:
        with pytest.raises(UserError, match=f"^file: needs '{field}' .*; got nothing$"):
            check_fields({name: value for name, value in GOOD.items() if name != field}, KINDS, where="file")
    (tmp_path / "file").write_text(json.dumps([1, "x" * 1000]))
    with pytest.raises(UserError) as error:
        read_object(tmp_path / "file", {"a": int, "b": str})
    assert str(error.value).startswith(f"{tmp_path / 'file'}: must be a JSON object with 'a', 'b'; got [1, 'xxx")
    assert len(str(error.value)) < len(str(tmp_path)) + 150


def test_a_file_of_lines_gives_their_objects_and_names_the_line_that_is_not_one(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [{"a": "x\u2028y"}, {"a": ""}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert list(read_lines(path, {"a": str}, what="rows")) == [(f"{path}:{i}", row) for i, row in enumerate(rows, 1)]
    for line, told in (("{", "not JSON"), ("3", "must be a JSON object with 'a'; got 3"), ('{"b": 1}', "needs 'a'")):
        path.write_text(json.dumps(rows[0]) + "\n" + line)
        with pytest.raises(UserError) as error:
            list(read_lines(path, {"a": str}, what="rows"))
        assert str(error.value).startswith(f"{path}:2: {told}")
    with pytest.raises(UserError, match="is not a file; needed is rows$"):
        list(read_lines(tmp_path, {}, what="rows"))
