"""What was drawn beside what was asked: shares, tasks that were not drawn, and what steps will draw."""

import itertools
import json

import numpy as np
import pytest
from reference.accents import table_of

from hra_jax.data import batching, drawn
from hra_jax.data.durations import padding_share
from hra_jax.data.groups import parts_of
from hra_jax.data.mixtures import ReferenceStream

SOURCES = (("a", "proportional", ["x"] * 40 + ["y"] * 3), ("b", 0.2, ["x"] * 30))


@pytest.fixture
def parts_and_table():
    table = table_of(*SOURCES)
    return parts_of(table, groups="accent", temperature=2.0), table


def test_shares_and_numbers_say_what_was_asked_and_drawn(parts_and_table):
    parts, _ = parts_and_table
    found = drawn.shares(parts, [30, 10, 0])
    weights = np.sqrt([40, 3])
    total = weights.sum() + 0.2
    assert [share.asked for share in found] == pytest.approx([*weights / total, 0.2 / total])
    numbers = drawn.scalars(found)
    assert numbers["data/drawn/x"] == 0.75 and numbers["data/drawn/b/x"] == 0
    assert numbers["data/asked/y"] == pytest.approx(weights[1] / total)
    stored = json.loads(json.dumps(drawn.to_json(found, ["ann"])))
    assert stored["references"] == 40 and stored["tasks_never_drawn"] == ["ann"]
    expected = {"name": "y", "utterances": 3, "asked": 0, "drawn": 0.25, "references": 10}
    assert stored["parts"][1] | {"asked": 0} == expected


@pytest.mark.parametrize("count", [0, 1, 5, 20, 60, 400])
def test_tasks_that_were_not_drawn_are_those_that_the_stream_did_not_give(parts_and_table, count):
    parts, table = parts_and_table
    stream = ReferenceStream([part.spec for part in parts], seed=7)
    given = {int(table.task[parts[part].utterances[row]]) for part, row, _ in itertools.islice(stream, count)}
    expected = [name for task, name in enumerate(table.task_names) if task not in given]
    assert drawn.undrawn_tasks(table, parts, stream.drawn, seed=7) == expected
    assert count < 400 or expected == []


def test_the_references_of_steps_and_their_padding_are_foreseen(parts_and_table):
    parts, table = parts_and_table
    random = np.random.default_rng(0)
    table.duration = random.choice([0.3, 0.9, 1.8], len(table), p=[0.5, 0.3, 0.2])
    table.duration[parts[1].utterances] = 1.1  # of those that are drawn far more often than others
    buckets, rows = (0.5, 1.0, 2.0), (16, 8, 4)
    batcher = batching.Batcher(buckets, rows=rows, max_tasks=99, lookup=table.lookup)
    stream, batches = ReferenceStream([part.spec for part in parts], seed=0), 0
    spoken = held = 0.0
    while batches < 300:
        part, row, _ = next(stream)
        batcher.add(*table.place(int(parts[part].utterances[row])))
        plan = batcher.pop()
        if plan is not None:
            batches += 1
            held += rows[plan.bucket] * buckets[plan.bucket]
            spoken += sum(table.lookup(*place)[0] for place in plan.rows)
    foreseen = drawn.references_in(300, table, parts, buckets=buckets, rows=rows)
    assert foreseen == pytest.approx(stream.consumed, rel=0.03)
    padding = padding_share(table.duration, buckets, drawn.draw_weights(table, parts))
    assert padding == pytest.approx(1 - spoken / held, abs=0.02)
    assert abs(padding - padding_share(table.duration, buckets)) > 0.05  # as if all came equally often
