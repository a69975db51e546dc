"""What a mixture draws from, and how often: the sources, or the groups that a tag makes of their utterances.

The rate of a part that is drawn by its size is that of `seqio.mixing_rate_num_examples`: the number of its utterances,
at most `cap_rows`, to the power of 1 / `temperature`. Whatever the rates, each epoch of a part covers all of it.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hra_jax.console import did_you_mean, listed
from hra_jax.data.columns import as_columns
from hra_jax.data.mixtures import PROPORTIONAL, SourceSpec, check_sources
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError

MOST_GROUPS = 256  # each is a seqio Task, which takes 12 ms to set up and has two numbers in the metrics
WITHOUT = "(none)"  # the group of the utterances that have no such tag
_LONGEST_NAME = 200  # characters
_LOOKED_AT = 1000  # utterances whose tags an error names


class Part(NamedTuple):
    """What is drawn at one rate.

    Attributes:
      spec: its name, the number of its utterances, and its rate.
      utterances: int64 [rows], its utterances as indices into the table.
    """

    spec: SourceSpec
    utterances: np.ndarray


def rate_by_size(rows: int, *, temperature: float = 1.0, cap_rows: int = 0) -> float:
    """The rate of a part of so many utterances, as `seqio.mixing_rate_num_examples` has it; a cap of 0 is none."""
    capped = min(rows, cap_rows) if cap_rows else rows
    return float(capped if temperature == 1 else capped ** (1 / temperature))


def parts_of(
    table: UtteranceTable, *, temperature: float = 1.0, cap_rows: int = 0, groups: str = ""
) -> tuple[Part, ...]:
    """The parts of a mixture of a table's sources; with the default settings these are the sources.

    Groups are made of all sources together whose rate is 'proportional'. A source with a number keeps it as the rate of
    the whole source, and its own groups share it as they would share a mixture.

    Args:
      table: the training utterances.
      temperature: of the rates by size: 1 draws every utterance equally often, large ones every part.
      cap_rows: the most utterances that count for such a rate; 0 for all.
      groups: the tag that makes the groups; '' for none.

    Raises:
      UserError: there are groups, and no utterance has the tag, or too many values, or one that cannot be a name, or a
        source has no usable utterance; or a temperature or a cap would change nothing.
    """
    specs = table.specs()

    def by_size(rows: int) -> float:
        return rate_by_size(rows, temperature=temperature, cap_rows=cap_rows)

    if not groups:
        if temperature != 1 or cap_rows:
            _check_mixes(specs, f"temperature = {temperature:g}" if temperature != 1 else f"cap_rows = {cap_rows}")
        rates = [by_size(spec.rows) if spec.rate == PROPORTIONAL else spec.rate for spec in specs]
        return tuple(
            Part(SourceSpec(spec.name, spec.rows, rate), np.arange(*table.starts[index : index + 2]))
            for index, (spec, rate) in enumerate(zip(specs, rates, strict=True))
        )
    check_sources(specs)
    codes, values = _groups(table, groups)
    pooled = np.asarray([spec.rate == PROPORTIONAL for spec in specs])
    found = [
        Part(SourceSpec(value, len(rows), by_size(len(rows))), rows)
        for value, rows in _split(np.flatnonzero(pooled[table.source]), codes, values)
    ]
    for index in np.flatnonzero(~pooled).tolist():
        inside = _split(np.arange(*table.starts[index : index + 2]), codes, values)
        share = specs[index].weight / sum(by_size(len(rows)) for _, rows in inside)
        found += [
            Part(SourceSpec(f"{specs[index].name}/{value}", len(rows), share * by_size(len(rows))), rows)
            for value, rows in inside
        ]
    if len(found) == 1 and (temperature != 1 or cap_rows):
        raise UserError(
            f"data.groups = {groups!r}: all utterances are in one group, {found[0].spec.name!r}, and so there is "
            "nothing to mix; needed: another tag, or no data.temperature and data.cap_rows"
        )
    if len(found) > MOST_GROUPS:
        raise UserError(
            f"data.groups = {groups!r}: {len(found):,} groups; allowed: at most {MOST_GROUPS} "
            "(with data.draw = 'tasks' any number of tasks have equally many updates)"
        )
    return tuple(found)


def _check_mixes(sources: Sequence[SourceSpec], setting: str) -> None:
    """Refuses, with a UserError, a setting of rates by size that changes nothing."""
    if len(sources) == 1:
        raise UserError(f"data.{setting}: there is one source, and so nothing to mix; needed: data.groups, or another")
    if all(source.rate != PROPORTIONAL for source in sources):
        raise UserError(
            f"data.{setting}: the rates of all sources are numbers, which it does not change; needed: data.groups, or "
            "the rate 'proportional'"
        )


def _groups(table: UtteranceTable, tag: str) -> tuple[np.ndarray, list[str]]:
    """(int [N]: the group of each utterance; their names, sorted)."""
    numbers: dict[str, int] = {}
    codes = np.zeros(len(table), np.int64)
    for index, source in enumerate(table.sources):
        found, texts = as_columns(source.utterances).tag(tag)
        of_texts = np.asarray([*(numbers.setdefault(text, len(numbers)) for text in texts), -1])
        inside = slice(*table.starts[index : index + 2])
        codes[inside] = of_texts[found[table.rows[inside]]]
    present = np.unique(codes).tolist()
    every = list(numbers)
    values = [every[code] for code in present if code >= 0]
    if not values:
        names = sorted({name for row in table.utterances[:_LOOKED_AT] for name in row.tags})
        hint = did_you_mean(tag, names)
        raise UserError(
            f"data.groups = {tag!r}: no usable training utterance has this tag; {hint}{hint and ' '}"
            f"allowed: {listed(names, most=20, show=str)}"
        )
    for value in values:
        if not value.isprintable() or len(value) > _LONGEST_NAME:
            allowed = f"printable characters, at most {_LONGEST_NAME}"
            raise UserError(f"data.groups = {tag!r}: a group cannot have the name {value[:80]!r}; allowed: {allowed}")
    names = sorted({*values, *([WITHOUT] if -1 in present else [])})
    places = {name: place for place, name in enumerate(names)}
    return np.asarray([places.get(name, -1) for name in [*every, WITHOUT]])[codes], names


def _split(rows: np.ndarray, codes: np.ndarray, values: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """(name, int64 indices) of each group among some utterances, in the order of their names."""
    ordered = rows[np.argsort(codes[rows], kind="stable")]
    found, firsts = np.unique(codes[ordered], return_index=True)
    ends = [*firsts[1:], len(ordered)]
    return [(values[code], ordered[start:end]) for code, start, end in zip(found.tolist(), firsts, ends, strict=False)]


def digest(parts: Sequence[Part]) -> str:
    """A hash of the parts: equal parts of equal tables give equal batches."""
    found = hashlib.sha256(repr([part.spec for part in parts]).encode())
    for part in parts:
        found.update(np.ascontiguousarray(part.utterances, np.int64).tobytes())
    return found.hexdigest()
