"""Utterances as columns: a million of them are some arrays, and an `Utterance` is made when one is asked for."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa

from hra_jax.data.utterance import Utterance, tag_value
from hra_jax.storage.json_files import parse_json

JSON_FIELD = {b"values": b"json"}  # metadata of a column of tags whose texts are JSON
MORE_TAGS = "more_tags"  # column of the tags that have none of their own, as JSON objects
_MOST_TAGS = 64  # columns
_KINDS = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_BLOCK = 1024  # utterances that are made at a time
_HANDLED = 8192  # rows whose texts are in memory as Python has them at a time


class UtteranceColumns(Sequence[Utterance]):
    """Utterances of one source as columns (N rows)."""

    def __init__(
        self,
        rows: pa.Table,
        tags: pa.Table,
        make: Callable[[Mapping[str, Any], dict[str, Any]], Utterance],
        paths: Callable[[pa.Table], pa.ChunkedArray] | None = None,
    ) -> None:
        """Takes the columns.

        Args:
          rows: what `make` needs; `duration` (seconds, float64) and `text` (as written) among it, both without nulls,
            and `MORE_TAGS` where there is such a column.
          tags: a column for each tag, named for it: texts, integers, floats or booleans; null where an utterance has
            no such tag. A column whose field has the metadata `JSON_FIELD` holds the values as JSON texts.
          make: the utterance of a row, given its values by column, and its tags.
          paths: of some of `rows` the `audio_filepath` of each, or another path of the same file. All texts that it is
            given are of the type large_string.
        """
        self._rows, self._tags, self._make, self._paths = _whole(rows), _whole(tags), make, paths
        self._row_arrays, self._tag_arrays = _arrays(self._rows), _arrays(self._tags)
        self._json = {name for name in tags.column_names if _is_json(tags.schema.field(name))}
        self.durations: np.ndarray = np.asarray(self._row_arrays["duration"], np.float64)

    def __len__(self) -> int:
        """N."""
        return len(self.durations)

    @overload
    def __getitem__(self, at: int) -> Utterance: ...

    @overload
    def __getitem__(self, at: slice) -> Self: ...

    def __getitem__(self, at: int | slice) -> Utterance | Self:
        """The utterance of a row, made each time it is asked for; of a slice its columns."""
        if isinstance(at, slice):
            return self.take(np.arange(*at.indices(len(self))))
        at = range(len(self))[at]
        values = {name: column[at].as_py() for name, column in self._row_arrays.items()}
        tags = {name: column[at].as_py() for name, column in self._tag_arrays.items()}
        return self._make(values, self._present(tags, values))

    def __iter__(self) -> Iterator[Utterance]:
        """All utterances, made as they are asked for."""
        return self.at(np.arange(len(self)))

    def at(self, indices: np.ndarray) -> Iterator[Utterance]:
        """The utterances of some rows, made as they are asked for, in the order of `indices` (int)."""
        for start in range(0, len(indices), _BLOCK):
            chosen = pa.array(indices[start : start + _BLOCK], pa.int64())
            rows, tags = (table.take(chosen).to_pydict() for table in (self._rows, self._tags))
            for at in range(len(chosen)):
                values = {name: column[at] for name, column in rows.items()}
                yield self._make(values, self._present({name: column[at] for name, column in tags.items()}, values))

    def _present(self, tags: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """The tags of one utterance, of its values by column."""
        found = {name: value for name, value in tags.items() if value is not None}
        for name in self._json.intersection(found):
            found[name] = _value(found[name])
        more = values.get(MORE_TAGS)
        return found if more is None else {**found, **_value(more)}

    @property
    def labelled(self) -> np.ndarray:
        """bool [N]: `Utterance.labelled` of each."""
        return np.ones(len(self), bool)

    def texts(self, indices: np.ndarray) -> list[str]:
        """The texts of some rows, as written, in the order of `indices` (int)."""
        found: list[str] = self._row_arrays["text"].take(pa.array(indices, pa.int64())).to_pylist()
        return found

    def audio_paths(self, indices: np.ndarray) -> pa.ChunkedArray | None:
        """Of some rows (int [M]) the `audio_filepath`, or another path of the same file; None where they are made."""
        return None if self._paths is None else self._paths(self._rows.take(pa.array(indices, pa.int64())))

    def numbers(self, name: str) -> np.ndarray | None:
        """A column of numbers [N] that is among those that utterances are made of; None where there is none."""
        return np.asarray(self._row_arrays[name]) if name in self._row_arrays else None

    def tag(self, name: str) -> tuple[np.ndarray, list[str]]:
        """What `Utterance.tag` gives for all rows.

        Returns:
          (int32 [N]: of each row the number of its value, -1 for none; the values, each once, as they come first).
        """
        if name not in self._tag_arrays:
            if MORE_TAGS not in self._row_arrays:
                return np.full(len(self), -1, np.int32), []
            more = self._row_arrays[MORE_TAGS].to_pylist()
            return _numbered(None if text is None else tag_value(_value(text), name) for text in more)
        encoded = self._tag_arrays[name].dictionary_encode()
        values = encoded.dictionary.to_pylist()
        if name in self._json:
            values = [_value(value) for value in values]
        numbers, distinct = _numbered(tag_value({name: value}, name) for value in values)
        codes = np.asarray(encoded.indices.fill_null(len(values)))
        return np.append(numbers, np.int32(-1))[codes], distinct

    def take(self, indices: np.ndarray) -> Self:
        """The columns of some rows: int [M], or bool [N]."""
        chosen = pa.array(np.flatnonzero(indices) if indices.dtype == bool else indices, pa.int64())
        return type(self)(self._rows.take(chosen), self._tags.take(chosen), self._make, self._paths)


class ListedUtterances(UtteranceColumns):
    """Utterances that are in memory, with the columns that others have."""

    def __init__(self, utterances: Sequence[Utterance]):
        """Takes the utterances."""
        self._utterances = list(utterances)
        self.durations = np.asarray([row.duration for row in self._utterances], np.float64)

    def __getitem__(self, at: Any) -> Any:
        """As given."""
        return type(self)(self._utterances[at]) if isinstance(at, slice) else self._utterances[at]

    def at(self, indices: np.ndarray) -> Iterator[Utterance]:
        """As `UtteranceColumns.at`."""
        return (self._utterances[at] for at in indices.tolist())

    @property
    def labelled(self) -> np.ndarray:
        """bool [N]: `Utterance.labelled` of each."""
        return np.asarray([row.labelled for row in self._utterances], bool)

    def texts(self, indices: np.ndarray) -> list[str]:
        """As `UtteranceColumns.texts`."""
        return [self._utterances[at].text for at in indices.tolist()]

    def audio_paths(self, indices: np.ndarray) -> None:
        """None."""
        del indices

    def numbers(self, name: str) -> None:
        """None."""
        del name

    def tag(self, name: str) -> tuple[np.ndarray, list[str]]:
        """As `UtteranceColumns.tag`."""
        return _numbered(row.tag(name) for row in self._utterances)

    def take(self, indices: np.ndarray) -> Self:
        """As `UtteranceColumns.take`."""
        chosen = np.flatnonzero(indices) if indices.dtype == bool else indices
        return type(self)([self._utterances[at] for at in chosen.tolist()])


class JoinedUtterances(Sequence[Utterance]):
    """Utterances of several sources (N rows), each made when it is asked for."""

    def __init__(self, columns: Sequence[UtteranceColumns], source: np.ndarray, rows: np.ndarray):
        """Takes the sources; of each utterance, int [N]: the source, ascending, and the row of it."""
        self._columns, self._source, self._rows = columns, source, rows

    def __len__(self) -> int:
        """N."""
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> Utterance: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Utterance]: ...

    def __getitem__(self, at: int | slice) -> Utterance | Sequence[Utterance]:
        """An utterance, made each time it is asked for, or some of them."""
        if isinstance(at, slice):
            return JoinedUtterances(self._columns, self._source[at], self._rows[at])
        return self._columns[self._source[at]][int(self._rows[at])]

    def __iter__(self) -> Iterator[Utterance]:
        """All of them."""
        return itertools.chain.from_iterable(columns.at(rows) for columns, rows in self.parts())

    def parts(self) -> Iterator[tuple[UtteranceColumns, np.ndarray]]:
        """Each source that there are utterances of, and which rows of it (int)."""
        edges = [0, *(np.flatnonzero(np.diff(self._source)) + 1).tolist(), len(self._source)]
        for start, end in itertools.pairwise(edges):
            if start < end:
                yield self._columns[self._source[start]], self._rows[start:end]


def joined(sources: Iterable[Sequence[Utterance]]) -> JoinedUtterances:
    """All utterances of some sources."""
    columns = list(map(as_columns, sources))
    sizes = list(map(len, columns))
    rows = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.zeros(0, np.int64)
    return JoinedUtterances(columns, np.repeat(np.arange(len(columns)), sizes), rows)


def texts_of(sources: Iterable[Sequence[Utterance]]) -> Iterator[list[str]]:
    """The texts of all utterances of some sources as written, many at a time."""
    for columns in map(as_columns, sources):
        for rows in blocks(np.arange(len(columns))):
            yield columns.texts(rows)


class TagColumns:
    """Collects the tags of utterances, some rows after the other."""

    def __init__(self) -> None:
        """Starts without a row."""
        self._size = 0
        self._parts: dict[str, list[tuple[int, pa.Array, bool]]] = {}  # first row, values, whether they are JSON
        self._more: list[tuple[int, pa.Array, bool]] = []

    def add(self, tags: pa.Table) -> None:
        """Takes rows whose tags are columns, of texts, integers, floats or booleans; null for none."""
        if len(self._parts.keys() | set(tags.column_names)) > _MOST_TAGS:
            rows = tags.to_pylist()
            self.add_values([{name: value for name, value in row.items() if value is not None} for row in rows])
            return
        for name, array in _arrays(_whole(tags)).items():
            self._parts.setdefault(name, []).append((self._size, array, False))
        self._size += tags.num_rows

    def add_values(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes rows with any tags that JSON has."""
        for name in dict.fromkeys(name for row in rows for name in row):
            if name in self._parts or len(self._parts) < _MOST_TAGS:
                there = [name in row for row in rows]
                part = _array(there, [row.get(name) for row in rows])
                self._parts.setdefault(name, []).append((self._size, *part))
        more = [{name: value for name, value in row.items() if name not in self._parts} for row in rows]
        if any(more):
            self._more.append((self._size, *_array([bool(row) for row in more], more)))
        self._size += len(rows)

    def tables(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Other columns of all the rows and the tags, as `UtteranceColumns` takes them."""
        tags = {name: self._column(parts) for name, parts in self._parts.items()}
        fields = [
            pa.field(name, array.type, metadata=JSON_FIELD if is_json else None)
            for name, (array, is_json) in tags.items()
        ]
        if self._more:
            rows = rows.append_column(MORE_TAGS, self._column(self._more)[0])
        return rows, pa.table([array for array, _ in tags.values()], schema=pa.schema(fields))

    def _column(self, parts: Sequence[tuple[int, pa.Array, bool]]) -> tuple[pa.ChunkedArray, bool]:
        """(a value or null for each row, whether they are JSON)."""
        as_json = len({(str(array.type), is_json) for _, array, is_json in parts}) > 1 or parts[0][2]
        found, size = [], 0
        for start, array, is_json in parts:
            if as_json and not is_json:
                array = _json_texts(array.is_valid().to_pylist(), array.to_pylist())
            found += [pa.nulls(start - size, array.type), array]
            size = start + len(array)
        found.append(pa.nulls(self._size - size, found[0].type))
        return pa.chunked_array(found), as_json


def _array(there: Sequence[bool], values: Sequence[Any]) -> tuple[pa.Array, bool]:
    """(values of one tag, null where there is none; whether they are JSON)."""
    kinds = {type(value) for value, found in zip(values, there, strict=True) if found}
    kind = _KINDS.get(kinds.pop()) if len(kinds) == 1 else None
    if kind is not None:
        with contextlib.suppress(OverflowError):  # an integer of more than 64 bits
            return pa.array(values, kind), False
    return _json_texts(there, values), True


def _json_texts(there: Sequence[bool], values: Sequence[Any]) -> pa.Array:
    texts = [
        json.dumps(value, ensure_ascii=False) if found else None for value, found in zip(values, there, strict=True)
    ]
    return pa.array(texts, pa.large_string())


def as_columns(utterances: Sequence[Utterance]) -> UtteranceColumns:
    """Utterances as columns; what is columns already is given back."""
    return utterances if isinstance(utterances, UtteranceColumns) else ListedUtterances(utterances)


def blocks(rows: np.ndarray, size: int = _HANDLED) -> Iterator[np.ndarray]:
    """Row numbers in pieces that are handled at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _whole(table: pa.Table) -> pa.Table:
    """The same with each column in one piece, which is what looking one value up is fast in.

    Texts get offsets of 64 bits: those of a million utterances may be longer than 2 GB.
    """
    schema = pa.schema(
        [field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field for field in table.schema]
    )
    columns = [
        column.cast(field.type) if column.num_chunks == 1 else column.cast(field.type).combine_chunks()
        for field, column in zip(schema, table.columns, strict=True)
    ]
    return pa.table(columns, schema=schema)


def _arrays(table: pa.Table) -> dict[str, pa.Array]:
    """The columns of a `_whole` table by name."""
    return {
        field.name: column.chunk(0) if column.num_chunks else pa.array([], field.type)
        for field, column in zip(table.schema, table.columns, strict=True)
    }


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).items() >= JSON_FIELD.items()


def _value(text: str) -> Any:
    return parse_json(text, where="a tag")


def _numbered(values: Iterable[str | None]) -> tuple[np.ndarray, list[str]]:
    """(int32 [N]: the number of each value, -1 for None; the distinct values)."""
    known: dict[str, int] = {}
    numbers = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return np.asarray(numbers, np.int32), list(known)
